"""The programs as people run them: real processes, sockets, signals, pipes and terminals."""

from __future__ import annotations

import os
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
import unittest
from collections.abc import Mapping
from contextlib import closing, suppress
from functools import partial
from itertools import combinations
from typing import Final

from protocol import MAX_DATAGRAM
from tests.forkserver import ROOT, Command
from tests.programs import (
    LOCALHOST,
    PATIENCE,
    Program,
    ProgramsTest,
    ServerProgram,
    has_ipv6,
    lasting_port,
    wait_until,
    wait_until_joined,
)
from tests.relay import BAD_DROP, Relay
from tests.terminal import HAS_PTY, TerminalProgram
from tests.transcripts import conversation, direct, of_sender, passages, public


class RoomTest(ProgramsTest):
    def assert_one_order(self, views: Mapping[str, list[str]]) -> None:
        """Any two members have seen what third ones said in the same order."""
        for (one, lines), (other, others) in combinations(views.items(), 2):
            shared = [line for line in lines if not of_sender(other, [line])]
            self.assertEqual(shared, [line for line in others if not of_sender(one, [line])])


class ThreeClients(RoomTest):
    """alice types; bob and carol read."""

    def setUp(self) -> None:
        super().setUp()
        self.server = self.start_server()
        self.alice, self.bob, self.carol = (
            self.start_client(name, self.server.port) for name in ("alice", "bob", "carol")
        )
        for client in (self.alice, self.bob, self.carol):
            wait_until_joined(client)

    def transcripts(self) -> tuple[list[str], list[str], list[str]]:
        """What the three have shown, but for who came and went, once alice's last line is there
        and all have left."""
        self.alice.type("the end")
        for client in (self.bob, self.carol):
            client.wait_for(*public("alice", "the end"))
        shown = [conversation(self.leave(client)) for client in (self.alice, self.bob, self.carol)]
        for lines in shown[1:]:
            self.assertEqual(lines.count(*public("alice", "the end")), 1)
            lines.remove(*public("alice", "the end"))
        return shown[0], shown[1], shown[2]

    def test_a_line_without_a_command_and_pm_are_shown_once_to_everyone_else(self) -> None:
        self.alice.type(
            "hello", "PM hi all", "pm lower case", "  spaces around  ", "PM", "asked for"
        )
        alice, bob, carol = self.transcripts()
        expected = public("alice", "hello", "hi all", "lower case", "spaces around", "asked for")
        self.assertEqual(bob, expected)
        self.assertEqual(carol, expected)
        self.assertEqual(alice, [])

    def test_a_direct_message_is_shown_once_and_to_its_recipient_only(self) -> None:
        self.alice.type("DM bob inline", "dm BOB other case", "Dm  bob  wide", "DM carol for carol")
        self.alice.type("DM", "bob", "by two prompts", "DM bob", "by one prompt")
        expected = direct(
            "alice", "inline", "other case", "wide", "by two prompts", "by one prompt"
        )
        self.bob.wait_for(*expected)
        self.carol.wait_for(*direct("alice", "for carol"))
        alice, bob, carol = self.transcripts()
        self.assertEqual(bob, expected)
        self.assertEqual(carol, direct("alice", "for carol"))
        self.assertEqual(alice, [])

    def test_what_is_typed_at_a_prompt_is_no_command(self) -> None:
        self.alice.type("PM", "EX", "DM bob", "DM carol x")
        self.bob.wait_for(*direct("alice", "DM carol x"))
        alice, bob, carol = self.transcripts()
        self.assertEqual(sorted(bob), sorted(public("alice", "EX") + direct("alice", "DM carol x")))
        self.assertEqual(carol, public("alice", "EX"))
        self.assertEqual(alice, [])

    def test_blank_lines_are_nothing_and_an_empty_answer_cancels(self) -> None:
        self.alice.type("", "   ", "\t")
        self.alice.type("PM", "", "DM", "", "DM bob", " ", "DM", "bob", "")
        self.assertEqual(self.transcripts(), ([], [], []))

    def test_words_that_only_begin_like_a_command_are_public(self) -> None:
        texts = ["ex machina", "who is there", "help me", "PMs are public", "exit"]
        self.alice.type(*texts)
        _, bob, carol = self.transcripts()
        self.assertEqual(bob, public("alice", *texts))
        self.assertEqual(carol, public("alice", *texts))

    def test_a_direct_message_to_nobody_is_not_published_and_its_sender_is_told(self) -> None:
        self.alice.type("dm me later", "DM m@e soon")
        told = (
            "* not delivered: nobody here is called me. To say it to everyone: PM DM me later",
            "* not sent: 'm@e' is not a username: 1 to 32 ASCII letters, digits, '_', '-' or '.', "
            "beginning with a letter or digit. To say it to everyone: PM DM m@e soon",
        )
        self.alice.wait_for(*told)
        self.alice.type("PM DM me later")  # as the hint has it
        alice, bob, carol = self.transcripts()
        self.assertEqual(sorted(alice), sorted(told))
        self.assertEqual(bob, public("alice", "DM me later"))
        self.assertEqual(carol, public("alice", "DM me later"))

    def test_ex_in_any_case_leaves_with_status_0_and_the_others_see_it(self) -> None:
        self.carol.type("EX")
        self.end(self.carol)
        self.alice.wait_for("[HH:MM] * carol left")
        self.bob.type("ex")
        self.end(self.bob)
        self.alice.wait_for("[HH:MM] * bob left")
        left = [line for line in self.leave(self.alice) if "left" in line]
        self.assertEqual(left, ["[HH:MM] * carol left", "[HH:MM] * bob left"])

    def test_who_shows_everyone_and_help_the_commands_to_the_asker_only(self) -> None:
        self.alice.type("WHO", "help")
        self.alice.wait_for("* here: alice, bob, carol")
        alice, bob, carol = self.transcripts()
        for word in ("PM", "DM", "WHO", "EX"):
            self.assertTrue([line for line in alice if re.match(rf"\* .*\b{word}\b", line)], word)
        self.assertEqual((bob, carol), ([], []))


class Starts(RoomTest):
    """The programs as a person starts them, and not from the fork server."""

    def test_programs_by_path_and_as_modules_talk(self) -> None:
        server = Command("chatserver", ["0", "--host", LOCALHOST, "--db", str(self.db)])
        by_path = ServerProgram(server.line, self.folder)
        self.addCleanup(by_path.stop)
        client = Command("chatclient", [LOCALHOST, "0", "alice", *self.at(by_path)])
        alice = self.start(client.line)
        as_module = [sys.executable, "-m", "chatclient", LOCALHOST, "0", "bob", *self.at(by_path)]
        bob = self.start(as_module, variables={"PYTHONPATH": str(ROOT)})
        for each in (alice, bob):
            wait_until_joined(each)
        alice.type("hello")
        bob.wait_for(*public("alice", "hello"))
        bob.type("DM alice hi")
        alice.wait_for(*direct("bob", "hi"))
        for each in (alice, bob):
            self.leave(each)
        by_path.send_signal(signal.SIGINT)
        self.assertEqual(by_path.status(), 0)

    def test_server_as_a_module_listens(self) -> None:
        line = [sys.executable, "-m", "chatserver", "0", "--host", LOCALHOST]
        variables = {"PYTHONPATH": str(ROOT)}
        server = self.start(line, variables=variables)
        server.wait_until(lambda: bool(server.printed), "the address")
        self.assertTrue(server.printed[0].startswith("Listening on UDP 127.0.0.1 port "))

    def at(self, server: ServerProgram) -> list[str]:
        return ["--server-port", str(server.port)]


class Formats(RoomTest):
    def test_every_kind_of_line_in_a_pipe(self) -> None:
        server = self.start_server()
        start = time.strftime("%H:%M")
        (alice,) = self.join(server.port, "alice")
        (bob,) = self.join(server.port, "Bob")
        alice.wait_for("[HH:MM] * Bob joined")
        alice.type("hello", "WHO")
        bob.wait_for("[HH:MM] alice: hello")
        alice.type("DM bob hi")
        bob.wait_for("[HH:MM] alice -> you: hi")
        (carol,) = self.join(server.port, "carol")
        self.leave(carol)
        for client in (alice, bob):
            client.wait_for("[HH:MM] * carol left")
        clocks = set(re.findall(r"\[(\d\d:\d\d)\]", "\n".join(bob.printed)))
        self.assertLessEqual(clocks, {start, time.strftime("%H:%M")})
        self.assertEqual(
            self.leave(bob),
            [
                "* here: alice, Bob",
                "[HH:MM] alice: hello",
                "[HH:MM] alice -> you: hi",
                "[HH:MM] * carol joined",
                "[HH:MM] * carol left",
            ],
        )
        alice.wait_for("[HH:MM] * Bob left")
        self.assertEqual(
            self.leave(alice),
            [
                "* here: alice",
                "[HH:MM] * Bob joined",
                "* here: alice, Bob",
                "[HH:MM] * carol joined",
                "[HH:MM] * carol left",
                "[HH:MM] * Bob left",
            ],
        )

    def test_a_newcomer_sees_the_last_public_lines_and_no_joins_and_leaves(self) -> None:
        server = self.start_server("--history", "3")
        (alice,) = self.join(server.port, "alice")
        alice.type("one", "two", "three", "DM alice a secret")
        (bob,) = self.join(server.port, "bob")
        bob.type("four")
        alice.wait_for("[HH:MM] bob: four")
        self.leave(bob)
        (carol,) = self.join(server.port, "carol")
        earlier = ["* earlier: [HH:MM] alice: two", "* earlier: [HH:MM] alice: three"]
        earlier += ["* earlier: [HH:MM] bob: four"]
        carol.wait_for(*earlier)
        alice.type("five")
        carol.wait_for("[HH:MM] alice: five")
        shown = self.leave(carol)
        shown.remove("* here: alice, carol")  # comes by another log, and so at any point
        self.assertEqual(shown, [*earlier, "[HH:MM] alice: five"])


class BadNetwork(RoomTest):
    SECONDS = 3.0
    NAMES: Final = ("alice", "bob", "carol", "dave")
    COUNT: Final = 30  # lines of each member
    DIRECT: Final = range(5, COUNT, 6)  # those of them that are for one member alone
    HEARD: Final = 3 * (COUNT - len(DIRECT)) + len(DIRECT)  # by each

    def lines_of(self, name: str) -> list[str]:
        index = self.NAMES.index(name)
        other = self.NAMES[(index + 1) % len(self.NAMES)]
        long = "plaintext " * (1 + 2 * index)
        return [
            f"DM {other} {name} {n}" if n in self.DIRECT else f"{long}{name} {n}"
            for n in range(self.COUNT)
        ]

    def said(self, name: str) -> list[str]:
        texts = [line for line in self.lines_of(name) if not line.startswith("DM ")]
        return public(name, *texts)

    def has_all(self, client: Program) -> bool:
        return len(self.lines(client)) >= self.HEARD

    def test_every_member_sees_every_line_once_and_in_one_order(self) -> None:
        # Nobody waits here for a timeout that was doubled: that is for virtual time.
        server = self.start_server(
            "--history", "1000", "--rate", "0", first_timeout=0.3, max_timeout=0.6
        )
        with Relay(server.port, seed=7, drop=0.0) as relay:
            members = self.join(relay.port, *self.NAMES, first_timeout=0.3, max_timeout=0.6)
            clients = dict(zip(self.NAMES, members))
            relay.drop = BAD_DROP
            for name, client in clients.items():
                client.type(*self.lines_of(name))
            for client in clients.values():
                client.wait_until(partial(self.has_all, client), "all lines")
            (newcomer,) = self.join(server.port, "newcomer")
            said = len(self.NAMES) * (self.COUNT - len(self.DIRECT))
            newcomer.wait_until(lambda: len(conversation(newcomer.shown)) >= said, "history")
            order = [
                line.removeprefix("* earlier: ") for line in conversation(self.leave(newcomer))
            ]
            views = {name: self.lines(client) for name, client in clients.items()}
            relay.drop = 0.0  # lost goodbyes would take longer than all the rest
            for client in clients.values():
                client.type("EX")
            for client in clients.values():
                self.end(client)
                self.assertEqual(len(self.lines(client)), self.HEARD)
        for name in self.NAMES:
            self.assertEqual(of_sender(name, order), self.said(name))
        for index, (name, view) in enumerate(views.items()):
            others = [line for line in order if not of_sender(name, [line])]
            self.assertEqual([line for line in view if " -> you: " not in line], others)
            writer = self.NAMES[index - 1]
            self.assertEqual(
                [line for line in view if " -> you: " in line],
                direct(writer, *(f"{writer} {n}" for n in self.DIRECT)),
            )
        self.assert_small_and_sealed(relay.seen)

    def lines(self, client: Program) -> list[str]:
        return [line for line in client.shown if re.match(r"\[HH:MM\] \w+( -> you)?: ", line)]

    def assert_small_and_sealed(self, datagrams: list[bytes]) -> None:
        self.assertGreater(len(datagrams), 100)
        sizes = sorted(map(len, datagrams))
        self.assertLessEqual(sizes[-1], MAX_DATAGRAM)
        self.assertLessEqual(MAX_DATAGRAM, 1200)
        self.assertGreater(sizes[-1], 1000)  # or the limit has not been tried
        for data in datagrams:
            for text in (b"plaintext", b"alice 5", b" -> ", b"DM bob"):
                self.assertNotIn(text, data)
                self.assertNotIn(text.hex().encode(), data)


class Pipes(RoomTest):
    def test_everything_is_delivered_at_the_end_of_input(self) -> None:
        server = self.start_server()
        alice, bob = self.join(server.port, "alice", "bob")
        texts = [f"line {n}" for n in range(35)]  # 5 more than the rate limit lets through at once
        alice.type("DM bob first", *texts)
        alice.type_bytes(b"no newline")
        alice.end_input()
        self.assertEqual(conversation(self.end(alice)), [])
        bob.wait_for("[HH:MM] * alice left", *direct("alice", "first"))
        bob_saw = self.leave(bob)
        self.assertEqual(of_sender("alice", bob_saw), public("alice", *texts, "no newline"))
        self.assertEqual(conversation(bob_saw).count(*direct("alice", "first")), 1)

    def test_input_that_is_not_utf_8_is_replaced_and_control_characters_are_removed(self) -> None:
        server = self.start_server()
        alice, bob = self.join(server.port, "alice", "bob")
        alice.type_bytes(b"caf\xe9\nna\xc3\xafve\nre\x1b[31md\x07\n")
        bob.wait_for(*public("alice", "caf\ufffd", "na\u00efve", "re[31md"))
        self.leave(alice)
        self.assertEqual(len(of_sender("alice", self.leave(bob))), 3)

    def test_thousands_of_lines_are_delivered_even_if_nobody_reads_the_answers(
        self,
    ) -> None:
        server = self.start_server("--rate", "0", "--history", "0")
        texts = [f"line {n}" for n in range(4000)]
        (alice,) = self.join(server.port, "alice")
        out, stalled = os.pipe()  # nobody reads from it
        self.addCleanup(os.close, out)
        bob = self.start_client("bob", server.port, stdout=stalled)
        os.close(stalled)
        bob.type(*texts)
        bob.end_input()
        self.assertEqual((bob.status(), bob.complaints), (0, []))
        alice.wait_for("[HH:MM] * bob left")
        self.assertEqual(of_sender("bob", self.leave(alice)), public("bob", *texts))

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_a_full_disk_behind_the_output_ends_the_client_without_a_traceback(self) -> None:
        server = self.start_server()
        (alice,) = self.join(server.port, "alice")
        for name, variables in (("bob", {}), ("carol", {"PYTHONUNBUFFERED": "1"})):
            arguments = [LOCALHOST, "0", name, "--server-port", str(server.port)]
            with open("/dev/full", "wb") as full:
                start = Command("chatclient", arguments).line
                client = self.start(start, full.fileno(), variables)
            self.assertEqual((client.status(), client.complaints), (0, []))
            alice.wait_for(f"[HH:MM] * {name} joined", f"[HH:MM] * {name} left")

    def test_what_cannot_be_delivered_at_the_end_of_input_is_said_with_status_1(self) -> None:
        server = self.start_server()
        bob = self.start_client("bob", server.port, deliver_patience=1.0)
        wait_until_joined(bob)
        server.stop()
        bob.type("hello", "DM alice hi")
        bob.end_input()
        self.assertEqual(bob.status(), 1)
        self.assertEqual(bob.complaints, ["chatclient.py: 2 lines may not have arrived"])
        lost = ["* may not have arrived: PM hello", "* may not have arrived: DM alice hi"]
        self.assertEqual(bob.shown[-2:], lost)

    def test_the_rate_is_the_operators(self) -> None:
        server = self.start_server("--rate", "4", "--history", "0")
        alice, bob = self.join(server.port, "alice", "bob")
        start = time.monotonic()
        alice.type(*(f"{n}" for n in range(17)))  # a burst of 12, WHO being one, then 4/s
        bob.wait_for(*public("alice", "16"))
        self.assertGreater(time.monotonic() - start, 1.0)

    @unittest.skipUnless(os.name == "posix", "needs head")
    def test_a_reader_that_goes_away_ends_the_client_quietly(self) -> None:
        self.check_that_losing_its_reader_ends_a_client()

    @unittest.skipUnless(os.name == "posix", "needs head")
    def test_it_does_so_too_where_sigint_is_ignored(self) -> None:
        """As in the background of a script."""
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.check_that_losing_its_reader_ends_a_client()

    @unittest.skipUnless(os.name == "posix", "needs pipes that can be closed")
    def test_it_does_so_though_its_input_never_ends(self) -> None:
        server = self.start_server("--rate", "300")  # less than what comes, so it never waits
        out, pipe = os.pipe()
        bob = self.start_client("bob", server.port, stdout=pipe)
        os.close(pipe)
        self.assertEqual(os.read(out, 12), b"* here: bob\n")
        os.close(out)
        (alice,) = self.join(server.port, "alice")  # bob is told of it, and nobody reads that
        with suppress(BrokenPipeError):
            end = time.monotonic() + PATIENCE
            while bob.is_running() and time.monotonic() < end:
                bob.type(*["hello"] * 100)
        self.assertEqual((bob.status(), bob.complaints), (0, []))
        alice.wait_for("[HH:MM] * bob left")

    @unittest.skipUnless(os.name == "posix", "needs a shell")
    def test_an_input_that_cannot_be_read_is_an_end_of_input(self) -> None:
        server = self.start_server()
        arguments = (LOCALHOST, "0", "bob", "--server-port", str(server.port))
        bob = Command("chatclient", arguments).line
        with open(os.devnull, "wb") as unreadable:
            done = subprocess.run(bob, stdin=unreadable, capture_output=True, timeout=PATIENCE)
        self.assertEqual((done.returncode, done.stderr), (0, b""))

    def check_that_losing_its_reader_ends_a_client(self) -> None:
        server = self.start_server()
        (alice,) = self.join(server.port, "alice")
        with subprocess.Popen(
            ["head", "-n", "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as head:
            assert head.stdin
            assert head.stdout
            bob = self.start_client("bob", server.port, stdout=head.stdin.fileno())
            head.stdin.close()
            self.assertEqual(head.stdout.readline(), b"* here: alice, bob\n")
            self.assertEqual(head.wait(), 0)
        alice.type("one")
        # bob's own input has no end: it is the lack of a reader that makes him leave.
        self.assertEqual((bob.status(), bob.complaints), (0, []))
        alice.wait_for("[HH:MM] * bob left")


class Ends(RoomTest):
    """Signals, crashes and a file that is locked."""

    SECONDS = 10.0
    SHUTTING_DOWN: Final = "* the server is shutting down: waiting for it to return"

    def test_sigterm_and_sigint_end_the_server_with_status_0_and_members_are_told(self) -> None:
        port = lasting_port()
        clients: list[Program] = []
        for times, number in enumerate((signal.SIGTERM, signal.SIGINT), 1):
            server = self.start_server(port=port)
            if not clients:
                clients = self.join(port, "alice", "bob")
            for client in clients:  # who has come back once the server was
                client.type(f"round {times}")
            for client, other in zip(clients, ("bob", "alice")):
                client.wait_for(*public(other, f"round {times}"))
            server.send_signal(number)
            self.assertEqual(server.status(), 0)
            for line in server.complaints:
                self.assertNotIn("Traceback", line)
            for client in clients:
                client.wait_for(self.SHUTTING_DOWN, times=times)

    def test_sigint_in_a_client_leaves_with_status_0(self) -> None:
        server = self.start_server()
        alice, bob = self.join(server.port, "alice", "bob")
        bob.type("a last word")
        alice.wait_for(*public("bob", "a last word"))
        bob.send_signal(signal.SIGINT)
        self.end(bob)
        alice.wait_for("[HH:MM] * bob left")

    def test_sigint_at_the_end_of_the_input_still_delivers_what_can_be(self) -> None:
        server = self.start_server("--rate", "20")
        alice, bob = self.join(server.port, "alice", "bob")
        texts = [f"line {n}" for n in range(80)]  # a second more than the rate lets through at once
        bob.type(*texts, "HELP")
        bob.wait_until(lambda: any("EX  " in line for line in bob.shown), "the answer to HELP")
        bob.end_input()  # all before that has been read
        alice.wait_for(*public("bob", "line 61"))
        bob.send_signal(signal.SIGINT)
        self.end(bob)
        alice.wait_for("[HH:MM] * bob left")
        self.assertEqual(of_sender("bob", self.leave(alice)), public("bob", *texts))

    @unittest.skipUnless(hasattr(signal, "alarm"), "needs SIGALRM")
    def test_sigterm_ends_a_client_though_nobody_reads_what_it_shows(self) -> None:
        server = self.start_server()
        (alice,) = self.join(server.port, "alice")
        out, stalled = os.pipe()
        self.addCleanup(os.close, out)
        self.addCleanup(os.close, stalled)
        bob = self.start_client("bob", server.port, stdout=stalled, leave_patience=0.5)
        alice.wait_for("[HH:MM] * bob joined")
        bob.type(*["HELP"] * 400)  # more than a pipe takes

        def is_full() -> bool:
            return not select.select([], [stalled], [], 0)[1]

        wait_until(is_full, "a full pipe")
        bob.send_signal(signal.SIGTERM)
        self.assertEqual((bob.status(), bob.complaints), (0, []))
        alice.wait_for("[HH:MM] * bob left")

    def test_however_often_and_fast_it_is_pressed_ctrl_c_tells_what_was_lost(self) -> None:
        server = self.start_server()
        clients = self.join(server.port, "a", "b", "c")
        server.send_signal(signal.SIGSTOP)
        for client, pause in zip(clients, (0.0, 0.0003, 0.003)):
            client.type("hello", "HELP")
            client.wait_for("* WHO           who is here")
            with suppress(ProcessLookupError):
                for _ in range(10):
                    client.send_signal(signal.SIGINT)
                    time.sleep(pause)
            self.assertEqual(client.status(), 1, str(client))
            self.assertEqual(len(client.complaints), 1, str(client))
            self.assertIn("1 line may not have arrived", client.complaints[0])

    def test_a_server_that_is_killed_loses_and_doubles_nothing(self) -> None:
        port = lasting_port()
        names = ("alice", "bob", "carol")
        server = self.start_server(port=port)
        clients = dict(zip(names, self.join(port, *names)))
        rounds = 2
        for number in range(rounds):
            for client in clients.values():
                client.type(f"before {number}")
            # Not to be waited for: what is on its way when the server dies is what matters.
            server.process.kill()
            server.status()
            for client in clients.values():
                client.type(f"without {number}")
            server = self.start_server(port=port)
            for client in clients.values():
                client.type(f"after {number}")
            for name, client in clients.items():
                client.wait_for(*(f"[HH:MM] {n}: after {number}" for n in names if n != name))
        views = {name: self.leave(client) for name, client in clients.items()}
        texts = [f"{when} {n}" for n in range(rounds) for when in ("before", "without", "after")]
        for name, view in views.items():
            for other in names:
                said = public(other, *texts) if other != name else []
                self.assertEqual(of_sender(other, view), said, f"as {name} saw it")
            here = [line for line in view if line.startswith("* here")]
            self.assertEqual(len(here), 1)
            joined = [line for line in view if "joined" in line]
            self.assertEqual(len(joined), len(set(joined)))
            self.assertFalse([line for line in view if "(" in line])  # no reason to have left
        self.assert_one_order(
            {
                name: [line for line in view if re.match(r"\[HH:MM\] \w+: ", line)]
                for name, view in views.items()
            }
        )

    def test_a_client_that_was_killed_comes_back_under_its_name_from_its_port(self) -> None:
        server = self.start_server(probe=0.3)
        (alice,) = self.join(server.port, "alice")
        port = lasting_port()
        bob = self.start_client("bob", server.port, port=port)
        alice.wait_for("[HH:MM] * bob joined")
        bob.process.kill()
        bob.status()
        wait_until_joined(self.start_client("bob", server.port, port=port))
        alice.wait_for("[HH:MM] * bob joined", times=2)
        self.assertEqual(
            passages(self.leave(alice)),
            ["[HH:MM] * bob joined", "[HH:MM] * bob left (replaced)", "[HH:MM] * bob joined"],
        )

    @unittest.skipUnless(sys.platform == "linux", "needs prlimit")
    def test_a_full_disk_is_a_pause_and_nothing_is_lost(self) -> None:
        server = self.start_server("--rate", "0", store_pause=0.2)
        alice, bob = self.join(server.port, "alice", "bob")
        alice.type("before")
        bob.wait_for(*public("alice", "before"))
        sizes = [path.stat().st_size for path in self.folder.iterdir()]
        self.limit_files(server, max(sizes))
        texts = [f"line {n} {'x' * 900}" for n in range(100)]
        alice.type(*texts)
        alice.end_input()
        bob.type("meanwhile", "DM bob to myself")
        server.wait_for_complaint("the room file cannot be written")
        shown = bob.shown
        with self.assertRaises(subprocess.TimeoutExpired):  # nothing was acknowledged
            alice.process.wait(1.5)
        self.assertEqual(bob.shown, shown)
        self.limit_files(server, None)
        self.end(alice)
        bob.wait_for("[HH:MM] * alice left", *direct("bob", "to myself"))
        view = conversation(self.leave(bob))
        self.assertEqual(of_sender("alice", view), public("alice", "before", *texts))
        self.assertEqual(view.count(*direct("bob", "to myself")), 1)
        told = [line for line in server.complaints if "room file" in line]
        self.assertEqual(len(told), 2, told)
        self.assertIn("the room waits until it can be", told[0])
        self.assertIn("the room file can be written again", told[1])
        self.check_integrity()

    def test_lines_are_deleted_after_as_many_days_as_the_operator_wants(self) -> None:
        server = self.start_server()
        (alice,) = self.join(server.port, "alice")
        alice.type("old", "young")
        self.leave(alice)
        server.stop()
        with closing(sqlite3.connect(self.db)) as file, file:  # two days pass after "old"
            (joined, old) = file.execute("SELECT line FROM lines ORDER BY number LIMIT 2")
            for (line,) in (joined, old):
                unix, rest = line.split(b" ", 1)
                older = b"%d %s" % (int(unix) - 2 * 24 * 3600, rest)
                file.execute("UPDATE lines SET line = ? WHERE line = ?", (older, line))
        for days, texts in (("3", ["old", "young"]), ("0", ["old", "young"]), ("1", ["young"])):
            server = self.start_server("--keep-days", days)
            (bob,) = self.join(server.port, "bob")
            bob.wait_for("* earlier: [HH:MM] alice: young")
            earlier = [line for line in self.leave(bob) if "earlier" in line]
            self.assertEqual([line.split("alice: ")[1] for line in earlier], texts)
            server.stop()

    def limit_files(self, program: Program, size: int | None) -> None:
        """From now on no file of the program can grow beyond that; None: as it was before."""
        import resource  # not on Windows

        kind = resource.RLIMIT_FSIZE
        before, most = resource.getrlimit(kind)
        resource.prlimit(program.process.pid, kind, (before if size is None else size, most))

    def check_integrity(self) -> None:
        with closing(sqlite3.connect(self.db)) as file:
            self.assertEqual(file.execute("PRAGMA integrity_check").fetchall(), [("ok",)])

    def test_a_server_that_ends_while_it_cannot_write_says_so_and_loses_nothing(self) -> None:
        port = lasting_port()
        server = self.start_server(port=port, store_pause=0.2)
        alice, bob = self.join(port, "alice", "bob")
        with closing(sqlite3.connect(self.db, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            alice.type("held back")
            server.wait_for_complaint("the room file cannot be written")
            server.send_signal(signal.SIGTERM)
            self.assertEqual(server.status(), 0)
            self.assertIn(
                "what was not acknowledged is still with its sender", server.complaints[-1]
            )
        self.start_server(port=port)
        bob.wait_for(*public("alice", "held back"))
        self.leave(alice)

    def test_nothing_is_said_before_it_is_on_disk(self) -> None:
        server = self.start_server(store_pause=0.2)
        alice, bob = self.join(server.port, "alice", "bob")
        with closing(sqlite3.connect(self.db, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            alice.type("held back")
            alice.end_input()
            server.wait_for_complaint("the room file cannot be written")
            self.assertNotIn(public("alice", "held back")[0], bob.shown)
            self.assertIsNone(alice.process.poll())  # it does not take the line for delivered
            other.execute("ROLLBACK")
        bob.wait_for(*public("alice", "held back"))
        self.end(alice)
        bob.wait_for("[HH:MM] * alice left")
        self.assertEqual(of_sender("alice", self.leave(bob)), public("alice", "held back"))


class Addresses(RoomTest):
    SECONDS = 4.0

    def test_addresses_may_change_in_mid_stream_on_a_network_that_loses(self) -> None:
        server = self.start_server("--rate", "0", "-v", first_timeout=0.3, ack_allowance=0.1)
        names = ("alice", "bob")
        texts = [f"line {n}" for n in range(60)]
        with Relay(server.port, seed=3, drop=0.1) as relay:
            clients = {
                name: self.start_client(
                    name, relay.port, keepalive=0.5, first_timeout=0.3, ack_allowance=0.1
                )
                for name in names
            }
            for client in clients.values():
                wait_until_joined(client)
            for start in range(0, 60, 20):
                for client in clients.values():
                    client.type(*texts[start : start + 20])
                clients["bob"].wait_for(*public("alice", texts[start]))
                relay.rebind()  # when some lines are on their way
            for client, other in zip(clients.values(), reversed(names)):
                client.wait_for(*public(other, texts[-1]))
            tries = {data for data in relay.seen if b'"HELLO"' in data}
            self.assertEqual(len(tries), 2, "somebody has joined again")
            for (name, client), other in zip(clients.items(), reversed(names)):
                self.assertEqual(conversation(client.shown), public(other, *texts), name)
                self.assertLessEqual(len(passages(client.shown)), 1, name)  # bob's joining
            self.assertGreater(len([x for x in server.complaints if " is at 127.0.0.1 " in x]), 2)
            for client in clients.values():
                client.type("EX")
            for client in clients.values():
                self.end(client)

    def assert_hear_each_other(self, clients: Mapping[str, Program]) -> None:
        for name, client in clients.items():
            client.type(f"I am {name}")
        for name, client in clients.items():
            client.wait_for(*(f"[HH:MM] {n}: I am {n}" for n in clients if n != name))

    @unittest.skipUnless(has_ipv6(), "this host has no IPv6")
    def test_members_by_ipv4_and_by_ipv6_are_in_one_room(self) -> None:
        server = self.start_server(host=None)
        hosts = {"alice": "::1", "bob": LOCALHOST, "carol": "localhost"}
        clients = {
            name: self.start_client(name, server.port, host=host) for name, host in hosts.items()
        }
        for client in clients.values():
            wait_until_joined(client)
        self.assert_hear_each_other(clients)

    def test_a_host_name_will_do_for_both_programs(self) -> None:
        server = self.start_server(host="localhost")
        clients = {
            name: self.start_client(name, server.port, host="localhost")
            for name in ("alice", "bob")
        }
        for client in clients.values():
            wait_until_joined(client)
        self.assert_hear_each_other(clients)


@unittest.skipUnless(HAS_PTY, "this system has no pseudo-terminals")
class WithoutServer(RoomTest):
    SECONDS = 4.0

    def test_who_leaves_while_the_server_is_away_is_told_what_was_not_delivered(self) -> None:
        ways = {"ex": "EX\r", "ctrl-c": "\x03", "ctrl-d": "\x04"}
        # Without a terminal it would wait longer than any test.
        impatient = {"trouble": 0.5, "leave_patience": 0.5, "deliver_patience": 3600.0}
        server = self.start_server()
        terminals = {}
        for name in ways:
            arguments = [LOCALHOST, "0", name, "--server-port", str(server.port)]
            terminal = TerminalProgram(
                Command("chatclient", arguments, impatient), self.folder, 12, 80
            )
            self.addCleanup(terminal.stop)
            terminal.wait_for(">", cursor=2)
            terminals[name] = terminal
        server.stop()
        for terminal in terminals.values():
            terminal.type("hello\r")
        words = "* the connection is lost: reconnecting"
        for name, terminal in terminals.items():
            hello = f"[not delivered yet] {name}: hello"
            terminal.wait_for(words, hello, ">", cursor=2)
            terminal.type("are you there?\r")
            pending = f"[not delivered yet] {name}: are you there?"
            terminal.wait_for(words, hello, pending, ">", cursor=2)
        for name, terminal in terminals.items():
            terminal.type(ways[name])
        for name, terminal in terminals.items():
            status, attributes = terminal.status()
            self.assertEqual((status, attributes), (1, terminal.attributes_before), name)
            lost = ["* may not have arrived: PM hello", "* failed: PM are you there?"]
            said = "chatclient.py: 1 line may not have arrived, and 1 line was not delivered"
            shown = " ".join(terminal.rows)
            for line in (*lost, said):
                self.assertIn(line, shown, name)
            self.assertNotIn("Traceback", shown, name)

    def test_who_presses_ctrl_c_again_does_not_wait_and_is_told_what_was_lost(self) -> None:
        server = self.start_server()
        arguments = [LOCALHOST, "0", "bob", "--server-port", str(server.port)]
        bob = TerminalProgram(
            Command("chatclient", arguments, {"leave_patience": 60}), self.folder, 12, 80
        )
        self.addCleanup(bob.stop)
        bob.wait_for(">", cursor=2)
        server.stop()
        bob.type("hello\r")
        bob.wait_for("[not delivered yet] bob: hello", ">", cursor=2)
        bob.press_until_it_ends("\x03")
        status, attributes = bob.status()
        self.assertEqual((status, attributes), (1, bob.attributes_before))
        said = "and 1 line may not have arrived"
        bob.wait_until(lambda: said in "".join(bob.rows), said)
        shown = "".join(bob.rows)
        self.assertEqual(shown.count("* may not have arrived: PM hello"), 1, bob.rows)
        self.assertNotIn("Traceback", shown)


if __name__ == "__main__":
    unittest.main()
