"""Accounts, in virtual time: registering, logging in, taking over, what is kept, what is braked."""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Final
from unittest import mock

import chatserver
import protocol
from chatclient import Credentials
from chatserver import (
    ELSEWHERE,
    FAILURES_OF_BOTH,
    FAILURES_OF_NAME,
    FAILURES_OF_NETWORK,
    FORGET_EVERY,
    PRUNE_EVERY,
    Brake,
    Member,
    StoreError,
)
from protocol import TIMING, Challenge, Gone, LogId, Refused, parse_handshake_untrusted
from tests import views
from tests.accounts import (
    LET_IN,
    PASSWORD,
    WRONG_PASSWORD,
    AccountTestCase,
    account,
    add_accounts,
    is_logged_in,
    knows,
    operator,
    registers,
    try_login,
)
from tests.actions import (
    check_accounts,
    handle_line,
    note_failed_login,
    postpone_account_check,
    purge_in_next_turn,
    rejoin,
    wait_for_no_lock,
)
from tests.network import BAD, HEALTHY, Faults
from tests.observed import (
    challenges_to,
    handshake_packets,
    handshakes_begun,
    is_challenged,
    kept_for,
    messages,
    presence,
)
from tests.room import (
    EPOCH,
    OPTIONS,
    SERVER,
    ClientEnd,
    Deaf,
    World,
    asleep,
    cut_off,
    deliver,
    heed,
    ignore,
    session_of,
    world,
)

PROVEN: Final = (b'"PROVE"', b'"WELCOME"')
PUT_OUT_AND_BACK: Final = ["* alice left (the name was registered)", "* alice joined"]


class RegisteringTest(AccountTestCase):
    def test_lines_before_and_after_registering_arrive_once_and_in_order(self) -> None:
        for seed in range(3):
            options = replace(OPTIONS, history=100)  # all that was said before she was in
            with self.subTest(seed=seed), world(seed, BAD, options) as w:
                (bob,) = w.joined("bob")
                alice = w.client("alice", credentials=registers())
                for number in range(40):
                    alice.say(f"#a{number}")
                    bob.say(f"#b{number}")
                    w.run(0.1)
                w.run(40)
                self.assertEqual(messages(bob), [f"alice: #a{n}" for n in range(40)])
                theirs = [text.rpartition("#")[2] for text in alice.texts() if "bob: #" in text]
                self.assertEqual(theirs, [f"b{n}" for n in range(40)])
                self.assert_said_once(alice, "* registered alice")
                self.assertEqual(presence(bob, "alice"), ["* alice joined"])
                self.assertEqual(alice.client.undelivered(), [])
                self.assert_goes_on(alice)

    def test_who_has_registered_goes_on_logged_in_with_the_same_instance(self) -> None:
        with world() as w:
            (bob,) = w.joined("bob")
            alice = w.join("alice", credentials=registers())
            w.run(3)
            self.assertEqual(alice.texts(), ["* registered alice", "* here: alice, bob"])
            self.assertTrue(is_logged_in(w, alice))
            member = views.members(w.server.server)["alice"]
            self.assertEqual(member.key, views.member_key(alice.client))
            self.assertEqual(member.account, w.server.store.account("alice").id)
            self.assertEqual(len(views.sessions(w.server.server)), 2)
            self.assertEqual(presence(bob, "alice"), ["* alice joined"])

    def test_who_registers_in_a_lively_room_goes_on_logged_in_too(self) -> None:
        with world() as w:
            (bob,) = w.joined("bob")
            alice = w.client("alice", credentials=registers())
            for number in range(30):
                bob.say(f"#{number}")
                w.run(0.1)
            w.run(20)
            self.assert_said_once(alice, "* registered alice")
            self.assertTrue(is_logged_in(w, alice))

    def test_who_registers_on_a_bad_network_goes_on_logged_in_too(self) -> None:
        for seed in range(3):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                alice = w.join("alice", credentials=registers())
                w.run(30)
                self.assert_said_once(alice, "* registered alice")
                self.assertTrue(is_logged_in(w, alice))

    def test_the_name_then_needs_the_password_in_any_letter_case(self) -> None:
        with world() as w:
            alice = w.join("Alice", credentials=registers())
            w.run(3)
            alice.leave()
            w.run(3)
            for number, credentials in enumerate((None, registers(b"mine now"))):
                thief = w.client("aLICE", f"thief {number}", credentials)
                w.run(3)
                wanted = "this name needs its password (the server)"
                self.assertEqual(thief.client.failure, wanted)
                self.assertTrue(thief.client.wants_password)
            owner = w.join("ALICE", credentials=knows())
            w.run(2)
            self.assertEqual(owner.texts(), ["* logged in as ALICE", "* here: Alice"])

    def test_the_owner_can_change_the_password_and_only_the_owner(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            alice = w.join("alice", credentials=registers(b"new", old=PASSWORD))
            w.run(3)
            self.assert_said_once(alice, "* the password of alice is changed")
            self.assert_goes_on(alice)
            self.assertEqual(try_login(w, "elsewhere", PASSWORD), WRONG_PASSWORD)
            self.assertEqual(try_login(w, "elsewhere", b"new"), LET_IN)
            for old in (PASSWORD, b"wrong"):
                thief = w.client("alice", "thief", registers(b"newer", old))
                w.run(3)
                self.assertEqual(thief.client.failure, WRONG_PASSWORD)

    def test_a_server_that_dies_at_any_moment_of_it_loses_and_doubles_nothing(self) -> None:
        for old in (None, PASSWORD):
            moments = self.moments(old)
            # From the first HELLO to the new session, and the answers to what it was told.
            self.assertGreater(len(moments), 12)
            for moment in moments[:: 3 if old else 2]:
                with self.subTest(old=old, moment=moment):
                    self.die_at(moment, old)

    def moments(self, old: bytes | None) -> list[float]:
        """When, in a registration that nothing disturbs, somebody sends."""
        with self.registration(old) as (w, _, _):
            begin = w.network.now
            w.run(3)
            return sorted({datagram.at for datagram in w.network.sent if datagram.at >= begin})

    @contextmanager
    def registration(self, old: bytes | None) -> Iterator[tuple[World, ClientEnd, ClientEnd]]:
        with world() as w:
            if old:
                add_accounts(w, "alice")
            (bob,) = w.joined("bob")
            w.run(1)
            alice = w.client("alice", credentials=registers(b"new", old))
            alice.say("#1", "#2", "DM bob #3")
            yield w, alice, bob

    def die_at(self, moment: float, old: bytes | None) -> None:
        """What is sent in that instant is lost, and then the server dies: it may have committed
        what its answer would have said."""
        with self.registration(old) as (w, alice, bob):
            w.network.faults = replace(HEALTHY, blackouts=((moment, moment + 0.001),))
            w.run(moment - w.network.now)
            w.restart(1)
            w.run(60)
            alice.say("#4")
            w.run(3)
            self.assert_goes_on(alice)
            self.assertEqual(
                messages(bob), ["alice: #1", "alice: #2", "alice -> you: #3", "alice: #4"]
            )
            self.assertEqual(presence(bob, "alice"), ["* alice joined"])
            done = "the password of alice is changed" if old else "registered alice"
            self.assert_said_once(alice, f"* {done}")
            self.assertTrue(is_logged_in(w, alice))
            self.assertEqual(try_login(w, "elsewhere", b"new"), LET_IN)

    def test_a_server_that_dies_again_and_again_loses_and_doubles_nothing(self) -> None:
        for seed in range(3):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                (bob,) = w.joined("bob")
                alice = w.client("alice", credentials=registers())
                for number in range(20):
                    alice.say(f"#{number}")
                    w.run(0.2 + seed * 0.03)
                    if number % 5 == 0:
                        w.restart(0.5)
                w.run(60)
                self.assertEqual(messages(bob), [f"alice: #{n}" for n in range(20)])
                self.assert_said_once(alice, "* registered alice")
                self.assertTrue(w.server.store.account("alice").id)
                self.assert_goes_on(alice)
                # Bob may have been written out, or not, but alice came once.
                self.assertEqual(presence(bob, "alice"), ["* alice joined"])

    def test_who_registers_and_leaves_at_once_has_done_both(self) -> None:
        for seed in range(3):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                (bob,) = w.joined("bob")
                alice = w.join("alice", credentials=registers())
                alice.say("#1", "DM bob #2")
                alice.leave()
                w.run(60)
                self.assertTrue(alice.client.has_left)
                self.assertIsNone(alice.client.failure)
                self.assert_said_once(alice, "* registered alice")
                self.assertEqual(sorted(messages(bob)), ["alice -> you: #2", "alice: #1"])
                self.assertEqual(presence(bob, "alice"), ["* alice joined", "* alice left"])

    def test_who_does_not_hear_of_it_for_long_is_the_owner_all_the_same(self) -> None:
        with world() as w:
            (bob,) = w.joined("bob")
            alice = w.client("alice", credentials=registers())
            alice.say("#1")
            is_there = partial(self.is_account, w)
            self.assertTrue(w.network.run(9, is_there))
            with asleep(w, alice):
                w.run(100)
            w.run(20)
            self.assert_goes_on(alice)
            self.assert_said_once(alice, "* registered alice")
            self.assertTrue(is_logged_in(w, alice))
            self.assertEqual(messages(bob), ["alice: #1"])
            self.assertEqual(
                presence(bob, "alice"),
                ["* alice joined", "* alice left (timed out)", "* alice joined"],
            )

    def test_a_registration_that_another_file_knows_nothing_of_is_repeated(self) -> None:
        with world() as w:
            alice = w.client("alice", credentials=registers())
            self.assertTrue(
                w.network.run(9, lambda: bool(handshake_packets(w, alice, b'"WELCOME"')))
            )
            w.run(0.04)  # the registration is on its way
            w.server.kill()
            for path in w.server.path.parent.iterdir():
                path.unlink()
            w.server.start()
            w.run(30)
            self.assert_said_once(alice, "* registered alice")
            self.assertTrue(is_logged_in(w, alice))
            self.assertTrue(self.is_account(w))

    def is_account(self, w: World) -> bool:
        return bool(w.server.store.account("alice").id)

    def test_a_malformed_registration_is_refused_and_never_published(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            good = protocol.registration(PASSWORD, b"s" * 16)
            for bad in (
                replace(good, salt=b"short"),
                replace(good, iterations=1),
                replace(good, verifier=protocol.GROUP.pad(1)),
                replace(good, verifier=b""),
            ):
                alice.client.say(bad, w.network.now)
            w.run(3)
            self.assertEqual(messages(bob), [])
            self.assertEqual([t for t in bob.texts() if "alice:" in t], [])
            self.assertFalse(w.server.store.accounts())
            self.assertIn("not registered", alice.client.failure or "")

    def test_a_registration_that_is_refused_makes_nobody_a_guest(self) -> None:
        with world() as w, mock.patch.object(chatserver, "MAX_ACCOUNTS", 2):
            add_accounts(w, "anna")
            bob = w.join("bob", credentials=registers())
            w.run(2)
            self.assert_said_once(bob, "* registered bob")
            carol = w.client("carol", credentials=registers())
            w.run(3)
            words = "not registered: this room has no place for more accounts"
            self.assertEqual(carol.client.failure, words)
            self.assertEqual(presence(bob, "carol"), ["* carol joined", "* carol left"])
            anna = w.join("anna", credentials=registers(b"new", old=PASSWORD))
            w.run(2)
            self.assert_said_once(anna, "* the password of anna is changed")


class SessionTest(AccountTestCase):
    def test_a_member_who_is_logged_in_resumes_after_a_restart(self) -> None:
        for seed in range(3):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                add_accounts(w, "alice")
                (bob,) = w.joined("bob")
                alice = w.join("alice", credentials=knows())
                w.run(3)
                for turn in range(3):
                    alice.say(f"#{turn}", f"DM bob #{turn}")
                    w.run(0.3)
                    w.restart(1)
                    w.run(10)
                w.run(20)
                self.assertEqual(
                    sorted(messages(bob)),
                    [
                        *(f"alice -> you: #{turn}" for turn in range(3)),
                        *(f"alice: #{turn}" for turn in range(3)),
                    ],
                )
                self.assertEqual(presence(bob, "alice"), ["* alice joined"])
                self.assert_said_once(alice, "* logged in as alice")
                self.assert_goes_on(alice)

    def test_an_older_copy_of_the_file_puts_out_nobody(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            alice = w.join("alice", "desk", knows())
            alice.say("#1")
            w.run(1)
            alice.leave()
            w.run(1)
            w.server.kill()
            copy = w.server.path.read_bytes()
            w.server.start()
            alice = w.join("alice", "phone", knows())
            alice.say("#2", "#3")
            w.run(2)
            w.server.kill()
            w.server.path.write_bytes(copy)
            w.server.start()
            w.run(40)
            self.assert_goes_on(alice)

    def test_a_recorded_login_opens_no_second_session(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            (bob,) = w.joined("bob")
            alice = w.join("alice", credentials=knows())
            w.run(1)
            recorded = [d.data for d in handshake_packets(w, alice, b'"JOIN"', b'"PROVE"')]
            welcomes = {d.data for d in handshake_packets(w, alice, b'"WELCOME"')}
            w.network.ends["thief"] = Deaf()
            sessions = set(views.sessions(w.server.server))
            for source in ("alice", "thief"):
                for data in recorded * 2:
                    deliver(w, SERVER, source, data)
                w.run(1)
                self.assertEqual(set(views.sessions(w.server.server)), sessions)
            self.assertEqual(handshake_packets(w, "thief", b'"WELCOME"'), [])
            self.assertEqual({d.data for d in handshake_packets(w, alice, b'"WELCOME"')}, welcomes)
            alice.leave()
            w.run(15)  # its session is over, and its cookie is still good
            for data in recorded * 2:
                deliver(w, SERVER, "alice", data)
            w.run(5)
            self.assertEqual(len(views.sessions(w.server.server)), 1)
            self.assertEqual(presence(bob, "alice"), ["* alice joined", "* alice left"])

    def test_a_proof_for_what_the_name_was_before_is_worthless(self) -> None:
        """A guest's, and one with the password of before: both are on their way meanwhile."""
        old, new = account("alice"), account("alice", b"new")
        wanted = "this name needs its password (the server)"
        for before, credentials, failure in (
            ([], Credentials(), wanted),
            ([old], knows(), WRONG_PASSWORD),
            ([replace(old, id=new.id)], knows(), WRONG_PASSWORD),
        ):
            with self.subTest(failure=failure), world() as w:
                (bob,) = w.joined("bob")
                for each in before:
                    w.server.store.add(each)
                alice = w.client("alice", credentials=credentials)
                self.assertTrue(
                    w.network.run(9, lambda: bool(handshake_packets(w, "alice", b'"PROVE"')))
                )
                if new.id not in [each.id for each in before]:
                    w.server.store.remove("alice")
                    w.server.store.add(new)
                w.server.store.changed_accounts["alice"] = new
                w.server.store.commit()
                w.run(5)
                self.assertEqual(alice.client.failure, failure)
                self.assertEqual(handshake_packets(w, alice, b'"WELCOME"'), [])
                self.assertEqual(presence(bob, "alice"), [])

    def test_an_owner_who_has_left_brings_no_ghost_back(self) -> None:
        """It asks whether its last lines have arrived, since the answer was lost."""
        with world() as w:
            add_accounts(w, "alice")
            (bob,) = w.joined("bob")
            alice = w.join("alice", credentials=knows())
            alice.say("#bye")
            w.run(1)
            alice.leave()
            w.run(0)  # its EX is on its way
            with asleep(w, alice):
                w.run(2 * TIMING.linger)
            w.run(10)
            self.assertEqual(len(handshakes_begun(w, alice)), 2)
            self.assertTrue(alice.client.has_left)
            self.assertIsNone(alice.client.failure)
            self.assertEqual(presence(bob, "alice"), ["* alice joined", "* alice left"])

    def test_an_owner_who_was_written_out_comes_back(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            (bob,) = w.joined("bob")
            alice = w.join("alice", credentials=knows())
            w.run(1)
            alice.is_up = False
            w.run(90)
            bob.say("DM alice #1", "#2")
            w.run(1)
            self.assert_said_once(bob, "* alice is away: kept until they are back")
            alice.is_up = True
            w.run(20)
            self.assertEqual(
                presence(bob, "alice"),
                ["* alice joined", "* alice left (timed out)", "* alice joined"],
            )
            self.assertEqual(messages(alice), ["bob: #2", "bob -> you: #1"])

    def test_an_owner_whom_the_server_has_forgotten_begins_anew(self) -> None:
        with world() as w, mock.patch.object(chatserver, "INSTANCE_MEMORY", 100):
            add_accounts(w, "alice")
            (bob,) = w.joined("bob")
            alice = w.join("alice", credentials=knows())
            alice.say("#1")
            w.run(1)
            alice.is_up = False
            w.run(3 * FORGET_EVERY)
            self.assertIsNone(w.server.store.member(views.member_key(alice.client)))
            bob.say("DM alice #2")
            w.run(1)
            alice.is_up = True
            w.run(20)
            alice.say("#3")
            w.run(2)
            self.assert_goes_on(alice)
            self.assertEqual(kept_for(alice), ["bob -> you: #2"])
            self.assertEqual(messages(bob), ["alice: #1", "alice: #3"])


class TakeoverTest(AccountTestCase):
    def test_a_later_login_takes_over_and_the_room_notices_nothing(self) -> None:
        for seed in range(3):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                add_accounts(w, "alice")
                (bob,) = w.joined("bob")
                older = w.join("alice", "laptop", knows())
                w.run(3)
                newer = w.join("alice", "phone", knows())
                bob.say("#1", "DM alice #2")
                w.run(30)
                newer.say("#3")
                w.run(60)
                self.assertEqual(older.client.failure, ELSEWHERE)
                self.assert_goes_on(newer)
                self.assertEqual(sorted(messages(newer)), ["bob -> you: #2", "bob: #1"])
                self.assertEqual(messages(bob), ["alice: #3"])
                self.assertEqual(presence(bob, "alice"), ["* alice joined"])
                self.assertEqual(presence(newer, "alice"), [])
                self.assertEqual(len(handshakes_begun(w, older)), 1)

    def test_every_line_of_the_older_one_is_delivered_or_named(self) -> None:
        lines = [f"#{number}" for number in range(60)]
        for seed in range(3):
            options = replace(OPTIONS, rate=1)
            with self.subTest(seed=seed), world(seed, BAD, options) as w:
                add_accounts(w, "alice")
                (bob,) = w.joined("bob")
                older = w.join("alice", "laptop", knows())
                older.say(*lines)
                w.run(2 + seed * 0.1)
                w.join("alice", "phone", knows())
                w.run(30)
                delivered = [text.removeprefix("alice: ") for text in messages(bob)]
                start = "* failed: PM "
                named = [t.removeprefix(start) for t in older.texts() if t.startswith(start)]
                self.assertTrue(delivered)
                self.assertTrue(named)
                self.assertEqual(delivered + named, lines)
                words = f"{ELSEWHERE}, and {len(named)} lines were not delivered"
                self.assertEqual(older.client.failure, words)

    def test_an_older_one_that_was_away_is_told_and_does_not_take_over_back(self) -> None:
        for seconds, is_written_out in ((20, False), (70, False), (100, True)):
            for seed, away in enumerate((asleep, asleep, cut_off, cut_off)):
                with self.subTest(seconds=seconds, seed=seed), world(seed, BAD) as w:
                    add_accounts(w, "alice")
                    (bob,) = w.joined("bob")
                    older = w.join("alice", "laptop", knows())
                    w.run(3)
                    with away(w, older):
                        older.say("#never")
                        w.run(80 if is_written_out else 1)
                        newer = w.join("alice", "phone", knows())
                        w.run(seconds)
                    w.run(60)
                    self.check_that_it_was_told(older, newer, bob)
                    expected = ["* alice joined"]
                    if is_written_out:
                        expected += ["* alice left (timed out)", "* alice joined"]
                    self.assertEqual(presence(bob, "alice"), expected)

    def check_that_it_was_told(self, older: ClientEnd, newer: ClientEnd, bob: ClientEnd) -> None:
        self.assertEqual(older.client.failure, f"{ELSEWHERE}, and 1 line was not delivered")
        self.assert_said_once(older, "* failed: PM #never")
        self.assert_goes_on(newer)
        self.assertEqual(messages(bob), [])

    def test_an_older_one_that_was_forgotten_is_told_too(self) -> None:
        for is_written_out in (False, True):
            with (
                self.subTest(is_written_out=is_written_out),
                mock.patch.object(chatserver, "INSTANCE_MEMORY", 100),
                world() as w,
            ):
                add_accounts(w, "alice")
                (bob,) = w.joined("bob")
                older = w.join("alice", "laptop", knows())
                w.run(3)
                older.is_up = False
                w.run(90 if is_written_out else 1)
                newer = w.join("alice", "phone", knows())
                w.run(3 * FORGET_EVERY)
                self.assertIsNone(w.server.store.member(views.member_key(older.client)))
                seen = presence(bob, "alice")
                older.is_up = True
                w.run(30)
                self.assertEqual(older.client.failure, ELSEWHERE)
                self.assert_goes_on(newer)
                self.assertEqual(presence(bob, "alice"), seen)

    def test_an_older_one_is_told_even_if_the_newer_one_has_left(self) -> None:
        with world() as w, mock.patch.object(chatserver, "INSTANCE_MEMORY", 100):
            add_accounts(w, "alice")
            (bob,) = w.joined("bob")
            olders = [w.join("alice", host, knows()) for host in ("desk",)]
            w.run(1)
            olders[0].is_up = False
            olders.append(w.join("alice", "laptop", knows()))
            w.run(1)
            olders[1].is_up = False
            newest = w.join("alice", "phone", knows())
            w.run(1)
            newest.leave()
            w.run(3 * FORGET_EVERY)
            seen = presence(bob, "alice")
            for older in olders:
                older.is_up = True
                w.run(30)
                self.assertEqual(older.client.failure, ELSEWHERE)
            self.assertEqual(presence(bob, "alice"), seen)

    def test_an_older_one_is_told_though_the_server_restarts_before_or_after_it(self) -> None:
        for is_before in (True, False):
            with self.subTest(is_before=is_before), world() as w:
                add_accounts(w, "alice")
                (bob,) = w.joined("bob")
                older = w.join("alice", "laptop", knows())
                w.run(1)
                older.is_up = False
                if is_before:
                    w.restart()
                newer = w.join("alice", "phone", knows())
                w.run(1)
                if not is_before:
                    w.restart()
                w.run(100 if is_before else 0)
                older.is_up = True
                w.run(30)
                self.assertEqual(older.client.failure, ELSEWHERE)
                self.assert_goes_on(newer)
                self.assertEqual(presence(bob, "alice"), ["* alice joined"])

    def test_words_that_are_lost_are_repeated(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            older = w.join("alice", "laptop", knows())
            w.run(1)
            w.client("alice", "phone", knows())
            self.assertTrue(
                w.network.run(9, lambda: bool(handshake_packets(w, "phone", b'"PROVE"')))
            )
            proved_at = w.network.now
            dark = (proved_at + 0.01, proved_at + 0.05)  # what the PROVE brings about is lost
            w.network.faults = replace(HEALTHY, blackouts=(dark,))
            w.run(0.1)
            self.assertIsNone(older.client.failure)
            w.run(TIMING.linger - 1)
            self.assertEqual(older.client.failure, ELSEWHERE)
            self.assertEqual(len(handshakes_begun(w, older)), 1)

    def test_no_line_of_the_older_one_is_taken_after_that(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            (bob,) = w.joined("bob")
            older = w.join("alice", "laptop", knows())
            w.run(1)
            w.client("alice", "phone", knows())
            self.assertTrue(
                w.network.run(9, lambda: bool(handshake_packets(w, "phone", b'"PROVE"')))
            )
            w.run(0.02)
            older.say("#late")  # on its way while its place is taken
            w.run(10)
            self.assertEqual(messages(bob), [])
            self.assertEqual(older.client.failure, f"{ELSEWHERE}, and 1 line was not delivered")

    def test_a_line_of_the_older_one_that_was_refused_is_named_too(self) -> None:
        """Its refusal is lost, and then it has no inbox any more."""
        with world() as w:
            add_accounts(w, "alice")
            older = w.join("alice", "laptop", knows())
            w.run(1)
            w.client("alice", "phone", knows())
            self.assertTrue(w.network.run(9, lambda: is_challenged(w, "phone")))
            w.run(0.02)
            older.say("DM nobody #1")  # arrives shortly before the PROVE
            dark = (w.network.now + 0.03, w.network.now + 0.04)
            w.network.faults = replace(HEALTHY, blackouts=(dark,))
            w.run(10)
            self.assertTrue((older.client.failure or "").startswith(ELSEWHERE))
            self.assertEqual(sum("#1" in text for text in older.texts()), 1)

    def test_a_chain_of_logins_leaves_the_last(self) -> None:
        for seed in range(3):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                add_accounts(w, "alice")
                (bob,) = w.joined("bob")
                ends = [w.client("alice", f"place {number}", knows()) for number in range(5)]
                w.run(60)
                failures = [end.client.failure for end in ends]
                self.assertEqual(failures.count(ELSEWHERE), 4)
                self.assertEqual(failures.count(None), 1)
                self.assertEqual(presence(bob, "alice"), ["* alice joined"])


class KeptTest(AccountTestCase):
    def test_a_message_to_an_account_that_is_away_is_kept_and_shown_once(self) -> None:
        for seed in range(3):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                add_accounts(w, "Bob")
                (alice,) = w.joined("alice")
                alice.say("dm bob #1", "dm BOB #2")
                w.run(20)
                told = [text for text in alice.texts() if "away" in text]
                self.assertEqual(told, ["* Bob is away: kept until they are back"] * 2)
                self.assertEqual(views.pending_lines(alice.client), {})
                bob = w.join("bob", "desk", knows())
                w.run(10)
                self.assertEqual(kept_for(bob), ["alice -> you: #1", "alice -> you: #2"])
                self.assertEqual(messages(bob), [])
                bob.leave()
                w.run(10)
                again = w.join("bob", "phone", knows())
                w.run(10)
                self.assertEqual(kept_for(again), [])

    def test_what_is_kept_and_what_was_shown_survive_restarts(self) -> None:
        with world() as w:
            add_accounts(w, "bob")
            (alice,) = w.joined("alice")
            alice.say("DM bob #1")
            w.run(1)
            w.restart(1)
            w.run(3)
            bob = w.join("bob", "desk", knows())
            w.run(1)
            (text,) = (text for text in bob.texts() if "#1" in text)
            self.assertRegex(text, r"^\* kept: \[\d\d:\d\d\] alice -> you: #1$")
            bob.is_up = False  # it has shown and acknowledged it, and says no goodbye
            w.restart(1)
            w.run(3)
            alice.say("DM bob #2")
            w.run(1)
            again = w.join("bob", "phone", knows())
            w.run(1)
            self.assertEqual(kept_for(again), ["alice -> you: #2"])

    def test_a_later_one_gets_what_the_older_one_has_not_acknowledged(self) -> None:
        with world() as w:
            add_accounts(w, "bob")
            (alice,) = w.joined("alice")
            older = w.join("bob", "desk", knows())
            alice.say("DM bob #1")
            w.run(1)
            older.is_up = False
            alice.say("DM bob #2", "DM bob #3")
            w.run(1)
            self.assertNotIn("away", " ".join(alice.texts()))
            newer = w.join("bob", "phone", knows())
            alice.say("DM bob #4")
            w.run(2)
            self.assertEqual(messages(older), ["alice -> you: #1"])
            self.assertEqual(kept_for(newer), ["alice -> you: #2", "alice -> you: #3"])
            self.assertEqual(messages(newer), ["alice -> you: #4"])

    def test_no_message_is_lost_between_two_who_take_over(self) -> None:
        said = [f"#{number}" for number in range(40)]
        for seed in range(3):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                add_accounts(w, "bob")
                (alice,) = w.joined("alice")
                ends = []
                for number, text in enumerate(said):
                    if number in (5, 30):
                        ends.append(w.join("bob", f"place {number}", knows()))
                    alice.say(f"DM bob {text}")
                    w.run(0.3)
                w.run(60)
                older, newer = (
                    [text.rpartition(" ")[2] for text in end.texts() if "-> you: " in text]
                    for end in ends
                )
                self.assertEqual(older, said[: len(older)])
                self.assertEqual(newer, said[-len(newer) :])
                self.assertGreaterEqual(len(older) + len(newer), len(said))
                # What the older one has shown, and the server does not know of yet, comes twice.
                self.assertLess(len(newer), len(said))

    def test_a_message_that_was_lost_before_a_takeover_is_not_lost(self) -> None:
        """The older one is still there, and hears and acknowledges why it has to go."""
        with world() as w:
            add_accounts(w, "bob")
            (alice,) = w.joined("alice")
            older = w.join("bob", "desk", knows())
            w.run(1)
            newer = w.client("bob", "phone", knows())
            self.assertTrue(w.network.run(9, lambda: is_challenged(w, "phone")))
            w.run(0.02)
            alice.say("DM bob #1")  # arrives shortly before the PROVE
            dark = (w.network.now + 0.03, w.network.now + 0.04)
            w.network.faults = replace(HEALTHY, blackouts=(dark,))
            w.run(0.02)
            with asleep(w, newer):  # it has proved itself, and reads nothing yet
                w.run(5)
            self.assertEqual(older.client.failure, ELSEWHERE)
            w.run(10)
            self.assertEqual([text for text in older.texts() if "#1" in text], [])
            self.assertEqual(kept_for(newer), ["alice -> you: #1"])

    def test_an_older_one_that_comes_back_reads_nothing_more(self) -> None:
        with world() as w:
            add_accounts(w, "bob")
            (alice,) = w.joined("alice")
            older = w.join("bob", "desk", knows())
            w.run(1)
            older.is_up = False
            newer = w.join("bob", "phone", knows())
            alice.say("DM bob #1", "#2")
            w.run(30)
            older.is_up = True
            w.run(30)
            self.assertEqual(older.client.failure, ELSEWHERE)
            self.assertEqual([text for text in older.texts() if "#" in text], [])
            self.assertEqual(sorted(messages(newer)), ["alice -> you: #1", "alice: #2"])

    def test_answers_to_an_earlier_ones_lines_are_not_taken_for_ones_own(self) -> None:
        said = ("DM bob #1", "DM nobody #2", "DM carol #3", "DM alice #4")
        with world() as w:
            add_accounts(w, "alice", "bob")
            (carol,) = w.joined("carol")
            older = w.join("alice", "desk", knows())
            w.run(1)
            older.say(*said)  # lines 1 to 4, whose answers it does not live to see
            w.run(0)
            older.is_up = False
            w.run(1)
            self.assertEqual(len(messages(carol)), 1)
            # Lines of the same numbers, which are on their way when the old answers come.
            newer = w.client("alice", "phone", knows())
            newer.say(*said)
            w.run(3)
            self.assertEqual(
                sorted(newer.texts()),
                [
                    "* bob is away: kept until they are back",
                    "* here: alice, carol",
                    f"* kept: {self.clock(newer)} alice -> you: #4",
                    "* logged in as alice",
                    "* not delivered: nobody here is called nobody. "
                    "To say it to everyone: PM DM nobody #2",
                    "alice -> you: #4",
                ],
            )
            self.assertEqual(views.pending_lines(newer.client), {})

    def clock(self, end: ClientEnd) -> str:
        (line,) = (text for text in end.texts() if text.startswith("* kept: "))
        return f"[{line.partition('[')[2].partition(']')[0]}]"

    def test_answers_to_an_earlier_ones_lines_do_not_end_ones_own_wait(self) -> None:
        """What is kept comes while one's own lines of the same numbers cannot leave yet."""
        with world(options=replace(OPTIONS, rate=1)) as w:
            add_accounts(w, "alice", "bob")
            older = w.join("alice", "desk", knows())
            w.run(1)
            older.say("DM bob #1", "DM nobody #2")
            w.run(0)
            older.is_up = False
            w.run(1)
            newer = w.client("alice", "phone", knows())
            newer.say("DM bob #3", "DM nobody #4")
            self.assertTrue(w.network.run(9, lambda: newer.client.has_joined))
            bucket = session_of(w, "alice").member.bucket = protocol.Bucket(0.01, 1)
            bucket.take(w.network.now)
            w.run(5)
            self.assertEqual(
                newer.client.undelivered(),
                [protocol.Direct("bob", "#3"), protocol.Direct("nobody", "#4")],
            )
            self.assertNotIn("away", " ".join(newer.texts()))
            self.assertNotIn("delivered", " ".join(newer.texts()))

    def test_a_message_to_a_guest_who_has_left_is_kept_for_nobody(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            bob.leave()
            w.run(1)
            alice.say("DM bob #1")
            w.run(1)
            self.assertIn("* not delivered: nobody here is called bob", " ".join(alice.texts()))
            again = w.join("bob", "elsewhere", registers())
            w.run(2)
            self.assertEqual(again.texts(), ["* registered bob", "* here: alice, bob"])

    def test_messages_for_who_does_not_fetch_them_are_bounded(self) -> None:
        with world() as w, mock.patch.object(chatserver, "UNREAD_INBOX", 3):
            add_accounts(w, "bob")
            (alice,) = w.joined("alice")
            alice.say(*(f"DM bob #{number}" for number in range(5)))
            w.run(3)
            refused = (
                "* not delivered: bob has too many unread messages. "
                "To say it to everyone: PM DM bob #{}"
            )
            self.assertEqual(
                alice.texts()[1:],
                ["* bob is away: kept until they are back"] * 3
                + [refused.format(3), refused.format(4)],
            )
            bob = w.join("bob", credentials=knows())
            w.run(2)
            self.assertEqual(kept_for(bob), [f"alice -> you: #{number}" for number in range(3)])
            alice.say("DM bob #5")
            w.run(1)
            self.assertEqual(messages(bob), ["alice -> you: #5"])

    def test_who_never_acknowledges_the_inbox_is_no_longer_taken_from(self) -> None:
        limit = 50
        with (
            mock.patch.object(chatserver, "UNREAD_INBOX", limit),
            world(options=replace(OPTIONS, rate=0)) as w,
        ):
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            ignore(alice, LogId.INBOX)
            alice.say(*(f"DM nobody #{number}" for number in range(3 * limit)))
            w.run(20)
            inbox = session_of(w, "alice").member.inbox
            self.assertEqual(inbox.unread, limit)
            bob.say("#still here")
            w.run(1)
            self.assertEqual(messages(alice), ["bob: #still here"])
            heed(alice, LogId.INBOX)
            w.run(30)  # it reads, and is heard again
            self.assertEqual(inbox.unread, 0)
            self.assertEqual(alice.client.undelivered(), [])


class OperatorTest(AccountTestCase):
    def test_a_guest_whose_name_is_given_away_is_put_out_and_heard_no_more(self) -> None:
        for seed in range(3):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                alice, bob, carol = w.joined("alice", "bob", "carol")
                w.run(5)
                with operator(w) as store:
                    self.assertTrue(store.add(account("ALICE")))
                alice.say("#late")
                w.run(40)
                words = "the name was registered"
                self.assertEqual(alice.client.failure, f"{words}, and 1 line was not delivered")
                self.assert_said_once(alice, "* failed: PM #late")
                self.assertEqual(messages(bob), [])
                self.assertEqual(
                    presence(bob, "alice")[-1:] + presence(bob, "carol")[-1:],
                    [f"* alice left ({words})", "* carol joined"],
                )
                self.assert_goes_on(carol)
                owner = w.join("alice", "owner", knows())
                owner.say("#mine")
                w.run(10)
                self.assertEqual(messages(bob), ["ALICE: #mine"])

    def test_a_member_whose_account_is_removed_is_put_out_and_heard_no_more(self) -> None:
        for seed in range(3):
            with self.subTest(seed=seed), world(seed, BAD) as w:
                add_accounts(w, "alice", "carol")
                bob = w.join("bob", credentials=registers())
                alice, carol = (w.join(name, credentials=knows()) for name in ("alice", "carol"))
                w.run(5)
                with operator(w) as store:
                    self.assertTrue(store.remove("Alice"))
                alice.say("#late")
                w.run(40)
                words = "the account was removed"
                self.assertEqual(alice.client.failure, f"{words}, and 1 line was not delivered")
                self.assertEqual(messages(bob), [])
                self.assertEqual(presence(bob, "alice")[-1:], [f"* alice left ({words})"])
                self.assert_goes_on(carol)
                self.assert_goes_on(bob)
                guest = w.join("alice", "guest")
                guest.say("#mine")
                w.run(10)
                self.assertEqual(messages(bob), ["alice: #mine"])

    def test_who_is_idle_is_told_too(self) -> None:
        with world() as w:
            add_accounts(w, "bob")
            (alice,) = w.joined("alice")
            bob = w.join("bob", credentials=knows())
            w.run(1)
            with operator(w) as store:
                store.add(account("alice"))
                store.remove("bob")
            w.run(TIMING.keepalive + TIMING.keepalive_jitter + 1)
            self.assertEqual(alice.client.failure, "the name was registered")
            self.assertEqual(bob.client.failure, "the account was removed")

    def test_what_was_done_while_the_server_was_down_counts_too(self) -> None:
        with world() as w:
            add_accounts(w, "bob")
            alice, carol = w.joined("alice", "carol")
            bob = w.join("bob", credentials=knows())
            w.run(1)
            w.server.kill()
            with operator(w) as store:
                store.add(account("alice"))
                store.remove("bob")
            for end in (alice, bob):
                end.say("#late")
            w.server.start()
            w.run(30)
            self.assertEqual(
                presence(carol, "alice")[-1:], ["* alice left (the name was registered)"]
            )
            self.assertEqual(presence(carol, "bob")[-1:], ["* bob left (the account was removed)"])
            self.assertEqual(messages(carol), [])
            words = "* not let in again (this name needs its password): still trying"
            self.assert_said_once(alice, words)
            self.assertIn("this server does not know the name", " ".join(bob.texts()))

    def test_what_was_kept_is_not_for_the_next_owner(self) -> None:
        with world() as w:
            alice, bob = w.join("alice"), w.join("bob", credentials=registers())
            w.run(2)
            bob.leave()
            w.run(2)
            alice.say("DM bob #1")
            w.run(1)
            with operator(w) as store:
                self.assertTrue(store.remove("bob"))
            alice.say("DM bob #2")
            w.run(1)
            self.assertIn("* not delivered: nobody here is called bob", " ".join(alice.texts()))
            with operator(w) as store:
                self.assertTrue(store.add(account("bob")))
            again = w.join("bob", "again", knows())
            w.run(2)
            self.assertEqual(again.texts(), ["* logged in as bob", "* here: alice, bob"])

    def test_what_is_written_to_a_lost_owner_whose_account_is_removed_is_refused(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            (bob,) = w.joined("bob")
            alice = w.join("alice", credentials=knows())
            w.run(1)
            w.network.unplugged = {"alice"}
            w.run(80)
            bob.say("DM alice #kept")
            w.run(1)
            self.assertIn("* alice is away: kept until they are back", bob.texts())
            with operator(w) as store:
                self.assertTrue(store.remove("alice"))
            bob.say("DM alice #refused")
            w.run(1)
            self.assertIn("nobody here is called alice", bob.texts()[-1])
            self.assertEqual(messages(alice), [])

    def test_what_is_kept_for_an_owner_outlives_what_is_said_to_everybody(self) -> None:
        with world(options=replace(OPTIONS, keep_days=30)) as w:
            add_accounts(w, "alice")
            (bob,) = w.joined("bob")
            bob.say("#public", "DM alice #private")
            w.run(1)
            w.server.epoch += 365 * 24 * 3600
            w.run(PRUNE_EVERY)
            alice = w.join("alice", credentials=knows())
            w.run(1)
            self.assertEqual(kept_for(alice), ["bob -> you: #private"])
            self.assertNotIn("#public", " ".join(alice.texts()))

    def test_a_guest_is_put_out_before_the_owner_of_its_name_joins(self) -> None:
        """Also if the server first hears of the new account when its owner proves the password."""
        with world() as w:
            (guest,) = w.joined("alice")
            (bob,) = w.joined("bob")
            w.run(1)
            with operator(w) as store:
                self.assertTrue(store.add(account("alice")))
            postpone_account_check(w.server.server)
            w.join("alice", "elsewhere", knows())
            w.run(1)
            self.assertEqual(presence(bob, "alice")[-2:], PUT_OUT_AND_BACK)
            self.assertIn("the name was registered", guest.client.failure or "")

    def test_a_guests_registration_does_not_take_what_the_operator_has_just_added(self) -> None:
        """The operator's program commits while the server is in the middle of a turn."""
        with world() as w:
            w.joined("alice")
            w.run(1)
            server = w.server.server
            theirs = protocol.registration(b"thief's", b"t" * 16)
            check_accounts(server, w.network.now)
            with operator(w) as store:
                self.assertTrue(store.add(account("alice")))
            handle_line(server, "alice", theirs)
            server.commit()
            w.run(30)
            self.assertEqual(w.server.store.account("alice"), account("alice"))

    def test_nobody_else_writes_between_a_registration_and_its_commit(self) -> None:
        """Also in the turn in which old instances are forgotten."""
        with world() as w, operator(w) as store:
            wait_for_no_lock(store)
            (alice,) = w.joined("alice")
            w.run(1)
            server = w.server.server
            purge_in_next_turn(server, w.network.now)
            mine = protocol.registration(PASSWORD, b"s" * 16)
            alice.client.say(mine, w.network.now)
            for data in alice.client.datagrams(w.network.now):
                server.receive_untrusted(data, ("alice", 7890), w.network.now)
            server.handle(w.network.now, EPOCH)
            with self.assertRaises(StoreError):
                store.add(account("alice", b"theirs"))
            server.commit()
            self.assertFalse(store.add(account("alice", b"theirs")))

    def test_who_has_slept_while_the_account_was_made_again_logs_in_again(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            alice = w.join("alice", credentials=knows())
            w.run(1)
            with asleep(w, alice):
                w.run(90)
                with operator(w) as store:
                    store.remove("alice")
                    store.add(account("alice"))
            w.run(30)
            self.assert_goes_on(alice)

    def test_an_account_that_is_removed_while_its_owner_logs_in_does_not_come_back(self) -> None:
        """The operator's program commits between what the server does and its commit of that."""
        with world() as w:
            add_accounts(w, "alice")
            commit, changed = w.server.store.commit, w.server.store.changed_members

            def remove_and_commit() -> list[Member]:
                if changed:
                    with operator(w) as store:
                        store.remove("alice")
                return commit()

            with mock.patch.object(w.server.store, "commit", remove_and_commit):
                w.client("alice", credentials=knows())
                w.run(30)
            self.assertFalse(w.server.store.accounts())
            self.assertEqual(views.members(w.server.server), {})


class MembersOnlyTest(AccountTestCase):
    ONLY: Final = replace(OPTIONS, members_only=True)

    def exchange(self, w: World, name: str, host: str) -> list[tuple[type, int]]:
        """Who sends what, and how much of it, when a wrong password is tried."""
        self.assertEqual(try_login(w, host, b"wrong", name), WRONG_PASSWORD)
        packets = [datagram.data for datagram in handshake_packets(w, host)]
        return [(type(parse_handshake_untrusted(data)), len(data)) for data in packets]

    def test_an_unknown_name_and_a_wrong_password_look_the_same(self) -> None:
        with world(options=self.ONLY) as w:
            add_accounts(w, "anna")
            known = self.exchange(w, "anna", "here")
            self.assertEqual(known[-1][0], Refused)
            self.assertEqual(known, self.exchange(w, "nemo", "there"))
            self.assertEqual(known, self.exchange(w, "nobo", "elsewhere"))

    def test_an_unknown_name_has_the_same_salt_at_each_asking(self) -> None:
        with world(options=self.ONLY) as w:
            add_accounts(w, "anna")
            for name in ("anna", "nemo"):
                salts = []
                for number, spelling in enumerate((name, name, name.title(), name)):
                    host = f"{name}'s {number}"
                    self.exchange(w, spelling, host)
                    salts += [(each.salt, each.iterations) for each in challenges_to(w, host)]
                    w.restart()
                self.assertEqual(len(salts), 4)
                self.assertEqual(len(set(salts)), 1, name)

    def test_unknown_names_do_not_share_a_salt(self) -> None:
        with world(options=self.ONLY) as w:
            for name in ("nemo", "nobo"):
                self.exchange(w, name, name)
            self.assertNotEqual(challenges_to(w, "nemo")[0].salt, challenges_to(w, "nobo")[0].salt)

    def test_an_unknown_name_is_braked_like_another(self) -> None:
        with world(options=self.ONLY) as w:
            for number in range(FAILURES_OF_BOTH):
                self.assertEqual(
                    try_login(w, f"lan port {number + 1}", b"?", "nemo"), WRONG_PASSWORD
                )
            self.assertIn("too many attempts", try_login(w, "lan port 99", b"?", "nemo"))

    def test_guests_and_who_would_register_stay_outside(self) -> None:
        with world(options=self.ONLY) as w:
            add_accounts(w, "anna")
            wanted = "this name needs its password (the server)"
            for name in ("anna", "nemo"):
                for credentials in (None, registers()):
                    end = w.client(name, f"{name}'s", credentials)
                    w.run(3)
                    self.assertEqual(end.client.failure, wanted)
            w.join("anna", credentials=knows())

    def test_a_guest_from_before_does_not_come_back(self) -> None:
        with world() as w:
            add_accounts(w, "anna")
            nemo = w.join("nemo")
            anna = w.join("anna", credentials=knows())
            w.run(1)
            w.server.kill()
            w.server.options = self.ONLY
            w.server.start()
            nemo.say("#late")
            w.run(120)
            self.assertEqual(presence(anna, "nemo"), ["* nemo left (timed out)"])
            self.assertEqual(messages(anna), [])


class PasswordTest(AccountTestCase):
    def test_who_has_a_password_does_not_become_a_guest(self) -> None:
        with world() as w:
            (bob,) = w.joined("bob")
            for credentials in (knows(), registers(b"new", old=PASSWORD)):
                alice = w.client("alice", credentials=credentials)
                w.run(3)
                self.assertIn("this server does not know the name", alice.client.failure or "")
                self.assertFalse(alice.client.wants_password)
            self.assertEqual(handshake_packets(w, "alice", *PROVEN), [])
            self.assertEqual(presence(bob, "alice"), [])

    def test_who_has_a_password_does_not_become_a_guest_when_reconnecting_either(self) -> None:
        for credentials in (knows(), registers()):
            with self.subTest(credentials.registration is not None), world() as w:
                if not credentials.registration:
                    add_accounts(w, "alice")
                self.check_that_she_is_no_guest(w, w.join("alice", credentials=credentials))

    def check_that_she_is_no_guest(self, w: World, alice: ClientEnd) -> None:
        w.run(3)
        proven = len(handshake_packets(w, "alice", *PROVEN))
        w.server.kill()
        path, w.server.path = w.server.path, w.server.path.with_name("another.db")
        w.server.start()
        w.run(100)
        self.assertEqual(
            alice.texts()[2:],
            [
                "* not let in again (this server does not know the name: "
                "to join as a guest, give no password): still trying"
            ],
        )
        self.assertIsNone(alice.client.failure)
        self.assertEqual(len(handshake_packets(w, "alice", *PROVEN)), proven)
        self.assertEqual(views.members(w.server.server), {})
        w.server.kill()
        w.server.path = path
        w.server.start()
        w.run(30)
        self.assertEqual(alice.texts()[3:], ["* connected"])

    def test_a_challenge_that_endangers_the_password_is_not_answered(self) -> None:
        salt = b"s" * protocol.SALT_LENGTH
        for bad_salt, iterations in (
            (salt, 0),
            (salt, 1),
            (salt, 99_999),
            (salt, 10_000_001),
            (salt[1:], 600_000),
            (b"", 600_000),
        ):
            with self.subTest(salt=bad_salt, iterations=iterations), world() as w:
                alice = w.client("alice", credentials=knows())
                w.network.faults = Faults(blackouts=((0.0, 99.0),))
                w.run(0.1)
                handshake = views.handshake(alice.client)
                challenge = Challenge(
                    handshake.nonce,
                    b"session!",
                    protocol.GROUP.pad(5),
                    bad_salt,
                    iterations,
                )
                data = protocol.format_handshake(challenge)
                alice.receive(data, SERVER, w.network.now)
                self.assertIn("something dangerous", alice.client.failure or "")
                self.assertIsNone(handshake.proven)

    def test_who_mistypes_the_password_can_type_it_again(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            alice = w.client("alice")
            w.run(2)
            for password, failure in ((b"wrong", WRONG_PASSWORD), (PASSWORD, None)):
                self.assertTrue(alice.client.wants_password)
                alice.client.log_in(password, w.network.now)
                alice.has_ended = False
                w.run(2)
                self.assertEqual(alice.client.failure, failure)
            self.assertTrue(alice.client.has_joined)

    def test_a_password_costs_its_time_once(self) -> None:
        """And so no more when the connection is lost and found again."""
        with (
            world() as w,
            mock.patch.object(
                protocol, "password_secret_untrusted", wraps=protocol.password_secret_untrusted
            ) as slow,
        ):
            add_accounts(w, "alice")
            slow.reset_mock()
            alice = w.join("alice", credentials=knows())
            for _ in range(3):
                w.run(5)
                rejoin(alice)
            w.run(5)
            self.assertEqual(len(handshakes_begun(w, alice)), 4)
            self.assertEqual(slow.call_count, 1)

    def test_a_password_that_was_changed_elsewhere_is_tried_again_once_in_a_while(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            (bob,) = w.joined("bob")
            alice = w.join("alice", "desk", knows())
            w.run(1)
            alice.is_up = False
            w.join("alice", "phone", registers(b"new", old=PASSWORD))
            w.run(30)
            shown = len(alice.texts())
            alice.is_up = True
            w.run(10 * TIMING.login_pause)
            self.assertEqual(
                alice.texts()[shown:],
                ["* not let in again (wrong username or password): still trying"],
            )
            proofs = handshake_packets(w, alice, b'"PROVE"')[1:]
            times = sorted({datagram.at for datagram in proofs})
            self.assertGreater(len(times), 3)
            pauses = [later - earlier for earlier, later in pairwise(times)]
            self.assertAlmostEqual(pauses[0], TIMING.first_login_pause, delta=5)
            # The answer to a last question in the old session may hurry it once.
            longer = [pause for pause in pauses[1:] if pause > 1]
            self.assertGreaterEqual(len(longer), len(pauses) - 2)
            self.assertGreaterEqual(min(longer), TIMING.login_pause)
            self.assertEqual(presence(bob, "alice"), ["* alice joined"])

    def test_who_registers_and_may_not_log_in_yet_goes_on_talking(self) -> None:
        """Somebody in the same network has guessed passwords."""
        with world() as w:
            (bob,) = w.joined("bob")
            alice = w.client("alice", credentials=registers())
            with mock.patch.object(Brake, "wait", return_value=300.0):
                w.run(5)
                for number in range(5):
                    alice.say(f"#{number}")
                    bob.say(f"#{number}")
                    w.run(10)
                self.assertEqual(messages(bob), [f"alice: #{n}" for n in range(5)])
                refusal = "* not let in again (too many attempts, wait 300 s): still trying"
                words = ["* registered alice", "* here: alice, bob", refusal]
                self.assertEqual([t for t in alice.texts() if t.startswith("*")], words)
            w.run(12)
            self.assertTrue(is_logged_in(w, alice))
            self.assertEqual(len(alice.texts()), 3 + 5)

    def test_who_registers_and_is_cut_off_while_logging_in_is_told_so(self) -> None:
        with world() as w:
            alice = w.client("alice", credentials=registers())
            w.network.run(9, lambda: len(handshake_packets(w, "alice", b'"PROVE"')) == 2)
            w.network.unplugged = {"alice"}
            w.run(9)
            self.assertEqual(alice.texts(), ["* registered alice", "* here: alice"])
            w.run(1.1)
            words = "* no answer from the server: reconnecting"
            self.assertEqual(alice.texts()[2:], [words])
            w.network.unplugged = set()
            w.run(12)
            self.assertEqual(alice.texts()[3:], ["* connected"])
            self.assertTrue(is_logged_in(w, alice))

    def test_who_is_reconnecting_already_is_told_all_the_same(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            alice = w.join("alice", credentials=knows())
            w.run(1)
            w.server.kill()
            w.run(60)
            self.assert_said_once(alice, "* no answer from the server: reconnecting")
            with operator(w) as store:
                self.assertTrue(store.remove("alice"))
                self.assertTrue(store.add(account("alice", b"new")))
            w.server.start()
            w.run(10 * TIMING.login_pause)
            self.assertTrue(handshake_packets(w, alice, b'"REFUSED"'))
            words = "* not let in again (wrong username or password): still trying"
            self.assert_said_once(alice, words)

    def test_the_password_is_in_nothing_that_is_sent_or_written(self) -> None:
        with world() as w:
            password = b"a long and secret password"
            alice = w.join("alice", credentials=registers(password))
            w.run(2)
            rejoin(alice)
            w.run(5)
            self.assertTrue(is_logged_in(w, alice))
            everything = [datagram.data for datagram in w.network.sent]
            everything += [path.read_bytes() for path in w.server.path.parent.iterdir()]
            for data in everything:
                self.assertNotIn(password, data)
                self.assertNotIn(password.hex().encode(), data)
            verifier = w.server.store.account("alice").verifier
            for datagram in w.network.sent:
                self.assertNotIn(verifier.hex().encode(), datagram.data)


class BrakeInTheServerTest(AccountTestCase):
    def fail_logins(self, w: World, host: str, count: int = FAILURES_OF_BOTH) -> None:
        """That many wrong passwords from one network."""
        for number in range(count):
            self.assertEqual(try_login(w, f"{host} port {number + 1}"), WRONG_PASSWORD)

    def test_after_five_wrong_passwords_the_right_one_has_to_wait_there_only(self) -> None:
        with world() as w:
            add_accounts(w, "alice", "bob")
            self.fail_logins(w, "cafe")
            failed_at = w.network.now
            wait = f"too many attempts, wait {TIMING.login_wait:.0f} s (the server)"
            self.assertEqual(try_login(w, "cafe port 99", PASSWORD), wait)
            self.assertEqual(try_login(w, "cafe port 98", PASSWORD, "bob"), LET_IN)
            self.assertEqual(try_login(w, "home", PASSWORD), LET_IN)
            w.network.run(failed_at + TIMING.login_wait)
            self.assertEqual(try_login(w, "cafe port 97", PASSWORD), LET_IN)

    def test_the_operator_is_told_who_guesses_whose_password(self) -> None:
        with world() as w, self.assertLogs("chatserver", "INFO") as logged:
            add_accounts(w, "alice")
            try_login(w, "cafe")
        words = [record.getMessage() for record in logged.records]
        self.assertEqual(words, ["wrong password for alice from cafe port 7890"])

    def test_challenges_that_were_collected_before_give_no_more_tries(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            ends = [w.client("alice", f"cafe port {n + 1}", knows(b"wrong")) for n in range(12)]
            w.run(3)
            failures = [end.client.failure for end in ends]
            self.assertEqual(failures.count(WRONG_PASSWORD), FAILURES_OF_BOTH)
            self.assertEqual(sum("too many" in str(failure) for failure in failures), 7)

    def test_a_wrong_password_uses_its_challenge_up(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            self.assertEqual(try_login(w, "cafe"), WRONG_PASSWORD)
            (prove,) = handshake_packets(w, "cafe", b'"PROVE"')
            before = len(w.network.sent)
            deliver(w, SERVER, "cafe", prove.data)
            w.run(1)
            (answer,) = w.network.sent[before:]
            self.assertIsInstance(parse_handshake_untrusted(answer.data), Gone)

    def test_a_member_who_is_in_comes_back_though_a_neighbour_guesses(self) -> None:
        with world() as w:
            add_accounts(w, "alice", "bob")
            alice = w.join("alice", "lan", knows())
            w.run(1)
            self.fail_logins(w, "lan")
            self.assertIn("too many", try_login(w, "lan port 99", PASSWORD))
            for number in range(FAILURES_OF_NETWORK):
                try_login(w, f"lan port {number + 100}", name=f"bob{number % 4}")
            self.check_that_she_comes_back(w, alice)

    def check_that_she_comes_back(self, w: World, alice: ClientEnd) -> None:
        before, shown = views.session(alice.client), alice.texts()
        rejoin(alice)
        w.run(5)
        after = views.session(alice.client)
        self.assertTrue(after is not before, "she has not come back")
        self.assertEqual(alice.texts(), shown)

    def test_nobody_is_kept_out_though_the_whole_world_guesses(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            for number in range(FAILURES_OF_NAME):
                network = f"botnet {number // 4}"
                note_failed_login(w.server.server, "alice", network, w.network.now)
            self.assertEqual(try_login(w, "home", PASSWORD), LET_IN)

    def test_a_refusal_to_try_costs_no_arithmetic(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            self.fail_logins(w, "cafe")
            with mock.patch.object(protocol, "server_public", side_effect=AssertionError):
                self.assertIn("too many", try_login(w, "cafe port 99"))

    def test_wrong_passwords_do_not_make_a_turn_long(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            ends = [w.client("alice", f"guesser {n}", knows(b"wrong")) for n in range(20)]
            for end in ends:
                self.assertTrue(w.network.run(9, partial(is_challenged, w, end)))
            w.run(0)
            server, now = w.server.server, w.network.now
            for end in ends:
                for data in end.client.datagrams(now):
                    server.receive_untrusted(data, (end.host, 7890), now)
            name = "server_secret_untrusted"
            with mock.patch.object(
                protocol, name, side_effect=protocol.server_secret_untrusted
            ) as power:
                server.handle(now, EPOCH)
            self.assertLessEqual(power.call_count, 2)

    def test_a_server_that_was_restarted_has_forgotten(self) -> None:
        with world() as w:
            add_accounts(w, "alice")
            self.fail_logins(w, "cafe")
            w.restart()
            self.assertEqual(try_login(w, "cafe port 99", PASSWORD), LET_IN)

    def test_a_guests_broken_proof_brakes_nobody(self) -> None:
        with world() as w:
            for number in range(2 * FAILURES_OF_BOTH):
                end = w.client("alice", f"cafe port {number + 1}")
                w.run(0.125)  # four times the way: it has just got its challenge
                end.is_up = False
                (challenge,) = challenges_to(w, end)
                prove = protocol.Prove(challenge.nonce, challenge.session, b"p" * 32, b"?" * 90)
                data = protocol.format_handshake(prove)
                deliver(w, SERVER, end.host, data)
                w.run(1)
            w.join("alice", "cafe port 99")
            add_accounts(w, "bob")
            self.assertEqual(try_login(w, "cafe port 98", PASSWORD, "bob"), LET_IN)


if __name__ == "__main__":
    unittest.main()
