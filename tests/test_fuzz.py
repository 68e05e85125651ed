"""The fuzzer in short, and whether it finds anything at all."""

from __future__ import annotations

import contextlib
import io
import unittest
from contextlib import ExitStack
from typing import Final

from tests.actions import careless_splitting, credulous_clients
from tests.fuzz import Fuzzer, main


def fuzzed(seed: int, datagrams: int) -> Fuzzer:
    with ExitStack() as stack:
        fuzzer = Fuzzer(stack, seed)
        fuzzer.run(lambda number: number / datagrams)
    return fuzzer


def run(*arguments: str) -> tuple[int, str]:
    """The status of the program, and what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            return main([*arguments]), out.getvalue()
        except SystemExit as error:
            return int(error.code or 0), out.getvalue()


class FuzzTest(unittest.TestCase):
    SECONDS = 3.0
    DATAGRAMS: Final = 4_000

    def test_no_datagram_hurts_anybody(self) -> None:
        fuzzer = fuzzed(1, self.DATAGRAMS)
        self.assertEqual(fuzzer.number, self.DATAGRAMS)
        for way in fuzzer.ways:
            with self.subTest(way.name):
                self.assertGreater(way.count, self.DATAGRAMS / 200)
                self.assertGreater(sum(way.refused.values()), way.count / 20)
                self.assertGreater(len(way.learnt), 0)

    def test_the_same_seed_brings_the_same_datagrams(self) -> None:
        first, second, other = (fuzzed(seed, 800).digest.digest() for seed in (1, 1, 2))
        self.assertEqual(first, second)
        self.assertNotEqual(first, other)

    def test_what_is_wrong_is_found_and_told(self) -> None:
        for words, bug in (
            ("unpack requires", careless_splitting()),
            ("should be shown", credulous_clients()),
        ):
            with self.subTest(words), bug:
                status, told = run("--datagrams", "10000", "--seed", "7")
                self.assertEqual(status, 1)
                self.assertIn(words, told)
                self.assertRegex(told, r"seed 7: .*\n(datagram \d+, [a-z]+, [a-z]+: [0-9a-f]*\n)+")

    def test_wrong_options_are_explained(self) -> None:
        for option in ("--seconds=0", "--seconds=nan", "--datagrams=x", "--seed=1.5", "--x"):
            with self.subTest(option):
                status, told = run(option)
                self.assertEqual(status, 2)
                self.assertIn("usage: python -m tests.fuzz", told)


if __name__ == "__main__":
    unittest.main()
