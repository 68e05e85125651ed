"""What strangers, and members who pretend to be others, cannot do: come in with what they have
recorded or forged, end or move what is not theirs, or make the server send more than they sent, or
to somebody else. In virtual time, and with the real programs on real sockets."""

from __future__ import annotations

import json
import unittest
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import protocol
from chatserver import Address
from protocol import (
    VERSION,
    Challenge,
    Cookie,
    Gone,
    Hello,
    Keys,
    LogId,
    Packet,
    Part,
    Prove,
    Refusal,
    Refused,
    format_handshake,
    parse_handshake_untrusted,
)
from tests import views
from tests.accounts import add_accounts, knows, registers
from tests.actions import rejoin
from tests.attacks import (
    HIGH,
    NO_SESSION,
    NONCE,
    Dump,
    dump,
    forged,
    handshakes_of_all_lengths,
    hello,
    in_many_orders,
    join,
    mutated,
    naming,
    refused_names,
    session_packets_of_all_lengths,
    shapes,
    under,
)
from tests.network import Datagram
from tests.observed import handshakes_begun, messages, was_sent
from tests.room import (
    EPOCH,
    SERVER,
    ClientEnd,
    Deaf,
    World,
    address_of,
    deliver,
    intercepted,
    replies,
    session_of,
    world,
)

STRANGER: Final = "stranger"


# ------------------------------------------------------------------------------ what can be seen


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


def picture(w: World) -> Picture:
    sessions = {id: session.address for id, session in views.sessions(w.server.server).items()}
    return Picture(dump(w.server.path), sessions, {c.host: c.texts() for c in clients(w)})


def sent_by_server(w: World, data: bytes, source: str = STRANGER) -> list[tuple[bytes, Address]]:
    """What the server sends in a turn that a datagram brings about, and where to."""
    server, now = w.server.server, w.network.now
    server.receive_untrusted(data, address_of(source), now)
    server.handle(now, EPOCH)
    server.commit()
    return list(server.datagrams(now))


class InVirtualTime(unittest.TestCase):
    def assert_talk(self, w: World, patience: float = 3) -> None:
        """What each member says reaches each other one once."""
        ends = clients(w)
        starts = [len(messages(end)) for end in ends]
        for end in ends:
            end.say(f"#{end.host} is still here", f"DM {end.client.username} #{end.host}")
        w.run(patience)
        for end, start in zip(ends, starts):
            others = [f"{e.client.username}: #{e.host} is still here" for e in ends if e is not end]
            note = f"{end.client.username} -> you: #{end.host}"
            self.assertEqual(sorted(messages(end)[start:]), sorted([*others, note]))

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
            w.restart()
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
            self.assertEqual(views.sessions(w.server.server), {})

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
            self.assertIsInstance(self.reply(w, replace(right, session=NO_SESSION)), Gone)
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
            own = views.session(mallory.client)
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
            own = views.session(mallory.client)
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
            for nonce in handshakes_begun(w):
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
            add_accounts(w, "alice")
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
        rejoin(end)
        self.assertTrue(w.network.run(w.network.now + 5, partial(was_sent, w, kind, start)))
        self.refuse_request(w, end, code)
        self.assertIn("* not let in again (forged): still trying", end.texts())

    def refuse_request(self, w: World, end: ClientEnd, code: Refusal) -> None:
        refused = Refused(views.handshake(end.client).nonce, code.value, "forged")
        deliver(w, end.host, SERVER, format_handshake(refused))

    def test_hints_cost_two_questions_a_second_and_hold_nothing_back(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(5)
            session = session_of(w, "alice").id
            for forged, most in ((NO_SESSION, 0), (session, 2 + 10 / protocol.TIMING.hint_pause)):
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
            self.assertEqual(messages(bob), ["alice: #hello"])
            self.assertEqual(session_of(w, "alice").id, session)
            self.assert_talk(w)
            self.assertNotIn("left", " ".join(bob.texts()))


# ---------------------------------------------------------------------------------------- replay


class ReplayTest(InVirtualTime):
    """Everything that was ever sent comes again, in several orders: to the server from every
    address that somebody had and from a stranger's, and to every member."""

    def conversation(self, w: World) -> list[bytes]:
        """Lets guests and an account say everything that can be said; who sees the wire has this.
        Alice, bob and dora are in at its end."""
        add_accounts(w, "dora")
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
            w.restart()
            w.run(3)
            self.assert_no_effect(w, record)

    def test_to_a_server_that_awaits_its_members_after_a_restart(self) -> None:
        with world() as w:
            record = self.conversation(w)
            before, heard = picture(w), [messages(end) for end in clients(w)]
            w.server.kill()
            w.network.unplugged = {end.host for end in clients(w)}
            w.server.start()
            self.replay(w, record)
            self.assertEqual(picture(w).sessions, {})
            self.assertEqual(picture(w).stored, before.stored)
            w.network.unplugged = set()
            w.run(30)
            self.assertEqual(picture(w).stored["room"], before.stored["room"])
            self.assertEqual([messages(end) for end in clients(w)], heard)
            self.assert_talk(w)

    def test_of_a_login_whose_password_was_changed_since(self) -> None:
        for stays in (True, False):
            with self.subTest(stays=stays), world() as w:
                self.conversation(w)
                changer = w.join("dora", "desk", registers(b"new", old=knows().password))
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
            self.assert_small_and_to_its_sender(w, session_packets_of_all_lengths(NO_SESSION), Gone)
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
            own = views.session(mallory.client)
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


if __name__ == "__main__":
    unittest.main()
