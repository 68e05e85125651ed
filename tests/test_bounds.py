"""What fills up has a bound, and a rule for what happens at it."""

from __future__ import annotations

import logging
import unittest
from dataclasses import replace
from typing import Final
from unittest import mock

import protocol
from chatserver import (
    FAILURES_OF_BOTH,
    FAILURES_OF_NETWORK,
    LOG_BURST,
    LOG_PAUSE,
    PRUNE_EVERY,
    PRUNE_PAUSE,
    ROOM_KEY,
    Brake,
    Sparing,
    StoreError,
)
from protocol import GROUP, TIMING, Cookie, Gone, Hello, Join, LogId, Prove, format_handshake
from tests.programs import LOCALHOST, ProgramsTest, udp_socket
from tests.room import OPTIONS, ClientEnd, replies, session_of, world

PUBLIC: Final = GROUP.pad(GROUP.power(12345))


def talk(end: ClientEnd) -> list[str]:
    """What members have said, as that end was shown it."""
    return [text for text in end.texts() if "#" in text]


class DoorTest(unittest.TestCase):
    """Who has not returned a cookie takes no place from anybody."""

    def test_nothing_that_an_unproven_address_sends_waits_or_stays(self) -> None:
        with world() as w:
            w.joined("alice")
            server = w.server.server
            hello = Hello(protocol.VERSION, "mallory", b"n" * 16, PUBLIC)
            join = Join(hello.version, hello.username, hello.nonce, PUBLIC, b"c" * 16)
            prove = Prove(hello.nonce, session_of(w, "alice").id, b"p" * 32, b"sealed")
            for number in range(1000):
                address = (f"127.0.{number // 256}.{number % 256}", 7890)
                for record in (hello, join, prove):
                    server.receive_untrusted(format_handshake(record), address, w.network.now)
            self.assertEqual(len(server._handshakes), 0)
            self.assertEqual(server._door._knocks, {})
            kinds = [protocol.parse_handshake_untrusted(data) for data, _ in server._replies]
            self.assertEqual([type(kind) for kind in kinds], [Cookie, Cookie, Gone] * 1000)

    def test_what_a_proven_address_repeats_waits_once_and_is_answered_the_same(self) -> None:
        with world() as w:
            hello = Hello(protocol.VERSION, "mallory", b"n" * 16, PUBLIC)
            (data,) = replies(w, format_handshake(hello))
            cookie = protocol.parse_handshake_untrusted(data)
            assert isinstance(cookie, Cookie)
            join = Join(hello.version, hello.username, hello.nonce, PUBLIC, cookie.cookie)
            server, address = w.server.server, ("stranger", 7890)
            for _ in range(3):
                server.receive_untrusted(format_handshake(join), address, w.network.now)
            self.assertEqual(len(server._handshakes), 3)
            with mock.patch.object(
                protocol, "server_public", wraps=protocol.server_public
            ) as power:
                server.handle(w.network.now, 0)
            self.assertEqual(power.call_count, 1)
            challenges = {data for data, _ in server._replies}
            self.assertEqual((len(server._replies), len(challenges)), (3, 1))


class TablesTest(unittest.TestCase):
    def test_of_sessions_that_have_ended_the_oldest_make_way(self) -> None:
        with world() as w, mock.patch("chatserver.LINGERING", 3):
            names = [f"guest{number}" for number in range(6)]
            ends = w.joined(*names)
            for end in ends:
                end.leave()
            w.run(1)
            self.assertEqual([end.client.failure for end in ends], [None] * 6)
            self.assertTrue(all(end.client.has_left for end in ends))
            left = [session.member.name for session in w.server.server._sessions.values()]
            self.assertEqual(left, names[3:])
            w.run(TIMING.linger)
            self.assertEqual(w.server.server._sessions, {})
            self.assertEqual(w.server.server._lingering, {})

    def test_who_asks_who_is_here_gets_what_others_got_until_somebody_comes_or_goes(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            room = w.server.server._room
            roster = room.roster()
            self.assertIs(room.roster()[0], roster[0])
            w.join("carol").leave()
            w.run(1)
            self.assertIs(room.roster()[0], room.roster()[0])
            alice.say("WHO")
            w.run(1)
            self.assertEqual(alice.texts()[-1], "* here: alice, bob")
            w.join("dora")
            bob.say("WHO")
            w.run(1)
            self.assertEqual(bob.texts()[-1], "* here: alice, bob, dora")

    def test_what_is_remembered_of_wrong_passwords_is_as_much_as_counts(self) -> None:
        brake = Brake(TIMING)
        for number in range(50):
            brake.fail("alice", "lan", number / 100)
        counts = {key: len(failures.times) for key, failures in brake._failures.items()}
        self.assertEqual(counts["alice", "lan"], FAILURES_OF_BOTH)
        self.assertEqual(counts["", "lan"], FAILURES_OF_NETWORK)
        self.assertEqual(counts["alice", ""], 50)

    def test_what_nobody_echoes_is_remembered_only_so_far(self) -> None:
        channel = protocol.Channel(TIMING, 0.0, {LogId.LINES: 0}, {LogId.ROOM: 0})
        for now in range(3000):
            channel.ask(now)
            self.assertEqual(len(channel.packets(now, {LogId.ROOM: protocol.Log()})), 1)
        self.assertEqual(len(channel._unanswered), 4 * protocol.MAXIMUM_WINDOW)
        self.assertEqual(channel._unanswered[-1], (3000, 2999))


class FileTest(unittest.TestCase):
    def test_the_oldest_lines_of_the_room_make_way(self) -> None:
        for keep_days in (0, 30):
            with (
                self.subTest(keep_days=keep_days),
                mock.patch("chatserver.ROOM_LINES", 10),
                mock.patch("chatserver.EXCESS_AT_ONCE", 4),
                world(options=replace(OPTIONS, keep_days=keep_days)) as w,
            ):
                alice, bob = w.joined("alice", "bob")
                alice.say(*(f"#{number}" for number in range(25)))
                w.run(PRUNE_EVERY + 9 * PRUNE_PAUSE)
                self.assertEqual(talk(bob), [f"alice: #{number}" for number in range(25)])
                oldest, end = w.server.store.bounds(ROOM_KEY)
                self.assertEqual((oldest, end), (17, 27))
                self.assertEqual(len(w.server.store.read(ROOM_KEY, 0, 99)), 10)
                carol = w.join("carol")
                w.run(2)
                history = [text.partition("] ")[2] for text in talk(carol)]
                self.assertEqual(history, [f"alice: #{number}" for number in range(15, 25)])

    def test_a_line_that_is_not_kept_any_more_is_never_another_one(self) -> None:
        with world() as w:
            log = w.server.store.log(b"inbox")
            for number in range(300):
                log.stage(b"%d" % number)
            w.server.store.commit()
            self.assertEqual(log.line(10), b"10")
            log.forget(20)
            for number in (10, 15):  # one from memory, perhaps, and one from the file
                with self.assertRaisesRegex(StoreError, f"line {number} of a log"):
                    log.line(number)
                w.server.store.commit()
            self.assertEqual(log.line(22), b"22")

    def test_once_all_inboxes_hold_too_much_none_may_hold_more_than_its_share(self) -> None:
        with (
            world() as w,
            mock.patch("chatserver.UNREAD_LINES", 8),
            mock.patch("chatserver.UNREAD_SHARE", 2),
        ):
            alice, bob, carol = w.joined("alice", "bob", "carol")
            w.run(1)
            w.network.unplugged = {"bob"}
            alice.say(*(f"DM bob #{number}" for number in range(8)))
            w.run(3)
            self.assertEqual(session_of(w, "bob").member.inbox.unread, 8)
            refused = "* not delivered: bob has too many unread messages"
            self.assertNotIn(refused, " ".join(alice.texts()))
            alice.say("DM bob #8", "DM carol #9", "#10")
            w.run(3)
            self.assertIn(refused, " ".join(alice.texts()))
            self.assertEqual(talk(carol), ["alice -> you: #9", "alice: #10"])
            w.network.unplugged = set()
            w.run(10)
            self.assertEqual(
                set(talk(bob)), {f"alice -> you: #{n}" for n in range(8)} | {"alice: #10"}
            )
            w.run(600)  # they are counted again
            w.network.unplugged = {"bob"}
            alice.say(*(f"DM bob #{number}" for number in range(11, 14)))
            w.run(3)
            self.assertEqual(session_of(w, "bob").member.inbox.unread, 3)

    def test_after_a_restart_what_lies_in_inboxes_still_counts(self) -> None:
        with world() as w:
            alice, _ = w.joined("alice", "bob")
            w.run(1)
            w.network.unplugged = {"bob"}
            alice.say("DM bob #0", "DM bob #1", "aloud")
            w.run(3)
            self.assertEqual(w.server.store.count_unread(), 2)
            w.server.kill()
            w.server.start()
            self.assertEqual(w.server.server._room._unread, 2)


class SparingTest(unittest.TestCase):
    """What the operator reads."""

    def setUp(self) -> None:
        self.now = 0.0
        self.sparing = Sparing(lambda: self.now)

    def logged(self, kind: str, *values: object) -> str | None:
        record = logging.LogRecord("chatserver", logging.INFO, "", 0, kind, values, None)
        return record.getMessage() if self.sparing.filter(record) else None

    def test_of_each_kind_the_first_are_logged_and_then_one_in_a_while(self) -> None:
        lines = [self.logged("%s joined", number) for number in range(LOG_BURST + 50)]
        expected = [f"{number} joined" for number in range(LOG_BURST)]
        self.assertEqual(list(filter(None, lines)), expected)
        self.now = LOG_PAUSE
        again = [self.logged("%s joined", name) for name in ("alice", "bob")]
        self.assertEqual(again, ["alice joined (50 more like this were left out)", None])
        self.now = 2 * LOG_PAUSE
        last = self.logged("%s joined", "carol")
        self.assertEqual(last, "carol joined (1 more like this were left out)")

    def test_a_kind_hides_no_other(self) -> None:
        for number in range(LOG_BURST + 1):
            self.logged("%s joined", number)
        self.assertIsNone(self.logged("%s joined", "alice"))
        self.assertEqual(self.logged("%s left", "alice"), "alice left")

    def test_after_a_quiet_time_a_whole_class_is_logged_again(self) -> None:
        for number in range(LOG_BURST):
            self.logged("%s joined", number)
        self.now = LOG_PAUSE * LOG_BURST
        lines = [self.logged("%s joined", number) for number in range(LOG_BURST)]
        self.assertNotIn(None, lines)


class LogTest(ProgramsTest):
    COUNT: Final = 3 * LOG_BURST

    def flooded(self, *options: str) -> list[str]:
        """What a server logs whom a stranger has sent many datagrams of no shape."""
        server = self.start_server(*options)
        with udp_socket(LOCALHOST, server.port) as stranger:
            for _ in range(self.COUNT):
                stranger.send(bytes(99))
        (alice,) = self.join(server.port, "alice")  # so all that came before has been seen to
        self.leave(alice)
        server.wait_for_complaint("alice left")
        return [line for line in server.complaints if "dropped" in line]

    def test_a_stranger_does_not_fill_the_disk_and_the_rest_is_still_logged(self) -> None:
        dropped = self.flooded()
        self.assertLess(LOG_BURST - 1, len(dropped))
        self.assertLess(len(dropped), LOG_BURST + 5)
        self.assertRegex(dropped[0], r"dropped 99 bytes from 127\.0\.0\.1 port \d+: not a session")

    def test_with_verbose_everything_is_logged(self) -> None:
        self.assertEqual(len(self.flooded("-v")), self.COUNT)


if __name__ == "__main__":
    unittest.main()
