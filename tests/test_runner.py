"""``python -m tests``: the same result as ``python -m unittest``, whatever becomes of the tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest
from functools import partial
from pathlib import Path
from typing import Final
from unittest import mock

from tests.forkserver import ROOT
from tests.programs import PATIENCE, ProgramsTest, environment, is_running, wait_until
from tests.runner import by_class, flat
from tests.terminal import HAS_PTY, TerminalProgram

GOOD: Final = """
import unittest

class Good(unittest.TestCase):
    def test_one(self):
        pass

    def test_two(self):
        pass

class Skipped(unittest.TestCase):
    @unittest.skip("not here")
    def test_skipped(self):
        pass
"""
BAD: Final = """
import unittest

class Bad(unittest.TestCase):
    def test_good(self):
        pass

    def test_failing(self):
        self.assertEqual("the found one", "the expected one")

    def test_erring(self):
        raise OSError("the disk is on fire")

    def test_parts(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertEqual(number, 1)

    @unittest.expectedFailure
    def test_unexpectedly_good(self):
        pass

class Unprepared(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise OSError("nothing is prepared")

    def test_one(self):
        pass
"""
DYING: Final = """
import os, unittest

class Dying(unittest.TestCase):
    def test_death(self):
        os._exit(3)
"""
ENDING: Final = """
import sys, unittest

class Interrupted(unittest.TestCase):
    def test_interrupt(self):
        raise KeyboardInterrupt

class Unprepared(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        sys.exit(3)

    def test_one(self):
        pass
"""
SLOW: Final = """
import os, time, unittest
from tests.programs import POLL, ProgramsTest

class Idle(unittest.TestCase):
    SECONDS = 9.0  # it begins before the other one

    def test_one(self):
        pass

class Slow(ProgramsTest):
    def test_slow(self):
        server = self.start_server()
        print(os.getpid(), server.process.pid, flush=True)
        while not os.path.exists(os.environ["STOP_FILE"]):
            time.sleep(POLL)
"""
IGNORING: Final = """
import signal, tests, unittest
from tests.programs import ProgramsTest

class Ignoring(ProgramsTest):
    def test_program_obeys_signals(self):
        for number in (signal.SIGQUIT, signal.SIGHUP, signal.SIGINT):
            self.assertNotEqual(signal.getsignal(number), signal.SIG_IGN)
            server = self.start_server()
            server.send_signal(number)
            self.assertIn(server.status(), (0, -number))
"""


class RunnerTest(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def run_tests(
        self, program: str, *arguments: str, before: str = "", **modules: str
    ) -> tuple[int, str]:
        """Return the status and the output of ``python -m program`` for these modules' sources.

        ``before`` is what a shell does first.
        """
        for name, source in modules.items():
            (self.folder / f"{name}.py").write_text(source)
        line = [sys.executable, "-m", program, *arguments, *modules]
        if before:
            line = ["sh", "-c", f'{before}; exec "$@"', "sh", *line]
        return self.run_line(line)

    def run_line(self, line: list[str]) -> tuple[int, str]:
        done = subprocess.run(
            line,
            cwd=ROOT,
            env=environment(PYTHONPATH=str(self.folder)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout + done.stderr

    def test_good_tests_are_counted_and_status_is_0(self) -> None:
        status, output = self.run_tests("tests", "-j", "2", sample_good=GOOD)
        self.assertEqual(status, 0, output)
        self.assertEqual(output.splitlines()[-1], "2 passed, 0 failed, 1 skipped")

    def test_failures_are_those_of_unittest_and_shown_whole(self) -> None:
        modules = {"sample_bad": BAD, "sample_good": GOOD}
        status, output = self.run_tests("tests", "-j", "2", **modules)
        self.assertEqual(status, 1)
        theirs, expected = self.run_tests("unittest", **modules)
        self.assertEqual(theirs, 1)
        heading = re.compile(r"^(?:FAIL|ERROR|UNEXPECTED SUCCESS): .*$", re.MULTILINE)
        self.assertEqual(sorted(heading.findall(output)), sorted(heading.findall(expected)))
        ran = re.compile(r"^Ran (\d+) tests", re.MULTILINE)
        self.assertEqual(ran.findall(output), ran.findall(expected))
        for words in (
            "AssertionError: 'the found one' != 'the expected one'",
            "OSError: the disk is on fire",
            "OSError: nothing is prepared",
            "(number=0)",
            "(number=2)",
        ):
            self.assertIn(words, output)
        self.assertEqual(output.splitlines()[-1], "3 passed, 5 failed, 1 skipped")

    def test_module_that_cannot_be_imported_has_failed(self) -> None:
        modules = {"sample_broken": "import no_such_module", "sample_good": GOOD}
        status, output = self.run_tests("tests", **modules)
        self.assertEqual(status, 1)
        self.assertIn("No module named 'no_such_module'", output)
        self.assertEqual(output.splitlines()[-1], "2 passed, 1 failed, 1 skipped")

    def test_name_of_no_test_has_failed(self) -> None:
        self.run_tests("unittest", sample_good=GOOD)
        status, output = self.run_tests("tests", "sample_good.Good.test_three")
        self.assertEqual(status, 1)
        self.assertIn("has no attribute 'test_three'", output)
        status, output = self.run_tests("tests", sample_empty="")
        self.assertEqual((status, output.splitlines()[-1]), (1, "0 passed, 0 failed"))

    def test_single_test_runs_alone(self) -> None:
        self.run_tests("unittest", sample_good=GOOD)
        status, output = self.run_tests("tests", "sample_good.Good.test_two")
        self.assertEqual((status, output.splitlines()[-1]), (0, "1 passed, 0 failed"))

    def test_only_tests_of_the_worker_that_dies_have_failed(self) -> None:
        modules = {"sample_dying": DYING, "sample_good": GOOD}
        for workers in ("1", "2"):
            with self.subTest(workers=workers):
                status, output = self.run_tests("tests", "-j", workers, **modules)
                self.assertEqual(status, 1)
                self.assertIn("ERROR: sample_dying.Dying\n", output)
                self.assertIn("the worker has died: 3", output)
                self.assertEqual(output.splitlines()[-1], "2 passed, 1 failed, 1 skipped")

    def test_exceptions_that_unittest_lets_through_are_failures(self) -> None:
        modules = {"sample_ending": ENDING, "sample_good": GOOD}
        status, output = self.run_tests("tests", "-j", "2", **modules)
        self.assertEqual(status, 1)
        self.assertIn("raise KeyboardInterrupt", output)
        self.assertIn("sys.exit(3)", output)
        self.assertEqual(output.splitlines()[-1], "2 passed, 2 failed, 1 skipped")

    def test_spawned_workers_have_the_same_result(self) -> None:
        code = "from tests import runner; runner.START_METHOD = 'spawn'; exit(runner.main())"
        for name, source in (("sample_bad", BAD), ("sample_good", GOOD), ("sample_dying", DYING)):
            (self.folder / f"{name}.py").write_text(source)
        modules = ["sample_bad", "sample_good", "sample_dying"]
        status, output = self.run_line([sys.executable, "-c", code, *modules])
        self.assertEqual(status, 1)
        self.assertEqual(output.splitlines()[-1], "3 passed, 6 failed, 1 skipped")

    def test_classes_that_take_longest_come_first(self) -> None:
        class Few(unittest.TestCase):
            def test_one(self) -> None: ...

        class Many(Few):
            def test_two(self) -> None: ...

        class Long(Few):
            SECONDS = 9.0

        class Programs(ProgramsTest, Few): ...

        loader = unittest.defaultTestLoader
        suites = [loader.loadTestsFromTestCase(each) for each in (Few, Many, Long, Programs)]
        tests = list(flat(unittest.TestSuite(suites)))
        order = [ids[0].split(".")[-2] for ids in by_class(tests)]
        self.assertEqual(order, ["Long", "Programs", "Many", "Few"])

    @unittest.skipUnless(HAS_PTY, "this system has no pseudo-terminals")
    def test_terminal_shows_progress_in_one_row(self) -> None:
        (self.folder / "sample_good.py").write_text(GOOD)
        line = [sys.executable, "-m", "tests", "sample_good"]
        variables = {"PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}"}
        terminal = TerminalProgram(line, self.folder, 24, 80, variables)
        self.addCleanup(terminal.stop)
        self.assertEqual(terminal.status()[0], 0)
        # Python 3.12.1 does not count a test that is skipped.
        self.assertRegex(terminal.written, rb"\r\033\[K[23] of 3 tests, 0 failed, ")
        result, blank, last, end = terminal.all_rows
        self.assertRegex(result, r"^Ran \d tests in ")
        self.assertEqual((blank, last, end), ("", "2 passed, 0 failed, 1 skipped", ""))

    def test_timeout_factor_lengthens_every_wait(self) -> None:
        code = "from tests.programs import PATIENCE; print(PATIENCE)"
        with mock.patch.dict(os.environ, CHAT_TESTS_TIMEOUT_FACTOR="3"):
            self.assertEqual(self.run_line([sys.executable, "-c", code]), (0, "90.0\n"))

    def test_wrong_usage_is_status_2(self) -> None:
        for arguments in (("-j", "0"), ("-j", "x"), ("--fast",)):
            with self.subTest(arguments):
                status, output = self.run_tests("tests", *arguments)
                self.assertEqual(status, 2)
                self.assertIn("usage: python -m tests", output)
        status, output = self.run_tests("tests", "sample_good", sample_good=GOOD)
        self.assertEqual(status, 2)
        self.assertIn("is named twice", output)

    @unittest.skipUnless(os.name == "posix", "needs a shell")
    def test_signals_ignored_by_the_starter_are_not_by_programs(self) -> None:
        for program in ("tests", "unittest"):
            with self.subTest(program):
                status, output = self.run_tests(
                    program, before="trap '' INT QUIT HUP", sample_ignoring=IGNORING
                )
                self.assertEqual(status, 0, output)

    @unittest.skipUnless(sys.platform == "linux", "looks at processes")
    def test_signals_end_the_workers_and_their_programs(self) -> None:
        (self.folder / "sample_slow.py").write_text(SLOW)
        stop = self.folder / "stop"
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)):
            with (
                self.subTest(number),
                subprocess.Popen(
                    [sys.executable, "-m", "tests", "-j", "2", "sample_slow"],
                    cwd=ROOT,
                    env=environment(PYTHONPATH=str(self.folder), STOP_FILE=str(stop)),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                ) as running,
            ):
                assert running.stdout
                pids = list(map(int, running.stdout.readline().split()))
                if number == signal.SIGINT:
                    os.killpg(running.pid, number)  # as a terminal does
                else:
                    running.send_signal(number)
                if number == signal.SIGKILL:
                    stop.touch()  # a worker runs its test to the end
                wait_until(partial(self.have_ended, pids), "the others' end")
                _, errors = running.communicate(timeout=PATIENCE)
                self.assertEqual((running.returncode, errors), (status, b""))

    def have_ended(self, pids: list[int]) -> bool:
        return not any(map(is_running, pids))


if __name__ == "__main__":
    unittest.main()
