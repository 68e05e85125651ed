"""What the room costs, and how long its lines take, beside a naive relay in the same runs.

    python -m tests.benchmark [--quick] [--json]

The real server and a naive relay (``relay``) are processes of their own on one core;
their members, each with a socket, are in this process on another one. Those of the room are real:
they open, check and acknowledge what they get, and compare it. Each of three rounds has new servers
and lets members join until there are 10, 100 and 1,000 (``--quick``: not so many, and shorter
runs). At each size the two systems take turns under each load:

    calm     10 lines/s in all, from 4 members in turn, at random moments
    loaded   4 members say lines, each while no more than 16 of its own are not back

Lines have texts of 60 bytes. CPU is the server's, of its own accounting, from before the first line
until everything is acknowledged. Deliveries/s are held up by this process too, which does the work
of all members. Latency is one-way, to each member but the sender, and ends when the system has the
datagram for it. Bytes are those of both directions, with IP's headers. A ratio is the room's to the
relay's in the same round. (Where the system does not tell when a datagram came, which only Linux is
asked, latency ends when it is read.)

What joining costs is the sum of all the growth. Two members more, in a process of their own beside
this one, talk meanwhile, at 10 lines/s, and everybody hears that too. Memory is what the server has
more after that, by member, and left out where the system does not say. A client's start is that of
``chatclient.py`` in a pipe, until it shows who is here, in an empty room.

Every figure is the median of the rounds, with the least and the greatest in parentheses. The status
is 1 if a line was lost, doubled or out of order for anybody, or a process failed.
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import os
import platform
import re
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from math import isnan, nan
from pathlib import Path
from statistics import median
from subprocess import DEVNULL, SubprocessError
from typing import Final, TypeAlias

from protocol import ProtocolError
from tests.crowd import Crowd, Member, NaiveMember, Wrong
from tests.forkserver import ROOT, Command
from tests.programs import LOCALHOST, PATIENCE, next_line, process

CLIENTS: Final = 3  # started in each round
CORES: Final = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def relay(arguments: Sequence[str]) -> None:
    """The naive one: whoever sends something is in, and gets what anybody sends from then on."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    udp.bind((LOCALHOST, 0))
    print("Listening on UDP", *udp.getsockname(), flush=True)
    names: dict[tuple[str, int], bytes] = {}
    while True:
        data, address = udp.recvfrom(2048)
        if address in names:
            line = names[address] + b" " + data
            for each in names:
                udp.sendto(line, each)
        else:
            names[address] = data
            udp.sendto(b"welcome", address)


# ------------------------------------------------------------------------------- the two servers

# The process tells its CPU time for every line that it is given, and ends when there are no more,
# so that it cannot outlive this one.
_ACCOUNTED: Final = """
import os, sys, threading, time
sys.path.insert(0, {root!r})
def account():
    for _ in sys.stdin:
        print(time.process_time(), flush=True)
    os._exit(0)
threading.Thread(target=account, daemon=True).start()
from {module} import {function} as main
sys.exit(main({arguments!r}))
"""


class Process:
    """A server that listens, on a core of its own."""

    def __init__(
        self, stack: ExitStack, module: str, function: str, arguments: Sequence[str] = ()
    ) -> None:
        code = _ACCOUNTED.format(
            root=str(ROOT), module=module, function=function, arguments=arguments
        )
        with pinned(0):
            self._it = stack.enter_context(process([sys.executable, "-c", code], DEVNULL))
        self.port = int(next_line(self._it).split()[-1])

    def cpu(self) -> float:
        """Seconds that it has used so far."""
        print(file=self._it.stdin, flush=True)
        return float(next_line(self._it))

    def memory(self) -> float:
        """Bytes that it has in memory; nan where the system does not say."""
        with suppress(OSError):
            pages = Path(f"/proc/{self._it.pid}/statm").read_text().split()[1]
            return int(pages) * mmap.PAGESIZE
        return nan


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """On the first or the second core, where there are two and the system can do that. What is
    started meanwhile stays there."""
    if len(CORES) < 2:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CORES[core]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# ------------------------------------------------------------------------------- the measurement

Figures: TypeAlias = dict[str, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and for how many seconds at a time."""

    sizes: Sequence[int]
    seconds: dict[str, float]
    rounds: int = 3


WHOLE: Final = Plan((10, 100, 1000), {"calm": 4.0, "loaded": 1.0})
QUICK: Final = Plan((10, 100), {"calm": 1.2, "loaded": 0.4})


def percentiles(delays: Iterable[float]) -> Figures:
    """Of seconds, in milliseconds."""
    those = sorted(delays)
    return {f"p{it}_ms": those[len(those) * it // 100] * 1000 for it in (50, 99)}


@contextmanager
def uncollected() -> Iterator[None]:
    """Lines would be late for as long as so many members are searched for garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def run(server: Process, crowd: Crowd, load: str, seconds: float) -> Figures:
    before, until = server.cpu(), time.monotonic() + seconds
    under_load = crowd.calm if load == "calm" else crowd.loaded
    with uncollected():
        tally = under_load(lambda: time.monotonic() >= until)
    return {
        "cpu_us": (server.cpu() - before) / tally.lines * 1e6,
        "deliveries_per_ms": tally.lines / 1000 / (tally.ended_at - tally.began_at),
        "lines_per_datagram": tally.lines / tally.datagrams,
        "bytes": tally.wire / tally.lines,
        **percentiles(tally.delays),
    }


def talk(port: int, name: str) -> None:
    """What the process of two talkers does until its input ends; it prints how long their lines
    took, or what was wrong with them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    crowd = Crowd(Member, port)
    crowd.grow(2, name)
    crowd.settle()
    print("ready", flush=True)
    try:
        tally = crowd.calm(lambda: bool(select.select([sys.stdin], [], [], 0)[0]))
        crowd.leave()
        crowd.check()
        print(json.dumps(tally.delays), flush=True)
    except Wrong as wrong:
        print(json.dumps(str(wrong)), flush=True)


@dataclass(slots=True)
class Growth:
    """What it costs that members join, and how long the lines of others take meanwhile."""

    cpu: float = 0.0  # seconds
    seconds: float = 0.0
    memory: float = 0.0  # bytes
    delays: list[float] = field(default_factory=list)  # seconds

    def go_on(self, server: Process, crowd: Crowd, size: int) -> None:
        code = f"from tests.benchmark import talk; talk({server.port}, 'talker{size}.')"
        with process([sys.executable, "-c", code], DEVNULL) as talkers:
            next_line(talkers)  # they are ready
            cpu, memory = server.cpu(), server.memory()
            self.seconds += crowd.grow(size)
            assert talkers.stdin
            talkers.stdin.close()
            crowd.settle()  # nobody may be silent while the talkers wait for their last lines
            found = json.loads(next_line(talkers))
        if isinstance(found, str):
            raise Wrong(found)
        crowd.settle()
        self.delays += found
        self.cpu += server.cpu() - cpu
        self.memory += server.memory() - memory

    def figures(self, size: int) -> Figures:
        figures = {"cpu_s": self.cpu, "s": self.seconds, **percentiles(self.delays)}
        if not isnan(self.memory):
            figures["memory_kB"] = self.memory / size / 1000
        return figures


def client_start(port: int, name: str) -> float:
    """Seconds until a client is in."""
    since = time.monotonic()
    arguments = Command("chatclient", [LOCALHOST, "0", name, "--server-port", str(port)]).line
    with process(arguments, DEVNULL) as client:
        while not next_line(client).startswith("* here: "):
            pass
        seconds = time.monotonic() - since
        print("EX", file=client.stdin, flush=True)
        client.wait(PATIENCE)  # or else its place would be kept for a while
    return seconds


def one_round(plan: Plan, number: int, tell: Callable[[str], None]) -> Figures:
    """All figures, once."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        places = ["--max-users", str(max(plan.sizes) + 2)]
        options = ["0", "--host", LOCALHOST, "--db", f"{folder}/chat.db", "--rate", "0", *places]
        room = Process(stack, "chatserver", "main", options)
        relay = Process(stack, "tests.benchmark", "relay")
        start = median(client_start(room.port, f"visitor{n}") for n in range(CLIENTS))
        figures = {"client.start_ms": start * 1000}
        crowds = Crowd(Member, room.port), Crowd(NaiveMember, relay.port)
        for crowd in crowds:
            stack.callback(crowd.close)
        growth = Growth()
        for size in plan.sizes:
            tell(f"round {number} of {plan.rounds}: {size:,} members")
            growth.go_on(room, crowds[0], size)
            crowds[1].grow(size)
            for load, seconds in plan.seconds.items():
                ours, theirs = (run(*it, load, seconds) for it in zip((room, relay), crowds))
                ratios = {what: ours[what] / theirs[what] for what in ours}
                for whose, those in (("room", ours), ("relay", theirs), ("ratio", ratios)):
                    figures |= {f"{load}.{size}.{whose}.{it}": those[it] for it in those}
        for crowd in crowds:
            crowd.check()
    joining = growth.figures(size)
    return figures | {f"joining.{size}.{what}": joining[what] for what in joining}


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure in all rounds."""

    median: float
    min: float
    max: float

    def __str__(self) -> str:
        digits = (self.median < 10) + (self.median < 100)
        middle, low, high = (f"{it:,.{digits}f}" for it in (self.median, self.min, self.max))
        return f"{middle} ({low}-{high})"


def measure(plan: Plan, tell: Callable[[str], None] = lambda words: None) -> dict[str, Spread]:
    """Every figure by its name, which has dots between its parts."""
    with pinned(1):
        rounds = [one_round(plan, n + 1, tell) for n in range(plan.rounds)]
    columns = {name: [figures[name] for figures in rounds] for name in rounds[0]}
    return {name: Spread(median(it), min(it), max(it)) for name, it in columns.items()}


# ------------------------------------------------------------------------------------ the program

# (load, figure, its words, whose)
ROWS: Final = (
    ("loaded", "cpu_us", "CPU µs per line", ("room", "relay", "ratio")),
    ("loaded", "deliveries_per_ms", "1,000 deliveries/s", ("room", "relay")),
    ("loaded", "lines_per_datagram", "lines per datagram", ("room", "relay")),
    ("loaded", "bytes", "bytes per line", ("room", "relay")),
    ("calm", "cpu_us", "CPU µs per line", ("room", "relay", "ratio")),
    ("calm", "p50_ms", "latency p50 ms", ("room", "relay", "ratio")),
    ("calm", "p99_ms", "latency p99 ms", ("room", "relay", "ratio")),
    ("calm", "lines_per_datagram", "lines per datagram", ("room", "relay")),
    ("calm", "bytes", "bytes per line", ("room", "relay")),
)
JOINING: Final = {
    "cpu_s": "server's CPU, s",
    "s": "time, s",
    "p50_ms": "others' lines meanwhile, p50 ms",
    "p99_ms": "others' lines meanwhile, p99 ms",
    "memory_kB": "server's memory per member, kB",
}


def row(first: str, *others: object) -> str:
    return f"| {first:33} | " + " | ".join(f"{it!s:>18}" for it in others) + " |"


def tables(plan: Plan, figures: Mapping[str, Spread]) -> Iterator[str]:
    """In Markdown."""
    yield row("median (least-greatest)", *(f"{size:,} members" for size in plan.sizes))
    yield row("---", *("--:" for _ in plan.sizes))
    for load, figure, words, them in ROWS:
        for whose in them:
            those = (figures[f"{load}.{size}.{whose}.{figure}"] for size in plan.sizes)
            yield row(f"{load}: {words}, {whose}", *those)
    yield ""
    size = plan.sizes[-1]
    yield row(f"{size:,} members join", "")
    yield row("---", "--:")
    for figure, words in JOINING.items():
        yield row(words, figures.get(f"joining.{size}.{figure}", "?"))
    yield row("a client's start, ms", figures["client.start_ms"])


def machine() -> str:
    model = platform.machine()
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        if found := re.search(r"^model name\s*: (.+)$", text, re.MULTILINE):
            model = found[1]
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, {system}"


def allow_files(count: int) -> bool:
    """As many open ones as that."""
    import resource  # which Windows does not have

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return True
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
        return True
    return False


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmark")
    add = parser.add_argument
    add("--quick", action="store_true", help="in half a minute, and with at most 100 members")
    add("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    plan = QUICK if args.quick else WHOLE
    if sys.platform == "win32":
        parser.error("Windows cannot wait for pipes")
    if not allow_files(files := 2 * max(plan.sizes) + 100):
        parser.exit(1, f"{parser.prog}: it needs `ulimit -n {files}`, or --quick\n")

    def tell(words: str) -> None:
        if sys.stderr.isatty():
            print(words, file=sys.stderr)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the others
    try:
        figures = measure(plan, tell)
    except KeyboardInterrupt:
        return 130
    except ConnectionError as error:
        words = f"a process has ended: {error.strerror}"
    except (Wrong, AssertionError, OSError, SubprocessError, ProtocolError) as error:
        words = str(error)
    else:
        if args.json:
            those = {name: asdict(it) for name, it in figures.items()}
            print(json.dumps({"machine": machine(), "rounds": plan.rounds, "figures": those}))
        else:
            print(*tables(plan, figures), "", machine(), sep="\n")
        return 0
    print(f"{parser.prog}: {words}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
