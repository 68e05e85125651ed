"""The killed server in short, and whether what compares the members' screens sees faults at all."""

from __future__ import annotations

import signal
import unittest
from typing import Final

from tests.faults import KINDS, OTHER_KINDS, Line, compare, heard_by, other_words, run


@unittest.skipUnless(hasattr(signal, "SIGKILL"), "this system has no SIGKILL")
class Deaths(unittest.TestCase):
    SECONDS = 5.0
    KILLS: Final = 5
    SEED: Final = 96  # a quick one, and one of its servers dies before it listens

    def test_a_server_that_is_killed_at_any_moment_loses_doubles_and_mixes_up_nothing(self) -> None:
        report = run(self.KILLS, self.SEED)
        self.assertEqual(report.faults, {kind: [] for kind in (*KINDS, *OTHER_KINDS)})
        self.assertEqual(report.figures["integrity ok"], self.KILLS)
        typed = report.figures["lines typed"]
        self.assertGreater(typed, 50)
        self.assertGreater(report.figures["lines shown"], 1.5 * typed)  # most for two readers
        self.assertGreater(report.figures["returns measured"], 0)


class Comparison(unittest.TestCase):
    TYPED: Final = [
        Line(sender, to, 2 * number + bool(to))
        for number in range(5)
        for sender, other in (("alice", "bob"), ("bob", "carol"), ("carol", "alice"))
        for to in ("", other)
    ]

    def setUp(self) -> None:
        self.views = {
            reader: [it for it in self.TYPED if it.sender != reader and it.to in ("", reader)]
            for reader in ("alice", "bob", "carol")
        }

    def assert_found(self, **counts: int) -> None:
        found = {kind: len(those) for kind, those in compare(self.TYPED, self.views).items()}
        named = {kind.replace("_", " "): count for kind, count in counts.items()}
        self.assertEqual(found, dict.fromkeys(KINDS, 0) | named)

    def place(self, reader: str, line: Line) -> int:
        return self.views[reader].index(line)

    def test_nothing_is_found_where_nothing_is_wrong(self) -> None:
        self.assert_found()

    def test_an_order_that_only_the_network_decides_is_not_wrong(self) -> None:
        self.views["bob"].sort(key=lambda line: bool(line.to))  # two logs, side by side
        self.assert_found()

    def test_a_lost_line_is_noticed(self) -> None:
        self.views["bob"].remove(Line("alice", "", 4))
        self.views["bob"].remove(Line("alice", "bob", 3))
        self.assert_found(lost=2)

    def test_a_line_that_is_shown_twice_is_noticed(self) -> None:
        self.views["carol"].append(Line("alice", "", 4))
        self.views["carol"].insert(0, Line("bob", "carol", 1))
        self.assert_found(doubled=2)

    def test_two_swapped_public_lines_of_one_sender_are_noticed(self) -> None:
        view = self.views["carol"]
        one, other = (self.place("carol", Line("alice", "", number)) for number in (2, 4))
        view[one], view[other] = view[other], view[one]
        # bob, who has the right order, and carol contradict each other too.
        found = compare(self.TYPED, self.views)
        self.assertEqual(found["out of order"], [f"{Line('alice', '', 2)} for carol"])
        self.assertTrue(found["contradictions"])

    def test_two_swapped_direct_messages_are_noticed(self) -> None:
        view = self.views["bob"]
        one, other = (self.place("bob", Line("alice", "bob", number)) for number in (1, 3))
        view[one], view[other] = view[other], view[one]
        self.assert_found(out_of_order=1)

    def test_a_direct_message_in_wrong_hands_is_noticed(self) -> None:
        shown = heard_by("carol", ["[12:00] alice -> you: 3", "[12:00] alice: 1"])
        self.views["carol"] += shown  # alice wrote both to bob
        self.assert_found(unknown=2)

    def test_ones_own_line_is_noticed(self) -> None:
        self.views["alice"].append(Line("alice", "", 0))
        self.assert_found(unknown=1)

    def test_different_orders_of_two_readers_are_noticed(self) -> None:
        self.views["dave"] = [line for line in self.TYPED if not line.to]
        self.assert_found()
        view = self.views["dave"]
        view[0], view[1] = view[1], view[0]  # as nobody else has alice's and bob's first lines
        self.assert_found(contradictions=1)

    def test_a_circle_of_which_any_two_readers_know_nothing_is_noticed(self) -> None:
        alice, bob, carol = (Line(name, "", 0) for name in ("alice", "bob", "carol"))
        self.views = {"alice": [bob, carol], "bob": [carol, alice], "carol": [alice, bob]}
        found = compare([alice, bob, carol], self.views)
        self.assertEqual(len(found["contradictions"]), 1)


class OtherWords(unittest.TestCase):
    USUAL: Final = (
        "* here: alice, bob",
        "[HH:MM] * carol joined",
        "[HH:MM] carol: 0",
        "* the connection is lost: reconnecting",
        "* not delivered yet: 7",
        "* connected",
        "[HH:MM] carol -> you: 6",
        "[HH:MM] * alice left",
    )

    def words(self, *more: str) -> list[str]:
        return other_words(1, [*self.USUAL, *more])

    def test_what_belongs_to_a_life_in_the_room_is_not_told(self) -> None:
        self.assertEqual(self.words(), [])

    def test_a_second_announcement_is_told(self) -> None:
        self.assertEqual(self.words("[HH:MM] * carol joined"), ["[HH:MM] * carol joined"])
        timed_out = "[HH:MM] * alice left (timed out)"
        self.assertEqual(self.words(timed_out), [timed_out])

    def test_what_a_client_says_of_a_loss_is_told(self) -> None:
        for line in (
            "* may not have arrived: DM alice 3",
            "* not delivered: nobody here is called alice. To say it to everyone: PM DM alice 3",
            "* 3 lines are missing here",
            "* earlier: [12:00] alice: 1",
            "Traceback (most recent call last):",
        ):
            self.assertEqual(self.words(line), [line])


if __name__ == "__main__":
    unittest.main()
