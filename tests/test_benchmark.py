"""The measurement of the room in short, and whether it sees a line that is not as it should be."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import signal
import sys
import unittest
from collections.abc import Sequence
from typing import Final
from unittest import mock

from tests import benchmark, crowd
from tests.benchmark import JOINING, ROWS, Plan, Process, Spread, main, measure, relay
from tests.crowd import HEADERS, Crowd, Heard, Member, NaiveMember, Wrong


@unittest.skipIf(sys.platform == "win32", "Windows cannot wait for pipes")
class Measurement(unittest.TestCase):
    PLAN: Final = Plan((3,), {"calm": 0.2, "loaded": 0.2}, rounds=1)
    figures: dict[str, Spread]

    @classmethod
    def setUpClass(cls) -> None:
        cls.figures = measure(cls.PLAN)

    def setUp(self) -> None:
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        self.enterContext(mock.patch.object(benchmark, "QUICK", self.PLAN))

    def run_main(self, *arguments: str, error: BaseException | None = None) -> tuple[int, str, str]:
        """Status and output, with the figures that are here already, or with this error."""
        measured = mock.Mock(return_value=self.figures, side_effect=error)
        with (
            mock.patch.object(benchmark, "measure", measured),
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            return main(arguments), out.getvalue(), err.getvalue()

    def test_a_run_gives_every_figure(self) -> None:
        names = {
            f"{load}.3.{whose}.{what}"
            for load in self.PLAN.seconds
            for what in {row[1] for row in ROWS}
            for whose in ("room", "relay", "ratio")
        }
        names |= {f"joining.3.{what}" for what in JOINING} | {"client.start_ms"}
        unknown = set() if sys.platform == "linux" else {"joining.3.memory_kB"}
        self.assertEqual(self.figures.keys() | unknown, names)
        for name, figure in self.figures.items():
            if name != "joining.3.memory_kB":  # of three members it may be none
                self.assertGreater(figure.median, 0, name)
        self.assertEqual(self.figures["calm.3.relay.lines_per_datagram"].median, 1)
        self.assertGreater(self.figures["loaded.3.room.lines_per_datagram"].median, 1)

    def test_json_has_every_figure(self) -> None:
        status, out, err = self.run_main("--quick", "--json")
        self.assertEqual((status, err), (0, ""))
        found = json.loads(out)["figures"]
        self.assertEqual({name: Spread(**it) for name, it in found.items()}, self.figures)

    def test_the_table_has_a_cell_for_every_size_and_the_machine(self) -> None:
        status, out, err = self.run_main("--quick")
        self.assertEqual((status, err), (0, ""))
        rows = [line for line in out.splitlines() if line.startswith("|")]
        self.assertEqual({row.count("|") for row in rows}, {3})
        self.assertEqual(len(rows), 4 + sum(len(it[-1]) for it in ROWS) + len(JOINING) + 1)
        self.assertIn("Python", out.splitlines()[-1])

    def test_what_is_wrong_is_told_in_one_line(self) -> None:
        for error in (Wrong("a line is lost"), AssertionError("it is dead"), OSError("refused")):
            found = self.run_main("--quick", error=error)
            self.assertEqual(found, (1, "", f"python -m tests.benchmark: {error}\n"))
        found = self.run_main("--quick", error=ConnectionRefusedError(111, "refused"))
        self.assertEqual(
            found, (1, "", "python -m tests.benchmark: a process has ended: refused\n")
        )
        self.assertEqual(self.run_main("--quick", error=KeyboardInterrupt()), (130, "", ""))

    def test_a_server_that_does_not_start_is_told(self) -> None:
        with contextlib.ExitStack() as stack, self.assertRaisesRegex(AssertionError, "status 1"):
            Process(stack, "tests.benchmark", "nothing")

    def test_the_naive_relay_is_short(self) -> None:
        self.assertLessEqual(len(inspect.getsource(relay).splitlines()), 30)

    def test_a_figure_has_three_digits(self) -> None:
        self.assertEqual(str(Spread(1.234, 1.0, 12.0)), "1.23 (1.00-12.00)")
        self.assertEqual(str(Spread(1234.5, 99.9, 2000.0)), "1,234 (100-2,000)")


class Comparison(unittest.TestCase):
    """Two members, six lines, and what they hear of them."""

    def setUp(self) -> None:
        self.crowd = Crowd(NaiveMember, 9)
        self.addCleanup(self.crowd.close)
        self.crowd.members += [NaiveMember(name, 9, 0) for name in ("alice", "bob")]
        self.lines = []
        for member in self.crowd.members:
            member.datagrams(0.0)
            member.has_joined = True
        for number in (0, 1) * 3:
            self.crowd.say(number)
            member = self.crowd.members[number]
            self.lines += [f"{member.name} ".encode() + it for it in member.datagrams(0.0)]

    def hear(self, *views: Sequence[bytes]) -> None:
        for member, lines in zip(self.crowd.members, views):
            for line in lines:
                self.crowd.take(member, line, 0.0)
        self.crowd.check()

    def assert_wrong(self, alice: Sequence[bytes], bob: Sequence[bytes], words: str) -> None:
        with self.assertRaisesRegex(Wrong, words):
            self.hear(alice, bob)

    def test_nothing_is_wrong_with_lines_once_and_in_order(self) -> None:
        self.hear(self.lines, self.lines)

    def test_what_was_heard_is_counted(self) -> None:
        self.hear(self.lines, self.lines)
        tally, wire = self.crowd.tally, sum(len(it) + HEADERS for it in self.lines)
        self.assertEqual((tally.lines, tally.datagrams, tally.wire), (12, 12, 2 * wire))
        self.assertEqual(len(tally.delays), 6)  # not how long one's own take
        self.assertEqual([each.unheard for each in self.crowd.members], [0, 0])

    def test_a_line_that_nobody_hears_is_wrong(self) -> None:
        for index in range(6):
            with self.subTest(index):
                self.setUp()
                view = self.lines[:index] + self.lines[index + 1 :]
                self.assert_wrong(view, view, "came")

    def test_a_line_that_one_member_does_not_hear_is_wrong(self) -> None:
        self.assert_wrong(self.lines, self.lines[:2] + self.lines[3:], "line 2 .* differs")

    def test_a_last_line_that_one_member_does_not_hear_is_wrong(self) -> None:
        self.assert_wrong(self.lines, self.lines[:-1], "bob lacks a line")
        self.setUp()
        self.assert_wrong(self.lines[:-1], self.lines, "alice lacks a line")

    def test_a_doubled_line_is_wrong(self) -> None:
        twice = [*self.lines, self.lines[-1]]
        self.assert_wrong(twice, twice, "line 2, not 3, of bob")
        self.setUp()
        self.assert_wrong(self.lines, self.lines[:1] + self.lines, "line 1 .* differs")
        self.setUp()
        self.assert_wrong(self.lines, [*self.lines, self.lines[-1]], "line 2, not 3, of bob")

    def test_another_order_is_wrong(self) -> None:
        view = [self.lines[n] for n in (0, 1, 4, 3, 2, 5)]
        self.assert_wrong(view, view, "line 2, not 1, of alice")
        self.setUp()
        self.assert_wrong(self.lines, [*self.lines[:4], *self.lines[:3:-1]], "line 4 .* differs")

    def test_another_text_is_wrong(self) -> None:
        self.assert_wrong(self.lines, [*self.lines[:-1], self.lines[-1] + b"."], "differs")

    def test_lines_of_others_may_begin_anywhere_but_must_go_on(self) -> None:
        others = [b"talker0 7 1.5 ...", b"visitor hello", b"talker0 8 1.6 ..."]
        self.hear(others + self.lines, others + self.lines)
        self.setUp()
        view = [*self.lines, others[0], others[0]]
        self.assert_wrong(view, view, "line 7, not 8, of talker0")

    def test_a_line_that_does_not_come_is_wrong_in_the_end(self) -> None:
        with mock.patch.object(crowd, "PATIENCE", 0.0), self.assertRaisesRegex(Wrong, "lost"):
            self.crowd.settle()

    def test_the_room_tells_more_than_what_members_say(self) -> None:
        for raw in (b"1700000000 alice HI", b"1700000000 alice PM hello", b"1700000000 alice EX"):
            self.assertEqual(Member.parse(raw), Heard(raw))
        raw = b"1700000000 alice PM 3 12.5 ..."
        self.assertEqual(Member.parse(raw), Heard(raw, "alice", 3, 12.5))


if __name__ == "__main__":
    unittest.main()
