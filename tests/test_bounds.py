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
    FORGET_EVERY,
    LOG_BURST,
    LOG_PAUSE,
    PRUNE_EVERY,
    PRUNE_PAUSE,
    ROOM_KEY,
    Brake,
    Sparing,
    StoreError,
)
from protocol import (
    AT_ONCE,
    TIMING,
    Cookie,
    Gone,
    LogId,
    Prove,
    format_handshake,
)
from tests import views
from tests.accounts import add_accounts, knows
from tests.actions import (
    end_session,
    give_instance,
    leaving_lines,
    look_at_session,
    rejoin,
    stop_pacing,
    time_out,
)
from tests.attacks import NONCE, hello, join
from tests.network import HEALTHY, LOST
from tests.observed import marked
from tests.programs import LOCALHOST, ProgramsTest, udp_socket
from tests.room import EPOCH, OPTIONS, ClientEnd, Deaf, World, ignore, replies, session_of, world


class DoorTest(unittest.TestCase):
    """Who has not returned a cookie takes no place from anybody."""

    def test_nothing_that_an_unproven_address_sends_waits_or_stays(self) -> None:
        with world() as w:
            w.joined("alice")
            server = w.server.server
            prove = Prove(NONCE, session_of(w, "alice").id, b"p" * 32, b"sealed")
            for number in range(1000):
                address = (f"127.0.{number // 256}.{number % 256}", 7890)
                for record in (hello(), join(b"c" * 16), prove):
                    server.receive_untrusted(format_handshake(record), address, w.network.now)
            self.assertEqual(views.queued_handshakes(server), 0)
            self.assertEqual(views.challenged_hosts(server), [])
            kinds = [
                protocol.parse_handshake_untrusted(data) for data, _ in views.replies_due(server)
            ]
            self.assertEqual([type(kind) for kind in kinds], [Cookie, Cookie, Gone] * 1000)

    def test_what_a_proven_address_repeats_waits_once_and_is_answered_the_same(self) -> None:
        with world() as w:
            (data,) = replies(w, format_handshake(hello()))
            cookie = protocol.parse_handshake_untrusted(data)
            assert isinstance(cookie, Cookie)
            server, address = w.server.server, ("stranger", 7890)
            for _ in range(3):
                data = format_handshake(join(cookie.cookie))
                server.receive_untrusted(data, address, w.network.now)
            self.assertEqual(views.queued_handshakes(server), 3)
            with mock.patch.object(
                protocol, "server_public", wraps=protocol.server_public
            ) as power:
                server.handle(w.network.now, 0)
            self.assertEqual(power.call_count, 1)
            challenges = {data for data, _ in views.replies_due(server)}
            self.assertEqual((len(views.replies_due(server)), len(challenges)), (3, 1))

    def knock(self, w: World, host: str, count: int = 1, name: str = "mallory") -> None:
        """So many JOINs from there with good cookies; those of one name differ in their nonce."""
        server, now, address = w.server.server, w.network.now, (host, 7890)
        w.network.ends[host] = Deaf()
        for number in range(count):
            it = hello(name, nonce=number.to_bytes(16, "big"))
            data = format_handshake(join(views.cookie_for(server, it, address, now), it))
            server.receive_untrusted(data, address, now)
            server.handle(now, 0)

    def test_a_network_pushes_out_its_own_challenges_only(self) -> None:
        with (
            world() as w,
            mock.patch("chatserver.PENDING_CHALLENGES", 5),
            mock.patch("chatserver.NETWORK_CHALLENGES", 3),
        ):
            self.knock(w, "elsewhere")
            self.knock(w, "lan", 9)
            server = w.server.server
            hosts = views.challenged_hosts(server)
            self.assertEqual(hosts, ["elsewhere", "lan", "lan", "lan"])
            self.assertEqual(views.challenges_by_network(server), {"elsewhere": 1, "lan": 3})
            for host in ("one", "two", "three"):
                self.knock(w, host)
            hosts = views.challenged_hosts(server)
            self.assertEqual(hosts, ["lan", "lan", "one", "two", "three"])
            w.run(TIMING.cookie_life + 1)
            self.knock(w, "four")
            self.assertEqual(views.challenges_by_network(server), {"four": 1})

    def test_one_nonce_under_many_names_is_one_challenge(self) -> None:
        with world() as w:
            for number in range(20):
                self.knock(w, "lan", name=f"mallory{number}")
            server = w.server.server
            self.assertEqual(views.challenged_hosts(server), ["lan"])
            self.assertEqual(views.challenges_by_network(server), {"lan": 1})

    def test_who_replaces_itself_again_and_again_makes_no_neighbour_wait(self) -> None:
        options, timing = replace(OPTIONS, rate=1), replace(TIMING, probe=0.01, first_timeout=0.1)
        with world(options=options, timing=timing) as w, mock.patch("chatserver.COMINGS", 2):
            w.join("alice", "lan")
            for _ in range(20):
                w.network.ends["lan"] = Deaf()  # as a program that has crashed
                w.join("alice", "lan")
            room = views.room_log(w.server.server)
            comings = [line for line in room.lines if line.endswith(b" HI")]
            self.assertLess(len(comings), 4 + w.network.now)
            since = w.network.now
            w.join("bob", "lan port 1")
            self.assertLess(w.network.now, since + 3)

    def count_joined(self, ends: list[ClientEnd]) -> int:
        return [end.client.has_joined for end in ends].count(True)

    def test_so_many_come_in_from_one_network_at_once_and_then_a_few_each_second(self) -> None:
        with world(options=replace(OPTIONS, rate=2)) as w, mock.patch("chatserver.COMINGS", 5):
            ends = [w.client(f"guest{number}", f"lan port {7000 + number}") for number in range(20)]
            w.run(0.9)
            self.assertIn(self.count_joined(ends), (5, 6))
            w.join("carol", "elsewhere")
            w.run(20)
            self.assertEqual(self.count_joined(ends), 20)
            sessions = set(views.sessions(w.server.server))
            for end in ends:
                rejoin(end)
                end_session(w, end.client.username)
            w.run(1)  # who is in can always come back
            self.assertEqual(len(set(views.sessions(w.server.server)) - sessions), 20)

    def test_without_a_rate_there_is_no_such_limit(self) -> None:
        with world(options=replace(OPTIONS, rate=0)) as w, mock.patch("chatserver.COMINGS", 2):
            ends = [w.client(f"guest{number}", f"lan port {7000 + number}") for number in range(9)]
            w.run(0.9)
            self.assertEqual(self.count_joined(ends), 9)

    def test_networks_that_are_remembered_are_bounded_and_the_longest_quiet_make_way(self) -> None:
        with world() as w, mock.patch("chatserver.NETWORKS", 3):
            for number, host in enumerate(("one", "two", "three", "one port 1", "four")):
                w.join(f"guest{number}", host)
            self.assertEqual(views.limited_networks(w.server.server), ["three", "one", "four"])

    def test_guests_do_not_fill_the_room_for_who_has_an_account(self) -> None:
        for members_only in (False, True):
            options = replace(OPTIONS, max_users=2, members_only=members_only)
            with self.subTest(members_only=members_only), world(options=options) as w:
                names = ["anna", "bert", "cora", "dora"]
                add_accounts(w, *names)
                if not members_only:
                    w.joined("guest1", "guest2")
                ends = [w.client(name, credentials=knows()) for name in names]
                w.run(5)
                self.assertEqual(self.count_joined(ends), 2 if members_only else 1)


class TurnTest(unittest.TestCase):
    """What comes in one turn is as if it had come in several."""

    def held_proof(self, w: World, end: ClientEnd) -> bytes:
        """The PROVE of an end that joins, which does not arrive."""
        before = len(w.network.sent)
        sent = w.network.sent
        w.network.run(w.network.now + 5, lambda: any(b"CHALLENGE" in d.data for d in sent[before:]))
        w.network.faults = LOST
        w.run(0.1)
        w.network.faults = HEALTHY
        (proof,) = (d.data for d in sent[before:] if b'"PROVE"' in d.data)
        end.is_up = False
        return proof

    def turn(self, w: World, **proofs: bytes) -> None:
        server, now = w.server.server, w.network.now
        for host, proof in proofs.items():
            server.receive_untrusted(proof, (host, 7890), now)
        server.handle(now, EPOCH)
        server.commit()

    def test_who_comes_back_in_the_turn_that_writes_it_out_is_in(self) -> None:
        with world() as w:
            alice, _ = w.joined("alice", "bob")
            w.run(1)
            rejoin(alice)
            proof = self.held_proof(w, alice)
            time_out(w, "alice")
            self.turn(w, alice=proof)
            members = views.members(w.server.server)
            self.assertEqual(set(members), {"alice", "bob"})
            self.assertIs(session_of(w, "alice").member, members["alice"])
            lines = [line.split(b" ", 1)[1] for line in views.room_log(w.server.server).lines]
            self.assertEqual(lines[-2:], [b"alice EX timed out", b"alice HI"])

    def test_a_message_in_the_turn_that_writes_its_reader_out_is_kept(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            member = session_of(w, "bob").member
            with leaving_lines(w.server.server):
                alice.say("DM bob #psst")
                w.run(0.1)
            time_out(w, "bob")
            look_at_session(w, "alice")
            self.turn(w)
            self.assertEqual(member.inbox.unread, 1)
            rejoin(bob)
            w.run(5)
            self.assertEqual(marked(bob), ["alice -> you: #psst"])

    def test_one_client_does_not_get_in_under_two_names(self) -> None:
        with world() as w:
            proofs = {}
            for name in ("alice", "bob"):
                end = w.client(name)
                give_instance(end.client, b"the same for two")
                proofs[name] = self.held_proof(w, end)
            self.turn(w, **proofs)
            self.assertEqual(list(views.members(w.server.server)), ["alice"])
            (refusal,) = [d for d, _ in views.replies_due(w.server.server) if b"REFUSED" in d]
            self.assertIn(b"this client is alice's", refusal)


class RateTest(unittest.TestCase):
    def test_joining_again_brings_no_new_burst(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            stop_pacing(alice.client)
            alice.say(*(f"#{number}" for number in range(200)))
            sessions = set()
            for _ in range(4):
                w.run(1)
                sessions.add(session_of(w, "alice").id)
                end_session(w, "alice")
                w.run(1)
                stop_pacing(alice.client)
            self.assertEqual(len(sessions), 4)
            self.assertAlmostEqual(len(marked(bob)), 60 + 8 * 12.5, delta=20)

    def test_taking_over_brings_no_new_burst(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            (bob,) = w.joined("bob")
            for number in range(6):
                alice = w.join("alice", f"desk {number}", knows())
                stop_pacing(alice.client)
                alice.say(*(f"#{number}.{line}" for line in range(60)))
                w.run(1)
            self.assertLess(len(marked(bob)), 60 + 7 * 12.5)

    def test_one_acknowledgement_brings_a_burst_and_the_rest_comes_in_its_time(self) -> None:
        channel = protocol.Channel(TIMING, 0.0, {LogId.LINES: 0}, {LogId.ROOM: 0})
        channel.window.size = protocol.MAXIMUM_WINDOW
        logs = {LogId.ROOM: protocol.Log(0, [b"x" * 1000] * 100)}
        self.assertEqual(len(channel.packets(1.0, logs)), AT_ONCE)
        self.assertEqual(channel.packets(1.0, logs), [])
        self.assertEqual(channel.deadline(), 1.0 + TIMING.pacing)
        self.assertEqual(len(channel.packets(channel.deadline(), logs)), AT_ONCE)
        self.assertEqual(len(channel.packets(channel.deadline(), logs)), AT_ONCE)
        self.assertEqual(len(channel.packets(channel.deadline(), logs)), 100 - 3 * AT_ONCE)
        self.assertEqual(channel.deadline(), 1.0 + TIMING.first_timeout)

    def test_what_is_late_does_not_wait_for_the_rest_of_a_burst(self) -> None:
        timing = replace(TIMING, pacing=30.0)
        channel = protocol.Channel(timing, 0.0, {LogId.LINES: 0}, {LogId.ROOM: 0})
        channel.window.size = protocol.MAXIMUM_WINDOW
        logs = {LogId.ROOM: protocol.Log(0, [b"x" * 1000] * 100)}
        channel.packets(0.0, logs)
        (part,) = channel.packets(TIMING.first_timeout, logs)[0].parts
        self.assertEqual(part.first, 0)


class HistoryBoundsTest(unittest.TestCase):
    def test_what_was_said_before_is_not_for_who_joins_twice_either(self) -> None:
        for is_restarted in (False, True):
            with (
                self.subTest(is_restarted=is_restarted),
                world(options=replace(OPTIONS, history=2)) as w,
            ):
                (alice,) = w.joined("alice")
                alice.say(*(f"#{number}" for number in range(5)))
                w.run(3)
                bob = w.join("bob")
                w.run(1)
                if is_restarted:
                    w.restart()
                views.session(bob.client).channel.readers[LogId.ROOM].cursor = 0
                rejoin(bob)
                w.run(5)
                texts = [text.rpartition(": ")[2] for text in marked(bob)]
                self.assertEqual(texts, ["#3", "#4", "#3", "#4"])

    def test_however_many_have_come_and_gone_a_newcomer_is_not_sent_them_all(self) -> None:
        with world() as w, mock.patch("chatserver.HISTORY_LINES", 50):
            (alice,) = w.joined("alice")
            alice.say("#old")
            w.run(1)
            log = w.server.store.log(ROOM_KEY)
            for number in range(100):
                log.stage(b"1600000000 guest%d HI" % number)
            w.server.store.commit()
            bob = w.join("bob")
            w.run(1)
            self.assertEqual(session_of(w, "bob").member.first, log.end - 1 - 50)
            self.assertEqual(marked(bob), [])


class TablesTest(unittest.TestCase):
    def test_who_has_left_leaves_no_early_lines(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            alice.leave()
            w.run(1)
            (session,) = views.sessions(w.server.server).values()
            reader = session.channel.readers[LogId.LINES]
            self.assertEqual(reader.cursor, session.member.lines)
            early = protocol.Part(LogId.LINES, reader.cursor, (b"PM x",) * 9)
            self.assertEqual(reader.hold(early), 0)

    def test_of_sessions_that_have_ended_the_oldest_make_way(self) -> None:
        with world() as w, mock.patch("chatserver.LINGERING", 3):
            names = [f"guest{number}" for number in range(6)]
            ends = w.joined(*names)
            for end in ends:
                end.leave()
            w.run(1)
            self.assertEqual([end.client.failure for end in ends], [None] * 6)
            self.assertTrue(all(end.client.has_left for end in ends))
            left = [session.member.name for session in views.sessions(w.server.server).values()]
            self.assertEqual(left, names[3:])
            w.run(TIMING.linger)
            self.assertEqual(views.sessions(w.server.server), {})
            self.assertEqual(views.draining_sessions(w.server.server), {})

    def test_a_takeover_while_many_linger_hurts_nobody(self) -> None:
        with world() as w, mock.patch("chatserver.LINGERING", 1):
            add_accounts(w, "alice")
            bob, carol = w.joined("bob", "carol")
            older = w.join("alice", "desk", knows())
            bob.leave()
            w.run(1)
            newer = w.join("alice", "phone", knows())
            w.run(1)
            self.assertEqual(older.client.failure, "logged in from elsewhere")
            newer.say("#hello")
            w.run(1)
            self.assertEqual(marked(carol), ["alice: #hello"])

    def test_who_asks_who_is_here_gets_what_others_got_until_somebody_comes_or_goes(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            server = w.server.server
            self.assertIs(views.roster(server)[0], views.roster(server)[0])
            w.join("carol").leave()
            w.run(1)
            self.assertIs(views.roster(server)[0], views.roster(server)[0])
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
        counts = {key: len(failures.times) for key, failures in views.failed_logins(brake).items()}
        self.assertEqual(counts["alice", "lan"], FAILURES_OF_BOTH)
        self.assertEqual(counts["", "lan"], FAILURES_OF_NETWORK)
        self.assertEqual(counts["alice", ""], 50)

    def test_of_blocks_that_are_sealed_only_some_are_kept(self) -> None:
        blocks = protocol.RoomBlocks(b"r" * 32)
        for number in range(3000):
            blocks.seal(protocol.Part(LogId.ROOM, number, (b"x",)))
            self.assertLessEqual(len(views.sealed_blocks(blocks)), 256)

    def test_what_nobody_echoes_is_remembered_only_so_far(self) -> None:
        channel = protocol.Channel(TIMING, 0.0, {LogId.LINES: 0}, {LogId.ROOM: 0})
        for now in range(3000):
            channel.ask(now)
            self.assertEqual(len(channel.packets(now, {LogId.ROOM: protocol.Log()})), 1)
        unanswered = views.unanswered_packets(channel)
        self.assertEqual(len(unanswered), 4 * protocol.MAXIMUM_WINDOW)
        self.assertEqual(unanswered[-1], (3000, 2999))


class FileTest(unittest.TestCase):
    def test_a_line_takes_no_more_than_its_length_though_it_is_the_longest(self) -> None:
        with world() as w:
            log = w.server.store.log(b"inbox")
            for _ in range(500):
                log.stage(b"x" * protocol.MAX_LINE)
            w.server.store.commit()
            ((pages,),) = views.query(w.server.store, "PRAGMA page_count")
            ((size,),) = views.query(w.server.store, "PRAGMA page_size")
            self.assertLess(pages * size, 1.3 * 500 * protocol.MAX_LINE)

    def test_instances_are_counted_each_minute(self) -> None:
        with world() as w, mock.patch("chatserver.INSTANCES", 3):
            for number in range(8):
                w.join(f"guest{number}").leave()
            w.run(FORGET_EVERY)
            self.assertEqual(views.query(w.server.store, "SELECT count(*) FROM instances"), [(3,)])

    def test_what_nobody_owns_is_forgotten_so_many_lines_at_a_time(self) -> None:
        with world() as w, mock.patch("chatserver.ORPHANED_AT_ONCE", 100):
            store = w.server.store
            for key in (b"one", b"two"):
                for _ in range(150):
                    store.log(key).stage(b"psst")
            store.commit()
            left = []
            while store.forget(0):
                left.append(views.query(store, "SELECT count(*) FROM lines")[0][0])
            self.assertEqual(left, [200, 100, 0])
            self.assertEqual(views.query(store, "SELECT * FROM logs"), [])

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
                oldest = []
                w.run(PRUNE_EVERY - 0.5 * PRUNE_PAUSE)
                for _ in range(9):
                    oldest.append(w.server.store.bounds(ROOM_KEY)[0])
                    w.run(PRUNE_PAUSE)
                self.assertEqual(oldest, [0, 4, 8, 12, 16, 17, 17, 17, 17])
                self.assertEqual(marked(bob), [f"alice: #{number}" for number in range(25)])
                self.assertEqual(w.server.store.bounds(ROOM_KEY), (17, 27))
                self.assertEqual(len(w.server.store.read(ROOM_KEY, 0, 99)), 10)
                carol = w.join("carol")
                w.run(2)
                history = [text.partition("] ")[2] for text in marked(carol)]
                self.assertEqual(history, [f"alice: #{number}" for number in range(15, 25)])

    def test_a_line_that_is_not_kept_any_more_is_never_another_one(self) -> None:
        with world() as w:
            log = w.server.store.log(b"inbox")
            for number in range(300):
                log.stage(b"%d" % number)
            w.server.store.commit()
            log.forget(20)
            w.server.store.commit()
            for number in (10, 15):
                with self.assertRaisesRegex(StoreError, f"line {number} of a log"):
                    log.line(number)
            self.assertEqual(log.line(22), b"22")

    def test_once_all_inboxes_hold_too_much_none_may_hold_more_than_its_share(self) -> None:
        with (
            world() as w,
            mock.patch("chatserver.UNREAD_LINES", 8),
            mock.patch("chatserver.UNREAD_SHARE", 2),
        ):
            store = w.server.store
            alice, bob, carol = w.joined("alice", "bob", "carol")
            w.run(1)
            w.network.unplugged = {"bob"}
            for number in range(8):
                alice.say(f"DM bob #{number}")
                w.run(1)  # until she has read her own copy
            self.assertEqual(session_of(w, "bob").member.inbox.unread, 8)
            refused = "* not delivered: bob has too many unread messages"
            self.assertNotIn(refused, " ".join(alice.texts()))
            alice.say("DM bob #8", "DM carol #9", "#10")
            w.run(3)
            self.assertIn(refused, " ".join(alice.texts()))
            self.assertEqual(marked(carol), ["alice -> you: #9", "alice: #10"])
            w.network.unplugged = set()
            w.run(10)
            self.assertEqual(
                set(marked(bob)), {f"alice -> you: #{n}" for n in range(8)} | {"alice: #10"}
            )
            self.assertEqual(store.unread, 0)
            w.network.unplugged = {"bob"}
            alice.say(*(f"DM bob #{number}" for number in range(11, 14)))
            w.run(3)
            self.assertEqual((session_of(w, "bob").member.inbox.unread, store.unread), (3, 3))

    def test_that_goes_for_ones_own_copies_too(self) -> None:
        with (
            world(options=replace(OPTIONS, rate=0)) as w,
            mock.patch("chatserver.UNREAD_LINES", 8),
            mock.patch("chatserver.UNREAD_SHARE", 5),
        ):
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            ignore(alice, LogId.INBOX)
            alice.say(*(f"DM alice #{number}" for number in range(50)))
            w.run(10)
            self.assertEqual(session_of(w, "alice").member.inbox.unread, 8)
            bob.say("#still here")
            w.run(1)
            self.assertEqual(marked(alice), ["bob: #still here"])

    def test_after_a_restart_what_lies_in_inboxes_still_counts(self) -> None:
        with world() as w:
            alice, _ = w.joined("alice", "bob")
            w.run(1)
            w.network.unplugged = {"bob"}
            alice.say("DM bob #0", "DM bob #1", "aloud")
            w.run(3)
            self.assertEqual(w.server.store.unread, 2)
            w.restart()
            self.assertEqual(w.server.store.unread, 2)

    def test_what_goes_with_its_owner_does_not_count_any_more(self) -> None:
        with world() as w:
            store = w.server.store
            for _ in range(9):
                store.log(b"nobody").stage(b"psst")
            store.commit()
            self.assertEqual(store.unread, 9)
            store.forget(0)
            self.assertEqual(store.unread, 0)


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
