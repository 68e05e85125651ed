"""Whether the room survives the death of its server: real processes, and SIGKILL.

    python -m tests.faults [--kills N] [--seed N] [--json]

A server, and three members in pipes who type numbered lines all the time, to everybody and to each
other, also while the server is away. Again and again it is killed and, after a while, started
again. The seed decides after which part of each server's life that happens, from the start of its
process on: some die before they listen, some while the members come back, most under traffic.
After each death a copy of the room file must pass ``PRAGMA integrity_check``. At the end everybody
reads to the end and leaves, and what each has shown is compared with what was typed:

    lost, doubled, out of order    by reader and, for the order, by sender and kind of line
    contradictions                 public lines for which no one order fits what all have shown
    unknown                        what nobody typed, or not to this reader
    announced                      who joined or left, but for the first time and the last
    complaints                     words of the programs that nothing here explains, tracebacks,
                                   and a status other than 0
    damaged                        copies of the room file that are not in order

The status is 1 if there is any of that. Told, but no fault, is how long after "Listening" it took
until each member had been shown a line; the slowest of the three counts. That is measured if the
next death did not come first, and late, measured or not, if it took more than 2 s. The longest
silence is that between two lines for one member, however often the server died meanwhile.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from bisect import bisect
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import IO, Final, TypeAlias

from tests.forkserver import Command
from tests.programs import LOCALHOST, Program, lasting_port, wait_until_joined

NAMES: Final = ("alice", "bob", "carol")
# Seconds after the start of a server's process: it starts, members come back, they talk.
MOMENTS: Final = ((0.0, 0.2), (0.1, 1.0), *((0.4, 2.5),) * 3)
OUTAGES: Final = (*((0.0, 0.5),) * 9, (0.5, 4.0))  # seconds
PAUSES: Final = (0.05, 0.2)  # seconds between two bursts of one member
BURST: Final = 6  # lines at most
PUBLIC_IN_A_ROW: Final = 5  # then a message for each of the others
LATE: Final = 2.0  # seconds
PRINTED: Final = 10  # faults of each kind

_TALK: Final = re.compile(r"\[..:..\] (\w+)( -> you)?: (\d+)")
_PASSAGE: Final = re.compile(r"\[HH:MM\] \* ")
_TROUBLE: Final = re.compile(
    r"\* (connected|the connection is lost: reconnecting|not delivered yet: .*)"
)
_LOGGED: Final = re.compile(r"\S+ \S+ (\w+) (joined from \S+ port \d+|left)")

Faults: TypeAlias = dict[str, list[str]]
KINDS: Final = ("lost", "doubled", "out of order", "contradictions", "unknown")
OTHER_KINDS: Final = ("announced", "complaints", "damaged")


# ---------------------------------------------------------------------------------- comparison


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """What a member has typed; no two lines of one member have the same number."""

    sender: str
    to: str  # one member, or "" for everybody
    number: int

    @property
    def typed(self) -> str:
        return f"DM {self.to} {self.number}" if self.to else str(self.number)

    def __str__(self) -> str:
        return f"{self.sender}'s {self.typed!r}"


def heard_by(reader: str, printed: Iterable[str]) -> list[Line]:
    """The lines that a member's client has shown."""
    found = filter(None, map(_TALK.fullmatch, printed))
    return [Line(it[1], reader if it[2] else "", int(it[3])) for it in found]


def due_to(reader: str, typed: Iterable[Line]) -> set[Line]:
    """Those that it has to show: in a pipe nobody is shown what is their own."""
    return {it for it in typed if it.sender != reader and it.to in ("", reader)}


def compare(typed: Sequence[Line], heard: Mapping[str, Sequence[Line]]) -> Faults:
    """What is wrong with what was shown to each reader, by kind."""
    faults: Faults = {kind: [] for kind in KINDS}
    views = []
    for reader, lines in heard.items():
        due, counts = due_to(reader, typed), Counter(lines)
        view = [line for line in counts if line in due]  # each where it was first
        again = [line for line in view for _ in range(counts[line] - 1)]
        unknown = [line for line in lines if line not in due]
        for kind, those in zip(KINDS, (sorted(due - counts.keys()), again, not_in_order(view))):
            faults[kind] += [f"{line} for {reader}" for line in those]
        faults["unknown"] += [f"{line} for {reader}" for line in unknown]
        views.append([line for line in view if not line.to])
    faults["contradictions"] += map(str, contradictions(views))
    return faults


def not_in_order(view: Iterable[Line]) -> list[Line]:
    """Those that come after a later one of the same sender and kind."""
    newest: defaultdict[tuple[str, str], int] = defaultdict(int)
    found = []
    for line in view:
        if line.number < newest[line.sender, line.to]:
            found.append(line)
        newest[line.sender, line.to] = max(newest[line.sender, line.to], line.number)
    return found


def contradictions(views: Iterable[Sequence[Line]]) -> list[Line]:
    """Lines without which one order would fit all views. Two of three members share only the lines
    of the third, so it is not enough to compare two at a time."""
    queues = [deque(view) for view in views]
    holders = Counter(line for queue in queues for line in queue)
    found = []
    while any(queues):
        heads = Counter(queue[0] for queue in queues if queue)
        line = max(heads, key=lambda each: heads[each] - holders[each])
        if heads[line] < holders[line]:  # everywhere something else should come first
            found.append(line)
        for queue in queues:
            if queue and queue[0] == line:
                queue.popleft()
            elif heads[line] < holders[line] and line in queue:
                queue.remove(line)
    return found


def other_words(index: int, shown: Iterable[str]) -> list[str]:
    """What the member has been shown but for lines, trouble, and, once each, who is here, the
    members who joined after it, and those who left before it."""
    usual = [f"* here: {', '.join(NAMES[: index + 1])}"]
    usual += [f"[HH:MM] * {name} joined" for name in NAMES[index + 1 :]]
    usual += [f"[HH:MM] * {name} left" for name in NAMES[:index]]
    rest = [it for it in shown if not (_TROUBLE.fullmatch(it) or _TALK.fullmatch(it))]
    return list((Counter(rest) - Counter(usual)).elements())


# --------------------------------------------------------------------------------- the programs


class Noted(Program):
    """A program, and the moments at which it showed a line, or that it listens."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self.started = time.monotonic()
        self.moments: list[float] = []
        super().__init__(arguments, folder)

    def _read(self, stream: IO[bytes], lines: list[str]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode().rstrip("\r\n")
                with self._changed:
                    lines.append(line)
                    if _TALK.fullmatch(line) or line.startswith("Listening"):
                        self.moments.append(time.monotonic())
                    self._changed.notify_all()

    def wait_for_moments(self, count: int) -> None:
        self.wait_until(lambda: len(self.moments) >= count, f"{count} lines")


class Typist(Thread):
    """A member's hands."""

    def __init__(self, name: str, client: Noted, is_over: Event) -> None:
        super().__init__(daemon=True)
        self.typed: list[Line] = []
        self._sender = name
        self._client = client
        self._is_over = is_over
        self._random = random.Random(name)
        self._to = [""] * PUBLIC_IN_A_ROW + [other for other in NAMES if other != name]

    def run(self) -> None:
        with suppress(BrokenPipeError):  # the client has ended: its status will be told
            while not self._is_over.wait(self._random.uniform(*PAUSES)):
                burst = [self._next() for _ in range(self._random.randint(1, BURST))]
                self._client.type(*(line.typed for line in burst))

    def _next(self) -> Line:
        number = len(self.typed)
        self.typed.append(Line(self._sender, self._to[number % len(self._to)], number))
        return self.typed[-1]


def sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


@dataclass(frozen=True, slots=True)
class Life:
    """Of one server."""

    listening: float  # inf: it did not come to that
    killed: float


class Trial:
    """A room with its members, what is done to it, and what is wrong with it."""

    def __init__(self, stack: ExitStack) -> None:
        self.faults: Faults = {kind: [] for kind in OTHER_KINDS}
        self.lives: list[Life] = []
        self.intact = 0
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._port = lasting_port()
        self._server = self._start_server()
        self._server.wait_for_moments(1)
        self._clients = {name: self._join(name) for name in NAMES}
        self._is_over = Event()
        stack.callback(self._is_over.set)
        self._typists = [Typist(*each, self._is_over) for each in self._clients.items()]
        for typist in self._typists:
            typist.start()

    def _start(self, module: str, *arguments: str) -> Noted:
        program = Noted(Command(module, arguments).line, self._folder)
        self._stack.callback(program.stop)
        return program

    def _start_server(self) -> Noted:
        options = ("--db", "chat.db", "--rate", "0", "--history", "0")
        return self._start("chatserver", str(self._port), "--host", LOCALHOST, *options)

    def _join(self, name: str) -> Noted:
        client = self._start("chatclient", LOCALHOST, "0", name, "--server-port", str(self._port))
        wait_until_joined(client)
        return client

    def kill(self, moment: float, outage: float) -> None:
        """Kills the server ``moment`` after its start, and starts it after ``outage``."""
        sleep_until(self._server.started + moment)
        self._server.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        self._bury(-signal.SIGKILL, killed)
        self._check_room_file()
        sleep_until(killed + outage)
        self._server = self._start_server()

    def _bury(self, status: int, killed: float = inf) -> None:
        """Once the server has ended, with this status."""
        if (found := self._server.status()) != status:
            self.faults["complaints"].append(f"server: status {found}")
        self._server.stop()  # which closes its input
        words = (line for line in self._server.complaints if not _LOGGED.fullmatch(line))
        self.faults["complaints"] += [f"server: {line}" for line in words]
        self.lives.append(Life(next(iter(self._server.moments), inf), killed))

    def _check_room_file(self) -> None:
        """A copy of it: the server has to mend its own by itself."""
        with tempfile.TemporaryDirectory(dir=self._folder) as copy:
            for name in ("chat.db", "chat.db-wal"):
                with suppress(FileNotFoundError):  # the log, if nothing was written yet
                    shutil.copy(self._folder / name, copy)
            try:
                with closing(sqlite3.connect(Path(copy, "chat.db"))) as file:
                    words = ", ".join(it for (it,) in file.execute("PRAGMA integrity_check"))
            except sqlite3.Error as error:
                words = str(error)
        self.intact += words == "ok"
        if words != "ok":
            self.faults["damaged"].append(f"death {len(self.lives)}: {words}")

    def end(self) -> list[Line]:
        """Everybody reads to the end and leaves; returns what was typed."""
        self._is_over.set()
        for typist in self._typists:
            typist.join()
        typed = [line for typist in self._typists for line in typist.typed]
        with suppress(AssertionError):  # what they lack by then will be told
            for name, client in self._clients.items():
                client.wait_for_moments(len(due_to(name, typed)))
        for index, name in enumerate(NAMES):
            self._leave(index, name)
        self._server.send_signal(signal.SIGTERM)
        self._bury(0)
        return typed

    def _leave(self, index: int, name: str) -> None:
        client = self._clients[name]
        with suppress(BrokenPipeError):
            client.end_input()
        if status := client.status():
            self.faults["complaints"].append(f"{name}: status {status}")
        for line in other_words(index, client.shown):
            kind = "announced" if _PASSAGE.match(line) else "complaints"
            self.faults[kind].append(f"{name}: {line}")
        self.faults["complaints"] += [f"{name}: {line}" for line in client.complaints]

    @property
    def heard(self) -> dict[str, list[Line]]:
        return {name: heard_by(name, client.printed) for name, client in self._clients.items()}

    def returns(self) -> list[tuple[bool, float]]:
        """For each server that listened, whether all were shown a line in its life, and how many
        seconds later that was so, or at least not yet."""
        found = []
        for life in self.lives:
            if life.listening < inf:
                last = max(self._first(client, life) for client in self._clients.values())
                found.append((last < life.killed, last - life.listening))
        return found

    def longest_silence(self) -> float:
        pairs = [pair for client in self._clients.values() for pair in pairwise(client.moments)]
        return max((after - before for before, after in pairs), default=inf)

    @staticmethod
    def _first(client: Noted, life: Life) -> float:
        after = client.moments[bisect(client.moments, life.listening) :]
        return min(life.killed, *after[:1] or [inf])


# --------------------------------------------------------------------------------- the program


@dataclass(frozen=True, slots=True)
class Report:
    """What has been done and found."""

    figures: dict[str, float]
    faults: Faults


def run(kills: int, seed: int) -> Report:
    """One room from its beginning to its end."""
    start, it = time.monotonic(), random.Random(seed)
    with ExitStack() as stack:
        trial = Trial(stack)
        for _ in range(kills):
            trial.kill(it.uniform(*it.choice(MOMENTS)), it.uniform(*it.choice(OUTAGES)))
        typed = trial.end()
        faults = compare(typed, trial.heard) | trial.faults
        returns, silence, heard = trial.returns(), trial.longest_silence(), trial.heard
    measured = [seconds for is_measured, seconds in returns if is_measured]
    figures = {
        "kills": kills,
        "before listening": sum(life.listening == inf for life in trial.lives),
        "lines typed": len(typed),
        "lines shown": sum(map(len, heard.values())),
        **{kind: len(those) for kind, those in faults.items()},
        "integrity ok": trial.intact,
        "returns measured": len(measured),
        "returns not measured": len(returns) - len(measured),
        "return median s": round(median(measured or [inf]), 2),
        "return maximum s": round(max(measured, default=inf), 2),
        "late": sum(seconds > LATE for _, seconds in returns),
        "longest silence s": round(silence, 2),
        "seconds": round(time.monotonic() - start, 1),
    }
    return Report(figures, faults)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    add = parser.add_argument
    add("--kills", type=int, default=20, help="of the server (default: %(default)s)")
    add("--seed", type=int, default=1, help="of their moments (default: %(default)s)")
    add("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the others
    report = run(args.kills, args.seed)
    if args.json:
        print(json.dumps({"seed": args.seed} | report.figures | {"faults": report.faults}))
    else:
        for what, number in report.figures.items():
            print(f"{what:20} {number:>8}")
        for kind, those in report.faults.items():
            for words in those[:PRINTED]:
                print(f"{kind}: {words}")
    return 1 if any(report.faults.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
