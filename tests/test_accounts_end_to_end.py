"""Accounts as their owners, guessers and the operator meet them: real processes, room files,
terminals and packets."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import sqlite3
import time
import unicodedata
import unittest
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from protocol import GROUP, ITERATIONS
from tests.account_programs import (
    ELSEWHERE,
    NEEDED,
    OTHER,
    PASSWORD,
    TOO_MANY,
    UNKNOWN,
    WRONG,
    AccountProgramsTest,
    Valve,
    is_handshake,
)
from tests.forkserver import Command
from tests.programs import (
    LOCALHOST,
    lasting_port,
    wait_until,
    wait_until_joined,
)
from tests.terminal import HAS_PTY, TerminalProgram
from tests.transcripts import conversation, direct, kept_messages, passages, public


class Registering(AccountProgramsTest):
    def test_a_registered_name_needs_its_password_in_any_letter_case(self) -> None:
        port = self.start_server().port
        alice = self.register("alice", port)
        strangers = {
            self.client("ALICE", port): (NEEDED, "without a terminal", "CHAT_PASSWORD"),
            self.client("Alice", port, OTHER): (WRONG,),
        }
        for stranger, words in strangers.items():
            self.assert_fails(stranger, 1, *words, f"{LOCALHOST} port {port}")
        self.assertEqual(self.leave(alice), ["* registered alice", "* here: alice"])
        shown = self.leave(self.log_in("aLICE", port))
        self.assertEqual(shown, ["* logged in as aLICE", "* here: alice"])

    def test_without_a_terminal_and_a_password_nothing_is_registered(self) -> None:
        port = self.closed_port()
        for program in (
            self.client("alice", port, None, "--register"),
            self.client("alice", port, None, "--register", new=OTHER),
        ):
            self.assert_fails(program, 1, "without a terminal", "CHAT_PASSWORD")

    def test_an_empty_password_is_refused_before_anything_is_sent(self) -> None:
        server = self.silent_socket()
        server.setblocking(False)
        port = server.getsockname()[1]
        for program in (
            self.client("alice", port, "", "--register"),
            self.client("alice", port, PASSWORD, "--register", new=""),
            self.client("alice", port, ""),
        ):
            self.assert_fails(program, 1, "the password is empty")
        with self.assertRaises(BlockingIOError):
            server.recv(2048)

    def test_what_is_piped_in_is_said_by_who_has_just_registered(self) -> None:
        port = self.start_server().port
        (bob,) = self.join(port, "bob")
        alice = self.client("alice", port, PASSWORD, "--register")
        alice.type("hello", "DM bob hi")
        alice.end_input()
        self.assertEqual(self.end(alice)[0], "* registered alice")
        bob.wait_for("[HH:MM] * alice left")
        self.assertEqual(len(passages(bob.shown)), 2)
        shown = conversation(self.leave(bob))
        self.assertEqual(sorted(shown), sorted(public("alice", "hello") + direct("alice", "hi")))

    def test_a_name_that_is_in_use_cannot_be_registered_by_somebody_else(self) -> None:
        port = self.start_server().port
        (bob,) = self.join(port, "bob")
        other = self.client("BOB", port, PASSWORD, "--register")
        self.assert_fails(other, 1, "the name bob is in use")
        self.leave(bob)
        self.assertEqual(self.accounts(), [])

    def test_who_gives_a_password_does_not_become_a_guest(self) -> None:
        port = self.start_server().port
        (bob,) = self.join(port, "bob")
        for program in (
            self.client("alice", port, PASSWORD),
            self.client("alice", port, PASSWORD, "--register", new=OTHER),
        ):
            self.assert_fails(program, 1, UNKNOWN)
        self.assertEqual(self.leave(bob), ["* here: bob"])
        self.assertEqual(self.accounts(), [])


@unittest.skipUnless(HAS_PTY, "this system has no pseudo-terminals")
class OnTerminals(AccountProgramsTest):
    ROWS, COLUMNS = 24, 100

    def terminal(self, module: str, *arguments: str) -> TerminalProgram:
        start = Command(module, arguments, self.timing)
        program = TerminalProgram(start, self.folder, self.ROWS, self.COLUMNS)
        self.addCleanup(program.stop)
        return program

    def client_terminal(self, name: str, port: int, *options: str) -> TerminalProgram:
        arguments = (LOCALHOST, "0", name, "--server-port", str(port), *options)
        return self.terminal("chatclient", *arguments)

    def answer(self, terminal: TerminalProgram, prompt: str, keys: str) -> None:
        """Types this once the prompt is there: what comes before is discarded."""
        terminal.wait_for(prompt.rstrip(), cursor=len(prompt))
        terminal.type(keys)

    def answer_new(self, terminal: TerminalProgram, name: str, first: str, second: str) -> None:
        self.answer(terminal, f"New password for {name}: ", f"{first}\r")
        self.answer(terminal, "Once more: ", f"{second}\r")

    def wait_in_room(self, terminal: TerminalProgram, *rows: str) -> None:
        """Until it has these rows, in any order, above the client's prompt."""

        def is_so() -> bool:
            return set(rows) <= set(terminal.rows) and terminal.rows[-1] == ">"

        terminal.wait_until(is_so, rows)

    def assert_ends(self, terminal: TerminalProgram, expected: int) -> str:
        """It ends with this status, without a traceback, and leaves the terminal as it was;
        returns what is on the screen."""
        status, attributes = terminal.status()
        self.assertEqual(status, expected)
        self.assertEqual(attributes, terminal.attributes_before)
        screen = "\n".join(terminal.rows)
        self.assertNotIn("Traceback", screen)
        return screen

    def assert_no_password(self, terminal: TerminalProgram) -> None:
        for password in (PASSWORD, OTHER):
            self.assertNotIn(password, "\n".join(terminal.rows))

    def test_registering_asks_twice_without_echo_and_goes_on_in_the_room(self) -> None:
        port = self.start_server().port
        (bob,) = self.join(port, "bob")
        alice = self.client_terminal("alice", port, "--register")
        self.answer(alice, "New password for alice: ", f"{PASSWORD}\r")
        alice.wait_for("New password for alice:", "Once more:", cursor=11)
        alice.type(f"{PASSWORD}\r")
        self.wait_in_room(alice, "* registered alice", "* here: alice, bob")
        self.assert_no_password(alice)
        alice.type("hello\r")
        bob.wait_for(*public("alice", "hello"))
        self.assert_fails(self.client("alice", port), 1, NEEDED)
        alice.type("\x04")
        self.assert_ends(alice, 0)
        self.leave(self.log_in("alice", port))

    def test_two_different_answers_register_nothing(self) -> None:
        port = self.start_server().port
        alice = self.client_terminal("alice", port, "--register")
        self.answer_new(alice, "alice", PASSWORD, OTHER)
        screen = self.assert_ends(alice, 1)
        self.assertIn(
            "\nchatclient.py: that was not the same twice: nothing was registered", screen
        )
        self.assert_no_password(alice)
        self.assertEqual(self.accounts(), [])

    def test_the_right_password_at_the_second_try_will_do(self) -> None:
        self.have("alice")
        port = self.start_server().port
        alice = self.client_terminal("alice", port)
        self.answer(alice, "Password for alice: ", f"{OTHER}\r")
        alice.wait_for(
            "Password for alice:",
            f"* {WRONG} ({LOCALHOST} port {port})",
            "Password for alice:",
            cursor=20,
        )
        alice.type(f"{PASSWORD}\r")
        self.wait_in_room(alice, "* logged in as alice", "* here: alice")
        self.assert_no_password(alice)

    def test_three_wrong_passwords_are_status_1(self) -> None:
        self.have("alice")
        port = self.start_server().port
        alice = self.client_terminal("alice", port)
        for count in range(3):
            prompts = [f"* {WRONG} ({LOCALHOST} port {port})", "Password for alice:"] * count
            alice.wait_for("Password for alice:", *prompts, cursor=20)
            alice.type(f"{OTHER}\r")
        screen = self.assert_ends(alice, 1)
        self.assertIn(f"\nchatclient.py: {WRONG} ({LOCALHOST} port {port})\n", screen)
        self.assertEqual(screen.count("Password for"), 3)
        self.assert_no_password(alice)

    def test_changing_a_password_asks_for_the_old_and_twice_for_the_new_one(self) -> None:
        self.have("alice")
        port = self.start_server().port
        alice = self.client_terminal("alice", port, "--register")
        self.answer_new(alice, "alice", OTHER, OTHER)
        self.answer(alice, "Password for alice: ", f"{PASSWORD}\r")
        told = ("* logged in as alice", "* the password of alice is changed", "* here: alice")
        self.wait_in_room(alice, *told)
        self.assert_no_password(alice)
        alice.type("EX\r")
        self.assert_ends(alice, 0)
        self.assert_fails(self.client("alice", port, PASSWORD), 1, WRONG)
        self.leave(self.log_in("alice", port, OTHER))

    def test_ctrl_d_and_ctrl_c_at_a_password_prompt_end_the_client(self) -> None:
        self.have("alice")
        port = self.start_server().port
        for key in ("\x04", "\x03"):
            first, second = (self.client_terminal("bob", port, "--register") for _ in range(2))
            login = self.client_terminal("alice", port)
            self.answer(second, "New password for bob: ", f"{PASSWORD}\r")
            self.answer(second, "Once more: ", key)
            self.answer(first, "New password for bob: ", key)
            self.answer(login, "Password for alice: ", key)
            for terminal in (first, second, login):
                with self.subTest(key=key, rows=terminal.rows):
                    screen = self.assert_ends(terminal, 1)
                    self.assertIn("\nchatclient.py: no password was given\n", screen)
                    self.assert_no_password(terminal)
        self.assertEqual(self.accounts(), ["alice"])

    def test_sigterm_at_a_password_prompt_gives_the_echo_back(self) -> None:
        self.have("alice")
        port = self.start_server().port
        new = self.client_terminal("bob", port, "--register")
        login = self.client_terminal("alice", port)
        new.wait_for("New password for bob:", cursor=22)
        login.wait_until(lambda: login.rows[-1].startswith("Password for alice:"), "the prompt")
        for terminal in (new, login):
            os.kill(terminal.process.pid, signal.SIGTERM)
            self.assertIn("no password was given", self.assert_ends(terminal, 1))

    def test_the_operator_is_asked_twice_without_echo(self) -> None:
        def add(name: str) -> TerminalProgram:
            return self.terminal("chatserver", "--add-user", name, "--db", str(self.db))

        bob, carol, dave, erin = map(add, ("bob", "carol", "dave", "erin"))
        self.answer_new(bob, "bob", PASSWORD, PASSWORD)
        self.answer_new(carol, "carol", PASSWORD, OTHER)
        self.answer(dave, "New password for dave: ", "\x04")
        self.answer(erin, "New password for erin: ", "\x03")
        self.assertIn("\nadded bob\n", self.assert_ends(bob, 0))
        self.assertIn("\nchatserver.py: that was not the same twice", self.assert_ends(carol, 1))
        for terminal in (dave, erin):
            words = "\nchatserver.py: no password was given: nothing was changed\n"
            self.assertIn(words, self.assert_ends(terminal, 1))
        for terminal in (bob, carol):
            self.assert_no_password(terminal)
        self.assertEqual(self.accounts(), ["bob"])
        self.leave(self.log_in("bob", self.start_server().port))

    def test_owners_go_on_after_a_crash_of_the_server_without_being_asked_again(self) -> None:
        self.have("carol")
        port = lasting_port()
        server = self.start_server(port=port)
        alice = self.client_terminal("alice", port, "--register")
        carol = self.client_terminal("carol", port)
        self.answer(carol, "Password for carol: ", f"{PASSWORD}\r")
        self.answer_new(alice, "alice", PASSWORD, PASSWORD)
        self.wait_in_room(carol, "* logged in as carol")
        self.wait_in_room(alice, "* registered alice")
        self.kill(server)
        self.start_server(port=port)
        (bob,) = self.join(port, "bob")
        for name, terminal in (("alice", alice), ("carol", carol)):
            terminal.type(f"I am {name}\r")
            bob.wait_for(*public(name, f"I am {name}"))
        for name, terminal in (("alice", alice), ("carol", carol)):
            other = "carol" if terminal is alice else "alice"
            self.wait_in_room(terminal, *public(other, f"I am {other}"))
            prompts = [row for row in terminal.rows if row.startswith("Password for")]
            self.assertEqual(len(prompts), int(name == "carol"), terminal.rows)
        self.assertEqual(len(passages(bob.shown)), 0)


class TheOperator(AccountProgramsTest):
    # A server notices what another process has written when it has something else to do: members
    # who ask for a sign of life see to that.
    LIVELY: Final = {"keepalive": 0.3, "keepalive_jitter": 0.0}

    def test_accounts_are_added_listed_and_removed_without_a_server(self) -> None:
        start = time.strftime("%Y-%m-%d %H:%M")
        self.add("Bob", "alice")
        lines = self.end(self.manage("--list-users"))
        self.assertEqual([line.split()[0] for line in lines], ["alice", "Bob"])
        times = {line.split(maxsplit=1)[1] for line in lines}
        self.assertLessEqual(times, {start, time.strftime("%Y-%m-%d %H:%M")})
        self.assertEqual(self.end(self.manage("--remove-user", "Bob")), ["removed Bob"])
        self.assertEqual(len(self.end(self.manage("--list-users"))), 1)
        port = self.start_server().port
        self.log_in("alice", port)
        self.join(port, "bob")

    def test_whose_name_is_registered_or_account_removed_is_put_out_and_told_why(self) -> None:
        self.have("owner")
        port = self.start_server().port
        owner = self.log_in("owner", port)
        guest = self.client("guest", port, timing=self.LIVELY)
        owner.wait_for("[HH:MM] * guest joined")
        self.add("Guest", password=OTHER)
        self.assert_put_out(guest, "chatclient.py: the name was registered")
        owner.wait_for("[HH:MM] * guest left (the name was registered)")
        new = self.log_in("guest", port, OTHER, **self.LIVELY)
        self.end(self.manage("--remove-user", "owner"))
        self.assert_put_out(owner, "chatclient.py: the account was removed")
        new.wait_for("[HH:MM] * owner left (the account was removed)")

    def test_what_was_kept_for_an_account_goes_with_it(self) -> None:
        self.have("bob")
        port = self.start_server().port
        (alice,) = self.join(port, "alice")
        alice.type("DM bob a secret")
        alice.wait_for("* bob is away: kept until they are back")
        self.end(self.manage("--remove-user", "bob"))
        self.add("bob")
        self.assertEqual(kept_messages(self.leave(self.log_in("bob", port))), [])
        with closing(sqlite3.connect(self.db)) as file:
            lines = [line for (line,) in file.execute("SELECT line FROM lines")]
        self.assertFalse([line for line in lines if b"a secret" in line])

    def test_what_cannot_be_done_is_one_line_with_status_1(self) -> None:
        self.have("bob")
        missing = str(self.folder / "missing.db")
        no_file = f"there is no room file {missing}"
        cases = {
            self.manage("--add-user", "BOB", password=PASSWORD): "BOB is registered already",
            self.manage("--remove-user", "carol"): "nobody is registered as carol",
            self.manage("--add-user", "carol", password=""): "the password is empty",
            self.manage("--add-user", "carol"): "CHAT_PASSWORD",
        }
        for option in (("--remove-user", "bob"), ("--list-users",)):
            program = self.start(Command("chatserver", [*option, "--db", missing]))
            cases[program] = no_file
        for program, words in cases.items():
            self.assert_fails(program, 1, words)
        self.assertEqual(self.accounts(), ["bob"])
        self.assertFalse(os.path.exists(missing))

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_a_list_that_cannot_be_printed_is_no_traceback(self) -> None:
        self.have("bob")
        arguments = Command("chatserver", ["--list-users", "--db", str(self.db)]).line
        with open("/dev/full", "wb") as full:
            program = self.start(arguments, stdout=full.fileno())
        self.assertEqual((program.status(), program.complaints), (1, []))

    def test_bad_names_and_combinations_are_status_2(self) -> None:
        name = ("is not a username: 1 to 32 ASCII letters", "--help")
        together = ("not allowed with argument", "--help")
        self.assert_all_fail(
            "chatserver",
            2,
            {
                ("--add-user", "al ice"): ("'al ice'", *name),
                ("--add-user", ""): name,
                ("--remove-user", "*"): ("'*'", *name),
                ("--add-user", "alice", "--remove-user", "bob"): together,
                ("--add-user", "alice", "--list-users"): together,
            },
        )
        self.assertEqual(list(self.folder.iterdir()), [])


class MembersOnly(AccountProgramsTest):
    def test_no_guests_and_nobody_registers(self) -> None:
        self.have("alice", "bob")
        port = self.start_server("--members-only").port
        for program in (
            self.client("guest", port),
            self.client("guest", port, PASSWORD, "--register"),
        ):
            self.assertEqual(program.status(), 1)
            self.assertEqual(len(program.complaints), 1)
            self.assertEqual(program.shown, [])
        alice, bob = self.log_in("alice", port), self.log_in("bob", port)
        bob.type("hello")
        alice.wait_for(*public("bob", "hello"))
        self.assertEqual(self.accounts(), ["alice", "bob"])


class Passwords(AccountProgramsTest):
    def test_a_changed_password_counts_also_after_a_restart(self) -> None:
        port = lasting_port()
        server = self.start_server(port=port)
        self.leave(self.register("alice", port))
        alice = self.client("alice", port, PASSWORD, "--register", new=OTHER)
        told = ("* logged in as alice", "* the password of alice is changed", "* here: alice")
        alice.wait_for(*told)
        self.assertEqual(sorted(self.leave(alice)), sorted(told))
        self.kill(server)
        self.start_server(port=port)
        old, new = self.client("alice", port, PASSWORD), self.client("ALICE", port, OTHER)
        self.assert_fails(old, 1, WRONG)
        wait_until_joined(new)
        self.assertEqual(self.accounts(), ["alice"])

    def test_however_accents_and_spaces_are_typed_it_is_the_same_password(self) -> None:
        composed = "cr\u00e8me br\u00fbl\u00e9e"
        decomposed = unicodedata.normalize("NFD", composed)
        assert decomposed != composed
        port = self.start_server().port
        self.leave(self.register("alice", port, composed))
        self.add("bob", password=decomposed.replace(" ", "\u3000"))
        logins = {
            "alice": self.client("alice", port, decomposed.replace(" ", "\u00a0")),
            "bob": self.client("bob", port, composed),
        }
        for name, client in logins.items():
            client.wait_for(f"* logged in as {name}")
        self.assert_fails(self.client("alice", port, "creme brulee"), 1, WRONG)


class Brakes(AccountProgramsTest):
    WAIT: Final = 120.0  # seconds; a busy machine may need more than the usual 15 for two logins

    def test_after_five_wrong_passwords_also_the_right_one_has_to_wait(self) -> None:
        self.have("alice")
        server = self.start_server(login_wait=self.WAIT)
        wrong = [self.client("alice", server.port, f"wrong {n}") for n in range(5)]
        for program in wrong:
            self.assert_fails(program, 1, WRONG)
        for name, password in (("alice", "wrong again"), ("ALICE", PASSWORD)):
            program = self.client(name, server.port, password)
            self.assert_fails(program, 1, "too many attempts, wait ")
            found = re.search(TOO_MANY, program.complaints[0])
            assert found
            self.assertLessEqual(1, int(found[1]))
            self.assertLessEqual(int(found[1]), self.WAIT)
        self.join(server.port, "guest")  # is none of its business


class Takeover(AccountProgramsTest):
    def test_a_second_login_ends_the_older_client_and_nobody_else_notices(self) -> None:
        port = self.start_server().port
        older = self.register("alice", port)
        (bob,) = self.join(port, "bob")
        newer = self.log_in("alice", port)
        self.assert_put_out(older, ELSEWHERE)
        newest = self.log_in("ALICE", port)
        self.assert_put_out(newer, ELSEWHERE)
        bob.type("DM alice hi", "WHO")
        newest.wait_for(*direct("bob", "hi"))
        newest.type("hello")
        bob.wait_for(*public("alice", "hello"))
        bob.wait_for("* here: alice, bob", times=2)
        self.assertEqual(passages(bob.shown), [])
        self.assertTrue(newest.is_running())
        self.assertEqual(self.leave(newest).count(*direct("bob", "hi")), 1)


class Messages(AccountProgramsTest):
    AWAY: Final = "* bob is away: kept until they are back"

    def check_kept(self, interrupt: Callable[[], None], port: Callable[[], int]) -> None:
        """Two messages are kept over ``interrupt``, and shown once."""
        alice, carol = self.join(port(), "alice", "carol")
        alice.type("DM bob one", "dm BOB two")
        alice.wait_for(self.AWAY, times=2)
        self.assertEqual(conversation(self.leave(alice)), [self.AWAY] * 2)
        self.assertEqual(conversation(carol.shown), [])
        interrupt()
        first = self.log_in("bob", port())
        first.wait_until(lambda: len(kept_messages(first.shown)) == 2, "the kept messages")
        self.assertEqual(
            kept_messages(self.leave(first)), ["alice -> you: one", "alice -> you: two"]
        )
        self.assertEqual(kept_messages(self.leave(self.log_in("bob", port()))), [])
        interrupt()
        self.assertEqual(kept_messages(self.leave(self.log_in("bob", port()))), [])

    def test_they_are_kept_also_if_the_server_is_killed(self) -> None:
        self.have("bob")  # who has never been here
        port = lasting_port()
        servers = [self.start_server(port=port)]

        def restart() -> None:
            self.kill(servers[-1])
            servers.append(self.start_server(port=port))

        self.check_kept(restart, lambda: port)


class Secrets(AccountProgramsTest):
    timing: ClassVar[Mapping[str, float]] = {}  # the real work for a new password
    OLD: Final = "cr\u00e8me br\u00fbl\u00e9e 4711"
    NEW: Final = "se\u00f1or ni\u00f1o 0815"
    TEXTS: Final = ("a public line", "a private line", "a line that is kept")

    def test_passwords_and_texts_are_nowhere_but_where_they_belong(self) -> None:
        server = self.start_server()
        self.add("bob", password=self.OLD)
        with Valve(server.port) as wire:
            alice = self.client("alice", wire.port, self.OLD, "--register")
            alice.wait_for("* registered alice")
            (carol,) = self.join(wire.port, "carol")
            said, private, late = self.TEXTS
            alice.type(said, f"DM carol {private}", f"DM bob {late}")
            carol.wait_for(*public("alice", said), *direct("alice", private))
            alice.wait_for("* bob is away: kept until they are back")
            self.leave(alice)
            accounts = self.known_accounts(alice=self.OLD, bob=self.OLD)
            alice = self.client("alice", wire.port, self.OLD, "--register", new=self.NEW)
            alice.wait_for("* the password of alice is changed")
            self.leave(alice)
            bob = self.log_in("bob", wire.port, self.OLD)
            bob.wait_until(lambda: len(kept_messages(bob.shown)) == 1, "the kept message")
            self.leave(bob)
            self.leave(self.log_in("alice", wire.port, self.NEW))
            files = self.contents_of_files()  # also of the write-ahead log
        server.send_signal(signal.SIGTERM)
        server.status()
        files += self.contents_of_files()
        accounts |= self.known_accounts(alice=self.NEW, bob=self.OLD)
        sent = b"\n".join(wire.seen)
        # These are found, so the others would be.
        self.assertIn(b'"username":"alice"', sent)
        for text in self.TEXTS:
            self.assertIn(text.encode(), files)
        self.assertEqual(len(accounts), 3)
        self.assert_only_the_verifiers_are_kept(accounts, sent, files)
        for password in (self.OLD, self.NEW):
            for form in ("NFC", "NFD"):
                self.assert_not_in(unicodedata.normalize(form, password).encode(), sent, files)
        for text in (*self.TEXTS, "REGISTER"):
            self.assert_not_in(text.encode(), sent)
        for program in (server, alice, bob, carol):
            for line in (*program.shown, *program.complaints):
                self.assertNotRegex(line, "4711|0815")

    def assert_only_the_verifiers_are_kept(
        self, accounts: set[tuple[str, str, bytes, bytes]], sent: bytes, files: bytes
    ) -> None:
        for _, password, salt, verifier in accounts:
            raw = unicodedata.normalize("NFC", password).encode()
            x = hashlib.pbkdf2_hmac("sha256", raw, salt, ITERATIONS)
            self.assertEqual(GROUP.pad(GROUP.power(int.from_bytes(x, "big"))), verifier)
            self.assert_not_in(x, sent, files)
            self.assert_not_in(verifier, sent)
            self.assertIn(verifier, files)

    def known_accounts(self, **passwords: str) -> set[tuple[str, str, bytes, bytes]]:
        """(name, password, salt, verifier) of each."""
        with closing(sqlite3.connect(self.db)) as file:
            rows = file.execute("SELECT name, salt, verifier FROM accounts").fetchall()
        return {(name, passwords[name], salt, verifier) for name, salt, verifier in rows}

    def contents_of_files(self) -> bytes:
        paths = [path for path in Path(self.folder).rglob("*") if path.is_file()]
        self.assertIn(self.db, paths)
        return b"\n".join(path.read_bytes() for path in paths)

    def assert_not_in(self, secret: bytes, *places: bytes) -> None:
        """Neither as it is nor in one of the usual disguises."""
        for form in (secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"=")):
            for place in places:
                self.assertEqual(place.find(form), -1, form)


class Crashes(AccountProgramsTest):
    """The server dies at the moment of registering."""

    def check_goes_on(self, loses: Callable[[bool, bytes], bool], has_arrived: bool) -> None:
        port = lasting_port()
        server = self.start_server(port=port)
        with Valve(port) as valve:
            valve.loses = loses
            alice = self.client("alice", valve.port, PASSWORD, "--register")
            wait_until(partial(self.is_at_it, valve, has_arrived), "the registration")
            self.kill(server)
            self.assertEqual(self.accounts(), ["alice"] if has_arrived else [])
            valve.open()
            self.start_server(port=port)
            alice.wait_for("* registered alice")
            (bob,) = self.join(port, "bob")
            alice.type("hello")
            bob.wait_for(*public("alice", "hello"))
            shown = self.leave(alice)
        self.assertEqual(shown.count("* registered alice"), 1)
        self.assertEqual(self.accounts(), ["alice"])
        self.leave(self.log_in("alice", port))

    def is_at_it(self, valve: Valve, has_arrived: bool) -> bool:
        if has_arrived:
            with closing(sqlite3.connect(self.db)) as file:
                return bool(file.execute("SELECT count(*) FROM accounts").fetchone()[0])
        return any(not is_handshake(data) for data in valve.seen)

    def test_before_the_client_has_heard_of_its_success(self) -> None:
        self.check_goes_on(
            lambda is_to_server, data: not is_to_server and not is_handshake(data), has_arrived=True
        )


if __name__ == "__main__":
    unittest.main()
