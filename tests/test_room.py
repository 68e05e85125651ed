"""Whole clients and a whole server: the promises, in virtual time."""

from __future__ import annotations

import sqlite3
import unittest
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import pairwise
from random import Random
from unittest import mock

import protocol
from chatclient import SHOWN_PENDING, plain
from chatserver import (
    AT_A_TIME,
    DAY,
    FORGET_EVERY,
    HANDSHAKES_PER_TURN,
    ORPHANS_AT_ONCE,
    PACKET_COST,
    PRUNE_EVERY,
    PRUNED_AT_ONCE,
    ROOM_KEY,
    TELL_PAUSE,
    UNREAD_NOTICES,
    StoreError,
)
from protocol import (
    Challenge,
    LogId,
    format_handshake,
)
from tests import views
from tests.actions import expel, rejoin, start_handshake, stop_pacing, unreadable_file
from tests.network import BAD, Faults
from tests.observed import marked, was_sent
from tests.room import EPOCH, OPTIONS, SERVER, ClientEnd, World, ignore, session_of, world

# Each try to write waits for a tenth of a second, a real one, if somebody else has the room file.
RARELY_TRIED = replace(protocol.TIMING, store_pause=20.0)


class DeliveryTest(unittest.TestCase):
    def test_everybody_reads_every_line_once_in_one_order(self) -> None:
        for seed in range(8):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                ends = w.joined("alice", "bob", "carol")
                for number in range(30):
                    for end in ends:
                        end.say(f"#{end.host} {number}")
                w.run(40)
                views = [marked(end) for end in ends]
                for end, view in zip(ends, views):
                    others = [f"#{e.host} {n}" for e in ends for n in range(30) if e is not end]
                    self.assertEqual(sorted(v.partition(": ")[2] for v in view), sorted(others))
                self.assert_one_order(ends, views)
                for end in ends:
                    self.assertEqual(end.client.undelivered(), [])

    def assert_one_order(self, ends: list[ClientEnd], views: list[list[str]]) -> None:
        """Nobody is shown their own lines, so views are compared without these."""
        for (one, left), (two, right) in pairwise(list(zip(ends, views))):
            hidden = (f"{one.host}: ", f"{two.host}: ")
            self.assertEqual(
                [line for line in left if not line.startswith(hidden)],
                [line for line in right if not line.startswith(hidden)],
            )

    def test_each_senders_lines_stay_in_order(self) -> None:
        with world(5, BAD) as w:
            alice, bob = w.joined("alice", "bob")
            alice.say(*(f"#{n}" for n in range(60)))
            w.run(60)
            self.assertEqual(marked(bob), [f"alice: #{n}" for n in range(60)])

    def test_each_of_many_members_is_sent_a_line_once(self) -> None:
        """Their datagrams are made and sent in several portions."""
        with world() as w:
            alice, *others = w.joined(*(f"member{n}" for n in range(2 * AT_A_TIME + 3)))
            w.run(1)
            before = len(w.network.sent)
            alice.say("#line")
            w.run(0.1)  # nobody has acknowledged it yet, nor is it late
            sent = [d.target for d in w.network.sent[before:] if d.source == SERVER]
            self.assertEqual(sorted(sent), sorted(w.server.network.ends.keys() - {SERVER}))
            for end in others:
                self.assertEqual(marked(end), ["member0: #line"])

    def test_a_direct_message_reaches_its_recipient_only_and_once(self) -> None:
        with world(2, BAD) as w:
            alice, bob, carol = w.joined("alice", "bob", "carol")
            alice.say("dm BOB #psst")
            w.run(10)
            self.assertEqual(marked(bob), ["alice -> you: #psst"])
            self.assertEqual(marked(alice), [])
            self.assertEqual(marked(carol), [])
            self.assertEqual(alice.client.undelivered(), [])
            alice.leave()
            w.run(5)
            self.assertTrue(alice.client.has_left, "its copy of the message has not come")

    def test_a_message_to_oneself_is_shown_once(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            alice.say("DM alice #note")
            w.run(1)
            self.assertEqual(marked(alice), ["alice -> you: #note"])

    def test_a_message_to_nobody_is_refused_and_not_published(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            alice.say("dm me later")
            w.run(1)
            expected = (
                "* not delivered: nobody here is called me. To say it to everyone: PM DM me later"
            )
            self.assertEqual(alice.texts()[-1], expected)
            self.assertNotIn("later", " ".join(bob.texts()))
            alice.leave()
            w.run(1)
            self.assertTrue(alice.client.has_left)

    def test_a_line_that_a_client_should_have_cleaned_is_refused(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            alice.client.say(protocol.Public("\x1b[2J"), w.network.now)
            alice.say("#after")
            w.run(2)
            self.assertTrue(any("control or format" in text for text in alice.texts()))
            self.assertEqual(marked(bob), ["alice: #after"])

    def test_who_is_answered_once_for_each_asking(self) -> None:
        with world(4, BAD) as w:
            alice, _ = w.joined("alice", "bob")
            w.run(5)
            before = len(alice.shown)
            alice.say("WHO", "WHO")
            w.run(10)
            self.assertEqual(alice.texts()[before:], ["* here: alice, bob"] * 2)

    def test_who_asked_at_once_is_answered_besides_the_greeting(self) -> None:
        for seed in range(6):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                (alice,) = w.joined("alice")
                alice.say("WHO")
                w.run(10)
                self.assertEqual([t for t in alice.texts() if "here" in t], ["* here: alice"] * 2)

    def test_a_client_knows_who_is_here_and_whom_it_has_talked_with_last(self) -> None:
        with world() as w:
            alice, bob, carol = w.joined("alice", "Bob", "carol")
            w.run(1)
            self.assertEqual(set(alice.client.others), {"Bob", "carol"})
            for who, said, latest in (
                (carol, "hello", "carol"),
                (bob, "hello", "Bob"),
                (alice, "DM carol psst", "carol"),
                (alice, "DM nobody psst", "carol"),
                (bob, "DM ALICE psst", "Bob"),
            ):
                who.say(said)
                w.run(1)
                self.assertEqual(alice.client.others[0], latest, said)
            alice.say("WHO")
            w.run(1)
            self.assertEqual(alice.client.others, ["Bob", "carol"])
            bob.leave()
            w.run(1)
            self.assertEqual(alice.client.others, ["carol"])
            w.join("dave")
            w.run(1)
            self.assertEqual(set(alice.client.others), {"carol", "dave"})

    def test_what_could_not_be_read_for_a_while_is_sent_soon_after(self) -> None:
        with world() as w, self.assertLogs("chatserver", "ERROR"):
            alice, bob = w.joined("alice", "bob")
            w.run(3)
            inbox = session_of(w, "bob").member.inbox
            with mock.patch.object(inbox, "line", side_effect=StoreError("unreadable")):
                alice.say("DM bob #psst")
                w.run(0.5)
            w.run(protocol.TIMING.store_pause + 0.1)
            self.assertEqual(marked(bob), ["alice -> you: #psst"])

    def test_who_is_put_out_is_answered_for_a_while_only(self) -> None:
        """Also if nothing is sent to it any more that could be late."""
        with world() as w:
            w.joined("alice")
            w.run(2)
            expel(w, "alice", "")
            w.run(protocol.TIMING.linger - 1)
            self.assertEqual(len(views.sessions(w.server.server)), 1)
            w.run(2)
            self.assertEqual(len(views.sessions(w.server.server)), 0)

    def test_a_resumed_member_who_is_never_heard_again_is_written_out(self) -> None:
        """Nothing was sent to it in that session that could be late."""
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(30)
            start_handshake(alice.client, w.network.now)
            self.assertTrue(
                w.network.run(w.network.now + 9, lambda: not views.find_handshake(alice.client))
            )
            w.network.muted = {"alice"}
            w.run(protocol.TIMING.server_silence + 5)
            self.assertIn("* alice left (timed out)", bob.texts())

    def test_a_roster_of_many_lines_is_shown_as_one(self) -> None:
        names = [f"member-with-a-long-name-{n:03}" for n in range(60)]
        with world() as w:
            w.joined(*names)
            (last,) = w.joined("zoe")
            w.run(2)
            self.assertIn(f"* here: {', '.join([*names, 'zoe'])}", last.texts())

    def test_a_member_that_writes_too_fast_is_slowed_and_loses_nothing(self) -> None:
        with world(options=replace(OPTIONS, rate=10)) as w:
            alice, bob = w.joined("alice", "bob")
            stop_pacing(alice.client)  # a client that does not pace itself
            alice.say(*(f"#{n}" for n in range(200)))
            w.run(5)
            self.assertAlmostEqual(len(marked(bob)), 60 + 5 * 12.5, delta=2)
            w.run(30)
            self.assertEqual(marked(bob), [f"alice: #{n}" for n in range(200)])

    def test_a_slowed_members_lines_come_as_soon_as_its_rate_allows(self) -> None:
        with world(options=replace(OPTIONS, rate=10)) as w:
            alice, _ = w.joined("alice", "bob")
            stop_pacing(alice.client)
            alice.say(*(f"#{n}" for n in range(100)))
            w.run(2)
            before = len(w.network.sent)
            w.run(1)
            sent = [d for d in w.network.sent[before:] if (d.source, d.target) == (SERVER, "bob")]
            self.assertGreaterEqual(len(sent), 11, "12.5 lines, each of its own")

    def test_lines_that_a_turn_leaves_are_taken_in_the_next(self) -> None:
        with world() as w, mock.patch("chatserver.LINES_PER_TURN", 3):
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            for number in range(5):
                alice.client.say(protocol.Public(f"#{number}"), w.network.now)
            before = len(w.network.sent)
            w.network.at(w.network.now, "alice", lambda: None)  # what she says is in one datagram
            w.run(0.1)
            self.assertEqual(w.network.sent[before].source, "alice")
            self.assertNotEqual(w.network.sent[before + 1].source, "alice")
            self.assertEqual(marked(bob), [f"alice: #{n}" for n in range(5)])

    def test_lines_are_taken_from_all_members_in_turn(self) -> None:
        with world(options=replace(OPTIONS, rate=0)) as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            now = w.network.now
            for end, count in ((alice, 60), (bob, 1)):
                for number in range(count):
                    end.client.say(protocol.Public(f"#{number}"), now)
                for data in end.client.datagrams(now):
                    w.server.server.receive_untrusted(data, (end.host, 7890), now)
            w.server.server.handle(now, 0)
            order = [line.split()[1] for line in views.room_log(w.server.server).staged]
            self.assertLess(order.index(b"bob"), 2)

    def test_a_member_that_does_not_read_its_answers_fills_no_memory(self) -> None:
        with world(options=replace(OPTIONS, rate=0)) as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            ignore(alice, LogId.NOTICES)
            alice.say(*["WHO"] * 500)
            w.run(20)
            session = session_of(w, "alice")
            self.assertEqual(len(session.logs[LogId.NOTICES].lines), UNREAD_NOTICES)
            bob.say("#still here")
            w.run(1)
            self.assertEqual(marked(alice), ["bob: #still here"])

    def test_a_client_keeps_to_the_rate_that_it_was_told(self) -> None:
        with world(options=replace(OPTIONS, rate=10)) as w:
            alice, bob = w.joined("alice", "bob")
            alice.say(*(f"#{n}" for n in range(80)))
            w.run(1)
            self.assertLessEqual(len(marked(bob)), 30 + 10)
            w.run(4.5)
            self.assertEqual(len(marked(bob)), 80)


class HistoryTest(unittest.TestCase):
    def test_a_newcomer_is_shown_the_last_public_lines_as_history(self) -> None:
        with world(options=replace(OPTIONS, history=3)) as w:
            alice, bob = w.joined("alice", "bob")
            alice.say("#1", "#2", "DM bob #secret", "#3", "#4")
            bob.say("#5")
            w.run(2)
            bob.leave()
            w.run(2)
            (carol,) = w.joined("carol")
            alice.say("#6")
            w.run(2)
            earlier = [line.partition("] ")[2] for line in carol.shown if "earlier" in line]
            self.assertEqual(sorted(earlier), ["alice: #3", "alice: #4", "bob: #5"])
            self.assertNotIn("left", " ".join(carol.texts()))
            self.assertIn("alice: #6", carol.texts())

    def test_without_history_a_newcomer_sees_only_what_comes(self) -> None:
        with world(options=replace(OPTIONS, history=0)) as w:
            (alice,) = w.joined("alice")
            alice.say("#1")
            w.run(1)
            (carol,) = w.joined("carol")
            alice.say("#2")
            w.run(1)
            self.assertEqual(marked(carol), ["alice: #2"])

    def test_a_later_owner_of_a_name_does_not_get_its_messages(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            alice.say("DM bob #secret")
            w.run(1)
            bob.leave()
            w.run(1)
            other = w.client("bob", host="elsewhere")
            w.run(3)
            self.assertEqual(marked(other), [])

    def test_history_is_found_behind_many_joins(self) -> None:
        with world(options=replace(OPTIONS, history=3)) as w:
            (alice,) = w.joined("alice")
            alice.say("#1", "#2", "#3", "#4")
            w.run(1)
            room = w.server.store.log(ROOM_KEY)
            for _ in range(3000):
                room.stage(b"1600000000 someone HI")
            w.server.store.commit()
            w.restart()
            w.run(2)
            (bob,) = w.joined("bob")
            w.run(2)
            self.assertEqual([text.split("#")[1] for text in marked(bob)], ["2", "3", "4"])

    def test_history_survives_a_restart_longer_than_what_is_in_memory(self) -> None:
        with world(options=replace(OPTIONS, rate=0, history=5)) as w:
            (alice,) = w.joined("alice")
            alice.say(*(f"#{n}" for n in range(3000)))
            w.run(30)
            w.restart()
            w.run(5)
            (bob,) = w.joined("bob")
            w.run(2)
            self.assertEqual(len(marked(bob)), 5)

    def test_a_member_far_behind_is_served_from_the_file(self) -> None:
        with world(options=replace(OPTIONS, rate=0)) as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            bob.is_up = False  # asleep, for less than it takes to be written out
            alice.say(*(f"#{n}" for n in range(3000)))
            w.run(40)
            bob.is_up = True
            w.run(40)
            self.assertEqual(marked(bob), [f"alice: #{n}" for n in range(3000)])


class PruningTest(unittest.TestCase):
    """Days pass between two starts of the server."""

    OPTIONS = replace(OPTIONS, rate=0, keep_days=30)

    def pass_days(self, w: World, days: int) -> None:
        w.server.kill()
        w.server.epoch += days * DAY
        w.server.start()

    def test_old_lines_are_forgotten_and_younger_ones_are_not(self) -> None:
        with world(options=self.OPTIONS) as w:
            (alice,) = w.joined("alice")
            alice.say("#old")
            w.run(1)
            for days, texts in ((29, ["#old", "#young"]), (2, ["#young"])):
                self.pass_days(w, days)
                w.run(2)
                if days == 29:
                    alice.say("#young")
                bob = w.join("bob")
                w.run(2)
                self.assertEqual([t.split("alice: ")[1] for t in marked(bob)], texts)
                bob.leave()
                w.run(1)

    def test_without_a_limit_lines_are_kept_for_ever(self) -> None:
        with world(options=replace(self.OPTIONS, keep_days=0)) as w:
            (alice,) = w.joined("alice")
            alice.say("#old")
            w.run(1)
            self.pass_days(w, 10_000)
            w.run(3)
            bob = w.join("bob")
            w.run(1)
            self.assertEqual(len(marked(bob)), 1)

    def test_a_clock_that_was_wrong_for_a_while_does_not_end_the_forgetting(self) -> None:
        with world(options=self.OPTIONS) as w:
            (alice,) = w.joined("alice")
            for text, days in (("#1", 500), ("#2", -500), ("#3", 0)):
                alice.say(text)
                w.run(1)
                w.server.epoch += days * DAY
            w.server.epoch += 31 * DAY
            w.run(PRUNE_EVERY)
            log = views.room_log(w.server.server)
            self.assertEqual(log.oldest, log.end)

    def test_what_nobody_owns_is_gone_soon_though_little_by_little(self) -> None:
        with world() as w:
            for number in range(2 * ORPHANS_AT_ONCE + 1):
                w.server.store.log(b"%d" % number).stage(b"psst")
            w.server.store.commit()
            w.run(FORGET_EVERY + 5)
            self.assertEqual(views.query(w.server.store, "SELECT * FROM logs"), [])

    def test_a_running_server_forgets_too_and_a_little_at_a_time(self) -> None:
        with world(options=self.OPTIONS) as w:
            (alice,) = w.joined("alice")
            alice.say(*(f"#{n}" for n in range(2 * PRUNED_AT_ONCE)))
            w.run(20)
            log = views.room_log(w.server.server)
            self.assertEqual(log.oldest, 0)
            w.server.epoch += 31 * DAY
            w.network.run(PRUNE_EVERY - 1)
            sizes = []
            while log.oldest < log.end:
                before = log.oldest
                w.run(1)
                sizes.append(log.oldest - before)
            self.assertEqual(max(sizes), PRUNED_AT_ONCE)
            self.assertLessEqual(len(sizes), 4)
            with closing(sqlite3.connect(w.server.path)) as file:
                ((kept,),) = file.execute("SELECT count(*) FROM lines WHERE log = ?", (ROOM_KEY,))
            self.assertEqual(kept, 0)
            alice.say("#new")
            w.run(1)
            bob = w.join("bob")
            w.run(1)
            self.assertEqual([text.split("#")[1] for text in marked(bob)], ["new"])

    def test_who_comes_back_to_a_pruned_log_is_told_how_many_lines_are_missing(self) -> None:
        with world(options=self.OPTIONS) as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            w.network.unplugged = {"bob"}
            alice.say(*(f"#{n}" for n in range(50)))
            w.run(5)
            w.server.epoch += 31 * DAY
            alice.say("#new")
            w.run(PRUNE_EVERY)
            w.network.unplugged = set()
            w.run(15)
            told = bob.texts()
            missing = told.index("* 50 lines are missing here")
            self.assertEqual(marked(bob), ["alice: #new"])
            self.assertLess(missing, told.index("alice: #new"))

    def test_a_member_that_has_not_read_what_is_pruned_loses_no_more_than_that(self) -> None:
        with world(options=self.OPTIONS) as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            ignore(bob, LogId.ROOM)
            alice.say(*(f"#{n}" for n in range(50)))
            w.run(1)
            w.server.epoch += 31 * DAY
            alice.say("#new")
            w.run(PRUNE_EVERY + 60)
            self.assertEqual(marked(bob), ["alice: #new"])
            self.assertIn("* bob left (fell behind)", alice.texts())
            self.assertEqual(alice.texts()[-1], "* bob joined")


class PresenceTest(unittest.TestCase):
    def test_joining_and_leaving_are_seen_by_the_others(self) -> None:
        for seed in range(8):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                alice, bob = w.joined("alice", "bob")
                w.run(3)
                bob.leave()
                w.run(20)
                self.assertTrue(bob.client.has_left)
                seen = [text for text in alice.texts() if "bob" in text and "here" not in text]
                self.assertEqual(seen, ["* bob joined", "* bob left"])

    def told(self, w: World, since: float) -> list[float]:
        """When lines left the server for alice."""
        sent = (each for each in w.network.sent if (each.source, each.target) == (SERVER, "alice"))
        return [it.at for it in sent if it.at >= since and len(it.data) > views.PACKET_OVERHEAD]

    def test_many_who_come_at_once_are_told_together_but_for_the_first(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            since, names = w.network.now, [f"guest{n}" for n in range(20)]
            for name in names:
                w.client(name)
            w.run(1)
            for name in names:
                self.assertIn(f"* {name} joined", alice.texts())
            first, second = self.told(w, since)
            self.assertAlmostEqual(second, first + TELL_PAUSE, places=6)

    def test_what_is_said_does_not_wait_for_who_comes(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            since = w.network.now
            for n in range(20):
                w.client(f"guest{n}")
                bob.say("#now")
                w.run(0.03)
            times = self.told(w, since)
            self.assertLess(max(map(float.__sub__, times[1:], times)), 0.06)
            self.assertIn("* guest0 joined", alice.texts())

    def test_a_silent_member_is_written_out_and_announced_again_when_back(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            alice.say("#before")
            w.run(1)
            bob.is_up = False
            w.run(74)
            self.assertNotIn("* bob left (timed out)", alice.texts())
            w.run(3)
            self.assertIn("* bob left (timed out)", alice.texts())
            alice.say("#meanwhile")
            w.run(60)
            bob.is_up = True
            w.run(15)
            self.assertEqual(alice.texts().count("* bob joined"), 2)
            self.assertEqual(marked(bob), ["alice: #before", "alice: #meanwhile"])

    def test_death_by_silence_comes_after_75_seconds(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            session = session_of(w, "bob")
            bob.is_up = False
            w.network.run(session.channel.heard_at + 74.99)
            self.assertNotIn("* bob left (timed out)", alice.texts())
            w.network.run(session.channel.heard_at + 75.1)  # and on its way to alice
            self.assertIn("* bob left (timed out)", alice.texts())

    def test_a_client_that_gets_no_answer_for_10_seconds_says_so_once(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            w.server.kill()
            asked_at = w.network.now
            alice.say("#hello")
            w.network.run(asked_at + 9.99)
            self.assertEqual(alice.texts(), ["* here: alice", "* bob joined"])
            w.network.run(asked_at + 10.01)
            told = ["* no answer from the server: reconnecting", "* not delivered yet: PM #hello"]
            self.assertEqual(alice.texts()[2:], told)
            # bob has nothing to say, and finds out when he asks for a sign of life.
            self.assertEqual(bob.texts(), ["* here: alice, bob"])
            w.network.run(asked_at + 25 + 10)
            self.assertEqual(bob.texts()[1:], ["* no answer from the server: reconnecting"])
            w.run(3600)
            self.assertEqual(alice.texts()[2:], told)

    def test_a_client_tries_to_reconnect_at_growing_jittered_intervals(self) -> None:
        with world() as w:
            w.joined("alice")
            w.server.kill()
            before = len(w.network.sent)
            w.run(200)
            sent = w.network.sent[before:]
            tries = [d.at for d in sent if b'"HELLO"' in d.data]
            pauses = [later - earlier for earlier, later in pairwise(tries)]
            self.assertTrue(0.75 <= pauses[0] <= 1, pauses)
            self.assertTrue(all(7.5 <= pause <= 10 for pause in pauses[-5:]), pauses)
            self.assertGreater(len(set(pauses)), len(pauses) / 2)

    def test_a_client_that_was_cut_off_for_an_hour_says_so_once_and_catches_up(self) -> None:
        for seconds in (45, 3600):
            with self.subTest(seconds=seconds), world() as w:
                alice, bob = w.joined("alice", "bob")
                w.run(1)
                w.network.unplugged = {"alice"}
                alice.say("#mine")
                w.run(15)
                alice.say("#later", "DM bob #last")
                for number in range(30):
                    bob.say(f"#{number}")
                    w.run(seconds / 30)
                w.network.unplugged = set()
                w.run(protocol.TIMING.max_pause + 1)
                trouble = [
                    "* no answer from the server: reconnecting",
                    "* not delivered yet: PM #mine",
                    "* not delivered yet: PM #later",
                    "* not delivered yet: DM bob #last",
                    "* connected",
                ]
                theirs = [f"bob: #{n}" for n in range(30)]
                self.assertEqual(alice.texts()[2:], [*trouble, *theirs])
                mine = ["alice: #mine", "alice: #later", "alice -> you: #last"]
                self.assertEqual(marked(bob), mine)
                passing = [text for text in bob.texts() if "* alice" in text]
                is_out = seconds > protocol.TIMING.server_silence
                is_seen = ["* alice left (timed out)", "* alice joined"] if is_out else []
                self.assertEqual(passing, is_seen)

    def test_who_was_away_for_weeks_reads_everything_or_is_told_what_is_missing(self) -> None:
        for days, first in ((20, 0), (40, 40)):
            with self.subTest(days=days), world() as w:
                alice, bob = w.joined("alice", "bob")
                w.run(1)
                w.network.unplugged = {"alice"}
                w.run(100)
                bob.say(*(f"#{n}" for n in range(60)))
                w.run(10)
                w.server.epoch += days * DAY
                w.run(PRUNE_EVERY)
                w.network.unplugged = set()
                w.run(15)
                texts = [f"#{n}" for n in range(first, 60)]
                self.assertEqual([text.split(": ")[-1] for text in marked(alice)], texts)
                told = [text for text in alice.texts() if "missing" in text]
                # Joining and leaving were lines too.
                self.assertEqual(told, ["* 41 lines are missing here"] if first else [])

    def test_a_client_that_is_not_heard_is_not_connected(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            w.network.muted = {"alice"}
            alice.say("#mine")
            for number in range(30):
                bob.say(f"#{number}")
                w.run(2)
            told = [text for text in alice.texts()[2:] if text.startswith("*")]
            words = "* no answer from the server: reconnecting"
            self.assertEqual(told, [words, "* not delivered yet: PM #mine"])
            self.assertEqual(len(marked(alice)), 1 + 30)
            w.network.muted = set()
            w.run(12)
            self.assertEqual(alice.texts()[-1], "* connected")
            self.assertEqual(marked(bob), ["alice: #mine"])

    def test_what_is_written_to_a_guest_who_was_lost_is_kept(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            w.network.unplugged = {"alice", "bob"}  # both, as at one cable
            bob.say("DM alice #psst")
            w.run(90)
            w.network.unplugged = {"alice"}
            w.run(12)
            self.assertEqual(bob.texts()[-1], "* alice is away: kept until they are back")
            w.network.unplugged = set()
            w.run(12)
            self.assertEqual(marked(alice), ["bob -> you: #psst"])

    def test_what_is_kept_for_a_lost_guest_is_not_for_the_next_owner_of_the_name(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            w.network.unplugged = {"alice"}
            w.run(80)
            bob.say("DM alice #for the first")
            w.run(1)
            second = w.client("alice", host="elsewhere")
            w.run(2)
            bob.say("DM alice #for the second")
            w.run(1)
            second.leave()
            w.run(1)
            bob.say("DM alice #for nobody")
            w.run(1)
            self.assertIn("nobody here is called alice", bob.texts()[-1])
            w.network.unplugged = set()
            w.run(15)
            self.assertEqual(marked(second), ["bob -> you: #for the second"])
            self.assertEqual(marked(alice), ["bob -> you: #for the first"])

    def test_a_lost_guest_is_remembered_over_a_restart_and_for_a_month(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            w.network.unplugged = {"alice"}
            w.run(80)
            w.restart()
            bob.say("DM alice #kept")
            w.run(5)
            self.assertEqual(bob.texts()[-1], "* alice is away: kept until they are back")
            w.server.epoch += 31 * DAY
            w.run(FORGET_EVERY)
            bob.say("DM alice #refused")
            w.run(1)
            self.assertIn("nobody here is called alice", bob.texts()[-1])
            w.network.unplugged = set()
            w.run(15)
            self.assertEqual(marked(alice), [])
            bob.say("#hello")
            w.run(1)
            self.assertEqual(marked(alice), ["bob: #hello"])

    def test_handshakes_that_wait_keep_no_silent_member_in(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            alice.is_up = False
            for _ in range(12):  # more than there is time for in one turn
                for _ in range(2 * int(HANDSHAKES_PER_TURN / PACKET_COST)):
                    w.server.receive(b"{", "mallory", w.network.now)
                w.network.at(w.network.now, SERVER, lambda: None)
                w.run(10)
            self.assertEqual(bob.texts()[-1], "* alice left (timed out)")

    def test_of_many_pending_lines_some_are_named_and_the_others_counted(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            w.network.unplugged = {"alice"}
            alice.say(*(f"#{n}" for n in range(SHOWN_PENDING + 2)))
            w.run(15)
            alice.say("#more")
            w.run(1)
            pending = [f"* not delivered yet: PM #{n}" for n in range(SHOWN_PENDING)]
            self.assertEqual(alice.texts()[2:], [*pending, "* not delivered yet: 2 more"])

    def test_another_owner_of_the_name_in_between_is_not_taken_for_oneself(self) -> None:
        with world() as w:
            alice, _ = w.joined("alice", "bob")
            w.run(1)
            alice.is_up = False
            w.run(80)
            other = w.client("alice", host="elsewhere")
            w.run(3)
            other.say("#stranger")
            w.run(1)
            other.leave()
            w.run(1)
            alice.is_up = True
            w.run(30)
            self.assertEqual(marked(alice), ["alice: #stranger"])

    def test_who_left_is_forgotten_after_a_month(self) -> None:
        with world() as w:
            (bob,) = w.joined("bob")
            key = views.members(w.server.server)["bob"].key
            bob.leave()
            w.run(1)
            for days, is_known in ((29, True), (2, False)):
                w.server.epoch += days * DAY
                w.run(FORGET_EVERY + 1)
                self.assertEqual(w.server.store.member(key) is not None, is_known)

    def test_joins_leaves_and_refusals_are_logged(self) -> None:
        with world() as w, self.assertLogs("chatserver", "INFO") as logged:
            (bob,) = w.joined("bob")
            w.client("bob", host="elsewhere")
            w.run(3)
            bob.leave()
            w.run(1)
        words = [record.getMessage() for record in logged.records]
        self.assertEqual(
            words,
            [
                "bob joined from bob port 7890",
                "refused elsewhere port 7890: the name bob is in use",
                "bob left",
            ],
        )

    def test_an_idle_room_stays_together(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            sent = len(w.network.sent)
            w.run(3600)
            self.assertNotIn("left", " ".join(alice.texts() + bob.texts()))
            # Two members, one question and one answer each, every 20 to 25 s.
            self.assertLess(len(w.network.sent) - sent, 2 * 2 * 3600 / 20 + 10)

    def test_a_name_in_use_is_refused_in_any_letter_case(self) -> None:
        with world() as w:
            w.joined("alice")
            other = w.client("ALICE", host="elsewhere")
            w.run(5)
            self.assertEqual(other.client.failure, "the name alice is in use (the server)")

    def test_a_full_room_refuses(self) -> None:
        with world(options=replace(OPTIONS, max_users=1)) as w:
            (alice,) = w.joined("alice")
            bob = w.client("bob")
            w.run(5)
            self.assertEqual(bob.client.failure, "the room is full (1 members) (the server)")
            alice.leave()
            w.run(2)
            w.joined("carol")

    def test_a_client_that_crashed_comes_back_under_its_name(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            bob.say("#1")
            w.run(1)
            del w.network.ends["bob"]
            again = w.client("bob", host="bob")
            w.run(10)
            self.assertTrue(again.client.has_joined)
            self.assertEqual(
                [text for text in alice.texts() if "* bob" in text],
                ["* bob joined", "* bob left (replaced)", "* bob joined"],
            )

    def test_a_silent_members_name_is_not_free_for_other_addresses(self) -> None:
        with world() as w:
            (bob,) = w.joined("bob")
            bob.is_up = False
            thief = w.client("bob", host="thief")
            w.run(10)
            self.assertEqual(thief.client.failure, "the name bob is in use (the server)")

    def test_a_live_member_is_not_replaced_from_its_own_address(self) -> None:
        """Two programs behind one address: the first still answers."""
        with world() as w:
            (bob,) = w.joined("bob")
            thief = w.client("bob", host="thief")
            relabelled = w.network.ends

            class Forked:
                """Hands what is for bob's address to both."""

                def receive(self, data: bytes, source: str, now: float) -> None:
                    bob.receive(data, source, now)
                    thief.receive(data, source, now)

                def datagrams(self, now: float) -> list[tuple[bytes, str]]:
                    return [*bob.datagrams(now), *thief.datagrams(now)]

                def deadline(self) -> float:
                    return min(bob.deadline(), thief.deadline())

            del relabelled["thief"]
            relabelled["bob"] = Forked()
            w.run(10)
            self.assertEqual(thief.client.failure, "the name bob is in use (the server)")
            self.assertFalse(bob.client.is_over)


class RestartTest(unittest.TestCase):
    def test_a_killed_server_loses_and_doubles_nothing(self) -> None:
        for seed in range(6):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                alice, bob = w.joined("alice", "bob")
                w.run(3)
                for kill in range(4):
                    alice.say(*(f"#{kill}.{n}" for n in range(10)), f"DM bob psst {kill}")
                    w.run(0.3 + seed * 0.1)
                    w.restart(2)
                    w.run(12)
                w.run(30)
                expected = [f"alice: #{kill}.{n}" for kill in range(4) for n in range(10)]
                self.assertEqual(marked(bob), expected)
                direct = [f"alice -> you: psst {kill}" for kill in range(4)]
                self.assertEqual(marked(bob, "psst"), direct)
                self.assertNotIn("left", " ".join(alice.texts() + bob.texts()))
                self.assertEqual(bob.texts().count("* alice joined"), 0)

    def test_members_are_back_at_once_when_the_server_is(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            w.server.kill()
            w.run(3)
            w.server.start()  # which tells alice, who has nothing to say and so had not noticed
            w.run(1)
            self.assertEqual(len(views.sessions(w.server.server)), 1)
            self.assertEqual(alice.texts(), ["* here: alice"])

    def test_members_are_back_soon_however_often_the_server_dies(self) -> None:
        for seed in range(5):
            with self.subTest(seed=seed), world(seed) as w:
                alice, bob = w.joined("alice", "bob")
                w.run(1)
                random = Random(seed)
                for _ in range(10):
                    w.server.kill()
                    w.run(random.uniform(0, 1))
                    w.server.start()
                    w.run(random.uniform(0, 1))
                w.run(2)
                bob.say("#hello")
                w.run(0.5)
                self.assertEqual(marked(alice), ["bob: #hello"])

    def test_members_are_back_soon_though_the_server_dies_while_they_prove_who_they_are(
        self,
    ) -> None:
        for deaths in range(1, 6):
            with self.subTest(deaths=deaths), world() as w:
                (alice,) = w.joined("alice")
                w.run(1)
                for _ in range(deaths):
                    w.restart()
                    before = len(w.network.sent)
                    is_proving = partial(was_sent, w, b'"PROVE"', before)
                    self.assertTrue(w.network.run(w.network.now + 3, is_proving))
                w.restart()
                w.run(1.5)
                alice.say("DM alice #hello")
                w.run(0.2)
                self.assertEqual(marked(alice), ["alice -> you: #hello"])

    def test_a_member_that_the_restarted_server_does_not_reach_is_told_again(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            w.restart()
            now = w.network.now
            w.network.faults = replace(w.network.faults, blackouts=((now, now + 6),))
            w.run(6)
            self.assertEqual(len(views.sessions(w.server.server)), 0)
            w.run(2)
            self.assertEqual(len(views.sessions(w.server.server)), 1)
            self.assertEqual(alice.texts(), ["* here: alice"])

    def test_who_is_back_is_not_told_again(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            bob.is_up = False
            w.restart()
            before, since = len(w.network.sent), w.network.now
            w.run(200)
            gone = [d for d in w.network.sent[before:] if b'"GONE"' in d.data]
            self.assertLess(max(d.at for d in gone if d.target == "alice"), since + 1)
            times = [round(d.at - since) for d in gone if d.target == "bob"]
            self.assertEqual(times, [0, 1, 3, 7, 15, 31, 63])
            self.assertEqual(alice.texts()[-1], "* bob left (timed out)")

    def test_an_answer_to_who_that_went_with_the_server_is_asked_for_again(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            now = w.network.now
            alice.say("WHO")
            w.network.faults = replace(w.network.faults, blackouts=((now + 0.001, now + 1),))
            w.run(1)
            self.assertEqual(alice.texts(), ["* here: alice"])
            w.restart()
            w.run(3)
            self.assertEqual(alice.texts(), ["* here: alice"] * 2)

    def test_a_server_that_is_gone_is_mentioned_while_it_is(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            w.server.kill()
            for _ in range(5):
                now = w.network.now
                w.network.at(now, "alice", partial(alice.client.port_closed, now))
                w.run(1)
            self.assertEqual(alice.texts()[1:], ["* the connection is lost: reconnecting"])
            w.server.start()
            w.run(5)
            self.assertEqual(alice.texts()[2:], ["* connected"])

    def test_a_guest_whom_a_closed_room_turned_away_is_back_soon_after_it_opens(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            for _ in range(2):
                w.run(1)
                shown = len(alice.texts())
                w.server.kill()
                alice.say("#typed before")
                w.server.options = replace(OPTIONS, members_only=True)
                w.server.start()
                w.run(60)
                words = "* not let in again (this name needs its password): still trying"
                pending = "* not delivered yet: PM #typed before"
                self.assertEqual(alice.texts()[shown:], [words, pending])
                w.server.kill()
                w.server.options = OPTIONS
                w.server.start()
                w.run(protocol.TIMING.max_pause + 1)
                self.assertEqual(alice.texts()[shown + 2 :], ["* connected"])
                self.assertEqual(alice.client.undelivered(), [])

    def test_a_closed_port_is_no_reason_to_ask_more_often(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            w.server.kill()
            before = len(w.network.sent)
            for _ in range(100):
                now = w.network.now
                w.network.at(now, "alice", partial(alice.client.port_closed, now))
                w.run(1)
            tries = [d for d in w.network.sent[before:] if b'"HELLO"' in d.data]
            self.assertTrue(12 <= len(tries) <= 30, len(tries))

    def test_a_backlog_counts_what_is_not_acknowledged(self) -> None:
        with world(options=replace(OPTIONS, rate=0)) as w:
            (alice,) = w.joined("alice")
            w.run(1)
            w.server.kill()
            alice.say(*(f"#{n}" for n in range(500)))
            w.run(1)
            self.assertEqual(alice.client.backlog, 500)
            w.server.start()
            w.run(5)
            self.assertEqual(alice.client.backlog, 0)

    def test_a_question_that_another_file_knows_nothing_of_is_asked_again(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            w.server.kill()
            for path in w.server.path.parent.iterdir():
                path.unlink()
            alice.say("WHO")
            w.run(1)
            w.server.start()
            w.run(5)
            self.assertEqual(alice.texts().count("* here: alice"), 2)

    def test_what_was_said_while_the_server_was_away_arrives(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            w.server.kill()
            alice.say("#while away")
            w.run(3)
            self.assertEqual(len(alice.client.undelivered()), 1)
            w.server.start()
            w.run(1)
            self.assertEqual(alice.client.undelivered(), [])
            self.assertEqual(marked(bob), ["alice: #while away"])

    def test_an_older_copy_of_the_file_voids_what_it_does_not_know(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            alice.say("#1")
            w.run(1)
            w.server.kill()
            copy = w.server.path.read_bytes()
            w.server.start()
            w.run(2)
            alice.say(*(f"#2.{n}" for n in range(20)))
            w.run(2)
            w.server.kill()
            alice.say("#3")
            w.server.path.write_bytes(copy)
            w.server.start()
            w.run(30)  # the copy does not know the latest sessions, so nobody is told at once
            alice.say("#4")
            w.run(2)
            self.assertEqual(marked(bob)[-1], "alice: #4")
            self.assertEqual(alice.client.undelivered(), [])

    def test_two_files_in_turn_are_not_mistaken_for_each_other(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            first, second = w.server.path, w.server.path.with_name("second.db")
            for turn, path in enumerate((second, first, second)):
                alice.say(*(f"#{turn}.{n}" for n in range(10 * (3 - turn))))
                w.run(5)
                w.server.kill()
                w.server.path = path
                w.server.start()
                w.run(30)
            alice.say("#end")
            w.run(2)
            for turn in range(3):
                self.assertEqual(bob.texts().count(f"alice: #{turn}.0"), 1)
            # Back in the first room, everybody is a newcomer to it.
            self.assertEqual(sum("earlier" in t and "#0." in t for t in bob.texts()), 20)
            self.assertEqual(marked(bob)[-1], "alice: #end")

    def test_who_does_not_come_back_after_a_restart_is_written_out(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            w.server.kill()
            bob.is_up = False
            w.server.start()
            w.run(70)
            self.assertNotIn("* bob left (timed out)", alice.texts())
            w.run(10)
            self.assertIn("* bob left (timed out)", alice.texts())

    def test_a_line_is_neither_acknowledged_nor_relayed_before_it_is_on_disk(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            other = sqlite3.connect(w.server.path, isolation_level=None)
            self.addCleanup(other.close)
            other.execute("BEGIN IMMEDIATE")  # somebody else writes, and does not end
            alice.say("#line")
            sent = len([d for d in w.network.sent if d.source == SERVER])
            w.run(5)
            self.assertTrue(w.server.is_waiting)
            self.assertEqual(len([d for d in w.network.sent if d.source == SERVER]), sent)
            self.assertEqual(marked(bob), [])
            self.assertEqual(len(alice.client.undelivered()), 1)
            other.execute("ROLLBACK")
            w.run(5)
            self.assertEqual(marked(bob), ["alice: #line"])
            self.assertEqual(alice.client.undelivered(), [])

    def test_a_server_with_another_file_does_not_get_old_lines_twice(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            alice.say("#1")
            w.run(1)
            w.server.kill()
            for path in w.server.path.parent.iterdir():
                path.unlink()
            alice.say("#2")
            w.run(1)
            w.server.start()
            w.run(20)
            self.assertIn("* may not have arrived: PM #2", alice.texts())
            alice.say("#3")
            w.run(2)
            (bob,) = w.joined("bob")
            w.run(2)
            self.assertEqual([text.split("#")[1] for text in marked(bob)], ["3"])

    def test_a_long_pause_of_the_room_is_nobodys_silence(self) -> None:
        with world(timing=RARELY_TRIED) as w:
            alice, bob, carol = w.joined("alice", "bob", "carol")
            w.run(1)
            with closing(sqlite3.connect(w.server.path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                alice.say("#line")
                w.run(1)
                self.assertTrue(w.server.is_waiting)
                carol.is_up = False
                w.run(200)
                other.execute("ROLLBACK")
            w.run(80)
            self.assertEqual(marked(bob), ["alice: #line"])
            self.assertNotIn("left", " ".join(alice.texts() + bob.texts()))
            w.run(20)
            left = [text for text in bob.texts() if "left" in text]
            self.assertEqual(left, ["* carol left (timed out)"])
            self.assertEqual(bob.texts().count("* alice joined"), 0)

    def test_a_pause_after_a_restart_writes_nobody_out(self) -> None:
        with world(timing=RARELY_TRIED) as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            w.restart()
            bob.is_up = False
            w.run(70)
            with closing(sqlite3.connect(w.server.path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                alice.say("#line")
                w.run(60)
                bob.is_up = True
                other.execute("ROLLBACK")
            w.run(40)
            self.assertNotIn("* bob left (timed out)", alice.texts())
            self.assertEqual(marked(bob), ["alice: #line"])

    def test_who_was_told_that_the_server_ends_says_when_it_is_back(self) -> None:
        for seconds in (1, 30):
            with self.subTest(seconds=seconds), world() as w:
                alice, bob = w.joined("alice", "bob")
                w.run(1)
                w.network.at(w.network.now, SERVER, w.server.server.close)
                w.run(0.5)
                w.server.kill()
                alice.say("#while away")
                w.run(seconds)
                w.server.start()
                w.run(2)
                told = ["* the server is shutting down: waiting for it to return", "* connected"]
                pending = "* not delivered yet: PM #while away"
                self.assertEqual(alice.texts()[2:], [told[0], pending, told[1]])
                self.assertEqual(bob.texts()[1:], [*told, "alice: #while away"])

    def test_the_last_words_of_a_server_that_ends_are_no_sign_of_life(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            w.network.at(w.network.now, SERVER, w.server.server.close)
            w.run(0.1)
            w.network.unplugged = {"alice"}  # what tells the server that she knows is lost
            w.run(0.2)
            w.network.unplugged = set()
            before = len(w.network.sent)
            w.run(0.4)
            self.assertTrue([d for d in w.network.sent[before:] if d.target == "alice"])
            w.server.kill()
            w.run(1)
            told = ["* the server is shutting down: waiting for it to return"]
            self.assertEqual(alice.texts()[1:], told)

    def test_the_server_tells_its_members_that_it_ends(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            w.network.at(w.network.now, SERVER, w.server.server.close)
            w.run(1)
            self.assertTrue(w.server.server.has_told_all())
            self.assertTrue(alice.texts()[-1].startswith("* the server is shutting down"))


class LeavingTest(unittest.TestCase):
    def test_a_lost_last_acknowledgement_brings_no_ghost_back(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            bob.say("#bye")
            w.run(1)
            bob.leave()
            now = w.network.now
            w.network.faults = Faults(blackouts=((now + 0.001, now + 30),))
            w.run(40)
            self.assertTrue(bob.client.has_left)
            texts = [text for text in alice.texts() if "bob" in text]
            self.assertEqual(texts, ["* bob joined", "bob: #bye", "* bob left"])

    def test_leaving_takes_no_second_handshake(self) -> None:
        with world() as w:
            bob, _ = w.joined("bob", "alice")
            w.run(1)
            bob.leave()
            before = len(w.network.sent)
            w.run(1)
            self.assertTrue(bob.client.has_left)
            self.assertFalse([d for d in w.network.sent[before:] if d.data[:1] == b"{"])

    def test_who_has_left_can_ask_whether_all_arrived_though_the_name_has_a_new_owner(self) -> None:
        with world() as w:
            (bob,) = w.joined("bob")
            bob.say("#bye")
            w.run(1)
            bob.leave()
            bob.is_up = False
            w.network.at(w.network.now, "bob", lambda: setattr(bob, "is_up", True))
            w.run(0)
            bob.is_up = False  # its EX is on its way, and the answer to it is lost
            w.run(15)
            other = w.client("bob", host="elsewhere")
            w.run(5)
            self.assertTrue(other.client.has_joined)
            bob.is_up = True
            w.run(30)
            self.assertTrue(bob.client.has_left)
            self.assertIsNone(bob.client.failure)
            self.assertNotIn("left", " ".join(other.texts()))

    def test_leaving_waits_until_everything_is_delivered(self) -> None:
        with world(6, BAD) as w:
            alice, bob = w.joined("alice", "bob")
            alice.say(*(f"#{n}" for n in range(50)))
            alice.leave()
            w.run(60)
            self.assertTrue(alice.client.has_left)
            self.assertIsNone(alice.client.failure)
            self.assertEqual(len(marked(bob)), 50)
            self.assertEqual(
                [text for text in bob.texts() if "#" in text or "left" in text][-1:],
                ["* alice left"],
            )

    def test_leaving_waits_for_what_is_refused(self) -> None:
        for seed in range(10):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                (alice,) = w.joined("alice")
                alice.say("DM nobody #1")
                alice.leave()
                w.run(30)
                self.assertTrue(alice.client.has_left)
                self.assertEqual(len(marked(alice)), 1)

    def test_what_was_typed_while_the_server_was_known_to_be_away_has_not_arrived(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            w.server.kill()
            alice.say("#sent")  # and nobody can know what became of it
            w.run(15)
            alice.say("#typed", "DM bob #typed too")
            w.run(1)
            shown = len(alice.texts())
            alice.leave(patience=2)
            w.run(1.9)
            self.assertFalse(alice.client.is_over)
            w.run(0.2)
            words = "1 line may not have arrived, and 2 lines were not delivered"
            self.assertEqual(alice.client.failure, words)
            lost = ["failed: PM #typed", "failed: DM bob #typed too"]
            lost = [f"* {text}" for text in ("may not have arrived: PM #sent", *lost)]
            self.assertEqual(alice.texts()[shown:], lost)

    def test_what_may_have_been_refused_is_not_taken_for_delivered(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            alice.say("DM nobody #x")
            w.run(0.02)
            w.network.muted = {SERVER}  # which takes it, and cannot say that it refuses it
            w.run(0.02)
            channel = views.session(alice.client).channel
            channel.writers[LogId.LINES].acknowledge(2)  # that came, though
            alice.leave()
            w.run(70)
            self.assertEqual(alice.client.failure, "1 line may not have arrived")

    def test_the_line_of_another_owner_of_the_name_is_not_taken_for_ones_own(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            w.network.unplugged = {"alice"}
            alice.say("#hi")
            w.run(100)
            other = w.join("alice", "other")
            other.say("#hi")
            other.leave()
            w.run(15)
            w.network.unplugged = set()
            members = views.members(w.server.server)
            self.assertTrue(w.network.run(w.network.now + 15, lambda: "alice" in members))
            w.network.muted = {"alice"}  # she hears, and is not heard
            alice.leave()
            w.run(100)
            self.assertEqual(marked(bob), ["alice: #hi"])
            self.assertIn("1 line", alice.client.failure or "")

    def test_who_leaves_in_doubt_says_goodbye_all_the_same(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            w.network.muted = {SERVER}  # which is there
            now = w.network.now
            w.network.at(now, "alice", partial(alice.client.port_closed, now))
            w.run(3)
            alice.leave()
            w.run(0.1)
            self.assertTrue(alice.client.has_left)
            w.network.muted = set()
            w.run(5)
            self.assertIn("* alice left", bob.texts())

    def test_a_goodbye_alone_is_not_waited_for_while_the_server_is_away(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            w.server.kill()
            for end, is_known in ((alice, True), (bob, False)):
                if is_known:
                    w.network.at(
                        w.network.now, end.host, partial(end.client.port_closed, w.network.now)
                    )
                end.leave()  # as at the end of a pipe
            w.run(2.1)
            self.assertTrue(alice.client.has_left)
            self.assertFalse(bob.client.has_left)
            w.run(10)
            self.assertTrue(bob.client.has_left)
            self.assertEqual((alice.client.failure, bob.client.failure), (None, None))

    def test_who_does_not_wait_for_the_end_is_told_what_was_lost(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            w.server.kill()
            alice.say("#sent")
            w.run(1)
            alice.client.say(protocol.Public("#typed"), w.network.now)
            alice.client.abandon()
            words = "1 line may not have arrived, and 1 line was not delivered"
            words = f"ended before the server knew that you have left, and {words}"
            self.assertEqual(alice.client.failure, words)
            lost = ["* may not have arrived: PM #sent", "* failed: PM #typed"]
            self.assertEqual(plain(alice.client.shown, "alice", EPOCH), lost)

    def test_what_is_said_while_leaving_is_still_delivered(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            alice.client.say(protocol.Public("#before"), w.network.now)
            alice.client.leave(2.0, w.network.now)
            alice.client.say(protocol.Public("#entered before Ctrl-C"), w.network.now)
            w.run(5)
            heard = ["alice: #before", "alice: #entered before Ctrl-C"]
            self.assertEqual(marked(bob), heard)
            self.assertTrue(alice.client.has_left)
            self.assertIsNone(alice.client.failure)

    def test_what_is_said_after_the_goodbye_is_told_as_failed(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            alice.client.leave(2.0, w.network.now)
            alice.client.datagrams(w.network.now)  # the goodbye is among them
            alice.client.say(protocol.Public("#too late"), w.network.now)
            w.run(5)
            self.assertIn("* failed: PM #too late", alice.texts())
            self.assertEqual(alice.client.failure, "1 line was not delivered")

    def test_who_does_not_wait_though_nothing_was_lost_is_told_that(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            alice.client.abandon()
            words = "ended before the server knew that you have left"
            self.assertEqual((alice.client.failure, alice.client.shown), (words, []))

    def test_what_could_not_be_delivered_is_said(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.server.kill()
            alice.say("#1", "DM bob #2")
            w.run(1)
            alice.leave(patience=2)
            w.run(3)
            self.assertEqual(alice.client.failure, "2 lines may not have arrived")
            lost = ["* may not have arrived: PM #1", "* may not have arrived: DM bob #2"]
            self.assertEqual(marked(alice), lost)


class JoiningTest(unittest.TestCase):
    def test_a_long_way_is_no_obstacle(self) -> None:
        for seed in range(10):
            for delay in (0.5, 1.5):
                faults = Faults(delays=(delay, delay))
                with self.subTest(seed=seed, delay=delay), world(seed, faults) as w:
                    alice = w.client("alice")
                    w.run(8 * delay + 6)
                    self.assertTrue(alice.client.has_joined)

    def test_a_room_file_that_cannot_be_read_is_a_pause(self) -> None:
        with world() as w, self.assertLogs("chatserver", "ERROR"):
            w.joined("alice")
            w.run(1)
            with unreadable_file(w.server.store):
                carol = w.client("carol")
                w.run(5)
                self.assertFalse(carol.client.has_joined)
            w.run(10)
            self.assertTrue(carol.client.has_joined)

    def test_a_member_far_behind_waits_while_the_room_file_cannot_be_read(self) -> None:
        with world(options=replace(OPTIONS, rate=0)) as w, self.assertLogs("chatserver", "ERROR"):
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            bob.is_up = False
            alice.say(*(f"#{n}" for n in range(3000)))
            w.run(40)
            with unreadable_file(w.server.store):
                bob.is_up = True
                w.run(10)
            w.run(40)
            self.assertEqual(marked(bob), [f"alice: #{n}" for n in range(3000)])

    def test_nobody_listening_is_said_soon(self) -> None:
        with world() as w:
            w.server.kill()
            alice = w.client("alice")
            for _ in range(4):
                w.network.at(
                    w.network.now, "alice", lambda: alice.client.port_closed(w.network.now)
                )
                w.run(1)
            self.assertIn("nobody is listening on the server", alice.client.failure or "")
            self.assertEqual(alice.texts(), [])

    def test_no_answer_is_said_after_a_minute(self) -> None:
        with world() as w:
            w.server.kill()
            alice = w.client("alice")
            w.run(59)
            self.assertIsNone(alice.client.failure)
            w.run(2)
            self.assertIn("no answer from the server", alice.client.failure or "")

    def test_a_handshake_beside_a_live_session_doubles_nothing(self) -> None:
        for seed in range(8):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                alice, bob = w.joined("alice", "bob")
                for turn in range(8):
                    rejoin(alice)
                    for number in range(30):
                        bob.say(f"#{turn}.{number}")
                        w.run(0.11)
                w.run(30)
                expected = [f"bob: #{turn}.{n}" for turn in range(8) for n in range(30)]
                self.assertEqual(marked(alice), expected)

    def test_a_server_that_restarts_during_a_handshake_is_joined_all_the_same(self) -> None:
        for packet in (b"COOKIE", b"CHALLENGE"):
            with self.subTest(packet), world(faults=Faults(delays=(0.1, 0.1))) as w:
                alice = w.client("alice")
                self.assertTrue(w.network.run(5, partial(was_sent, w, packet)))
                w.restart()
                w.run(3)
                self.assertTrue(alice.client.has_joined)

    def test_a_registered_name_is_not_joined_as_a_guest(self) -> None:
        with world() as w:
            alice = w.client("alice")
            w.network.faults = Faults(blackouts=((0.0, 99.0),))
            w.run(0.1)
            nonce = views.handshake(alice.client).nonce
            challenge = Challenge(nonce, b"s" * 8, protocol.GROUP.pad(5), b"salt", 600_000)
            alice.receive(format_handshake(challenge), SERVER, w.network.now)
            self.assertIn("needs its password", alice.client.failure or "")


if __name__ == "__main__":
    unittest.main()
