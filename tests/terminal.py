"""The real programs on a terminal: a pseudo-terminal, and a model of what its screen shows."""

from __future__ import annotations

import codecs
import importlib.util
import os
import re
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Condition, Thread
from typing import Final

from tests.programs import PATIENCE, environment, without_clock

HAS_PTY: Final = importlib.util.find_spec("termios") is not None and hasattr(os, "openpty")


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
        self._wraps = True

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
                self._control(command, found["numbers"].partition(";")[0])
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
                    if self._wraps:
                        self.column = 0
                        self._line_feed()
                    else:
                        self.column -= 1
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

    def _control(self, command: str, numbers: str) -> None:
        if numbers == "?7":
            self._wraps = command == "h"
        number = int(numbers) if numbers.isdigit() else 0
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
            case "M":
                del self._cells[self.row : self.row + count]
                self._cells += [[" "] * columns for _ in range(rows - len(self._cells))]
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
