"""Starts the programs by fork, from one process that has imported them already (Linux only).

An interpreter that starts and imports a program uses some 200 ms of CPU, and the tests start
hundreds of them. A fork uses some 10 ms.

    test process  -- a request, descriptors (SCM_RIGHTS) -->  fork server  -- fork -->  program
                  <-- the program's id, or how it ended ----

The fork server is one process of its own, started by exec and without threads, so that a fork never
copies a lock that some other thread holds. It has imported the two programs, but not readline:
that reads the terminal's kind and the person's inputrc when it is imported. In each new process
``_take_on`` sets whatever an exec by the test process would have set: descriptors, environment,
folder, umask, ignored signals and, on request, a terminal with a session. Then the program runs,
and the interpreter ends as it always does.

A forked program still differs from an exec'd one. It has no readline where its input is no
terminal, all programs of a test process share one hash seed, and resource limits are those of the
fork server's start. A test that is about the start itself uses exec (``Command.line``): of a path,
as a module, with PYTHON* variables or another locale, with closed or full descriptors, or how long
it takes.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import locale
import multiprocessing.util
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import IO, Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
CAN_FORK: Final = sys.platform == "linux" and hasattr(os, "pidfd_open")
LARGEST: Final = 1 << 20  # bytes of a request: arguments and environment
PROGRAMS: Final = ("protocol", "chatserver", "chatclient")

# Python ignores these two in every process.
_ALWAYS_IGNORED: Final = {
    getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)
}


@dataclass(frozen=True, slots=True)
class Command:
    """One of the programs with its arguments, and durations that differ from its own.

    With a ``timing`` it also makes as little work of a new password as clients allow.
    """

    module: str
    arguments: Sequence[str]
    timing: Mapping[str, float] = field(default_factory=dict)

    _WITH_TIMING = (
        "import sys; sys.path.insert(0, {root!r}); from tests.forkserver import Command;"
        "Command({module!r}, sys.argv[1:], {timing!r}).run()"
    )

    @property
    def line(self) -> list[str]:
        """Return the command line that starts it by exec."""
        if self.timing:
            code = self._WITH_TIMING.format(
                root=str(ROOT), module=self.module, timing=dict(self.timing)
            )
            return [sys.executable, "-c", code, *self.arguments]
        return [sys.executable, str(ROOT / f"{self.module}.py"), *self.arguments]

    def run(self) -> None:
        """Run it in this process, and raise SystemExit with its status."""
        sys.argv = [f"{self.module}.py", *self.arguments]
        main = importlib.import_module(self.module).main
        if not self.timing:
            sys.exit(main())
        protocol = importlib.import_module("protocol")
        vars(protocol)["ITERATIONS"] = protocol.ITERATIONS_ALLOWED[0]
        sys.exit(main(timing=dataclasses.replace(protocol.TIMING, **self.timing)))


# ------------------------------------------------------------------------------ the test process


def ignored_signals() -> list[int]:
    """Return the signals that a process which is started now ignores."""
    found = (n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN)
    return sorted(int(number) for number in set(found) - _ALWAYS_IGNORED)


class ForkServer:
    """The test process's end of a fork server."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST)
        self._lock = Lock()  # tests have threads
        # Unbuffered, readline would write letter by letter, and other rows come between them.
        variables = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forkserver", str(theirs.fileno())],
                cwd=ROOT,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        # Unlike atexit's, these are called in multiprocessing's workers too.
        multiprocessing.util.Finalize(None, self._end, exitpriority=0)

    def _end(self) -> None:
        self._control.close()
        self._process.wait()

    def start(
        self,
        command: Command,
        folder: Path,
        variables: Mapping[str, str],
        descriptors: Sequence[int],
    ) -> int:
        """Fork a program and return its process id.

        ``descriptors`` are its standard input, output and error, or the one terminal that it gets
        together with a session of its own.
        """
        with self._lock:
            umask = os.umask(0o077)
            os.umask(umask)
        request = {
            "command": (command.module, list(command.arguments), dict(command.timing)),
            "folder": str(folder),
            "variables": dict(variables),
            "umask": umask,
            "ignored": ignored_signals(),
        }
        pid: int = self._ask(request, descriptors)
        return pid

    def wait(self, pid: int, options: int) -> tuple[int, int] | None:
        """Return the code and the status of os.waitid(), or None if it has nothing to tell."""
        found = self._ask({"wait": pid, "options": options})
        return (found[0], found[1]) if found else None

    def _ask(self, request: Mapping[str, object], descriptors: Sequence[int] = ()) -> Any:
        with self._lock:
            socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)
            reply = self._control.recv(LARGEST)
        if not reply:
            raise AssertionError("the fork server has ended")
        found = json.loads(reply)
        if isinstance(found, str):
            raise AssertionError(f"the fork server: {found}")
        return found


def fork_server() -> ForkServer | None:
    """Return this process's fork server, or None on systems where programs are exec'd."""
    return _fork_server_of(os.getpid()) if CAN_FORK else None


@cache
def _fork_server_of(pid: int) -> ForkServer:
    """Return the fork server of one process; a fork of that process does not share it."""
    return ForkServer()


class Forked:
    """A forked program, with as much of subprocess.Popen's interface as the tests need."""

    def __init__(
        self,
        server: ForkServer,
        command: Command,
        folder: Path,
        variables: Mapping[str, str],
        stdout: int = subprocess.PIPE,
        terminal: int | None = None,
    ) -> None:
        """Fork it with pipes, or with ``stdout`` as its output, or on a terminal."""
        self.args = command.line
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self._server = server
        if terminal is not None:
            self.pid = server.start(command, folder, variables, [terminal])
        else:
            with ExitStack() as theirs:

                def pipe(reads: bool) -> tuple[int, IO[bytes]]:
                    ends = os.pipe()
                    theirs.callback(os.close, ends[not reads])
                    return ends[not reads], os.fdopen(ends[reads], "wb" if reads else "rb")

                (fd_in, self.stdin), (fd_err, self.stderr) = pipe(True), pipe(False)
                fd_out = stdout
                if stdout == subprocess.PIPE:
                    fd_out, self.stdout = pipe(False)
                self.pid = server.start(command, folder, variables, [fd_in, fd_out, fd_err])
        self._ended = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        """Return its status if it has ended."""
        if self.returncode is None and (found := self._server.wait(self.pid, os.WEXITED)):
            code, status = found
            self.returncode = status if code == os.CLD_EXITED else -status
            os.close(self._ended)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its status once it has ended, or raise subprocess.TimeoutExpired."""
        if self.returncode is None:
            select.select([self._ended], [], [], timeout)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless its status is known: its id is its own until then."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def is_stopped(self) -> bool:
        """Return True if a signal has stopped it."""
        is_ended = self.returncode is not None
        return not is_ended and bool(self._server.wait(self.pid, os.WSTOPPED | os.WNOWAIT))


# ------------------------------------------------------------------------------- the fork server


def _serve(control: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Answer requests until the test process ends; in each new process return its request."""
    running: set[int] = set()
    is_new = False
    try:
        while True:
            raw, descriptors, _, _ = socket.recv_fds(control, LARGEST, 3)
            if not raw:
                return None
            request = json.loads(raw)
            reply: object
            try:
                reply = _wait(request, running) if "wait" in request else os.fork()
            except OSError as error:
                reply = str(error)
            if reply == 0:
                is_new = True
                return request, descriptors
            if "wait" not in request and isinstance(reply, int):
                running.add(reply)
            for each in descriptors:
                os.close(each)
            control.send(json.dumps(reply).encode())
    finally:
        for pid in () if is_new else running:
            os.kill(pid, signal.SIGKILL)


def _wait(request: Mapping[str, Any], running: set[int]) -> tuple[int, int] | None:
    """Return what os.waitid() tells of a program, without waiting for that."""
    pid, options = request["wait"], request["options"]
    found = os.waitid(os.P_PID, pid, options | os.WNOHANG)
    if found and options & os.WEXITED:
        running.discard(pid)
    return (found.si_code, found.si_status) if found else None


def _take_on(request: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """Make this process what an exec by the test process would have made it."""
    for number in signal.valid_signals() - _ALWAYS_IGNORED - {signal.SIGKILL, signal.SIGSTOP}:
        handler: Any = signal.SIG_IGN if number in request["ignored"] else signal.SIG_DFL
        if number == signal.SIGINT and handler == signal.SIG_DFL:
            handler = signal.default_int_handler
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["variables"])
    time.tzset()
    with suppress(locale.Error):  # of a locale that is not installed; Python starts all the same
        locale.setlocale(locale.LC_CTYPE, "")
    if len(descriptors) == 1:
        os.login_tty(descriptors[0])
    else:
        for target, each in enumerate(descriptors):
            os.dup2(each, target)
            os.close(each)
    _open_stdio()


def _open_stdio() -> None:
    """Make the three streams anew, since what they are connected to decides how they buffer."""
    encoding, errors = sys.stdin.encoding, sys.stdin.errors
    for number, name, mode, buffering, on_error in (
        (0, "stdin", "r", -1, errors),
        (1, "stdout", "w", -1, errors),
        (2, "stderr", "w", 1, "backslashreplace"),
    ):
        stream = os.fdopen(number, mode, buffering, encoding, on_error, "\n", closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def main() -> None:
    """Serve, and run a program in each process that is forked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests end it by ending
    modules: dict[str, Any] = sys.modules
    modules["readline"] = None
    for name in PROGRAMS:
        importlib.import_module(name)
    del modules["readline"]
    gc.freeze()  # a collection would copy all these pages in every new process
    with socket.socket(fileno=int(sys.argv[1])) as control:
        job = _serve(control)
    if job:
        request, descriptors = job
        _take_on(request, descriptors)
        if os.isatty(0):
            importlib.reload(sys.modules["chatclient"])  # with readline
        module, arguments, timing = request["command"]
        Command(module, arguments, timing).run()


if __name__ == "__main__":
    main()
