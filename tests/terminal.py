"""The real programs on a terminal: a pseudo-terminal, and a model of what its screen shows."""

from __future__ import annotations

import codecs
import importlib.util
import os
import re
import subprocess
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Condition, Thread
from typing import Final, TypeAlias

from tests.forkserver import Command, Forked, fork_server
from tests.programs import PATIENCE, environment, without_clock

HAS_PTY: Final = importlib.util.find_spec("termios") is not None and hasattr(os, "openpty")
PASTE: Final = "\033[200~{}\033[201~"  # as terminals mark one, if they are asked to

Cell: TypeAlias = tuple[str, str]  # what it shows, and how; "": the right half of a wide character
BLANK: Final[Cell] = (" ", "")


WIDER_HERE: Final = "\u2460"  # of a width that terminals do not agree on


def columns_of(character: str) -> int:
    """How many columns it takes on the screen."""
    if character == WIDER_HERE:
        return 2
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


class Screen:
    """What a terminal shows: as much of one as readline and the client need."""

    _SEQUENCE: Final = re.compile(
        r"\033(?:\[(?P<numbers>[0-9;?]*)(?P<command>[@-~])|(?P<escape>[^\[]))|(?P<plain>[^\033])"
    )

    def __init__(self, rows: int, columns: int) -> None:
        self.size = rows, columns
        self.row = self.column = 0
        self.bells = 0
        self.gone: list[str] = []  # rows that have scrolled away at the top
        self._cells = [self._blank() for _ in range(rows)]
        self._look = ""  # of what is written from now on: SGR's numbers
        self._saved = 0, 0
        self._unread = ""
        self._wraps = True

    def _blank(self) -> list[Cell]:
        return [BLANK] * self.size[1]

    @property
    def rows(self) -> list[str]:
        """The rows down to the cursor's, from the first that is not empty on."""
        rows = [_text(cells) for cells in self._cells[: self.row + 1]]
        while len(rows) > 1 and not rows[0]:
            del rows[0]
        return rows

    @property
    def below(self) -> str:
        """What there is below the cursor's row."""
        return "".join(map(_text, self._cells[self.row + 1 :])).strip()

    def looks_of(self, text: str) -> set[str]:
        """How the last place on the screen that shows this text looks: one look, if it is in one
        colour."""
        for cells in reversed(self._cells):
            if (start := "".join(shown for shown, _ in cells).rfind(text)) >= 0:
                letters = [look for shown, look in cells for _ in shown]
                return set(letters[start : start + len(text)])
        raise AssertionError(f"{text!r} is not shown")

    def resize(self, rows: int, columns: int) -> None:
        """As xterm does it: what does not fit in is cut off, at the right and at the top."""
        above = max(0, self.row + 1 - rows)
        self.gone += map(_text, self._cells[:above])
        self.row -= above
        self.column = min(self.column, columns - 1)
        self.size = rows, columns
        kept = self._cells[above : above + rows]
        self._cells = [[*cells, *self._blank()][:columns] for cells in kept]
        self._cells += [self._blank() for _ in range(rows - len(kept))]

    def feed(self, text: str) -> None:
        self._unread += text
        # A sequence may come in two pieces: what does not match yet waits for the rest.
        while found := self._SEQUENCE.match(self._unread):
            self._unread = self._unread[found.end() :]
            if plain := found["plain"]:
                self._put(plain)
            elif command := found["command"]:
                self._control(command, found["numbers"])
            else:
                self._escape(found["escape"])

    def _put(self, character: str) -> None:
        match character:
            case "\r":
                self.column = 0
            case "\n":
                self._line_feed()
            case "\b":
                self.column = max(0, min(self.column, self.size[1] - 1) - 1)
            case "\a":
                self.bells += 1
            case _ if not columns_of(character):  # it joins the one before it
                cells, at = self._cells[self.row], max(0, self.column - 1)
                at -= not cells[at][0] and at > 0
                cells[at] = (cells[at][0] + character, cells[at][1])
            case _ if character.isprintable():
                self._write(character, columns_of(character))

    def _write(self, character: str, width: int) -> None:
        if self.column + width > self.size[1]:  # a full row wraps only with the next character
            if self._wraps:
                self.column = 0
                self._line_feed()
            else:
                self.column = self.size[1] - width
        cells, end = self._cells[self.row], self.column + width
        if not cells[self.column][0]:  # half of what is overwritten is nothing
            cells[self.column - 1] = BLANK
        if end < self.size[1] and not cells[end][0]:
            cells[end] = BLANK
        cells[self.column : end] = [(character, self._look), ("", self._look)][:width]
        self.column = end

    def _line_feed(self) -> None:
        if self.row + 1 < self.size[0]:
            self.row += 1
        else:
            self.gone.append(_text(self._cells[0]))
            self._cells = [*self._cells[1:], self._blank()]

    def _escape(self, letter: str) -> None:
        match letter:
            case "7":
                self._saved = self.row, self.column
            case "8":
                self.row, self.column = self._saved

    def _control(self, command: str, numbers: str) -> None:
        if command == "m":  # readline ends what it marks by 27, the client everything by nothing
            self._look = "" if numbers in ("", "0", "27") else numbers
            return
        if numbers == "?7":
            self._wraps = command == "h"
        rows, columns = self.size
        row, count = self._cells[self.row], max(1, int(numbers) if numbers.isdigit() else 0)
        self.column = min(self.column, columns - 1)
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
                row[self.column :] = [BLANK] * (columns - self.column)
            case "J":
                if self.row == self.column == 0:  # tmux and screen keep what is cleared from there
                    self.gone += filter(None, map(_text, self._cells))
                row[self.column :] = [BLANK] * (columns - self.column)
                for below in self._cells[self.row + 1 :]:
                    below[:] = self._blank()
            case "M":
                del self._cells[self.row : self.row + count]
                self._cells += [self._blank() for _ in range(rows - len(self._cells))]
            case "L":
                self._cells[self.row : self.row] = [self._blank() for _ in range(count)]
                del self._cells[rows:]
            case "P":
                del row[self.column : self.column + count]
                row += [BLANK] * (columns - len(row))
            case "@":
                row[self.column : self.column] = [BLANK] * count
                del row[columns:]


def _text(cells: Sequence[Cell]) -> str:
    return "".join(shown for shown, _ in cells).rstrip()


class TerminalProgram:
    """A program on a pseudo-terminal of its own; ``variables`` that are "" are not set."""

    _END: Final = b"\0"  # programs write none
    # The new process itself takes the terminal: it must be its session's controlling one.
    _LOGIN: Final = (
        "import os, sys; os.login_tty(int(sys.argv[1]));"
        "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    )

    def __init__(
        self,
        start: Command | Sequence[str],
        folder: Path,
        rows: int,
        columns: int,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        import termios  # not on Windows

        self._master, self._slave = os.openpty()
        self._set_size = termios.tcsetwinsize
        self._set_size(self._slave, (rows, columns))
        self._get_attributes: Callable[[], list[object]] = lambda: termios.tcgetattr(self._slave)
        self.attributes_before = self._get_attributes()
        self.written = b""  # all that has come to the terminal
        self._is_read = False
        self._screen = Screen(rows, columns)
        self._changed = Condition()
        given = {"TERM": "xterm", "INPUTRC": os.devnull, "NO_COLOR": "", **(variables or {})}
        env = {name: value for name, value in environment(**given).items() if value}
        self.process: Forked | subprocess.Popen[bytes]
        if isinstance(start, Command) and (server := fork_server()):
            self.process = Forked(server, start, folder, env, terminal=self._slave)
        else:
            line = start.line if isinstance(start, Command) else start
            self.process = subprocess.Popen(
                [line[0], "-c", self._LOGIN, str(self._slave), *line[1:]],
                cwd=folder,
                pass_fds=(self._slave,),
                env=env,
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
                self._is_read |= self._END in raw
                raw = raw.replace(self._END, b"")
                self.written += raw
                self._screen.feed(decoder.decode(raw))
                self._changed.notify_all()

    def type(self, keys: str) -> None:
        raw = keys.encode()
        while raw:  # a terminal's input takes some thousand bytes at a time
            raw = raw[os.write(self._master, raw[:1000]) :]

    def resize(self, rows: int, columns: int) -> None:
        """Resize the window, and wait until readline has drawn its line again.

        Whatever the program writes before that is for the old size.
        """
        with self._changed:
            self._screen.resize(rows, columns)
            before = len(self.written)
            self._set_size(self._slave, (rows, columns))
        self.wait_until(lambda: len(self.written) > before, "the line that is drawn again")

    def press_until_it_ends(self, key: str) -> None:
        """Now and then, like somebody who does not like to wait."""
        for _ in range(20):
            self.type(key)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE / 60)
                return

    @property
    def rows(self) -> list[str]:
        """The rows down to the cursor's, with ``[HH:MM]`` for every time."""
        with self._changed:
            return [without_clock(row) for row in self._screen.rows]

    @property
    def all_rows(self) -> list[str]:
        """The same, and before them what has scrolled away."""
        with self._changed:
            return [without_clock(row) for row in self._screen.gone + self._screen.rows]

    def looks_of(self, text: str) -> set[str]:
        with self._changed:
            return self._screen.looks_of(text)

    @property
    def bells(self) -> int:
        with self._changed:
            return self._screen.bells

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

    def is_stopped(self) -> bool:
        """Return True if a signal has stopped it."""
        if isinstance(self.process, Forked):
            return self.process.is_stopped()
        options = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, options) is not None

    @property
    def attributes(self) -> list[object]:
        """The terminal's, at the moment."""
        return self._get_attributes()

    def status(self) -> tuple[int, list[object]]:
        """Return the exit status and the terminal's attributes, once all output has been read."""
        status = self.process.wait(PATIENCE)
        os.write(self._slave, self._END)  # comes after all that the program has written
        self.wait_until(lambda: self._is_read, "the last of its output")
        return status, self.attributes

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self._slave)
        self._thread.join(PATIENCE)
        os.close(self._master)
