"""Who sees a client's datagrams can forge its server's address, and a server can be hostile."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Final
from unittest import mock

import chatclient
import protocol
from chatclient import MAX_BACKLOG, SALTS, SALTS_RATE, Client, Credentials
from protocol import (
    Challenge,
    Cookie,
    Gone,
    Hello,
    Join,
    LogId,
    Packet,
    Part,
    Prove,
    Public,
    Refusal,
    Refused,
    format_handshake,
    parse_handshake_untrusted,
)
from tests import views
from tests.accounts import add_accounts, knows
from tests.actions import drop_outbox, start_handshake, stop_pacing, supersede_handshake
from tests.network import HEALTHY, LOST
from tests.room import SERVER, ClientEnd, World, session_of, world

Forge = Callable[[protocol.Handshake], Iterable[protocol.Handshake]]
SOON: Final = 0.001  # seconds: before the server's answer


def refused(end: ClientEnd) -> list[str]:
    return [text for text in end.texts() if "not let in again" in text]


@contextmanager
def overheard(w: World, end: ClientEnd, forge: Forge) -> Iterator[None]:
    """A stranger answers the handshake packets of an end, in the server's name and before it."""
    honest = end.datagrams

    def datagrams(now: float) -> list[tuple[bytes, str]]:
        out = honest(now)
        for data, _ in out:
            if data[:1] == b"{":
                for record in forge(parse_handshake_untrusted(data)):
                    forged = format_handshake(record)
                    arrive = partial(end.receive, forged, SERVER, now + SOON)
                    w.network.at(now + SOON, end.host, arrive)
        return out

    with mock.patch.object(end, "datagrams", datagrams):
        yield


class StrangerTest(unittest.TestCase):
    def come_back(self, w: World, end: ClientEnd, forge: Forge) -> None:
        """The server dies and starts again, while a stranger forges its answers."""
        w.restart()
        with overheard(w, end, forge):
            w.run(5)

    def test_forged_cookies_keep_nobody_out(self) -> None:
        """Nor do they make a right password wrong."""
        number = count()

        def forge(record: protocol.Handshake) -> Iterator[Cookie]:
            if isinstance(record, Hello):  # or a JOIN
                yield Cookie(record.nonce, next(number).to_bytes(16, "big"))

        for credentials in (Credentials(), knows()):
            with self.subTest(credentials.password), world() as w:
                if credentials.password:
                    add_accounts(w, "alice")
                alice = w.client("alice", credentials=credentials)
                with overheard(w, alice, forge):
                    w.run(5)
                self.assertTrue(alice.client.has_joined, alice.client.failure)

    def test_a_cookie_that_makes_too_long_a_request_is_none(self) -> None:
        def forge(record: protocol.Handshake) -> Iterator[Cookie]:
            if isinstance(record, Hello):
                yield Cookie(record.nonce, bytes(550))

        with world() as w:
            alice = w.client("alice")
            w.network.muted = {SERVER}
            with overheard(w, alice, forge):
                w.run(5)
            w.network.muted = set()
            w.run(5)
            self.assertTrue(alice.client.has_joined)

    def test_a_refusal_that_was_forged_keeps_nobody_out_for_long(self) -> None:
        """Though the true welcome did not get through either."""

        def refuse(record: protocol.Handshake) -> Iterator[Refused]:
            if isinstance(record, Prove):
                w.network.faults = LOST
                yield Refused(record.nonce, Refusal.LOGIN.value, "wrong username or password")

        with world() as w:
            add_accounts(w, "alice")
            alice = w.join("alice", credentials=knows())
            w.run(1)
            self.come_back(w, alice, refuse)
            w.network.faults = HEALTHY
            self.assertEqual(len(refused(alice)), 1)
            w.run(protocol.TIMING.first_login_pause + 5)
            self.assertEqual(session_of(w, "alice").address, ("alice", 7890))
            alice.say("#back")
            w.run(1)
            self.assertEqual(alice.client.undelivered(), [])

    def test_a_question_that_is_lost_is_asked_again_before_a_hint_is_believed(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(5)
            before = len(w.network.sent)
            alice.receive(format_handshake(Gone(session_of(w, "alice").id)), SERVER, w.network.now)
            w.network.faults = LOST
            w.run(0.1)
            w.network.faults = HEALTHY
            w.run(5)
            sent = [d.data for d in w.network.sent[before:] if d.source == "alice"]
            self.assertEqual(len(sent), 2)
            self.assertFalse([data for data in sent if data[:1] == b"{"])

    def test_what_is_repeated_does_not_make_a_client_forget_its_proof(self) -> None:
        recorded: list[bytes] = []

        def refuse(record: protocol.Handshake) -> Iterator[Refused]:
            if isinstance(record, Prove):
                yield Refused(record.nonce, Refusal.IN_USE.value, "forged")
                w.network.at(w.network.now + 2 * SOON, "alice", replay)

        def replay() -> None:
            for data in recorded:
                alice.receive(data, SERVER, w.network.now)

        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            sent = [d.data for d in w.network.sent if d.target == "alice"]
            recorded += [data for data in sent if data[:1] != b"{"]
            self.come_back(w, alice, refuse)
            bob.say("#hello")
            w.run(1)
            self.assertEqual(alice.texts()[-1], "bob: #hello")

    def test_what_is_forged_in_answer_to_a_proof_keeps_nobody_from_coming_back(self) -> None:
        def refuse(record: protocol.Handshake) -> Iterator[Refused]:
            if isinstance(record, Prove):
                yield Refused(record.nonce, Refusal.LOGIN.value, "wrong username or password")

        def deny(record: protocol.Handshake) -> Iterator[Gone]:
            if isinstance(record, Prove):
                yield Gone(record.session)

        for forge in (refuse, deny):
            with self.subTest(forge.__name__), world() as w:
                add_accounts(w, "alice")
                alice = w.join("alice", credentials=knows())
                (bob,) = w.joined("bob")
                w.run(1)
                self.come_back(w, alice, forge)
                alice.say("#back")
                w.run(1)
                self.assertEqual(bob.texts()[-1], "alice: #back")

    def test_once_it_has_read_on_a_client_does_not_go_back_to_an_earlier_try(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            start_handshake(alice.client, w.network.now)
            supersede_handshake(alice.client)
            self.assertIsNotNone(views.superseded_handshake(alice.client))
            bob.say("#hello")
            w.run(0.1)
            self.assertIsNone(views.superseded_handshake(alice.client))

    def test_a_stranger_does_not_write_upon_the_screen(self) -> None:
        number = count()

        def forge(record: protocol.Handshake) -> Iterator[Refused]:
            if isinstance(record, Hello):
                yield Refused(record.nonce, f"code {next(number)}", "buy my book")

        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            w.server.kill()
            with overheard(w, alice, forge):
                w.run(300)
            self.assertGreater(next(number), 2 * len(Refusal))
            self.assertEqual(len(refused(alice)), 1)
            w.server.start()
            w.run(30)
            self.assertEqual(alice.texts()[-1], "* connected")

    def test_nobody_can_make_a_client_work_out_its_password_again_and_again(self) -> None:
        salts = count()

        def forge(record: protocol.Handshake) -> Iterator[protocol.Handshake]:
            if isinstance(record, Hello) and not isinstance(record, Join):
                salt = next(salts).to_bytes(protocol.SALT_LENGTH, "big")
                yield Challenge(record.nonce, b"session!", protocol.GROUP.pad(5), salt, 10_000_000)
            elif isinstance(record, Prove):
                yield Refused(record.nonce, "in-use", "try again")

        with world() as w:
            add_accounts(w, "alice")
            alice = w.join("alice", credentials=knows())
            w.run(1)
            w.server.kill()
            slow = mock.Mock(return_value=12345)
            with (
                mock.patch.object(protocol, "password_secret_untrusted", slow),
                overheard(w, alice, forge),
            ):
                alice.say("#hello")
                w.run(600)
            self.assertGreater(next(salts), 3 * SALTS)
            self.assertLess(slow.call_count, SALTS + 600 * SALTS_RATE)
            w.server.start()
            w.run(90)
            self.assertIn("alice", views.members(w.server.server))
            self.assertEqual(alice.texts()[-1], "* connected")


class ServerTest(unittest.TestCase):
    """A server that says what it likes, well sealed."""

    def setUp(self) -> None:
        self.w = self.enterContext(world())
        (self.alice,) = self.w.joined("alice")
        self.w.run(1)
        self.numbers = count(1000)

    @property
    def client(self) -> Client:
        return self.alice.client

    def tell(self, log: LogId, *lines: str, taken: int = 1) -> None:
        """The client's next lines of a log; ``taken`` is the server's cursor."""
        session = views.session(self.client)
        first = session.channel.readers[log].cursor
        part = Part(log, first, tuple(line.encode() for line in lines))
        packet = Packet(next(self.numbers), 0, 0, False, (taken, 0, 0), (part,))
        data = protocol.seal_packet(packet, session.id, session.keys.server, session.blocks)
        self.alice.receive(data, SERVER, self.w.network.now)

    def test_who_says_goodbye_again_and_again_is_left_once(self) -> None:
        with mock.patch.object(chatclient, "Attempt", wraps=chatclient.Attempt) as new:
            for log in (LogId.NOTICES, LogId.ROOM):
                self.tell(log, *["1 * BYE"] * 30)
            self.assertEqual(new.call_count, 1)

    def test_answers_to_lines_that_there_are_not_do_not_keep_a_client(self) -> None:
        self.w.server.kill()
        self.client.say(Public("#lost"), self.w.network.now)
        self.alice.leave(patience=2.0)
        for _ in range(5):
            self.tell(LogId.INBOX, "1 * NO 0 x", "1 * NO 9999999999 x", "1 * NO 77 x")
            self.w.run(1)
        self.assertEqual(self.client.failure, "1 line may not have arrived")

    def test_an_answer_to_a_line_that_was_not_taken_is_none(self) -> None:
        self.w.server.kill()
        self.client.say(Public("#lost"), self.w.network.now)
        self.w.run(0.1)
        self.tell(LogId.INBOX, "1 * OK 1 thank you")
        self.assertEqual(self.client.undelivered(), [Public("#lost")])

    def test_what_is_taken_and_never_shown_holds_back_a_pipe(self) -> None:
        for number in range(MAX_BACKLOG):
            self.client.say(Public(f"#{number}"), self.w.network.now)
        stop_pacing(self.client)
        self.w.run(0.01)
        drop_outbox(self.client)
        self.assertEqual(self.client.backlog, MAX_BACKLOG)

    def test_nothing_that_it_says_is_shown_but_clean_texts_of_names_that_can_be(self) -> None:
        before = len(self.alice.texts())
        for line in (
            "1 * PM fake",
            "1 bob NO 1 fake",
            "1 b\u043eb PM fake",
            "1 bob PM",
            "x bob PM fake",
            "99999999999 bob PM fake",
            "1 bob HERE 0 fake",
            "1 * HERE 0 \x1b[2J",
            "1 bob PM \x1b[2J\x9b31m\x07\x00\u202e\u2066 clean \u2028\ud7ff",
            "1 * NO 77 \x1b]0;title\x07words",
        ):
            self.tell(LogId.ROOM, line)
        self.w.run(1)
        shown = ["bob: [2J31m clean \ud7ff", "* not delivered: ]0;titlewords"]
        self.assertEqual(self.alice.texts()[before:], shown)

    def test_lines_that_no_cursor_can_count_are_refused(self) -> None:
        session = views.session(self.client)
        reader = session.channel.readers[LogId.ROOM]
        reader.cursor = reader.received = 2**32 - 3
        self.tell(LogId.ROOM, "1 bob PM one", "1 bob PM two")
        self.tell(LogId.ROOM, "1 bob PM three")
        self.w.run(1)
        self.assertEqual(reader.cursor, 2**32 - 1)
        said = [text for text in self.alice.texts() if "bob" in text]
        self.assertEqual(len(said), 2)


if __name__ == "__main__":
    unittest.main()
