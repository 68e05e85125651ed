"""Whether strangers and bad members slow the room, or fill the server's memory.

    python -m tests.floods [--seconds N] [--rate N] [--json] [FLOOD ...]

Another process floods the real server with so many datagrams a second, in one of the ways below,
while alice says numbers to bob, and carol joins. The table has, for each flood: the datagrams that
were sent each second, and the server's CPU; how long lines took from alice's ``say`` to bob's
screen, and how many were lost, doubled or out of order; how long carol waited at the door; and the
memory that the server had before, and how much more than that at its highest.

The status is 1 if a line was wrong, or if, up to ``RATE``, one line in a hundred took ``LIMIT`` or
more, or memory grew by more than ``GROWTH``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count, cycle
from pathlib import Path
from subprocess import DEVNULL
from typing import Final, TypeAlias

import protocol
from chatclient import Credentials
from protocol import Direct, Exit, LogId, Message, Packet, Part, Public, Who
from tests.crowd import Member as Guest
from tests.forkserver import Command
from tests.logins import Member, Row, any_address, easy_bytes, time_lines
from tests.programs import LOCALHOST, PATIENCE, arrived, next_line, process, udp_socket

RATE: Final = 5000  # datagrams/s: what the kernel's queue holds while a turn lasts
LIMIT: Final = 100.0  # ms
GROWTH: Final = 10.0  # MB
LINES: Final = 50  # that the server takes from each member in a second: as many as alice says
CALM: Final = 2.0  # seconds before each flood
HEAD_START: Final = 0.5  # seconds that a flood has before carol
VOLLEY: Final = 0.002  # seconds between two
SOCKETS: Final = 400  # of who has many addresses
JOINING: Final = 32  # guests at a time
WINDOW: Final = protocol.WINDOW_LINES[LogId.LINES]
FIRST_NUMBER: Final = 1000  # of packets made by hand: after those of the joining
LONGEST: Final = "x" * protocol.MAX_TEXT
WRONG: Final = (0, 1, 2**16, 2**31, 2**32 - 1)  # cursors, mostly

# What is to be sent next, and from where; None: nothing at the moment.
Sending: TypeAlias = Iterator[tuple[socket.socket, bytes] | None]


# ---------------------------------------------------------------------------------- of strangers


def strangers(port: int, number: int) -> list[socket.socket]:
    """One who is at this address, or many, each at another one."""
    hosts = (LOCALHOST if number == 1 else any_address() for _ in range(number))
    return [udp_socket(host, port) for host in hosts]


def hellos(port: int, number: int, is_joining: bool = False) -> Sending:
    """HELLO again and again; with the cookie also JOIN, but nobody answers the CHALLENGE."""
    public = protocol.GROUP.pad(protocol.GROUP.power(1))
    for udp in cycle(strangers(port, number)):
        own = protocol.Hello(protocol.VERSION, "guest", os.urandom(16), public)
        yield udp, protocol.format_handshake(own)
        for data in arrived(udp) if is_joining else ():
            match protocol.parse_handshake_untrusted(data):
                case protocol.Cookie(nonce, cookie):
                    join = protocol.Join(own.version, own.username, nonce, public, cookie)
                    yield udp, protocol.format_handshake(join)


def garbage(port: int) -> Sending:
    """Of every length: of no session, of no shape, and JSON that means nothing."""
    (udp,) = strangers(port, 1)
    for start in cycle((b"\1", b"{", b'{"type":"PROVE","nonce":"', b"\0")):
        yield udp, start + os.urandom(random.randrange(protocol.MAX_DATAGRAM - 50))


def forgeries(port: int) -> Sending:
    """Of a session that there is, with whatever tag, and from elsewhere."""
    start = b"\1" + Mallory(port).session
    (udp,) = strangers(port, 1)
    for size in cycle((60, protocol.MAX_DATAGRAM)):
        yield udp, start.ljust(size, b"\1")


# ------------------------------------------------------------------------------------ of members


class Mallory:
    """A member who makes packets by hand, and reads only what serves the purpose."""

    def __init__(self, port: int) -> None:
        guest = Guest("mallory", port, 0, LOCALHOST, easy_bytes)
        until = time.monotonic() + PATIENCE
        while not guest.has_joined:
            if time.monotonic() > until:
                raise AssertionError("mallory does not get into the room")
            for data in guest.datagrams(time.monotonic()):
                guest.udp.send(data)
            select.select([guest.udp], [], [], protocol.TIMING.first_timeout)
            for data in arrived(guest.udp):
                guest.receive(data, time.monotonic())
        self.udp, self.session = guest.udp, guest.session
        self.taken = 0  # the server's cursor in what it writes
        self._keys, self._blocks = guest.keys, guest.blocks
        self._cursors = {LogId.ROOM: guest.cursor, LogId.INBOX: 0, LogId.NOTICES: 0}
        self._numbers = count(FIRST_NUMBER)
        self._echo = 0

    def read(self, is_acknowledging: bool) -> None:
        """What has come."""
        for data in arrived(self.udp):
            packet = protocol.open_packet_untrusted(data, self._keys.server, self._blocks)
            self.taken = max(self.taken, packet.cursors[0])
            if is_acknowledging:
                self._echo = max(self._echo, packet.number)
                for part in packet.parts:
                    if part.first <= self._cursors[part.log] < part.end:
                        self._cursors[part.log] = part.end

    def packet(
        self, first: int = 0, line: bytes = b"", asks: bool = False, wrong: int | None = None
    ) -> tuple[socket.socket, bytes]:
        """Perhaps with a line; or with something impossible in place of the cursors."""
        cursors, echo = tuple(self._cursors.values()), self._echo
        if wrong is not None:
            cursors, echo = (random.choice(WRONG), random.choice(WRONG), wrong), wrong
        parts = (Part(LogId.LINES, first, (line,)),) if line else ()
        return self.udp, self.sealed(Packet(next(self._numbers), echo, 0, asks, cursors, parts))

    def sealed(self, packet: Packet) -> bytes:
        return protocol.seal_packet(packet, self.session, self._keys.client, self._blocks)


def writing(port: int, *messages: Message, is_deaf: bool = False) -> Sending:
    """As fast as it can, and all that the window lets through; the deaf acknowledge nothing."""
    it = Mallory(port)
    lines = cycle([protocol.format_message(message).encode() for message in messages])
    while True:
        for number in range(it.taken, it.taken + WINDOW):
            yield it.packet(number, next(lines))
        it.read(not is_deaf)


def nonsense(port: int) -> Sending:
    """Acknowledges what was never sent, or what has long been acknowledged."""
    it = Mallory(port)
    for wrong in cycle(WRONG):
        yield it.packet(it.taken, b"PM x", wrong=wrong)


def holes(port: int) -> Sending:
    """Everything but the line that the server waits for."""
    it = Mallory(port)
    for number in cycle(range(1, WINDOW)):
        yield it.packet(number, LONGEST.encode())


def parts(port: int) -> Sending:
    """As many as fit into a packet."""
    it = Mallory(port)
    many = tuple(Part(LogId.LINES, number, (b"x",)) for number in range(143))
    data = it.sealed(Packet(FIRST_NUMBER, 0, 0, False, (0, 0, 0), many))
    while True:
        yield it.udp, data


def asking(port: int) -> Sending:
    """Wants an answer to each packet."""
    it = Mallory(port)
    while True:
        yield it.packet(asks=True)


def moving(port: int) -> Sending:
    """Each packet comes from another address."""
    it = Mallory(port)
    for udp in cycle(strangers(port, SOCKETS)):
        yield udp, it.packet(asks=True)[1]


def names(port: int) -> Sending:
    """Guests by the thousand, each from another address; some stay, some leave, some register."""
    verifier = protocol.GROUP.pad(protocol.GROUP.power(2))
    register = protocol.Register(b"s" * protocol.SALT_LENGTH, protocol.ITERATIONS, verifier)
    guests: list[Guest] = []
    for number in count():
        guests.append(guest := Guest(f"guest{number}", port, 0, any_address(), easy_bytes))
        for message in ((), (Exit(),), (register, Exit()))[number % 3]:
            guest.write(message)
        while len(guests) >= JOINING:
            yield from joining(guests)
            yield None


def joining(guests: list[Guest]) -> Sending:
    """Who has joined has said what it had to; who is refused, as when the room is full, goes."""
    now = time.monotonic()
    for guest in guests[:]:
        # Session packets are for who had this port before.
        answers = [data for data in arrived(guest.udp) if data[:1] == b"{"]
        is_refused = any(b'"REFUSED"' in data for data in answers)
        for data in answers if not is_refused else ():
            guest.receive(data, now)
        for data in guest.datagrams(now):
            yield guest.udp, data
        if guest.has_joined or is_refused:
            guest.udp.close()
            guests.remove(guest)


FLOODS: Final[dict[str, Callable[[int], Sending]]] = {
    "hello": partial(hellos, number=1),
    "hellos": partial(hellos, number=SOCKETS),
    "join": partial(hellos, number=1, is_joining=True),
    "joins": partial(hellos, number=SOCKETS, is_joining=True),
    "garbage": garbage,
    "forgeries": forgeries,
    "lines": lambda port: writing(port, Public("x")),
    "largest": lambda port: writing(port, Public(LONGEST)),
    "direct": lambda port: writing(port, Direct("bob", LONGEST), Direct("nobody", LONGEST)),
    "who": lambda port: writing(port, Who()),
    "deaf": lambda port: writing(
        port, Who(), Direct("mallory", LONGEST), Public(LONGEST), is_deaf=True
    ),
    "nonsense": nonsense,
    "holes": holes,
    "parts": parts,
    "asking": asking,
    "moving": moving,
    "names": names,
}


def flood_for(seconds: float, kind: str, rate: int, port: int) -> None:
    """What the attacker's process does; prints how much it has sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    sending, sent = FLOODS[kind](port), 0
    next(sending)  # who has to join has joined
    print("ready", flush=True)
    sys.stdin.readline()  # until the others are, too
    start = time.monotonic()
    while (passed := time.monotonic() - start) < seconds:
        due = passed * rate if rate else sent + WINDOW
        while sent < due and (datagram := next(sending)):
            udp, data = datagram
            try:
                udp.send(data)
            except OSError:  # it is full, or the port is closed
                break
            sent += 1
        if rate:
            time.sleep(VOLLEY)
    print(json.dumps(sent), flush=True)


# ------------------------------------------------------------------------------- the measurement


class Rig:
    """A server, two who talk, and what is done to it."""

    def __init__(self, stack: ExitStack) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options = ["0", "--host", LOCALHOST, "--db", str(folder / "chat.db"), "--rate", str(LINES)]
        # What it logs would have to be read, here, while lines are timed.
        server = Command("chatserver", options).line
        self._server = stack.enter_context(process(server, DEVNULL))
        self._port = int(next_line(self._server).rpartition(" ")[2])
        self._members = [self._member(name) for name in ("alice", "bob")]
        for member in self._members:
            member.enter()
            stack.callback(member.end)
            member.start()

    def _member(self, name: str) -> Member:
        return Member(name, Credentials(), any_address(), self._port)

    def _cpu(self) -> float:
        """Seconds of CPU time that the server has used; see clock_getcpuclockid(3)."""
        return time.clock_gettime(~self._server.pid << 3 | 2)

    def _memory(self, which: str) -> float:
        """In MB: VmRSS at the moment, VmHWM at its highest; see proc_pid_status(5)."""
        status = Path(f"/proc/{self._server.pid}/status").read_text()
        found = re.search(rf"{which}:\s*(\d+) kB", status)
        assert found, status
        return int(found[1]) / 1024

    def run(self, kind: str, rate: int, seconds: float) -> Row:
        """How lines fare in a flood."""
        alice, bob = self._members
        time_lines(alice, bob, CALM)
        bob.ear.heard.clear()
        call = f"flood_for({seconds}, {kind!r}, {rate}, {self._port})"
        arguments = [sys.executable, "-c", f"from tests.floods import flood_for; {call}"]
        waited: list[float] = []
        newcomer = threading.Thread(target=self._join, args=(waited,))
        with process(arguments) as attacker:
            next_line(attacker)  # it is ready
            memory, before = self._memory("VmRSS"), self._cpu()
            print(file=attacker.stdin, flush=True)
            newcomer.start()
            row = time_lines(alice, bob, seconds)
            cpu = self._cpu() - before
            sent = json.loads(next_line(attacker))
            newcomer.join()
        return {
            "flood": kind,
            "sent": sent,
            "sent/s": sent / seconds,
            "server %": 100 * cpu / seconds,
            **row,
            "carol s": waited[0],
            "MB before": memory,
            "MB more": self._memory("VmHWM") - memory,
        }

    def _join(self, waited: list[float]) -> None:
        time.sleep(HEAD_START)
        carol, since = self._member("carol"), time.monotonic()
        carol.enter()
        waited.append(time.monotonic() - since if carol.client.has_joined else float("inf"))
        carol.end()


def is_good(row: Row, rate: int) -> bool:
    is_calm = float(row["p99 ms"]) < LIMIT and float(row["MB more"]) <= GROWTH
    return not row["wrong"] and (is_calm or not 0 < rate <= RATE)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.floods")
    add = parser.add_argument
    add("floods", nargs="*", metavar="FLOOD", help=f"of: {', '.join(FLOODS)} (default: all)")
    add("--seconds", type=float, default=6.0, help="of each (default: %(default)s)")
    words = "datagrams each second (default: %(default)s; 0: as many as can be sent)"
    add("--rate", type=int, default=RATE, help=words)
    add("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if sys.platform != "linux":
        parser.error("a process's CPU clock and memory, and addresses in 127.0.0.0/8, need Linux")
    if unknown := set(args.floods) - FLOODS.keys():
        parser.error(f"no flood is called {', '.join(sorted(unknown))}: --help names them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the others
    rows: list[Row] = []
    for kind in args.floods or FLOODS:
        with ExitStack() as stack:  # a new server, which has seen nothing yet
            rows.append(Rig(stack).run(kind, args.rate, args.seconds))
        if not args.json:
            if len(rows) == 1:
                print(*(f"{what:>9}" for what in rows[0]))
            cells = (it if isinstance(it, str) else f"{it:.5g}" for it in rows[-1].values())
            print(*(f"{cell:>9}" for cell in cells), flush=True)
    if args.json:
        print(json.dumps(rows))
    return 0 if all(is_good(row, args.rate) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
