"""The real programs as processes: started, typed to, waited for by what they print, and ended."""

from __future__ import annotations

import codecs
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Condition, Thread
from typing import IO, Final

ROOT: Final = Path(__file__).resolve().parent.parent
LOCALHOST: Final = "127.0.0.1"
# Only a failing test waits that long; a busy machine needs some of it.
PATIENCE: Final = 30.0  # seconds

_WITH_TIMING: Final = (
    "import sys; sys.path.insert(0, {root!r}); import dataclasses, protocol, {module};"
    "timing = dataclasses.replace(protocol.TIMING, **{timing!r});"
    "protocol.ITERATIONS = protocol.ITERATIONS_ALLOWED[0];"
    "sys.exit({module}.main(sys.argv[1:], timing=timing))"
)


def command(module: str, arguments: Sequence[str], timing: Mapping[str, float]) -> list[str]:
    """What starts a program; with other durations than its own if ``timing`` names some, and then
    it also makes as little of a new password as clients allow."""
    if timing:
        code = _WITH_TIMING.format(root=str(ROOT), module=module, timing=dict(timing))
        return [sys.executable, "-c", code, *arguments]
    return [sys.executable, str(ROOT / f"{module}.py"), *arguments]


def environment(**more: str) -> dict[str, str]:
    """This one, but for what would hide that a program forgets to flush, and for passwords of
    the person who runs the tests."""
    left_out = ("PYTHONUNBUFFERED", "CHAT_PASSWORD", "CHAT_NEW_PASSWORD")
    return {k: v for k, v in os.environ.items() if k not in left_out} | more


def free_port() -> int:
    """A UDP port that nobody uses at the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
        return port


def without_clock(line: str) -> str:
    """The line as the documentation has it: ``[HH:MM]`` in place of the time."""
    return re.sub(r"\[\d\d:\d\d\]", "[HH:MM]", line)


class Program:
    """A running process, and what it has printed so far."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        stdout: int = subprocess.PIPE,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            arguments,
            cwd=folder,
            env=environment(**(variables or {})),
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
        self._changed = Condition()
        self._printed: list[str] = []
        self._complaints: list[str] = []
        streams = ((self.process.stdout, self._printed), (self.process.stderr, self._complaints))
        self._threads = [
            Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in streams
            if stream
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: IO[bytes], lines: list[str]) -> None:
        with stream:
            for raw in stream:
                with self._changed:
                    lines.append(raw.decode().rstrip("\r\n"))
                    self._changed.notify_all()

    @property
    def shown(self) -> list[str]:
        """The lines on its standard output, with ``[HH:MM]`` for every time."""
        with self._changed:
            return [without_clock(line) for line in self._printed]

    @property
    def printed(self) -> list[str]:
        """The same lines with the times as they are."""
        with self._changed:
            return list(self._printed)

    @property
    def complaints(self) -> list[str]:
        """The lines on its standard error."""
        with self._changed:
            return list(self._complaints)

    def is_running(self) -> bool:
        return self.process.poll() is None

    def type(self, *lines: str) -> None:
        self.type_bytes("".join(f"{line}\n" for line in lines).encode())

    def type_bytes(self, raw: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(raw)
        self.process.stdin.flush()

    def end_input(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def wait_until(self, is_so: Callable[[], bool], what: object) -> None:
        """Until its output makes ``is_so`` true."""
        with self._changed:
            if not self._changed.wait_for(is_so, PATIENCE):
                raise AssertionError(f"in vain for {what!r}: {self}")

    def wait_for(self, *lines: str, times: int = 1) -> None:
        """Until it has shown each of these that often."""

        def is_so() -> bool:
            shown = self.shown
            return all(shown.count(line) >= times for line in lines)

        self.wait_until(is_so, lines)

    def wait_for_complaint(self, part: str) -> None:
        self.wait_until(lambda: any(part in line for line in self.complaints), part)

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def status(self) -> int:
        """Its exit status, once it has ended and all that it printed is here."""
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self}") from None
        for thread in self._threads:
            thread.join(PATIENCE)
        return status

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.status()
        if self.process.stdin:
            with suppress(BrokenPipeError):  # it may end before it has read everything
                self.process.stdin.close()

    def __str__(self) -> str:
        return (
            f"{self.process.args!r} with status {self.process.poll()} "
            f"has shown {self.shown} and complained {self.complaints}"
        )


class ServerProgram(Program):
    """A server that is listening."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        super().__init__(arguments, folder)
        try:
            self.wait_until(lambda: bool(self.printed), "the address")
            found = re.fullmatch(r"Listening on UDP (\S+) port (\d+)", self.printed[0])
            assert found, self.printed
        except AssertionError:
            self.stop()
            raise
        self.host, self.port = found[1], int(found[2])


class ProgramsTest(unittest.TestCase):
    """A test with a folder, and processes that end with it."""

    @classmethod
    def setUpClass(cls) -> None:
        # Who runs the tests in the background may ignore it, and programs inherit that.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            cls.addClassCleanup(signal.signal, signal.SIGINT, signal.SIG_IGN)

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def start_server(
        self, *options: str, port: int = 0, host: str | None = LOCALHOST, **timing: float
    ) -> ServerProgram:
        """A server whose room file is ``self.db``, with its own durations but for ``timing``."""
        where = ["--host", host] if host else []
        arguments = [str(port), "--db", str(self.db), *where, *options]
        server = ServerProgram(command("chatserver", arguments, timing), self.folder)
        self.addCleanup(server.stop)
        return server

    @property
    def db(self) -> Path:
        return self.folder / "chat.db"

    def start(
        self,
        arguments: Sequence[str],
        stdout: int = subprocess.PIPE,
        variables: Mapping[str, str] | None = None,
    ) -> Program:
        program = Program(arguments, self.folder, stdout, variables)
        self.addCleanup(program.stop)
        return program

    def start_client(
        self,
        name: str,
        server_port: int,
        host: str = LOCALHOST,
        port: int = 0,
        stdout: int = subprocess.PIPE,
        **timing: float,
    ) -> Program:
        arguments = [host, str(port), name, "--server-port", str(server_port)]
        return self.start(command("chatclient", arguments, timing), stdout)

    def join(self, port: int, *names: str) -> list[Program]:
        """Clients of these names, which have joined in any order."""
        clients = [self.start_client(name, port) for name in names]
        for client in clients:
            wait_until_joined(client)
        return clients

    def end(self, client: Program) -> list[str]:
        """What a client has shown when it has ended, with status 0 and without a complaint."""
        self.assertEqual(client.status(), 0, str(client))
        self.assertEqual(client.complaints, [])
        return client.shown

    def leave(self, client: Program) -> list[str]:
        """The same, having made it leave."""
        client.type("EX")
        return self.end(client)


def wait_until_joined(client: Program) -> None:
    client.wait_until(lambda: any(line.startswith("* here: ") for line in client.shown), "* here:")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


class Screen:
    """What a terminal shows: as much of one as readline and the client need."""

    _SEQUENCE: Final = re.compile(
        r"\033(?:\[(?P<numbers>[0-9;?]*)(?P<command>[@-~])|(?P<escape>[^\[]))|(?P<plain>[^\033])"
    )

    def __init__(self, rows: int, columns: int) -> None:
        self.size = rows, columns
        self.row = self.column = 0
        self._cells = [[" "] * columns for _ in range(rows)]
        self._saved = 0, 0
        self._unread = ""

    @property
    def rows(self) -> list[str]:
        """The rows down to the cursor's, from the first that is not empty on."""
        rows = ["".join(cells).rstrip() for cells in self._cells[: self.row + 1]]
        while len(rows) > 1 and not rows[0]:
            del rows[0]
        return rows

    @property
    def below(self) -> str:
        """What there is below the cursor's row."""
        return "".join("".join(cells) for cells in self._cells[self.row + 1 :]).strip()

    def feed(self, text: str) -> None:
        self._unread += text
        # A sequence may come in two pieces: what does not match yet waits for the rest.
        while found := self._SEQUENCE.match(self._unread):
            self._unread = self._unread[found.end() :]
            if plain := found["plain"]:
                self._put(plain)
            elif command := found["command"]:
                number = found["numbers"].partition(";")[0]
                self._control(command, int(number) if number.isdigit() else 0)
            else:
                self._escape(found["escape"])

    def _put(self, character: str) -> None:
        match character:
            case "\r":
                self.column = 0
            case "\n":
                self._line_feed()
            case "\b":
                self.column = max(0, self.column - 1)
            case _ if character.isprintable():
                if self.column == self.size[1]:  # a full row wraps only with the next character
                    self.column = 0
                    self._line_feed()
                self._cells[self.row][self.column] = character
                self.column += 1

    def _line_feed(self) -> None:
        if self.row + 1 < self.size[0]:
            self.row += 1
        else:
            self._cells = [*self._cells[1:], [" "] * self.size[1]]

    def _escape(self, letter: str) -> None:
        match letter:
            case "7":
                self._saved = self.row, self.column
            case "8":
                self.row, self.column = self._saved

    def _control(self, command: str, number: int) -> None:
        rows, columns = self.size
        row, count = self._cells[self.row], number or 1
        match command:
            case "A":
                self.row = max(0, self.row - count)
            case "B":
                self.row = min(rows - 1, self.row + count)
            case "C":
                self.column = min(columns - 1, self.column + count)
            case "D":
                self.column = max(0, self.column - count)
            case "H":
                self.row = self.column = 0  # readline asks for no other place than home
            case "K":
                row[self.column :] = [" "] * (columns - self.column)
            case "J":
                row[self.column :] = [" "] * (columns - self.column)
                for below in self._cells[self.row + 1 :]:
                    below[:] = [" "] * columns
            case "L":
                blank = [[" "] * columns for _ in range(count)]
                self._cells[self.row : self.row] = blank
                del self._cells[rows:]
            case "P":
                del row[self.column : self.column + count]
                row += [" "] * (columns - len(row))
            case "@":
                row[self.column : self.column] = [" "] * count
                del row[columns:]


class TerminalProgram:
    """A program on a pseudo-terminal of its own."""

    # The new process itself takes the terminal: it must be its session's controlling one.
    _LOGIN: Final = (
        "import os, sys; os.login_tty(int(sys.argv[1]));"
        "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    )

    def __init__(self, arguments: Sequence[str], folder: Path, rows: int, columns: int) -> None:
        import termios  # not on Windows

        self._master, self._slave = os.openpty()
        termios.tcsetwinsize(self._slave, (rows, columns))
        self._get_attributes: Callable[[], list[object]] = lambda: termios.tcgetattr(self._slave)
        self.attributes_before = self._get_attributes()
        self._screen = Screen(rows, columns)
        self._changed = Condition()
        self._process = subprocess.Popen(
            [arguments[0], "-c", self._LOGIN, str(self._slave), *arguments[1:]],
            cwd=folder,
            pass_fds=(self._slave,),
            env=environment(TERM="xterm", INPUTRC=os.devnull),
        )
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        while True:
            try:
                raw = os.read(self._master, 4096)
            except OSError:  # Linux's way to say that nobody has the other end any more
                return
            if not raw:
                return
            with self._changed:
                self._screen.feed(decoder.decode(raw))
                self._changed.notify_all()

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def press_until_it_ends(self, key: str) -> None:
        """Now and then, like somebody who does not like to wait."""
        for _ in range(20):
            self.type(key)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(PATIENCE / 60)
                return

    @property
    def rows(self) -> list[str]:
        """The rows down to the cursor's, with ``[HH:MM]`` for every time."""
        with self._changed:
            return [without_clock(row) for row in self._screen.rows]

    @property
    def cursor(self) -> int:
        """The column where the next character will appear."""
        with self._changed:
            return self._screen.column

    def wait_until(self, is_so: Callable[[], bool], what: object) -> None:
        with self._changed:
            if not self._changed.wait_for(is_so, PATIENCE):
                raise AssertionError(
                    f"in vain for {what}: there are {self.rows} with the cursor in column "
                    f"{self.cursor}, and below it {self._screen.below!r}"
                )

    def wait_for(self, *rows: str, cursor: int) -> None:
        """Until these are the last rows that it shows, with the cursor in the last of them."""

        def is_so() -> bool:
            end = self.rows[-len(rows) :]
            return end == list(rows) and self.cursor == cursor and not self._screen.below

        self.wait_until(is_so, f"{rows} and column {cursor}")

    def status(self) -> tuple[int, list[object]]:
        """The exit status, and the terminal's attributes then."""
        return self._process.wait(PATIENCE), self._get_attributes()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(PATIENCE)
        os.close(self._slave)
        self._thread.join(PATIENCE)
        os.close(self._master)
