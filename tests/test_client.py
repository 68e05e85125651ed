"""The parts of the client that neither a conversation nor a process shows by itself."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
import time
import unittest
from dataclasses import replace
from math import inf
from random import Random
from typing import Any
from unittest import mock

import protocol
from chatclient import (
    ASIDE,
    FAINT,
    LATE,
    MAX_BACKLOG,
    MAX_NAMES,
    MENTION,
    PLAIN,
    SHOWN_PENDING,
    Client,
    Completer,
    Credentials,
    Failed,
    Network,
    Note,
    Said,
    Screen,
    Shown,
    Span,
    _connected,
    _credentials,
    _name,
    _pasted,
    completions,
    is_calling,
    rows_of,
    spans_of,
)
from protocol import TIMING, Direct, Public, Timing
from tests import views
from tests.actions import close_loop, give_socket, press_ctrl_c, take_line
from tests.programs import PATIENCE
from tests.room import quick_passwords


class RowsTest(unittest.TestCase):
    def check(self, line: str, *rows: str) -> None:
        self.assertEqual(tuple(rows_of([(line, "")], 8)), rows)

    def test_a_line_is_cut_between_words_and_its_further_rows_are_indented(self) -> None:
        self.check("", "")
        self.check("abcdefgh", "abcdefgh")
        self.check("abcdef ghi jkl mn", "abcdef", "  ghi", "  jkl mn")
        self.check("abcdefgh ijkl", "abcdefgh", "  ijkl")

    def test_a_word_that_is_longer_than_a_row_is_cut_where_the_row_ends(self) -> None:
        self.check("abcdefghijklmnopq", "abcdefgh", "  ijklmn", "  opq")
        self.check("a bcdefghijk", "a bcdefg", "  hijk")  # or little of the row would be used

    def test_wide_characters_take_two_columns_and_are_never_cut(self) -> None:
        self.check("日本語日本語", "日本語日", "  本語")
        self.check("a日本語日本", "a日本語", "  日本")
        self.check("🎈🎈🎈🎈🎈", "🎈🎈🎈🎈", "  🎈")

    def test_combining_characters_take_none(self) -> None:
        self.check("e\u0301" * 9, "e\u0301" * 8, "  e\u0301")
        self.check("👩\u200d👩👩👩x", "👩\u200d👩👩👩", "  x")

    def test_a_picture_made_of_a_letter_is_as_wide_as_any_terminal_makes_it(self) -> None:
        self.check("❤\ufe0f" * 5, "❤\ufe0f" * 4, "  ❤\ufe0f")

    def test_the_looks_of_a_part_go_on_in_the_next_row(self) -> None:
        rows = tuple(rows_of([("ab ", ""), ("cdefgh ij", "7"), ("!", "")], 8))
        self.assertEqual(rows, ("ab \033[7mcdefg\033[m", "  \033[7mh ij\033[m!"))

    def test_a_row_narrower_than_a_character_still_gets_one(self) -> None:
        self.assertEqual(list(rows_of([("日日", "")], 1)), ["日", "  日"])


class SpansTest(unittest.TestCase):
    """A line in its parts, as it is shown to bob."""

    NOON = time.mktime((2026, 11, 24, 12, 0, 0, 0, 0, -1))

    def check(self, line: Shown, *spans: Span) -> None:
        self.assertEqual(tuple(spans_of(line, "bob", self.NOON)), spans)

    def said(self, text: str, to: str = "", **more: Any) -> Said:
        return Said(int(self.NOON), "alice", to, text, **more)

    def test_what_is_said_has_its_time_its_sender_and_the_persons_own_name(self) -> None:
        clock, name, colon = ("[12:00] ", FAINT), _name("alice"), (": ", PLAIN)
        mention = [("hi ", PLAIN), ("Bob", MENTION), ("!", PLAIN)]
        self.check(self.said("hi Bob!"), clock, name, colon, *mention)
        aside = (" -> you", ASIDE)
        self.check(self.said("x", "bob"), clock, name, aside, colon, ("x", PLAIN))

    def test_what_one_has_written_to_somebody_names_its_reader(self) -> None:
        own = Said(int(self.NOON), "bob", "alice", "x", is_own=True)
        clock, you = ("[12:00] ", FAINT), ("you -> ", ASIDE)
        self.check(own, clock, you, _name("alice"), (": ", PLAIN), ("x", PLAIN))

    def test_what_waits_has_its_state_in_place_of_a_time(self) -> None:
        waiting = Said(None, "bob", "", "x", is_own=True)
        self.check(waiting, ("[.....] bob: x", FAINT))
        late = replace(waiting, label="not delivered yet")
        self.check(late, ("[not delivered yet] bob: x", LATE))

    def test_what_is_not_from_today_has_its_date(self) -> None:
        yesterday = replace(self.said("x", label="earlier"), unix=int(self.NOON - 24 * 3600))
        text = "".join(text for text, _ in spans_of(yesterday, "bob", self.NOON))
        self.assertEqual(text, "* earlier: [2026-11-23 12:00] alice: x")
        self.assertEqual({role for _, role in spans_of(yesterday, "bob", self.NOON)}, {FAINT})

    def test_a_direct_message_and_a_mention_call_the_person_unless_they_are_old(self) -> None:
        for text, is_mention in (
            ("bob", True),
            ("hello BOB, look", True),
            ("(bob)", True),
            ("bob.", True),
            ("bobby abob bob-cat my-bob bob_ bob.x", False),
            ("nothing", False),
        ):
            with self.subTest(text=text):
                self.assertEqual(is_calling(self.said(text), "bob"), is_mention)
                self.assertFalse(is_calling(self.said(text, label="earlier"), "bob"))
                self.assertFalse(is_calling(self.said(text, is_own=True), "bob"))
        self.assertTrue(is_calling(self.said("nothing", "bob"), "bob"))
        self.assertFalse(is_calling(Note("bob joined", 0), "bob"))


class CompletionsTest(unittest.TestCase):
    def test_names_come_first_and_what_follows_them_depends_on_where_they_are(self) -> None:
        names = ["Anna", "alice", "hedwig"]
        for typed, expected in (
            ("a", ["Anna: ", "alice: "]),
            ("AN", ["Anna: "]),
            ("h", ["hedwig: ", "HELP"]),
            ("d", ["DM "]),
            ("w", ["WHO"]),
            ("x", []),
            ("", ["Anna: ", "alice: ", "hedwig: ", "DM ", "PM ", "WHO", "HELP", "EX"]),
            ("DM ", ["DM Anna ", "DM alice ", "DM hedwig "]),
            ("dm  al", ["dm  alice "]),
            ("DM alice ", []),
            ("ask al", ["ask alice "]),
            ("ask ", []),
        ):
            with self.subTest(typed=typed):
                self.assertEqual(completions(typed, names), expected)

    def test_a_name_that_is_a_command_does_not_come_in_its_way(self) -> None:
        self.assertEqual(completions("d", ["dm", "dora", "DM"]), ["dora: ", "DM "])

    def test_who_has_just_that_name_comes_first(self) -> None:
        names = ["alice.", "ALICE"]
        self.assertEqual(completions("DM alice", names), ["DM ALICE ", "DM alice. "])
        self.assertEqual(completions("alice", names), ["ALICE: ", "alice.: "])

    def test_each_tab_puts_the_next_candidate_in_place_of_the_last(self) -> None:
        complete = Completer(lambda typed: [name for name in ("anna ", "al ") if typed == "a"])
        typed, put = "a", []
        for _ in range(3):
            typed = complete(typed, 0) or typed
            put.append(typed)
            self.assertIsNone(complete(typed, 1))  # a second one would be listed
        self.assertEqual(put, ["anna ", "al ", "anna "])
        self.assertIsNone(complete("nobody", 0))
        self.assertEqual(complete("a", 0), "anna ")

    def test_a_single_candidate_is_put_once(self) -> None:
        complete = Completer(lambda typed: ["anna: "])
        self.assertEqual(complete("a", 0), "anna: ")
        self.assertIsNone(complete("anna: ", 0))


class PastedTest(unittest.TestCase):
    def test_a_line_without_a_command_goes_where_the_line_before_it_went(self) -> None:
        for typed, expected in (
            ("one\n\n  two ", [Public("one"), Public("two")]),
            ("DM alice x\ny\nEX", [Direct("alice", text) for text in ("x", "y", "EX")]),
            (
                "one\ndm alice x\nPM z\nWHO",
                [Public("one"), Direct("alice", "x"), Public("z"), Public("WHO")],
            ),
        ):
            with self.subTest(typed=typed):
                self.assertEqual(_pasted(typed), expected)

    def test_a_line_that_would_have_to_ask_makes_the_whole_paste_a_mistake(self) -> None:
        for line in ("PM", "DM", "DM alice", "dm alice  "):
            with self.subTest(line=line), self.assertRaisesRegex(protocol.BadMessage, "text"):
                _pasted(f"one\n{line}\ntwo")


class CredentialsTest(unittest.TestCase):
    """Where a password comes from: the environment, or the person."""

    def setUp(self) -> None:
        self.enterContext(quick_passwords())
        self.typed = self.enterContext(mock.patch("getpass.getpass", return_value="typed"))

    def given(self, is_registering: bool, is_terminal: bool, **variables: str) -> Credentials:
        with mock.patch.dict(os.environ, variables, clear=True):
            return _credentials("alice", is_registering, is_terminal)

    def assert_registers(self, given: Credentials, new: bytes, old: bytes | None) -> None:
        self.assertEqual(given.password, old)
        assert given.registration
        given.adopt_new()
        self.assertEqual(given.password, new)

    def test_to_log_in_the_environment_is_used_on_a_terminal_too(self) -> None:
        for is_terminal in (True, False):
            self.assertIsNone(self.given(False, is_terminal).password)
            given = self.given(False, is_terminal, CHAT_PASSWORD="mine")
            self.assertEqual((given.password, given.registration), (b"mine", None))
        self.typed.assert_not_called()

    def test_to_register_a_terminal_asks_twice_whatever_the_environment_says(self) -> None:
        self.assert_registers(self.given(True, True, CHAT_PASSWORD="mine"), b"typed", None)
        self.assertEqual(self.typed.call_count, 2)

    def test_to_register_without_a_terminal_the_environment_has_the_old_and_the_new(self) -> None:
        self.assert_registers(self.given(True, False, CHAT_PASSWORD="mine"), b"mine", None)
        both = self.given(True, False, CHAT_PASSWORD="old", CHAT_NEW_PASSWORD="new")
        self.assert_registers(both, b"new", b"old")
        with self.assertRaisesRegex(Failed, "CHAT_PASSWORD"):
            self.given(True, False, CHAT_NEW_PASSWORD="new")
        self.typed.assert_not_called()


class BoundsTest(unittest.TestCase):
    """What a server, or a person, can make a client keep or do."""

    def setUp(self) -> None:
        self.client = Client("bob", Credentials(), "the server", TIMING, Random(1).randbytes, 0.0)

    def test_a_long_paste_in_trouble_is_not_counted_again_for_each_line(self) -> None:
        self.client.datagrams(TIMING.trouble)  # it says that there is no answer yet
        counting = mock.Mock(wraps=self.client.undelivered)
        self.enterContext(mock.patch.object(self.client, "undelivered", counting))
        for number in range(1000):
            self.client.say(Public(f"line {number}"), 0.0)
        told = [line.words for line in self.client.shown if isinstance(line, Note)]
        self.assertEqual(told[-1], f"not delivered yet: PM line {SHOWN_PENDING - 1}")
        self.assertLess(counting.call_count, 3 * SHOWN_PENDING)

    def test_a_server_that_invents_names_is_not_believed_all_of_them(self) -> None:
        for number in range(MAX_NAMES + 5):
            joined = protocol.Relayed(0, f"m{number}", protocol.Joined())
            take_line(self.client, joined, 0.0)
        self.assertEqual(len(self.client.others), MAX_NAMES)
        self.assertEqual(self.client.others[0], f"m{MAX_NAMES + 4}")
        for _ in range(MAX_NAMES // 100 + 1):
            names = tuple(f"n{number}" for number in range(100))
            take_line(self.client, protocol.Relayed(0, "*", protocol.Roster(1, names)), 0.0)
        self.assertEqual(len(views.partial_roster(self.client)), MAX_NAMES)


def turn(network: Network) -> bool:
    """Let a client's loop do one turn, leave signals alone, and return True if all is over then."""
    is_enough = mock.Mock(return_value=True)
    with mock.patch.object(network, "heed"):
        network.run(is_enough)
    return not is_enough.called


class NetworkTest(unittest.TestCase):
    def network(
        self,
        client: Client,
        timing: Timing = TIMING,
        udp: socket.socket | None = None,
        screen: Screen | None = None,
    ) -> Network:
        udp = udp or socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        network = Network(client, udp, screen or Screen("alice"), timing)
        self.addCleanup(close_loop, network)
        return network

    def client(self) -> Client:
        return Client("alice", Credentials(), "the server", TIMING, Random(1).randbytes, 0.0)

    def socket_elsewhere(self, server: socket.socket) -> socket.socket:
        """Return a socket to a server that keeps the address of another network."""
        return _connected(socket.AF_INET, ("127.0.0.5", 0), server.getsockname())

    def test_a_line_is_shown_before_it_is_acknowledged(self) -> None:
        client = mock.Mock(is_over=True, shown=[Note("line")])
        client.datagrams.return_value = [b"acknowledgement"]
        screen, udp = mock.Mock(is_closed=False, is_live=False), mock.Mock()
        udp.getpeername.side_effect = OSError  # there is no other route to look for
        order = mock.Mock()
        order.attach_mock(screen.show, "show")
        order.attach_mock(udp.send, "send")
        self.assertTrue(turn(self.network(client, udp=udp, screen=screen)))
        self.assertEqual([name for name, _, _ in order.mock_calls], ["show", "send"])

    @unittest.skipUnless(sys.platform == "linux", "needs addresses like 127.0.0.5")
    def test_client_in_another_network_speaks_from_new_address(self) -> None:
        server = self.enterContext(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(("127.0.0.1", 0))
        client = mock.Mock(is_over=True, shown=[])
        client.datagrams.side_effect = lambda now: [b"hello"] if client.ask.called else []
        udp = self.socket_elsewhere(server)
        port = udp.getsockname()[1]
        network = self.network(client, replace(TIMING, route=0.0), udp)
        turn(network)
        self.assertEqual(server.recvfrom(100), (b"hello", ("127.0.0.1", port)))
        self.assertEqual(client.ask.call_count, 1)
        moved = views.loop_socket(network)
        turn(network)
        self.assertIs(views.loop_socket(network), moved)  # as long as it is the right one
        self.assertEqual(client.ask.call_count, 1)

    @unittest.skipUnless(sys.platform == "linux", "needs addresses like 127.0.0.5")
    def test_idle_client_looks_for_its_address_again_and_again(self) -> None:
        server = self.enterContext(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(("127.0.0.1", 0))
        client = mock.Mock(is_over=False, shown=[])
        client.datagrams.return_value = []
        client.deadline.return_value = inf
        network = self.network(client, replace(TIMING, route=0.05))
        hang = threading.Timer(PATIENCE, network.leave)
        hang.start()
        self.addCleanup(hang.cancel)
        for count in range(3):
            give_socket(network, self.socket_elsewhere(server))
            turn(network)  # waits until it is time to look again
            self.assertEqual(views.loop_socket(network).getsockname()[0], "127.0.0.1")
            self.assertEqual(client.ask.call_count, count + 1)
        self.assertTrue(hang.is_alive(), "it was woken")

    def test_datagram_that_cannot_leave_makes_client_look_for_route(self) -> None:
        udp = mock.Mock()
        udp.getpeername.side_effect = OSError
        udp.send.side_effect = OSError(errno.ENETUNREACH, "Network is unreachable")
        client = mock.Mock(is_over=True, shown=[])
        client.datagrams.return_value = [b"hello"]
        network = self.network(client, replace(TIMING, route=inf), udp)
        self.assertTrue(turn(network))
        self.assertEqual(views.next_route_check(network), -inf)

    def test_line_entered_while_leaving_is_said_and_piped_one_is_not(self) -> None:
        for is_terminal in (True, False):
            client = mock.Mock(is_leaving=True, is_over=False, backlog=0)
            network = self.network(client, screen=mock.Mock(is_terminal=is_terminal))
            self.assertFalse(network.say([Public("line")]))
            self.assertEqual(client.say.called, is_terminal)

    @unittest.skipUnless(hasattr(signal, "alarm"), "needs SIGALRM")
    def test_pressing_ctrl_c_again_does_not_put_the_end_off(self) -> None:
        network = self.network(self.client())
        with mock.patch("signal.alarm") as alarm:
            for _ in range(3):
                press_ctrl_c(network)
        alarm.assert_called_once_with(3)

    def test_a_pipe_waits_while_more_is_read_than_can_be_sent(self) -> None:
        client = self.client()
        network = self.network(client)
        while client.backlog < MAX_BACKLOG:
            network.say([Public("line")])
        writer = threading.Thread(target=network.say, args=([Public("one more")],))
        writer.start()
        writer.join(0.3)
        self.assertTrue(writer.is_alive())
        self.assertEqual(client.backlog, MAX_BACKLOG)
        client.failure = "put out"
        writer.join(PATIENCE)
        self.assertFalse(writer.is_alive())


if __name__ == "__main__":
    unittest.main()
