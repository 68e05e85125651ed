"""Runs the tests on all cores: their classes over some workers, those that take longest first.

    python -m tests [-j N] [NAME ...]

The result is that of ``python -m unittest``, in half the time. There is one worker more than cores,
since tests of real programs wait half of their time. A NAME is what unittest takes: a module, a
class or a test (``tests.test_room.HistoryTest``); without any, all tests run. Each failure is shown
whole as soon as its class has ended. The status is 0 if all is well, 1 if a test has failed or
there was none, 2 for wrong usage, 130 after Ctrl-C.

    runner  -- ids of the tests of one class -->  worker
            <-- what they have come to ---------

Each worker has a pipe of its own, and a fork server (``tests/forkserver.py``). The tests of a
worker that dies have failed, and another worker takes its place; a worker whose runner dies ends.
On Linux workers are forks of the runner, which has imported the tests already; elsewhere each
imports them for itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
import traceback
import unittest
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeAlias

ROOT: Final = Path(__file__).resolve().parent.parent
START_METHOD: Literal["fork", "spawn"] = "fork" if sys.platform == "linux" else "spawn"
PROGRESS_EVERY: Final = 10.0  # seconds, where the output is no terminal
# Guesses of how long a test takes, in seconds; ``SECONDS`` of a test class overrides them.
WITH_PROGRAMS: Final = 0.5
WITHOUT: Final = 0.05

Ids: TypeAlias = tuple[str, ...]  # of the tests of one class


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of some tests; ``reports`` has each failure with its heading."""

    ran: int = 0
    passed: int = 0
    failed: frozenset[str] = frozenset()  # ids of tests, and of fixtures of classes
    skipped: int = 0
    reports: tuple[str, ...] = ()

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.ran + other.ran,
            self.passed + other.passed,
            self.failed | other.failed,
            self.skipped + other.skipped,
            self.reports + other.reports,
        )


# ------------------------------------------------------------------------------------ the tests


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


def by_class(tests: Sequence[unittest.TestCase]) -> list[Ids]:
    """Return the ids of the tests of each class, those that take longest first."""
    classes: dict[type, list[unittest.TestCase]] = {}
    for test in tests:
        classes.setdefault(type(test), []).append(test)
    longest_first = sorted(classes.values(), key=seconds_of, reverse=True)
    return [tuple(test.id() for test in each) for each in longest_first]


# ------------------------------------------------------------------------------------ a worker


class Counting(unittest.TestResult):
    """A result that counts the tests that pass.

    Versions of Python differ in whether ``testsRun`` has those that are skipped.
    """

    passed = 0

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self.passed += 1

    def addExpectedFailure(self, test: unittest.TestCase, error: Any) -> None:  # noqa: N802
        super().addExpectedFailure(test, error)
        self.passed += 1


def report(kind: str, test: object, text: str) -> str:
    """Return a failure as unittest's own program shows it."""
    return f"{'=' * 70}\n{kind}: {test}\n{'-' * 70}\n{text}"


def run(suite: unittest.TestSuite) -> Outcome:
    """Run a suite as unittest's own program does, and return its results."""
    result = Counting()
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("default")
        suite.run(result)
    troubles = [
        *(("ERROR", test, text) for test, text in result.errors),
        *(("FAIL", test, text) for test, text in result.failures),
        *(("UNEXPECTED SUCCESS", test, "") for test in result.unexpectedSuccesses),
    ]
    return Outcome(
        result.testsRun,
        result.passed,
        frozenset(getattr(test, "test_case", test).id() for _, test, _ in troubles),
        len(result.skipped),
        tuple(report(*trouble) for trouble in troubles),
    )


def not_finished(ids: Ids, why: str) -> Outcome:
    """Return the outcome of tests that were not run to their end: all have failed."""
    name = ids[0].rpartition(".")[0]
    return Outcome(len(ids), 0, frozenset(ids), 0, (report("ERROR", name, f"{why}\n"),))


def work(pipe: Connection, theirs: Sequence[Connection]) -> None:
    """Run what comes through the pipe until the runner ends it or dies: a worker's life.

    ``theirs`` are the runner's ends of all pipes, which a fork has inherited: as long as it holds
    them too, nobody's pipe ends with the runner.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for each in theirs:
        each.close()
    # Ctrl-C, which reaches every process of a terminal, is the runner's to tell of.
    with suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while ids := pipe.recv():
            try:
                outcome = run(unittest.defaultTestLoader.loadTestsFromNames(ids))
            except BaseException:  # unittest lets KeyboardInterrupt and SystemExit through
                outcome = not_finished(ids, traceback.format_exc())
            pipe.send(outcome)


@dataclass(slots=True)
class Worker:
    """The runner's end of a worker, and the tests that it is running."""

    process: BaseProcess
    pipe: Connection
    ids: Ids = ()

    def give(self, ids: Ids) -> None:
        """Let it run the tests of a class."""
        self.ids = ids
        with suppress(BrokenPipeError):  # it has died: ``take`` tells
            self.pipe.send(ids)

    def take(self) -> Outcome:
        """Return what has become of its tests, once its pipe has something."""
        try:
            outcome: Outcome = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return not_finished(self.ids, f"the worker has died: {self.process.exitcode}")
        return outcome


# --------------------------------------------------------------------------------- the runner


class Runner:
    """Workers, and the classes that are left for them."""

    def __init__(self, classes: Sequence[Ids], workers: int) -> None:
        is_fork = START_METHOD == "fork"
        get_context = multiprocessing.get_context
        self._context = get_context("fork") if is_fork else get_context("spawn")
        self._left = deque(classes)
        self._workers: list[Worker] = []
        for _ in range(min(workers, len(classes))):
            self._start_worker()

    def _start_worker(self) -> None:
        """Start a worker, with the first of the classes that are left."""
        ours, theirs = Pipe()
        inherited = [worker.pipe for worker in self._workers] + [ours]
        process = self._context.Process(
            target=work, args=(theirs, inherited if START_METHOD == "fork" else ()), daemon=True
        )
        process.start()
        theirs.close()
        self._workers.append(Worker(process, ours))
        self._workers[-1].give(self._left.popleft())

    def outcomes(self) -> Iterator[Outcome]:
        """Run all classes, and return the outcome of each as it comes."""
        while self._workers:
            ready = wait([worker.pipe for worker in self._workers])
            for worker in [each for each in self._workers if each.pipe in ready]:
                outcome = worker.take()
                if worker.process.exitcode is not None or not self._left:
                    self._end_worker(worker)
                    if self._left:
                        self._start_worker()
                else:
                    worker.give(self._left.popleft())
                yield outcome

    def _end_worker(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join()

    def end(self) -> None:
        """End the workers, whatever they are doing."""
        for worker in list(self._workers):
            worker.process.terminate()
            self._end_worker(worker)


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
        for each in reports:
            print(each, file=sys.stderr)
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
        skipped = f", {total.skipped} skipped" if total.skipped else ""
        print(f"{total.passed} passed, {len(total.failed)} failed{skipped}", file=sys.stderr)


def run_all(tests: Sequence[unittest.TestCase], workers: int) -> Outcome:
    """Run all tests, and show how that goes."""
    progress = Progress(len(tests))
    total = run(unittest.TestSuite(test for test in tests if not is_loaded(test)))
    progress.tell(total, total.reports)
    runner = Runner(by_class([test for test in tests if is_loaded(test)]), workers)
    try:
        for outcome in runner.outcomes():
            total += outcome
            progress.tell(total, outcome.reports)
    finally:
        runner.end()
    progress.end(total)
    return total


# --------------------------------------------------------------------------------- the program


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def terminated(number: int, frame: object) -> NoReturn:
    """End the program, and with it the workers."""
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tests that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests", description="Runs the tests.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="modules, classes or tests")
    words = "workers (default: %(default)s, one more than cores)"
    parser.add_argument("-j", type=int, default=cores() + 1, metavar="N", help=words)
    args = parser.parse_args(argv)
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
    signal.signal(signal.SIGTERM, terminated)
    try:
        total = run_all(tests, args.j)
    except KeyboardInterrupt:
        return 130
    return 1 if total.failed or not total.ran else 0
