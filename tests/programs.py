"""The real programs as processes: started, typed to, waited for by what they print, and ended."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition, Thread
from typing import IO, Final

from tests.forkserver import ROOT, Command, Forked, fork_server, ignored_signals

LOCALHOST: Final = "127.0.0.1"
# How much slower than usual this machine is: every wait for something to happen is longer by that.
TIMEOUT_FACTOR: Final = float(os.environ.get("CHAT_TESTS_TIMEOUT_FACTOR", "1"))
# Only a failing test waits that long; a busy machine needs some of it.
PATIENCE: Final = 30.0 * TIMEOUT_FACTOR  # seconds
PROGRAMS_AT_ONCE: Final = 2  # more would only wait for each other
POLL: Final = 0.05  # seconds between two looks at what tells nobody that it has changed


def _let_programs_obey_signals() -> None:
    """Give each signal that this process ignores a handler that does nothing.

    Tests that are started in the background (``python -m tests &``, nohup) ignore some, and
    programs would inherit that. Exec and the fork server reset handlers.
    """
    for number in ignored_signals():
        signal.signal(number, lambda *_: None)


_let_programs_obey_signals()


def environment(**more: str) -> dict[str, str]:
    """This one, but for what would hide that a program forgets to flush, and for passwords of
    the person who runs the tests."""
    left_out = ("PYTHONUNBUFFERED", "CHAT_PASSWORD", "CHAT_NEW_PASSWORD")
    return {k: v for k, v in os.environ.items() if k not in left_out} | more


def lasting_port() -> int:
    """Return a UDP port for a program that comes back at it.

    No socket gets it by chance while the program is away: it is below the ports that a system gives
    when any will do (RFC 6335 section 6: from 49152 on; Linux: from 32768 on). Processes with ids
    that follow each other look for theirs in ranges that do not overlap.
    """
    for port in range(20_000 + os.getpid() % 380 * 32, 32_768):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.bind((LOCALHOST, port))
            return port
    raise AssertionError("no UDP port is free below 32768")


def udp_socket(host: str, server_port: int) -> socket.socket:
    """Return a UDP socket at ``host``, connected to a server here."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setblocking(False)
    udp.bind((host, 0))
    udp.connect((LOCALHOST, server_port))
    return udp


def arrived(udp: socket.socket) -> Iterator[bytes]:
    """Return the datagrams that have come already to a socket that does not block."""
    with suppress(OSError):  # nothing more, or the port is closed
        while True:
            yield udp.recv(2048)


@contextmanager
def process(arguments: Sequence[str], errors: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """Start a program with text pipes; it is killed at the end of the block."""
    pipe, env = subprocess.PIPE, environment()
    with subprocess.Popen(
        arguments, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, stderr=errors, text=True
    ) as it:
        try:
            yield it
        finally:
            it.kill()


def next_line(program: subprocess.Popen[str]) -> str:
    """Return the next line that it prints."""
    assert program.stdout
    readable, _, _ = select.select([program.stdout], [], [], PATIENCE)
    if not readable:
        raise AssertionError(f"nothing from process {program.pid}")
    if not (line := program.stdout.readline()):
        raise AssertionError(
            f"process {program.pid} has ended with status {program.wait(PATIENCE)}"
        )
    return line


def without_clock(line: str) -> str:
    """The line as the documentation has it: ``[HH:MM]`` in place of the time."""
    return re.sub(r"\[\d\d:\d\d\]", "[HH:MM]", line)


class Program:
    """A running process, and what it has printed so far.

    A Command is forked where that is possible; a command line is exec'd.
    """

    def __init__(
        self,
        start: Command | Sequence[str],
        folder: Path,
        stdout: int = subprocess.PIPE,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        env = environment(**(variables or {}))
        self.process: Forked | subprocess.Popen[bytes]
        if isinstance(start, Command) and (server := fork_server()):
            self.process = Forked(server, start, folder, env, stdout)
        else:
            self.process = subprocess.Popen(
                start.line if isinstance(start, Command) else start,
                cwd=folder,
                env=env,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=subprocess.PIPE,
            )
        self._changed = Condition()
        self._printed: list[str] = []
        self._complaints: list[str] = []
        streams = ((self.process.stdout, self._printed), (self.process.stderr, self._complaints))
        self._threads = [
            Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in streams
            if stream
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: IO[bytes], lines: list[str]) -> None:
        with stream:
            for raw in stream:
                with self._changed:
                    lines.append(raw.decode().rstrip("\r\n"))
                    self._changed.notify_all()

    @property
    def shown(self) -> list[str]:
        """The lines on its standard output, with ``[HH:MM]`` for every time."""
        with self._changed:
            return [without_clock(line) for line in self._printed]

    @property
    def printed(self) -> list[str]:
        """The same lines with the times as they are."""
        with self._changed:
            return list(self._printed)

    @property
    def complaints(self) -> list[str]:
        """The lines on its standard error."""
        with self._changed:
            return list(self._complaints)

    def is_running(self) -> bool:
        return self.process.poll() is None

    def type(self, *lines: str) -> None:
        self.type_bytes("".join(f"{line}\n" for line in lines).encode())

    def type_bytes(self, raw: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(raw)
        self.process.stdin.flush()

    def end_input(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def wait_until(self, is_so: Callable[[], bool], what: object) -> None:
        """Wait until its output makes ``is_so`` true."""
        with self._changed:
            if not self._changed.wait_for(is_so, PATIENCE):
                raise AssertionError(f"in vain for {what!r}: {self}")

    def wait_for(self, *lines: str, times: int = 1) -> None:
        """Wait until it has shown each of these that often."""

        def is_so() -> bool:
            shown = self.shown
            return all(shown.count(line) >= times for line in lines)

        self.wait_until(is_so, lines)

    def wait_for_complaint(self, part: str) -> None:
        self.wait_until(lambda: any(part in line for line in self.complaints), part)

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def status(self) -> int:
        """Its exit status, once it has ended and all that it printed is here."""
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self}") from None
        for thread in self._threads:
            thread.join(PATIENCE)
        return status

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.status()
        if self.process.stdin:
            with suppress(BrokenPipeError):  # it may end before it has read everything
                self.process.stdin.close()

    def __str__(self) -> str:
        return (
            f"{self.process.args!r} with status {self.process.poll()} "
            f"has shown {self.shown} and complained {self.complaints}"
        )


class ServerProgram(Program):
    """A server that is listening."""

    def __init__(self, start: Command | Sequence[str], folder: Path) -> None:
        super().__init__(start, folder)
        try:
            self.wait_until(lambda: bool(self.printed), "the address")
            found = re.fullmatch(r"Listening on UDP (\S+) port (\d+)", self.printed[0])
            assert found, self.printed
        except AssertionError:
            self.stop()
            raise
        self.host, self.port = found[1], int(found[2])


class ProgramsTest(unittest.TestCase):
    """A test with a folder, and processes that end with it."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def start_server(
        self, *options: str, port: int = 0, host: str | None = LOCALHOST, **timing: float
    ) -> ServerProgram:
        """A server whose room file is ``self.db``, with its own durations but for ``timing``."""
        where = ["--host", host] if host else []
        arguments = [str(port), "--db", str(self.db), *where, *options]
        server = ServerProgram(Command("chatserver", arguments, timing), self.folder)
        self.addCleanup(server.stop)
        return server

    @property
    def db(self) -> Path:
        return self.folder / "chat.db"

    def start(
        self,
        start: Command | Sequence[str],
        stdout: int = subprocess.PIPE,
        variables: Mapping[str, str] | None = None,
    ) -> Program:
        program = Program(start, self.folder, stdout, variables)
        self.addCleanup(program.stop)
        return program

    def start_client(
        self,
        name: str,
        server_port: int,
        host: str = LOCALHOST,
        port: int = 0,
        stdout: int = subprocess.PIPE,
        **timing: float,
    ) -> Program:
        arguments = [host, str(port), name, "--server-port", str(server_port)]
        return self.start(Command("chatclient", arguments, timing), stdout)

    def join(self, port: int, *names: str, **timing: float) -> list[Program]:
        """Clients of these names, which have joined in any order."""
        pipe = subprocess.PIPE
        clients = [self.start_client(n, port, LOCALHOST, 0, pipe, **timing) for n in names]
        for client in clients:
            wait_until_joined(client)
        return clients

    def end(self, client: Program) -> list[str]:
        """What a client has shown when it has ended, with status 0 and without a complaint."""
        self.assertEqual(client.status(), 0, str(client))
        self.assertEqual(client.complaints, [])
        return client.shown

    def leave(self, client: Program) -> list[str]:
        """The same, having made it leave."""
        client.type("EX")
        return self.end(client)

    def assert_fails(self, program: Program, status: int, *parts: str) -> None:
        """Check that it ends with that status, and with one line that has all these parts."""
        self.assertEqual(program.status(), status, str(program))
        for line in program.shown:  # perhaps it has waited a while
            self.assertRegex(line, r"^\* no answer from .*: still trying$")
        self.assertEqual(len(program.complaints), 1, str(program))
        (line,) = program.complaints
        self.assertRegex(line, r"^chat(client|server)\.py: \S")
        for part in parts:
            self.assertIn(part, line)

    def assert_all_fail(
        self, module: str, status: int, cases: Mapping[Sequence[str], Sequence[str]]
    ) -> None:
        """Check that it does so with each of these arguments, and with these parts in the line."""

        def run(arguments: Sequence[str]) -> Program:
            program = self.start(Command(module, arguments))
            program.status()
            return program

        with ThreadPoolExecutor(PROGRAMS_AT_ONCE) as pool:
            for program, (arguments, parts) in zip(pool.map(run, cases), cases.items()):
                with self.subTest(arguments=arguments):
                    self.assert_fails(program, status, *parts)

    def closed_port(self) -> int:
        """Return a UDP port at which nobody listens until the end of the test.

        It is taken by a socket that is connected to itself, and so is nobody else's peer.
        """
        nobody = self.silent_socket()
        nobody.connect(nobody.getsockname())
        port: int = nobody.getsockname()[1]
        return port

    def silent_socket(self) -> socket.socket:
        """Return a UDP socket that nobody reads."""
        silent = self.enterContext(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        silent.bind((LOCALHOST, 0))
        return silent


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(f"in vain for {what}")
        time.sleep(POLL)


def is_running(pid: int) -> bool:
    """Return True if there is such a process, and it has not ended (Linux: proc_pid_stat(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def wait_until_joined(client: Program) -> None:
    client.wait_until(lambda: any(line.startswith("* here: ") for line in client.shown), "* here:")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
