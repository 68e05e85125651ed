"""What strangers, and members who pretend to be others, cannot do: come in with what they have
recorded or forged, end or move what is not theirs, or make the server send more than they sent, or
to somebody else. In virtual time, and with the real programs on real sockets."""

from __future__ import annotations

import json
import os
import select
import socket
import time
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from random import Random
from sqlite3 import connect
from typing import Any, Final, TypeAlias

import protocol
from chatserver import ROOM_KEY, Address
from protocol import (
    MAX_DATAGRAM,
    SESSION_PACKET,
    VERSION,
    Challenge,
    Cookie,
    Gone,
    Hello,
    Join,
    Keys,
    LogId,
    Packet,
    Part,
    Prove,
    Refusal,
    Refused,
    RoomBlocks,
    Welcome,
    format_handshake,
    parse_handshake_untrusted,
)
from tests.crowd import Member
from tests.fuzz import Dice
from tests.network import Datagram
from tests.programs import (
    LOCALHOST,
    PATIENCE,
    POLL,
    Program,
    free_port,
    udp_socket,
    wait_until,
)
from tests.relay import Relay
from tests.room import (
    EPOCH,
    SERVER,
    ClientEnd,
    Deaf,
    World,
    address_of,
    replies,
    session_of,
    world,
)
from tests.test_accounts import AccountsTest, add, knows, registers
from tests.test_accounts_end_to_end import CHEAP, PASSWORD, is_handshake
from tests.test_accounts_end_to_end import AccountsTest as AccountProgramsTest
from tests.test_end_to_end import direct, passages, public, talk
from tests.test_roaming import intercepted

Dump: TypeAlias = dict[str, list[tuple[object, ...]]]

STRANGER: Final = "stranger"
NONCE: Final = b"n" * 16
PUBLIC: Final = protocol.GROUP.pad(protocol.GROUP.power(12345))
UNKNOWN: Final = b"unknown!"  # no session's id
HIGH: Final = 2**40  # a number, and so of the newest packet
AT_ONCE: Final = 32  # datagrams to a real socket, whose queue has its end


# ---------------------------------------------------------------------- what strangers can make


def hello(name: str = "mallory", version: int = VERSION, nonce: bytes = NONCE) -> Hello:
    return Hello(version, name, nonce, PUBLIC)


def join(cookie: bytes, it: Hello | None = None) -> Join:
    it = it or hello()
    return Join(it.version, it.username, it.nonce, it.public, cookie)


def shortest_handshakes() -> Iterator[bytes]:
    """The shortest packet of each type, and those that are refused and shorter still."""
    for kind in ("HELLO", "JOIN"):
        yield json.dumps({"type": kind, "nonce": NONCE.hex()}, separators=(",", ":")).encode()
    for name in ("", "m"):
        yield format_handshake(hello(name))
        yield format_handshake(join(b"", hello(name)))
    for record in (
        Cookie(NONCE, b""),
        Challenge(NONCE, UNKNOWN, PUBLIC, b"", 0),
        Prove(NONCE, UNKNOWN, b"p" * 32, b""),
        Welcome(NONCE, UNKNOWN, b"p" * 32, b""),
        Refused(NONCE, "", ""),
        Gone(UNKNOWN),
    ):
        yield format_handshake(record)


def handshakes_of_all_lengths(more: int = MAX_DATAGRAM) -> Iterator[bytes]:
    """Each of these, and up to so many bytes ``more``."""
    for shortest in shortest_handshakes():
        for length in range(len(shortest), min(len(shortest) + more, MAX_DATAGRAM + 1) + 1):
            yield shortest.ljust(length)


def session_packets_of_all_lengths(session: bytes) -> Iterator[bytes]:
    """From none to more than are allowed, with a tag that does not fit."""
    start = bytes([SESSION_PACKET]) + session
    for length in range(MAX_DATAGRAM + 2):
        yield start.ljust(length, b"\1")[:length]


def refused_names() -> Iterator[bytes]:
    """Names that are longer in the words of a refusal than where they came from."""
    for letter in ("\N{SMILE}", "\U000e0020", "é", '"', "\\", "\0", " "):
        for length in (1, 39, 40, 41, 100):
            fields = json.loads(format_handshake(hello())) | {"username": letter * length}
            yield json.dumps(fields, ensure_ascii=False).encode()


def naming(host: str, port: int) -> Iterator[bytes]:
    """Packets whose content names an address."""
    nonce = f"{host}:{port}".encode()[:16].ljust(16)
    for name in (host, f"{host}.{port}", f"{host}:{port}"):
        for record in (hello(name), hello(name, 9), hello(name, nonce=nonce)):
            for packet in (record, join(b"c" * 16, record)):
                fields = json.loads(format_handshake(packet))
                more = {"host": host, "port": port, "address": [host, port], "to": nonce.hex()}
                yield json.dumps(fields | more).encode()


def shapes(session: bytes, keys: Keys, blocks: RoomBlocks, first: int) -> Iterator[bytes]:
    """Well sealed packets of a member, from the shortest on, each the newest so far. Their lines
    are far beyond the server's cursor, and so it takes none of them."""
    for number, (asks, lines) in enumerate(((False, 0), (True, 0), (False, 3), (True, 60)), first):
        part = Part(LogId.LINES, protocol.WINDOW_LINES[LogId.LINES], (b"WHO",) * lines)
        packet = Packet(number, 0, 0, asks, (0, 0, 0), (part,) if lines else ())
        yield protocol.seal_packet(packet, session, keys, blocks)


def forged(session: bytes, keys: Keys, blocks: RoomBlocks) -> Iterator[bytes]:
    """Packets under a session's id, sealed with whatever keys their sender has. Which line the
    server waits for it does not know, and so it writes as many as fit into the window."""
    register = "REGISTER", "00" * 16, "600000", "00" * 255 + "02"
    for line in ("EX", "PM forged", "WHO"):
        lines = (line.encode(),) * protocol.WINDOW_LINES[LogId.LINES]
        packet = Packet(HIGH, 0, 0, True, (0, 0, 0), (Part(LogId.LINES, 0, lines),))
        yield protocol.seal_packet(packet, session, keys, blocks)
    for number in range(8):
        part = Part(LogId.LINES, number, (" ".join(register).encode(),))
        packet = Packet(HIGH, 0, 0, True, (0, 0, 0), (part,))
        yield protocol.seal_packet(packet, session, keys, blocks)


def mutated(record: list[bytes], count: int) -> Iterator[bytes]:
    """So many that are made of those."""
    dice = Dice(1)
    return (dice.mutated(dice.choice(record), dice.choice(record)) for _ in range(count))


def under(session: bytes, data: bytes) -> bytes:
    """A session packet with that session's id in place of its own."""
    return data[:1] + session + data[1 + len(session) :]


def in_many_orders(datagrams: Iterable[bytes]) -> Iterator[list[bytes]]:
    """As they were, backwards, and shuffled."""
    it = list(dict.fromkeys(datagrams))
    yield it
    yield it[::-1]
    yield Random(1).sample(it, len(it))


# ------------------------------------------------------------------------------ what can be seen


def dump(path: Path) -> Dump:
    """Everything in a room file that changes when somebody comes in, moves, leaves, or says
    something to whomsoever; and not what changes when it is read."""
    with closing(connect(path)) as file:
        return {
            "instances": file.execute("SELECT * FROM instances ORDER BY key").fetchall(),
            "accounts": file.execute("SELECT * FROM accounts ORDER BY folded").fetchall(),
            "room": file.execute("SELECT * FROM lines WHERE log = ?", (ROOM_KEY,)).fetchall(),
            "logs": file.execute("SELECT log, next FROM logs ORDER BY log").fetchall(),
        }


@dataclass(frozen=True, slots=True)
class Picture:
    """A room, and what its members have been shown."""

    stored: Dump
    sessions: dict[bytes, Address]
    shown: dict[str, list[str]]


def clients(w: World) -> list[ClientEnd]:
    """Those who are in."""
    ends = w.network.ends.values()
    return [end for end in ends if isinstance(end, ClientEnd) and not end.has_ended]


def said(end: ClientEnd) -> list[str]:
    """What others have said, as it was shown to that one."""
    return [text for text in end.texts() if not text.startswith("* ")]


def picture(w: World) -> Picture:
    sessions = {id: session.address for id, session in w.server.server._sessions.items()}
    return Picture(dump(w.server.path), sessions, {c.host: c.texts() for c in clients(w)})


def deliver(w: World, target: str, source: str, data: bytes) -> None:
    """Hands over a datagram, at once."""
    for end in (target, source):
        w.network.ends.setdefault(end, Deaf())
    receive = partial(w.network.ends[target].receive, data, source, w.network.now)
    w.network.at(w.network.now, target, receive)
    w.run(0)


def sent_by_server(w: World, data: bytes, source: str = STRANGER) -> list[tuple[bytes, Address]]:
    """What the server sends in a turn that a datagram brings about, and where to."""
    server, now = w.server.server, w.network.now
    server.receive_untrusted(data, address_of(source), now)
    server.handle(now, EPOCH)
    server.commit()
    return list(server.datagrams(now))


class InVirtualTime(AccountsTest):
    def assert_talk(self, w: World, patience: float = 3) -> None:
        """What each member says reaches each other one once."""
        ends = clients(w)
        starts = [len(said(end)) for end in ends]
        for end in ends:
            end.say(f"#{end.host} is still here", f"DM {end.client.username} #{end.host}")
        w.run(patience)
        for end, start in zip(ends, starts):
            others = [f"{e.client.username}: #{e.host} is still here" for e in ends if e is not end]
            note = f"{end.client.username} -> you: #{end.host}"
            self.assertEqual(sorted(said(end)[start:]), sorted([*others, note]))

    def reply(
        self, w: World, record: protocol.Handshake, source: str = STRANGER
    ) -> protocol.Handshake:
        (data,) = replies(w, format_handshake(record), source)
        return parse_handshake_untrusted(data)

    def cookie(self, w: World, it: Hello | None = None) -> bytes:
        reply = self.reply(w, it or hello())
        assert isinstance(reply, Cookie)
        return reply.cookie


# ------------------------------------------------------------------------------------ handshakes


class HandshakeTest(InVirtualTime):
    def test_another_version_is_refused_by_name(self) -> None:
        with world() as w:
            refused = self.reply(w, hello(version=VERSION + 1))
            assert isinstance(refused, Refused)
            self.assertEqual((refused.code, refused.nonce), ("version", NONCE))

    def test_a_cookie_is_good_for_what_asked_for_it_and_from_there_only(self) -> None:
        with world() as w:
            cookie = self.cookie(w)
            good = join(cookie)
            for other, source in (
                (good, "elsewhere"),
                (good, f"{STRANGER} port 7891"),
                (replace(good, username="other"), STRANGER),
                (replace(good, nonce=b"m" * 16), STRANGER),
                (replace(good, public=protocol.GROUP.pad(5)), STRANGER),
                (replace(good, cookie=bytes(16)), STRANGER),
            ):
                reply = self.reply(w, other, source)
                assert isinstance(reply, Cookie)
                self.assertEqual(reply.nonce, other.nonce)
                self.assertNotEqual(reply.cookie, other.cookie)
            self.assertIsInstance(self.reply(w, good), Challenge)

    def test_a_cookie_is_good_for_half_of_its_life_at_least_and_never_longer(self) -> None:
        life = protocol.TIMING.cookie_life
        for age in (0.0, 0.3 * life, 0.49 * life):  # of the server, when it makes the cookie
            with self.subTest(age=age), world() as w:
                w.run(age)
                young, old = hello(nonce=b"y" * 16), hello(nonce=b"o" * 16)
                joins = [join(self.cookie(w, each), each) for each in (young, old)]
                w.run(life / 2)
                self.assertIsInstance(self.reply(w, joins[0]), Challenge)
                w.run(life / 2 + 1)
                reply = self.reply(w, joins[1])
                assert isinstance(reply, Cookie)
                self.assertNotEqual(reply.cookie, joins[1].cookie)
                self.assertIsInstance(self.reply(w, join(reply.cookie, old)), Challenge)

    def test_a_cookie_of_an_earlier_server_is_none(self) -> None:
        with world() as w:
            cookie = self.cookie(w)
            w.server.kill()
            w.server.start()
            self.assertIsInstance(self.reply(w, join(cookie)), Cookie)

    def test_a_repeated_join_gets_the_same_challenge_and_elsewhere_a_cookie(self) -> None:
        with world() as w:
            good = join(self.cookie(w))
            data = format_handshake(good)
            challenge = replies(w, data)
            for _ in range(3):
                self.assertIsInstance(self.reply(w, replace(good, username="other")), Cookie)
                again = replace(good, cookie=bytes(16))  # which anybody could have made up
                self.assertEqual(replies(w, format_handshake(again)), challenge)
                (elsewhere,) = replies(w, data, "elsewhere")
                self.assertIsInstance(parse_handshake_untrusted(elsewhere), Cookie)
                self.assertLessEqual(len(elsewhere), len(data))
                self.assertEqual(replies(w, data), challenge)
            self.assertEqual(w.server.server._sessions, {})

    def test_a_join_whose_challenge_is_worthless_gets_nothing_but_a_cookie(self) -> None:
        with world() as w:
            data = format_handshake(join(self.cookie(w)))
            self.assertEqual(len(replies(w, data)), 1)
            w.run(protocol.TIMING.cookie_life + 1)
            (reply,) = replies(w, data)
            self.assertIsInstance(parse_handshake_untrusted(reply), Cookie)

    def test_the_first_wrong_proof_uses_the_challenge_up(self) -> None:
        with world() as w:
            challenge = self.reply(w, join(self.cookie(w)))
            assert isinstance(challenge, Challenge)
            prove = Prove(NONCE, challenge.session, b"p" * 32, b"sealed")
            self.assertEqual(replies(w, format_handshake(prove)), [])
            self.assertIsInstance(self.reply(w, prove), Gone)

    def test_a_challenge_is_good_for_its_proof_its_address_and_its_time_only(self) -> None:
        with world() as w:
            challenge = self.reply(w, join(self.cookie(w)))
            assert isinstance(challenge, Challenge)
            right = Prove(NONCE, challenge.session, b"p" * 32, b"sealed")
            self.assertIsInstance(self.reply(w, replace(right, session=UNKNOWN)), Gone)
            self.assertIsInstance(self.reply(w, right, "elsewhere"), Gone)
            w.run(31)
            self.assertIsInstance(self.reply(w, right), Gone)

    def test_a_repeated_proof_gets_the_same_welcome_and_elsewhere_nothing_of_use(self) -> None:
        with world() as w:
            w.joined("alice", "bob")
            w.run(1)
            handshakes = [d for d in w.network.sent if d.data[:1] == b"{"]
            (prove,) = {d.data for d in handshakes if d.source == "alice" and b'"PROVE"' in d.data}
            (welcome,) = {
                d.data for d in handshakes if d.target == "alice" and b'"WELCOME"' in d.data
            }
            before = picture(w)
            for _ in range(3):
                (elsewhere,) = replies(w, prove, "elsewhere")
                self.assertIsInstance(parse_handshake_untrusted(elsewhere), Gone)
                self.assertLessEqual(len(elsewhere), len(prove))
                again = sent_by_server(w, prove, "alice")
                self.assertEqual(again, [(welcome, address_of("alice"))])
            other = parse_handshake_untrusted(prove)
            assert isinstance(other, Prove)
            self.assertIsInstance(self.reply(w, replace(other, proof=bytes(32)), "alice"), Gone)
            self.assertEqual(picture(w), before)
            self.assert_talk(w)


# --------------------------------------------------------------------------------------- forgery


class ForgeryTest(InVirtualTime):
    def test_a_packet_sealed_with_other_keys_is_not_even_answered(self) -> None:
        """Whoever sees the wire knows a session's id and its member's address, and a member knows
        the room's key."""
        with world() as w:
            _, mallory, _ = w.joined("alice", "mallory", "bob")
            w.run(1)
            own = mallory.client._session
            assert own
            before, victim = picture(w), session_of(w, "alice").id
            guesses = Keys(bytes(32), bytes(32)), own.keys.client, own.keys.server, own.keys.prove
            for keys in guesses:
                for data in forged(victim, keys, own.blocks):
                    for source in ("alice", "mallory", STRANGER):
                        self.assertEqual(sent_by_server(w, data, source), [])
            self.assertEqual(picture(w), before)
            self.assert_talk(w)

    def test_a_members_own_goodbye_under_anothers_session_id_removes_neither(self) -> None:
        with world() as w:
            _, mallory, _ = w.joined("alice", "mallory", "bob")
            w.run(1)
            before, victim = picture(w), session_of(w, "alice").id
            for line in ("#lost", "EX"):
                mallory.is_up = True
                for data in intercepted(w, mallory, line):
                    for source in ("alice", "mallory", STRANGER):
                        self.assertEqual(sent_by_server(w, under(victim, data), source), [])
                mallory.is_up = False
            self.assertEqual(picture(w), before)
            w.network.ends["mallory"] = Deaf()
            self.assert_talk(w)

    def test_what_a_member_forges_in_the_rooms_name_is_not_shown_to_others(self) -> None:
        """It has the room's key, in which the lines are sealed for everybody."""
        with world() as w:
            mallory, *_ = w.joined("mallory", "bob", "alice")
            w.run(1)
            own = mallory.client._session
            assert own
            before = picture(w)
            bobs = session_of(w, "bob")
            first = bobs.channel.writers[LogId.ROOM].cursor
            for line in (b"1 alice EX", b"1 alice PM #forged"):
                room = Part(LogId.ROOM, first, (line,))
                notices = Part(LogId.NOTICES, 0, (b"1 * OUT forged",) * 8)
                packet = Packet(HIGH, 0, 0, True, (0, 0, 0), (room, notices))
                for keys in (own.keys.server, own.keys.client):
                    data = protocol.seal_packet(packet, bobs.id, keys, own.blocks)
                    deliver(w, "bob", SERVER, data)
            w.run(1)
            self.assertEqual(picture(w), before)
            self.assert_talk(w)

    def test_refusals_of_requests_that_nobody_has_made_are_not_even_shown(self) -> None:
        with world() as w:
            w.joined("alice", "bob")
            carol = w.client("carol")
            carol.receive(format_handshake(Refused(NONCE, "in-use", "forged")), SERVER, 0.0)
            w.run(5)
            self.assertTrue(carol.client.has_joined)
            for nonce in {d.data for d in w.network.sent if b'"HELLO"' in d.data}:
                refused = Refused(bytes.fromhex(json.loads(nonce)["nonce"]), "in-use", "forged")
                for end in clients(w):
                    deliver(w, end.host, SERVER, format_handshake(refused))
            self.assertNotIn("forged", " ".join(line for c in clients(w) for line in c.texts()))
            self.assert_talk(w)

    def test_a_refusal_of_the_very_request_ends_no_session(self) -> None:
        """Who can see the wire answers it before the server can, whatever has brought it about."""
        for kind in (b'"HELLO"', b'"JOIN"', b'"PROVE"'):
            with self.subTest(kind), world() as w:
                alice, bob = w.joined("alice", "bob")
                w.run(1)
                session, before = session_of(w, "alice").id, len(bob.texts())
                for code in Refusal:
                    self.refuse(w, alice, kind, code)
                    if kind != b'"PROVE"':  # to which the server's answer is a new session
                        self.assertEqual(session_of(w, "alice").id, session)
                    self.assert_talk(w, protocol.TIMING.keepalive + 10)
                    self.assertIsNone(alice.client.failure)
                self.assertFalse([t for t in bob.texts()[before:] if t.startswith("* alice")])

    def test_a_refusal_of_the_very_proof_of_a_password_ends_no_session(self) -> None:
        with world() as w:
            add(w, "alice")
            alice = w.join("alice", credentials=knows())
            (bob,) = w.joined("bob")
            w.run(1)
            self.refuse(w, alice, b'"PROVE"', Refusal.LOGIN)
            w.run(protocol.TIMING.server_silence + 5)
            self.assertNotIn("* alice left (timed out)", bob.texts())
            self.assert_talk(w)

    def refuse(self, w: World, end: ClientEnd, kind: bytes, code: Refusal) -> None:
        """Makes an end join again, and refuses that once it has sent such a request."""
        start = len(w.network.sent)
        w.network.at(w.network.now, end.host, lambda: end.client._join_again(w.network.now))
        self.assertTrue(w.network.run(w.network.now + 5, partial(has_sent, w, kind, start)))
        self.refuse_request(w, end, code)
        self.assertIn("* not let in again (forged): still trying", end.texts())

    def refuse_request(self, w: World, end: ClientEnd, code: Refusal) -> None:
        assert end.client._attempt
        refused = Refused(end.client._attempt.nonce, code.value, "forged")
        deliver(w, end.host, SERVER, format_handshake(refused))

    def test_hints_cost_two_questions_a_second_and_hold_nothing_back(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(5)
            session = session_of(w, "alice").id
            for forged, most in ((UNKNOWN, 0), (session, 2 + 10 / protocol.TIMING.hint_pause)):
                before = len(w.network.sent)
                for _ in range(50):
                    alice.receive(format_handshake(Gone(forged)), SERVER, w.network.now)
                    w.run(0.1)
                sent = [d for d in w.network.sent[before:] if d.source == "alice"]
                self.assertFalse([d for d in sent if d.data[:1] == b"{"])
                self.assertTrue(most / 2 <= len(sent) <= most, len(sent))
            alice.receive(format_handshake(Gone(session)), SERVER, w.network.now)
            alice.say("#hello")
            w.run(0.2)
            self.assertEqual(said(bob), ["alice: #hello"])
            self.assertEqual(session_of(w, "alice").id, session)
            self.assert_talk(w)
            self.assertNotIn("left", " ".join(bob.texts()))


def has_sent(w: World, word: bytes, start: int) -> bool:
    return any(word in datagram.data for datagram in w.network.sent[start:])


# ---------------------------------------------------------------------------------------- replay


class ReplayTest(InVirtualTime):
    """Everything that was ever sent comes again, in several orders: to the server from every
    address that somebody had and from a stranger's, and to every member."""

    def conversation(self, w: World) -> list[bytes]:
        """Lets guests and an account say everything that can be said; who sees the wire has this.
        Alice, bob and dora are in at its end."""
        add(w, "dora")
        alice, bob, carol = w.joined("alice", "bob", "carol")
        dora = w.join("dora", credentials=knows())
        alice.say("#one", "DM bob #psst", "WHO", "DM nobody #psst")
        bob.say("#two", "DM dora #psst")
        dora.say("#three", "DM dora #note")
        carol.say("#four")
        for number in range(20):
            bob.say(f"#{number}")
            w.run(0.1)
        carol.leave()
        w.run(2)
        return [datagram.data for datagram in w.network.sent]

    def replay(self, w: World, record: list[bytes]) -> None:
        addresses = [STRANGER, *sorted(w.network.ends.keys() - {SERVER, STRANGER})]
        start = len(w.network.sent)
        for datagrams in in_many_orders(record):
            for data in datagrams:
                for source in addresses:
                    deliver(w, SERVER, source, data)
                for end in clients(w):
                    deliver(w, end.host, SERVER, data)
            w.run(1)
        to_stranger = [d.data for d in w.network.sent[start:] if d.target == STRANGER]
        types = {type(parse_handshake_untrusted(data)) for data in to_stranger}
        self.assertEqual(types, {Cookie, Gone})

    def assert_no_effect(self, w: World, record: list[bytes]) -> None:
        before = picture(w)
        self.replay(w, record)
        self.assertEqual(picture(w), before)
        self.assert_talk(w)

    def test_to_the_same_server(self) -> None:
        """At once, and after its mere answers to who is quiet, with higher numbers than those
        have used: they look most like theirs."""
        for seconds in (0, protocol.TIMING.keepalive + protocol.TIMING.keepalive_jitter):
            with self.subTest(seconds=seconds), world() as w:
                self.conversation(w)
                w.run(seconds)
                self.assert_no_effect(w, [d.data for d in w.network.sent])

    def test_after_a_member_has_left(self) -> None:
        """Its session still answers for a while, and later its cookie is still good."""
        for seconds in (1, protocol.TIMING.linger + 1):
            with self.subTest(seconds=seconds), world() as w:
                self.conversation(w)
                alice = clients(w)[0]
                alice.leave()
                w.run(seconds)
                self.assertTrue(alice.has_ended)
                self.assert_no_effect(w, [d.data for d in w.network.sent])

    def test_where_somebody_else_has_the_name_now(self) -> None:
        for host in ("alice", "elsewhere"):  # also at the same address
            with self.subTest(host=host), world() as w:
                record = self.conversation(w)
                clients(w)[0].leave()
                w.run(1)
                w.join("alice", host)
                w.run(1)
                self.assert_no_effect(w, record)

    def test_after_a_member_has_moved(self) -> None:
        with world() as w:
            record = self.conversation(w)
            alice = clients(w)[0]
            w.move(alice, "cafe")
            alice.say("#moved")
            w.run(2)
            self.assertEqual(session_of(w, "alice").address, address_of("cafe"))
            self.assert_no_effect(w, record)

    def test_to_a_server_that_was_restarted(self) -> None:
        with world() as w:
            record = self.conversation(w)
            w.server.kill()
            w.server.start()
            w.run(3)
            self.assert_no_effect(w, record)

    def test_to_a_server_that_awaits_its_members_after_a_restart(self) -> None:
        with world() as w:
            record = self.conversation(w)
            before, heard = picture(w), [said(end) for end in clients(w)]
            w.server.kill()
            w.network.unplugged = {end.host for end in clients(w)}
            w.server.start()
            self.replay(w, record)
            self.assertEqual(picture(w).sessions, {})
            self.assertEqual(picture(w).stored, before.stored)
            w.network.unplugged = set()
            w.run(30)
            self.assertEqual(picture(w).stored["room"], before.stored["room"])
            self.assertEqual([said(end) for end in clients(w)], heard)
            self.assert_talk(w)

    def test_of_a_login_whose_password_was_changed_since(self) -> None:
        for stays in (True, False):
            with self.subTest(stays=stays), world() as w:
                self.conversation(w)
                changer = w.join("dora", "desk", registers(b"new", old=b"correct horse"))
                w.run(2)
                if not stays:
                    changer.leave()
                    w.run(2)
                self.assert_no_effect(w, [d.data for d in w.network.sent])


# --------------------------------------------------------------------------------- amplification


class AmplificationTest(InVirtualTime):
    def record(self, w: World) -> list[Datagram]:
        """What passes when some are in, and some are turned away."""
        alice, _ = w.joined("alice", "bob")
        alice.say("#one", "DM bob #two", "WHO")
        w.client("alice", "thief")
        w.run(3)
        return list(w.network.sent)

    def assert_small_and_to_its_sender(
        self, w: World, corpus: Iterable[bytes], *types: type[protocol.Handshake]
    ) -> None:
        """Answers to a stranger are no longer than what they answer; these are all of them."""
        answered: set[type[protocol.Handshake]] = set()
        for data in corpus:
            sent = sent_by_server(w, data)
            self.assertLessEqual(sum(len(reply) for reply, _ in sent), len(data), (data, sent))
            self.assertLessEqual({target for _, target in sent}, {address_of(STRANGER)}, data)
            answered |= {type(parse_handshake_untrusted(reply)) for reply, _ in sent}
        self.assertEqual(answered, set(types))

    def test_handshake_packets_of_every_type_and_length(self) -> None:
        with world() as w:
            corpus = handshakes_of_all_lengths()
            self.assert_small_and_to_its_sender(w, corpus, Cookie, Refused, Gone)

    def test_session_packets_of_every_length(self) -> None:
        with world() as w:
            w.joined("alice")
            w.run(1)
            alices = session_of(w, "alice").id
            self.assert_small_and_to_its_sender(w, session_packets_of_all_lengths(UNKNOWN), Gone)
            self.assert_small_and_to_its_sender(w, session_packets_of_all_lengths(alices))

    def test_what_was_recorded_and_what_becomes_of_it(self) -> None:
        with world() as w:
            record = [datagram.data for datagram in self.record(w)]
            self.assert_small_and_to_its_sender(w, record, Cookie, Gone)
            corpus = mutated(record, 5000)
            self.assert_small_and_to_its_sender(w, corpus, Cookie, Refused, Gone)

    def test_what_was_recorded_before_a_restart(self) -> None:
        with world() as w:
            record = [datagram.data for datagram in self.record(w)]
            w.server.kill()
            w.network.unplugged = {"alice", "bob"}
            w.server.start()
            w.run(0)
            self.assert_small_and_to_its_sender(w, record, Cookie, Gone)

    def test_names_that_grow_when_they_are_refused(self) -> None:
        with world() as w:
            self.assert_small_and_to_its_sender(w, refused_names(), Refused)

    def test_addresses_in_a_packets_content(self) -> None:
        with world() as w:
            w.joined("victim")
            w.run(1)
            for host, port in (address_of("victim"), ("127.0.0.1", 7890)):
                self.assert_small_and_to_its_sender(w, naming(host, port), Cookie, Refused)

    def test_a_member_who_seems_to_have_moved(self) -> None:
        """Whatever its newest packet is: there goes one packet, and it is as short as any."""
        with world() as w:
            (mallory,) = w.joined("mallory")
            w.run(1)
            own = mallory.client._session
            assert own
            for data in shapes(own.id, own.keys.client, own.blocks, 1000):
                sent = [reply for reply in sent_by_server(w, data) if reply[1] != ("mallory", 7890)]
                self.assertEqual([target for _, target in sent], [address_of(STRANGER)])
                self.assertLessEqual(len(sent[0][0]), len(data))
                w.run(10)

    def test_a_server_that_starts_tells_only_those_who_were_in(self) -> None:
        """Not who has only asked to come in, nor where a member only seemed to be."""
        with world() as w:
            alice, _ = w.joined("alice", "bob")
            w.run(1)
            w.join("carol").leave()
            w.run(1)
            self.reply(w, hello(), "asks")
            challenge = self.reply(w, join(self.cookie(w)))
            assert isinstance(challenge, Challenge)
            replies(w, format_handshake(Prove(NONCE, challenge.session, b"p" * 32, b"")))
            for data in intercepted(w, alice, "#one"):
                self.assertEqual(len(replies(w, data, "seems")), 1)
            for data in {d.data for d in w.network.sent}:
                replies(w, data, "replays")
            w.client("bob", "thief")
            w.run(3)
            w.server.kill()
            w.network.unplugged = {"alice", "bob"}
            before = len(w.network.sent)
            w.server.start()
            w.run(protocol.TIMING.server_silence + 10)
            gones = {d.target for d in w.network.sent[before:] if d.source == SERVER}
            self.assertEqual(gones, {"alice", "bob"})


# ------------------------------------------------------------------------------ the real programs


@dataclass(frozen=True, slots=True)
class Passed:
    """A datagram of a client, or for it."""

    client: Any  # its address
    is_to_server: bool
    data: bytes


class Wire(Relay):
    """A good network with somebody on it who records everything, and speaks in anybody's place."""

    def __init__(self, server_port: int) -> None:
        super().__init__(server_port, seed=1, drop=0.0, double=0.0, delays=(0.0, 0.0))
        self.record: list[Passed] = []
        self.refuses: tuple[bytes, str] | None = None  # such a request, with that code
        self.is_broken = False  # what the server says in sessions is lost

    def _carry(self, data: bytes, out: socket.socket, target: Any) -> None:
        is_to_server = target is None
        client = target or next(c for c, each in self._upstream.items() if each is out)
        self.record.append(Passed(client, is_to_server, data))
        if is_to_server and self.refuses and self.refuses[0] in data:
            nonce, code = bytes.fromhex(json.loads(data)["nonce"]), self.refuses[1]
            self.to_client(client, format_handshake(Refused(nonce, code, f"forged {code}")))
        elif is_to_server or is_handshake(data) or not self.is_broken:
            super()._carry(data, out, target)

    def to_server(self, client: Any, data: bytes) -> None:
        """As if it were the client's."""
        self._upstream[client].send(data)

    def to_client(self, client: Any, data: bytes) -> None:
        """As if it were the server's."""
        self._front.sendto(data, client)

    @property
    def clients(self) -> list[Any]:
        """The addresses of all who have ever been."""
        return list(self._upstream)

    def client(self, name: str) -> Any:
        """The address of whoever wanted to join under that name last."""
        mark = f'"username":"{name}"'.encode()
        return next(each.client for each in reversed(list(self.record)) if mark in each.data)

    def last_packet(self, name: str) -> bytes:
        """The last session packet that this member has sent."""
        client = self.client(name)
        sent = (each for each in reversed(list(self.record)) if each.is_to_server)
        packets = (each for each in sent if not is_handshake(each.data))
        return next(each.data for each in packets if each.client == client)

    def session(self, name: str) -> bytes:
        return protocol.session_of_untrusted(self.last_packet(name))

    def handshakes_to(self, *clients: Any) -> list[bytes]:
        """Those that the server has sent there."""
        sent = (each for each in list(self.record) if not each.is_to_server)
        return [each.data for each in sent if each.client in clients and is_handshake(each.data)]


class Outsider:
    """A real address, from which anything is sent."""

    def __init__(self, server_port: int) -> None:
        self.udp = udp_socket(LOCALHOST, server_port)
        self.udp.settimeout(PATIENCE)

    def tell(self, *datagrams: bytes) -> list[bytes]:
        """What has come back once the server has seen to all of these, and to whatever came from
        this host before. Each HELLO that is answered shows that a turn of the server has passed:
        what costs arithmetic may take several, but nothing comes back in two of them."""
        for data in datagrams:
            self.udp.send(data)
        replies: list[bytes] = []
        quiet = 0
        while quiet < 2:
            last, before = hello(nonce=os.urandom(16)), len(replies)
            self.udp.send(format_handshake(last))
            while last.nonce.hex().encode() not in (reply := self.udp.recv(2048)):
                replies.append(reply)
            quiet = quiet + 1 if len(replies) == before else 0
        return replies

    def ask(self, record: protocol.Handshake) -> protocol.Handshake:
        (reply,) = self.tell(format_handshake(record))
        return parse_handshake_untrusted(reply)


def batches(datagrams: Iterable[bytes]) -> Iterator[list[bytes]]:
    it = iter(datagrams)
    while batch := list(islice(it, AT_ONCE)):
        yield batch


def arrived(udp: socket.socket) -> Iterator[bytes]:
    """What is there already."""
    with suppress(BlockingIOError):
        while True:
            yield udp.recv(2048)


def drive(member: Member, is_enough: Callable[[list[bytes]], bool]) -> None:
    """Lets a member of this process do what it has to, until it has heard enough of the room."""
    heard: list[bytes] = []
    deadline = time.monotonic() + PATIENCE
    while not is_enough(heard):
        if time.monotonic() > deadline:
            raise AssertionError(f"in vain for {member.name}, who has heard {heard}")
        for data in member.datagrams(time.monotonic()):
            member.udp.send(data)
        select.select([member.udp], [], [], POLL)
        for data in arrived(member.udp):
            heard += member.receive(data, time.monotonic())


class StrangersTest(AccountProgramsTest):
    """A server, a wire to it, and somebody else."""

    def setUp(self) -> None:
        super().setUp()
        self.have("dora")
        self.server = self.start_server(port=free_port(), linger=0.1)
        self.wire = self.enterContext(Wire(self.server.port))
        self.stranger = self.outsider()
        self._count = count()

    def outsider(self) -> Outsider:
        outsider = Outsider(self.server.port)
        self.addCleanup(outsider.udp.close)
        return outsider

    def restart_server(self) -> None:
        self.kill(self.server)
        self.server = self.start_server(port=self.server.port)

    def member(self, name: str) -> Member:
        """One in this process, whose keys are known and who says what it likes."""
        member = Member(name, self.server.port, 0)
        self.addCleanup(member.udp.close)
        drive(member, lambda heard: member.has_joined and bool(heard))
        return member

    def talk(self, clients: Mapping[str, Program]) -> dict[str, list[str]]:
        """Each says something that the others are waited for to show; all that each was shown."""
        shown: dict[str, list[str]] = {name: [] for name in clients}
        for name, client in clients.items():
            text = f"still here {next(self._count)}"
            client.type(text)
            for other in clients.keys() - {name}:
                clients[other].wait_for(*public(name, text))
                shown[other] += public(name, text)
        return shown


class RealReplayTest(StrangersTest):
    def conversation(self) -> dict[str, Program]:
        """Some join, say everything that can be said, and one of them leaves."""
        names = ("alice", "bob", "carol")
        clients = dict(zip(names, self.join(self.wire.port, *names)))
        clients["dora"] = self.log_in("dora", self.wire.port)
        alice, bob, carol, dora = clients.values()
        alice.type("one", "DM bob psst", "DM dora psst", "WHO", "DM nobody psst")
        bob.wait_for(*public("alice", "one"), *direct("alice", "psst"))
        dora.wait_for(*public("alice", "one"), *direct("alice", "psst"))
        alice.wait_for("* here: alice, bob, carol, dora")
        self.talk(clients)
        carol.type("EX")
        self.end(clients.pop("carol"))
        for client in clients.values():
            client.wait_for("[HH:MM] * carol left")
        last = self.wire.last_packet("carol")
        wait_until(lambda: bool(self.stranger.tell(last)), "her session's end")
        return clients

    def recorded(self) -> list[bytes]:
        return [passed.data for passed in list(self.wire.record)]

    def replay(self, record: list[bytes]) -> None:
        """Everything, to everybody, in everybody's place."""
        for datagrams in in_many_orders(record):
            for batch in batches(datagrams):
                replies = self.stranger.tell(*batch)
                self.assertLessEqual(len(b"".join(replies)), len(b"".join(batch)))
                types = {type(parse_handshake_untrusted(reply)) for reply in replies}
                self.assertLessEqual(types, {Cookie, Gone})
                for client in self.wire.clients:
                    for data in batch:
                        self.wire.to_server(client, data)
                        self.wire.to_client(client, data)
        self.stranger.tell()

    def assert_no_effect(self, clients: Mapping[str, Program], record: list[bytes]) -> None:
        self.stranger.tell()
        stored, welcomes = dump(self.db), self.welcomes()
        shown = {name: client.shown for name, client in clients.items()}
        self.replay(record)
        self.assertEqual(dump(self.db), stored)
        for name, lines in self.talk(clients).items():
            self.assertEqual(clients[name].shown, shown[name] + lines, name)
        self.assertEqual(self.welcomes(), welcomes)

    def welcomes(self) -> set[bytes]:
        return {d for d in self.wire.handshakes_to(*self.wire.clients) if b'"WELCOME"' in d}

    def test_to_the_same_server_and_where_somebody_else_has_a_name_now(self) -> None:
        clients = self.conversation()
        record = self.recorded()
        self.assert_no_effect(clients, record)
        (carol,) = self.join(self.server.port, "carol")
        for client in clients.values():
            client.wait_until(partial(self.has_met, client), "the new carol")
        self.assert_no_effect(clients | {"carol": carol}, record)

    def has_met(self, client: Program) -> bool:
        return passages(client.shown)[-1] == "[HH:MM] * carol joined"

    def test_to_a_server_that_was_restarted(self) -> None:
        clients = self.conversation()
        record = self.recorded()
        shown = {name: client.shown for name, client in clients.items()}
        self.restart_server()
        self.replay(record)  # while they come back
        for name, lines in self.talk(clients).items():
            new = clients[name].shown[len(shown[name]) :]
            self.assertEqual([line for line in new if not line.startswith("* ")], lines)
        self.assert_no_effect(clients, record)

    def test_of_a_login_whose_password_was_changed_since(self) -> None:
        clients = self.conversation()
        self.leave(clients.pop("dora"))
        for client in clients.values():
            client.wait_for("[HH:MM] * dora left")
        port, timing = self.wire.port, CHEAP
        dora = self.client("dora", port, PASSWORD, "--register", new="another", timing=timing)
        dora.wait_for("* the password of dora is changed")
        wait_until(self.has_logged_in_again, "the login with the new password")
        clients["dora"] = dora
        self.talk(clients)
        self.assert_no_effect(clients, self.recorded())

    def has_logged_in_again(self) -> bool:
        sent = self.wire.handshakes_to(self.wire.client("dora"))
        welcomes = dict.fromkeys(data for data in sent if b'"WELCOME"' in data)
        return len(welcomes) == 2


class RealForgeryTest(StrangersTest):
    def test_neither_hints_nor_refusals_of_the_very_request_end_a_session(self) -> None:
        alice = self.start_client("alice", self.wire.port, hint_pause=0.0)
        alice.wait_for("* here: alice")
        (bob,) = self.join(self.wire.port, "bob")
        self.talk({"alice": alice, "bob": bob})
        client, session = self.wire.client("alice"), self.wire.session("alice")
        before = len(self.wire.handshakes_to(client))
        for number in range(5):
            self.wire.to_client(client, format_handshake(Gone(session)))
            bob.type(f"hint {number}")
            alice.wait_for(*public("bob", f"hint {number}"))
        self.assertEqual(len(self.wire.handshakes_to(client)), before)  # she has asked for none
        for kind, code in ((b'"HELLO"', "in-use"), (b'"JOIN"', "full"), (b'"PROVE"', "login")):
            self.wire.refuses, self.wire.is_broken = (kind, code), True
            hint = partial(self.wire.to_client, client, format_handshake(Gone(session)))
            wait_until(partial(self.is_refused, alice, code, hint), "the refusal")
            self.wire.is_broken = False
            for one, name, other in ((bob, "bob", alice), (alice, "alice", bob)):
                one.type(f"after {code}")
                other.wait_for(*public(name, f"after {code}"))
            self.assertEqual(self.wire.session("alice"), session)
        self.wire.refuses = None
        self.leave(alice)
        bob.wait_for("[HH:MM] * alice left")
        self.assertEqual(passages(bob.shown), ["[HH:MM] * alice left"])

    def is_refused(self, client: Program, code: str, hint: Callable[[], None]) -> bool:
        hint()
        return f"* not let in again (forged {code}): still trying" in client.shown

    def test_a_goodbye_under_anothers_session_id_removes_nobody(self) -> None:
        names = ("alice", "bob")
        clients = dict(zip(names, self.join(self.wire.port, *names)))
        mallory = self.member("mallory")
        for client in clients.values():
            client.wait_for("[HH:MM] * mallory joined")
        self.talk(clients)
        stored = dump(self.db)
        shown = {name: client.shown for name, client in clients.items()}
        victim = self.wire.session("alice")
        mallory.leave()
        own = [under(victim, data) for data in mallory.datagrams(time.monotonic())]
        attacks = [*own, *forged(victim, mallory._keys.client, mallory._blocks)]
        for data in attacks:
            self.wire.to_server(self.wire.client("alice"), data)
            mallory.udp.send(data)
        self.assertEqual(self.stranger.tell(*attacks), [])
        self.assertEqual(dump(self.db), stored)
        for name, lines in self.talk(clients).items():
            self.assertEqual(clients[name].shown, shown[name] + lines)
        self.assertFalse(any(map(is_handshake, arrived(mallory.udp))))


class RealContentTest(StrangersTest):
    # What no line may have in it; a newline cannot be, since it would end the line.
    BAD: Final = (
        *(b"PM bell \x07", b"PM \x1b[2J", b"PM \x00", b"PM a\rb", b"PM \xc2\x9b2J", b"PM \xc2\x85"),
        *(b"PM \xe2\x80\xae", b"PM \xe2\x81\xa6", b"PM \xe2\x80\xa8", b"PM \xef\xbb\xbf"),
        *(
            b"PM \xff",
            b"PM \xc0\xaf",
            b"PM \xe0\x80\xaf",
            b"PM \xed\xa0\x80",
            b"PM \xf4\x90\x80\x80",
        ),
        *(b"PM", b"PM " + b"x" * (protocol.MAX_TEXT + 1), b"DM bob", b"DM bob \x1b[2J", b"DM * x"),
        *(b"DM bob\x00 x", b"DM b\xc3\xb6b x", b"REGISTER", b"register x y z"),
    )

    def test_what_a_client_should_have_cleaned_is_refused_and_shown_to_nobody(self) -> None:
        (bob,) = self.join(self.wire.port, "bob")
        mallory = self.member("mallory")
        for raw in self.BAD:
            mallory._outbox.append(raw)
        mallory.say("the end")
        drive(mallory, lambda heard: any(b"the end" in line for line in heard))
        bob.wait_for(*public("mallory", "the end"))
        self.assertEqual(talk(self.leave(bob)), public("mallory", "the end"))
        with closing(connect(self.db)) as file:
            rows = file.execute("SELECT line FROM lines ORDER BY log, number").fetchall()
        refused = [line for (line,) in rows if b" * NO " in line]
        numbers = [int(line.split(b" ")[3]) for line in refused]
        self.assertEqual(numbers, list(range(len(self.BAD))))
        self.assertFalse([line for line in refused if not protocol.clean_text(line.decode())])

    def test_nobody_is_called_like_the_server_or_like_somebody_else(self) -> None:
        for number, name in enumerate(
            ("*", "", "a b", "\u0430lice", "alice\x00", "\ud800", "x" * 33)
        ):
            it = Hello(protocol.VERSION, "", bytes([number]) * 16, protocol.GROUP.pad(5))
            data = format_handshake(it).replace(
                b'"username":""', f'"username":{json.dumps(name)}'.encode()
            )
            (reply,) = self.stranger.tell(data)
            refused = parse_handshake_untrusted(reply)
            assert isinstance(refused, Refused)
            self.assertEqual(refused.code, "username")


class RealHandshakeTest(StrangersTest):
    def setUp(self) -> None:
        super().setUp()
        self.other = self.outsider()

    def cookie(self, it: Hello) -> bytes:
        reply = self.stranger.ask(it)
        assert isinstance(reply, Cookie)
        return reply.cookie

    def test_a_cookie_is_good_for_what_asked_for_it_and_from_there_only(self) -> None:
        good = join(self.cookie(hello()))
        for wrong, outsider in (
            (good, self.other),
            (replace(good, username="other"), self.stranger),
            (replace(good, nonce=b"m" * 16), self.stranger),
            (replace(good, public=protocol.GROUP.pad(5)), self.stranger),
        ):
            reply = outsider.ask(wrong)
            assert isinstance(reply, Cookie)
            self.assertNotEqual(reply.cookie, good.cookie)
        self.assertIsInstance(self.stranger.ask(good), Challenge)

    def test_an_old_cookie_gets_nothing_but_a_new_one(self) -> None:
        self.kill(self.server)
        self.server = self.start_server(port=self.server.port, cookie_life=1.0)
        cookies = [self.cookie(hello())]

        def is_old() -> bool:
            if (cookie := self.cookie(hello())) not in cookies:
                cookies.append(cookie)
            return len(cookies) == 3

        wait_until(is_old, "a second half of its life to end")
        reply = self.stranger.ask(join(cookies[0]))
        assert isinstance(reply, Cookie)
        self.assertNotIn(reply.cookie, cookies[:2])
        self.assertIsInstance(self.stranger.ask(join(reply.cookie)), Challenge)

    def test_repeated_requests_get_the_same_answers_and_elsewhere_nothing_of_use(self) -> None:
        good = join(self.cookie(hello()))
        request = format_handshake(good)
        challenge = self.stranger.tell(request)
        self.assertIsInstance(parse_handshake_untrusted(challenge[0]), Challenge)
        self.assertIsInstance(self.stranger.ask(replace(good, username="other")), Cookie)
        self.assertEqual(self.stranger.tell(request, request), challenge * 2)
        (alice,) = self.join(self.wire.port, "alice")
        client, stored = self.wire.client("alice"), dump(self.db)
        (prove,) = {each.data for each in self.wire.record if b'"PROVE"' in each.data}
        welcome = [d for d in self.wire.handshakes_to(client) if b'"WELCOME"' in d]
        for data, kind in ((request, Cookie), (prove, Gone)):
            (reply,) = self.other.tell(data)
            self.assertIsInstance(parse_handshake_untrusted(reply), kind)
            self.assertLessEqual(len(reply), len(data))
        before = len(self.wire.handshakes_to(client))
        self.wire.to_server(client, prove)
        wait_until(lambda: len(self.wire.handshakes_to(client)) > before, "the answer")
        self.assertEqual(self.wire.handshakes_to(client)[before:], welcome)
        self.assertEqual(dump(self.db), stored)
        self.assertEqual(alice.shown, ["* here: alice"])


class RealAmplificationTest(StrangersTest):
    def test_a_stranger_gets_no_more_than_it_sends_and_nobody_else_anything(self) -> None:
        victim = self.outsider()
        clients = dict(zip(("alice", "bob"), self.join(self.wire.port, "alice", "bob")))
        self.talk(clients)
        everybody = self.wire.clients
        before = self.wire.handshakes_to(*everybody)
        record = [each.data for each in self.wire.record]
        for corpus in (
            record,
            mutated(record, 1000),
            handshakes_of_all_lengths(more=2 * AT_ONCE),
            session_packets_of_all_lengths(UNKNOWN),
            session_packets_of_all_lengths(self.wire.session("alice")),
            refused_names(),
            naming(*victim.udp.getsockname()),
            *(naming(*address) for address in everybody),
        ):
            for batch in batches(corpus):
                replies = self.stranger.tell(*batch)
                self.assertLessEqual(len(b"".join(replies)), len(b"".join(batch)), replies)
        self.assertEqual(victim.tell(), [])
        self.talk(clients)
        self.assertEqual(self.wire.handshakes_to(*everybody), before)

    def test_a_member_cannot_make_the_server_send_to_somebody_else(self) -> None:
        """It pretends to have moved there, and guesses what was sent there."""
        victim = self.outsider()
        (bob,) = self.join(self.wire.port, "bob")
        mallory = self.member("mallory")
        mallory._channel.number = HIGH  # what is made here counts as sent by it
        own = mallory._session, mallory._keys.client, mallory._blocks
        for data in shapes(*own, first=1000):
            self.assertLessEqual(len(b"".join(victim.tell(data))), len(data))
        following = mallory._channel._highest
        guesses = (
            protocol.seal_packet(Packet(2000 + n, following + n, 0, False, (0, 0, 0), ()), *own)
            for n in range(100)
        )
        for batch in batches(guesses):
            self.assertLessEqual(len(b"".join(victim.tell(*batch))), len(b"".join(batch)))
        texts = [f"line {n}" for n in range(20)]
        bob.type(*texts)
        drive(mallory, lambda heard: any(line.endswith(b"PM line 19") for line in heard))
        self.assertEqual(victim.tell(), [])

    def test_a_server_that_starts_tells_only_those_who_were_in(self) -> None:
        names = ("alice", "bob")
        clients = self.join(self.wire.port, *names)
        mallory, seeming = self.member("mallory"), self.outsider()
        own = mallory._session, mallory._keys.client, mallory._blocks
        self.assertEqual(len(seeming.tell(next(shapes(*own, 1000)))), 1)
        cookie = self.stranger.ask(hello())
        assert isinstance(cookie, Cookie)
        self.assertIsInstance(self.stranger.ask(join(cookie.cookie)), Challenge)
        for batch in batches(each.data for each in list(self.wire.record)):
            self.stranger.tell(*batch)
        for client in clients:
            client.process.kill()
        gones = [format_handshake(Gone(self.wire.session(name))) for name in names]
        self.restart_server()

        def has_told_them() -> bool:
            sent = self.wire.handshakes_to(*self.wire.clients)
            return all(gone in sent for gone in gones)

        wait_until(has_told_them, "the hints")
        self.assertEqual([*self.stranger.tell(), *seeming.tell()], [])


if __name__ == "__main__":
    unittest.main()
