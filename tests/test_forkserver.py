"""A forked program finds itself where exec would have put it, and ends with the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

from tests import programs
from tests.forkserver import CAN_FORK, ROOT, Command, ForkServer, fork_server
from tests.probe import STATUS
from tests.programs import LOCALHOST, PATIENCE, Program, environment, is_running, wait_until
from tests.terminal import TerminalProgram

PROBE: Final = Command("tests.probe", ["an argument"], {"linger": 1.0})


@unittest.skipUnless(CAN_FORK, "this system starts programs by exec")
class ForkServerTest(unittest.TestCase):
    maxDiff = None

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def found_in_pipes(self, start: Command | list[str], **variables: str) -> dict[str, Any]:
        program = Program(start, self.folder, variables=variables)
        self.addCleanup(program.stop)
        self.assertEqual((program.status(), program.complaints), (STATUS, []))
        found: dict[str, Any] = json.loads(program.printed[0])
        return found

    def found_on_terminal(self, start: Command | list[str]) -> dict[str, Any]:
        terminal = TerminalProgram(start, self.folder, 24, 9999, {"TERM": "vt100"})
        self.addCleanup(terminal.stop)
        self.assertEqual(terminal.status()[0], STATUS)
        terminal.wait_until(lambda: b"\n" in terminal.written, "a line")
        found: dict[str, Any] = json.loads(terminal.written)
        return found

    def test_fork_in_pipes_equals_exec(self) -> None:
        forked, execed = self.found_in_pipes(PROBE), self.found_in_pipes(PROBE.line)
        self.assertEqual(forked, execed)
        self.assertEqual(forked["folder"], str(self.folder.resolve()))
        self.assertEqual(forked["arguments"], PROBE.arguments)
        self.assertFalse(forked["leads session"])

    def test_fork_on_a_terminal_equals_exec(self) -> None:
        forked, execed = self.found_on_terminal(PROBE), self.found_on_terminal(PROBE.line)
        self.assertEqual(forked, execed)
        self.assertTrue(forked["has terminal"])
        self.assertTrue(forked["leads session"])
        self.assertEqual(forked["environment"]["TERM"], "vt100")
        self.assertTrue(forked["has readline"])

    def test_fork_inherits_changes_that_the_tests_have_made(self) -> None:
        self.found_in_pipes(PROBE)  # the fork server has started before
        self.addCleanup(os.umask, os.umask(0o027))
        for number in (signal.SIGINT, signal.SIGUSR1):
            self.addCleanup(signal.signal, number, signal.signal(number, signal.SIG_IGN))
        variables = {"TZ": "Asia/Tokyo", "CHAT_TEST": "\udcff\u00e9"}
        forked = self.found_in_pipes(PROBE, **variables)
        self.assertEqual(forked, self.found_in_pipes(PROBE.line, **variables))
        self.assertEqual(forked["umask"], 0o027)
        self.assertIn("SIG_IGN", forked["signals"][str(int(signal.SIGINT))])
        self.assertEqual(forked["hour of the epoch"], 9)

    def test_forked_program_buffers_though_the_tests_do_not(self) -> None:
        with mock.patch.dict(os.environ, PYTHONUNBUFFERED="1"):
            server = ForkServer()
            with mock.patch.object(programs, "fork_server", return_value=server):
                forked = self.found_in_pipes(PROBE)
            self.assertEqual(forked, self.found_in_pipes(PROBE.line))
        self.assertNotIn("PYTHONUNBUFFERED", forked["environment"])

    def test_forked_program_starts_though_its_locale_is_missing(self) -> None:
        forked = self.found_in_pipes(PROBE, LC_ALL="xx_XX.UTF-8")
        self.assertEqual(forked["environment"]["LC_ALL"], "xx_XX.UTF-8")

    def test_process_that_is_forked_has_a_fork_server_of_its_own(self) -> None:
        ours = fork_server()
        pipe = os.pipe()
        if not (pid := os.fork()):
            os.write(pipe[1], b"shared" if fork_server() is ours else b"own")
            os._exit(0)
        os.close(pipe[1])
        with open(pipe[0], "rb") as found:
            self.assertEqual(found.read(), b"own")
        os.waitpid(pid, 0)

    def test_request_that_cannot_be_met_leaves_the_fork_server_alive(self) -> None:
        server = fork_server()
        assert server
        with self.assertRaisesRegex(AssertionError, "No child processes"):
            server.wait(os.getpid(), os.WEXITED)
        self.found_in_pipes(PROBE)

    def test_program_that_a_signal_ends_has_its_number_as_status(self) -> None:
        for number in (signal.SIGKILL, signal.SIGQUIT):
            program = Program(Command("chatserver", ["0", "--host", LOCALHOST]), self.folder)
            self.addCleanup(program.stop)
            wait_until(partial(self.has_printed, program), "the address")
            program.send_signal(number)
            self.assertEqual(program.status(), -number)
            program.send_signal(number)  # reaches nobody

    def has_printed(self, program: Program) -> bool:
        return bool(program.printed)

    def test_programs_end_though_the_tests_are_killed(self) -> None:
        code = (
            "from pathlib import Path; import sys, time\n"
            "from tests.programs import Command, Program\n"
            "program = Program(Command('chatserver', ['0']), Path(sys.argv[1]))\n"
            "program.wait_until(lambda: bool(program.printed), 'the address')\n"
            f"print(program.process.pid, flush=True); time.sleep({PATIENCE})"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(self.folder)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
        ) as tests:
            assert tests.stdout
            pid = int(tests.stdout.readline())
            self.assertTrue(is_running(pid))
            tests.kill()
        wait_until(lambda: not is_running(pid), "the program's end")


if __name__ == "__main__":
    unittest.main()
