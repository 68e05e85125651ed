"""The floods in short, against the real server."""

from __future__ import annotations

import contextlib
import io
import sys
import unittest
from contextlib import ExitStack
from math import inf
from typing import Final
from unittest import mock

from tests import floods
from tests.floods import GROWTH, LIMIT, RATE, Rig, is_good, main
from tests.logins import Row


@unittest.skipUnless(sys.platform == "linux", "needs a process's clock and memory")
class FloodsTest(unittest.TestCase):
    SECONDS = 5.0
    SOME: Final = ("joins", "garbage", "largest", "deaf", "holes", "names")
    SECONDS_OF_EACH: Final = 0.4

    def test_two_talk_and_a_third_one_joins_whatever_strangers_and_members_send(self) -> None:
        for kind in self.SOME:
            with self.subTest(kind), mock.patch.multiple(floods, CALM=0.1, HEAD_START=0.1):
                with ExitStack() as stack:
                    row = Rig(stack).run(kind, 2000, self.SECONDS_OF_EACH)
                self.assertEqual(row["wrong"], 0)
                self.assertGreater(float(row["sent"]), 0)
                self.assertLess(float(row["carol s"]), inf)  # she has joined
                self.assertLess(float(row["MB more"]), GROWTH)

    def test_what_is_not_good_is_status_1(self) -> None:
        row: Row = {"p99 ms": LIMIT / 2, "MB more": GROWTH, "wrong": 0}
        self.assertTrue(is_good(row, RATE))
        for what, value in (("p99 ms", LIMIT), ("MB more", GROWTH + 1), ("wrong", 1)):
            with self.subTest(what):
                self.assertFalse(is_good(row | {what: value}, RATE))
                self.assertEqual(is_good(row | {what: value}, 0), what != "wrong")

    def test_an_unknown_flood_is_told(self) -> None:
        with (
            mock.patch.object(sys, "argv", ["floods", "hello", "rain"]),
            contextlib.redirect_stderr(io.StringIO()) as told,
            self.assertRaises(SystemExit) as end,
        ):
            main()
        self.assertEqual(end.exception.code, 2)
        self.assertIn("no flood is called rain", told.getvalue())


if __name__ == "__main__":
    unittest.main()
