"""Runs the tests on all cores: their classes over some workers, those that take longest first.

    python -m tests [-j N] [NAME ...]

The result is that of ``python -m unittest``, in half the time. There is one worker more than cores,
since tests of real programs wait half of their time. A NAME is what unittest takes: a
module, a class or a test (``tests.test_room.HistoryTest``); without any, all tests run. Each
failure is shown whole as soon as its class has ended. The status is 0 if all is well, 1 if a test
has failed or there was none, 2 for wrong usage, 130 after Ctrl-C.

On Linux the workers are forks of this process, which has imported the tests already; elsewhere
each imports them for itself. Every worker has a fork server of its own (``tests/forkserver.py``).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import unittest
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
PROGRESS_EVERY: Final = 10.0  # seconds, where the output is no terminal
# Guesses of how long a test takes, in seconds; ``SECONDS`` of a test class overrides them.
WITH_PROGRAMS: Final = 0.5
WITHOUT: Final = 0.05


@dataclass(frozen=True, slots=True)
class Batch:
    """The tests of one class, by their ids, and how long they take at a guess."""

    ids: tuple[str, ...]
    seconds: float


@dataclass(slots=True)
class Outcome:
    """The results of a batch; ``reports`` has each failure with its heading."""

    ran: int = 0
    passed: int = 0
    failed: set[str] = field(default_factory=set)  # ids of tests, and of fixtures of classes
    skipped: int = 0
    reports: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Add the results of another batch."""
        self.ran += other.ran
        self.passed += other.passed
        self.failed |= other.failed
        self.skipped += other.skipped
        self.reports += other.reports


# ---------------------------------------------------------------------------------- the batches


def flat(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Return the tests of a suite and of the suites in it."""
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from flat(each)
        else:
            yield each


def is_loaded(test: unittest.TestCase) -> bool:
    """Return False for what unittest puts in the place of a name that it cannot load."""
    return type(test).__module__ != "unittest.loader"


def seconds_of(tests: Sequence[unittest.TestCase]) -> float:
    """Guess how long the tests of one class take."""
    kind = type(tests[0])
    if (seconds := getattr(kind, "SECONDS", None)) is not None:
        return float(seconds)
    has_programs = any(base.__name__ == "ProgramsTest" for base in kind.__mro__)
    return len(tests) * (WITH_PROGRAMS if has_programs else WITHOUT)


def batches(tests: Sequence[unittest.TestCase]) -> list[Batch]:
    """Return the tests by their classes, those that take longest first."""
    classes: dict[type, list[unittest.TestCase]] = {}
    for test in tests:
        classes.setdefault(type(test), []).append(test)
    found = [Batch(tuple(t.id() for t in each), seconds_of(each)) for each in classes.values()]
    return sorted(found, key=lambda batch: batch.seconds, reverse=True)


# ------------------------------------------------------------------------------------ a worker


class Counting(unittest.TestResult):
    """A result that counts the tests that pass, since their difference to all varies by version."""

    passed = 0

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self.passed += 1

    def addExpectedFailure(self, test: unittest.TestCase, error: Any) -> None:  # noqa: N802
        super().addExpectedFailure(test, error)
        self.passed += 1


def run(suite: unittest.TestSuite) -> Outcome:
    """Run a suite as unittest's own program does, and return its results."""
    result = Counting()
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("default")
        suite.run(result)
    outcome = Outcome(result.testsRun, result.passed, skipped=len(result.skipped))
    troubles = [
        *(("ERROR", test, text) for test, text in result.errors),
        *(("FAIL", test, text) for test, text in result.failures),
        *(("UNEXPECTED SUCCESS", test, "") for test in result.unexpectedSuccesses),
    ]
    for kind, each, text in troubles:
        outcome.failed.add(getattr(each, "test_case", each).id())  # a subtest's test
        outcome.reports.append(f"{'=' * 70}\n{kind}: {each}\n{'-' * 70}\n{text}")
    return outcome


def run_batch(ids: Sequence[str]) -> Outcome:
    """Run the tests of these ids: a worker's work."""
    return run(unittest.defaultTestLoader.loadTestsFromNames(ids))


# --------------------------------------------------------------------------------- the program


class Progress:
    """One line that says how far the tests are."""

    def __init__(self, tests: int) -> None:
        self._tests = tests
        self._start = self._told_at = time.monotonic()
        self._is_terminal = sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def tell(self, total: Outcome, reports: Sequence[str]) -> None:
        """Print reports above the line, and the line anew."""
        if self._is_terminal:
            print(end="\r\033[K", file=sys.stderr)
        for report in reports:
            print(report, file=sys.stderr)
        now = time.monotonic()
        if self._is_terminal or now - self._told_at >= PROGRESS_EVERY:
            self._told_at = now
            line = f"{total.ran} of {self._tests} tests, {len(total.failed)} failed, "
            end = "" if self._is_terminal else "\n"
            print(f"{line}{self.seconds:.0f} s", end=end, file=sys.stderr, flush=True)

    def end(self, total: Outcome) -> None:
        """Print the result, last of all in one line."""
        if self._is_terminal:
            print(end="\r\033[K", file=sys.stderr)
        print(f"Ran {total.ran} tests in {self.seconds:.1f}s\n", file=sys.stderr)
        failed = len(total.failed)
        skipped = f", {total.skipped} skipped" if total.skipped else ""
        print(f"{total.passed} passed, {failed} failed{skipped}", file=sys.stderr)


def run_all(tests: Sequence[unittest.TestCase], workers: int) -> Outcome:
    """Run all tests, and show how that goes."""
    total, progress = Outcome(), Progress(len(tests))
    not_loaded = unittest.TestSuite(test for test in tests if not is_loaded(test))
    total.add(outcome := run(not_loaded))
    progress.tell(total, outcome.reports)
    todo = batches([test for test in tests if is_loaded(test)])
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(workers, max(1, len(todo))), context) as pool:
        futures = {pool.submit(run_batch, batch.ids): batch for batch in todo}
        try:
            for future in as_completed(futures):
                outcome = result_of(future, futures[future])
                total.add(outcome)
                progress.tell(total, outcome.reports)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    progress.end(total)
    return total


def result_of(future: Future[Outcome], batch: Batch) -> Outcome:
    """Return a batch's outcome; tests whose worker has died have failed."""
    try:
        return future.result()
    except BrokenProcessPool:
        name = batch.ids[0].rpartition(".")[0]
        words = f"ERROR: {name}: not run to its end, since a worker has died\n"
        return Outcome(len(batch.ids), 0, set(batch.ids), 0, [words])


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main() -> int:
    """Run the tests that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests", description="Runs the tests.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="modules, classes or tests")
    words = "workers (default: %(default)s, one more than cores)"
    parser.add_argument("-j", type=int, default=cores() + 1, metavar="N", help=words)
    args = parser.parse_args()
    if args.j < 1:
        parser.error("-j needs a number of at least 1")
    loader = unittest.defaultTestLoader
    if args.names:
        suite = loader.loadTestsFromNames(args.names)
    else:
        suite = loader.discover(str(ROOT / "tests"), top_level_dir=str(ROOT))
    tests = list(flat(suite))
    twice = [name for name, count in Counter(test.id() for test in tests).items() if count > 1]
    if twice:
        parser.error(f"{twice[0]} is named twice")
    try:
        total = run_all(tests, args.j)
    except KeyboardInterrupt:
        return 130
    return 1 if total.failed or not total.ran else 0


if __name__ == "__main__":
    sys.exit(main())
