"""Accounts and the real programs: clients that register and log in, and the operator's program."""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, Final

import protocol
from chatserver import Account, Store
from protocol import GROUP, ITERATIONS_ALLOWED
from tests.forkserver import Command
from tests.programs import (
    LOCALHOST,
    Program,
    ProgramsTest,
    wait_until_joined,
)
from tests.relay import Relay

PASSWORD: Final = "correct horse"
OTHER: Final = "battery staple"

NEEDED: Final = "this name needs its password"
WRONG: Final = "wrong username or password"
UNKNOWN: Final = "this server does not know the name"
ELSEWHERE: Final = "chatclient.py: logged in from elsewhere"
TOO_MANY: Final = r"too many attempts, wait (\d+) s"

# With durations of its own a program makes less work of a new password (tests/forkserver.py).
CHEAP: Final = {"linger": protocol.TIMING.linger}


class Valve(Relay):
    """A good network that loses, while it is told to, what goes to the server or comes from it."""

    def __init__(self, server_port: int) -> None:
        super().__init__(server_port, seed=1, drop=0.0, double=0.0, delays=(0.0, 0.0))
        self.loses: Callable[[bool, bytes], bool] = lambda is_to_server, data: False

    def open(self) -> None:
        self.loses = lambda is_to_server, data: False

    def _carry(self, data: bytes, out: socket.socket, target: Any) -> None:
        if self.loses(target is None, data):
            self.seen.append(data)
        else:
            super()._carry(data, out, target)


def is_handshake(data: bytes) -> bool:
    return data.startswith(b"{")


@cache
def cheap_account(password: str) -> Account:
    """Return an account without a name, as cheap to log in to as a client allows."""
    raw, salt = protocol.prepare_password(password), os.urandom(protocol.SALT_LENGTH)
    iterations = ITERATIONS_ALLOWED.start
    x = protocol.password_secret_untrusted(raw, salt, iterations)
    return Account(b"", "", salt, iterations, GROUP.pad(GROUP.power(x)))


class AccountProgramsTest(ProgramsTest):
    """A test of accounts; a program could save a password nowhere but in ``self.folder``."""

    timing: ClassVar[Mapping[str, float]] = CHEAP  # of all programs of a class's tests

    def variables(self, password: str | None, new: str | None = None) -> dict[str, str]:
        given = {"HOME": str(self.folder), "CHAT_PASSWORD": password, "CHAT_NEW_PASSWORD": new}
        return {name: value for name, value in given.items() if value is not None}

    def client(
        self,
        name: str,
        port: int,
        password: str | None = None,
        *options: str,
        new: str | None = None,
        timing: Mapping[str, float] | None = None,
    ) -> Program:
        arguments = [LOCALHOST, "0", name, "--server-port", str(port), *options]
        start = Command("chatclient", arguments, {**self.timing, **(timing or {})})
        return self.start(start, variables=self.variables(password, new))

    def register(self, name: str, port: int, password: str = PASSWORD, **timing: float) -> Program:
        """Return a client that has registered its name, and is in the room."""
        client = self.client(name, port, password, "--register", timing=timing)
        client.wait_for(f"* registered {name}")
        wait_until_joined(client)
        return client

    def log_in(self, name: str, port: int, password: str = PASSWORD, **timing: float) -> Program:
        client = self.client(name, port, password, timing=timing)
        client.wait_for(f"* logged in as {name}")
        wait_until_joined(client)
        return client

    def manage(self, *options: str, password: str | None = None) -> Program:
        """Start the operator's program."""
        command = Command("chatserver", [*options, "--db", str(self.db)], self.timing)
        return self.start(command, variables=self.variables(password))

    def add(self, *names: str, password: str = PASSWORD) -> None:
        for name in names:
            program = self.manage("--add-user", name, password=password)
            self.assertEqual(self.end(program), [f"added {name}"])

    def have(self, *names: str) -> None:
        """Make accounts before there is a server, and faster than the operator's program."""
        with closing(Store(str(self.db))) as store:
            for name in names:
                account = replace(cheap_account(PASSWORD), id=os.urandom(16), name=name)
                self.assertTrue(store.add(account))

    def accounts(self) -> list[str]:
        """Return the names of the accounts in the room file."""
        with closing(sqlite3.connect(self.db)) as file:
            return [name for (name,) in file.execute("SELECT name FROM accounts ORDER BY folded")]

    def assert_put_out(self, client: Program, complaint: str) -> None:
        self.assertEqual(client.status(), 1, str(client))
        self.assertEqual(client.complaints, [complaint])

    def kill(self, server: Program) -> None:
        server.process.kill()
        server.status()
