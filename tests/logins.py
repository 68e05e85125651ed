"""What logins cost the server, and whether who tries to log in all the time slows the room.

    python -m tests.logins [--seconds N] [--attackers N] [--json]

Measured are the real server's CPU time for one visitor, from HELLO to WELCOME or REFUSED, and how
long a line takes from one member's ``say`` to another one's screen: calm at first, then while
other processes try as fast as they can, each with many tries at a time.

    braked      all guess the password of a member who is here, from one address
    unbraked    each guess is for another account and from another address, so that the server
                does the arithmetic for every one
    knocking    the same, but nobody answers a CHALLENGE

An attacker has a = 1 and guesses x = 0: a real proof, at no cost. The status is 1 if one line in
a hundred took 100 ms or more, or if any was lost, doubled or out of order.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from math import inf
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from statistics import median
from subprocess import DEVNULL
from typing import Final, TypeAlias

import protocol
from chatclient import Attempt, Client, Credentials, Network, Said, Screen, Shown
from chatserver import FAILURES_OF_BOTH, Account, Store
from tests.forkserver import Command
from tests.programs import LOCALHOST, PATIENCE, next_line, process, udp_socket

ATTACKS: Final = ("braked", "unbraked", "knocking")
MEMBER: Final = "alice"
ACCOUNTS: Final = [f"account{n}" for n in range(1000)]  # too many for the brake of one name
LINE_EVERY: Final = 0.02  # seconds
LIMIT: Final = 100.0  # ms
BATCHES: Final = 5
BATCH: Final = 12  # visits whose CPU time is added up
TRIES_AT_A_TIME: Final = 64  # four attackers fill the queue at the server's door
TRY_PATIENCE: Final = 5.0  # seconds

Row: TypeAlias = dict[str, str | float]


def any_address() -> str:
    """One of this machine's sixteen million."""
    return "127." + ".".join(str(random.randrange(1, 255)) for _ in range(3))


class Guess(Credentials):
    """What is wrong for every account, and makes no work."""

    def secret_untrusted(self, salt: bytes, iterations: int, now: float) -> int:
        return 0


def easy_bytes(count: int) -> bytes:
    """Random ones for a nonce, but 1 for a."""
    return os.urandom(count) if count == 16 else (1).to_bytes(count, "big")


class Try:
    """One handshake of somebody who does not know the password."""

    _RESUME: Final = protocol.Resume(b"", bytes(16), 0, 0)

    def __init__(self, attack: str, port: int) -> None:
        is_braked = attack == "braked"
        self.udp = udp_socket(LOCALHOST if is_braked else any_address(), port)
        self.since = time.monotonic()
        self.is_over = False
        self._is_knocking = attack == "knocking"
        name = MEMBER if is_braked else random.choice(ACCOUNTS)
        self._attempt = Attempt(name, Guess(), easy_bytes, self.since)
        self.udp.send(self._attempt.request)

    def receive(self) -> str:
        """Takes an answer in, and goes on; returns what it was."""
        data, attempt = self.udp.recv(protocol.MAX_DATAGRAM), self._attempt
        before = attempt.request
        with suppress(protocol.ProtocolError):  # meant for who had this port before
            record = protocol.parse_handshake_untrusted(data)
            match record:
                case protocol.Refused(self._attempt.nonce):
                    self.is_over = True
                case protocol.Challenge(self._attempt.nonce) if self._is_knocking:
                    self.is_over = True
                case _:
                    attempt.receive_untrusted(record, data, self._RESUME, self.since)
            if attempt.request != before:
                self.udp.send(attempt.request)
            return type(record).__name__
        return ""


def attack_for(seconds: float, attack: str, port: int) -> None:
    """What an attacker's process does; prints how many tries there were and what came of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    print("ready", flush=True)
    sys.stdin.readline()  # until the others are, too
    counts: Counter[str] = Counter()
    tries: set[Try] = set()
    until = time.monotonic() + seconds
    with DefaultSelector() as selector:
        while (now := time.monotonic()) < until:
            for each in [t for t in tries if t.is_over or now > t.since + TRY_PATIENCE]:
                tries.remove(each)
                selector.unregister(each.udp)
                each.udp.close()
            while len(tries) < TRIES_AT_A_TIME:
                each = Try(attack, port)
                tries.add(each)
                selector.register(each.udp, EVENT_READ, each)
                counts["Try"] += 1
            for key, _ in selector.select(LINE_EVERY):
                counts[key.data.receive()] += 1
    print(json.dumps(counts), flush=True)


class Ear(Screen):
    """In place of a terminal: the numbers that a member hears, and when."""

    def __init__(self) -> None:
        super().__init__(MEMBER)
        self.heard: list[tuple[int, float]] = []

    def show(self, lines: Sequence[Shown], waiting: Sequence[Said] | None = None) -> None:
        for line in lines:
            if isinstance(line, Said) and line.sender == MEMBER and line.text.isdigit():
                self.heard.append((int(line.text), time.monotonic()))


class Member(Network):
    """The real client without a terminal."""

    def __init__(self, name: str, credentials: Credentials, host: str, port: int) -> None:
        timing, now = protocol.TIMING, time.monotonic()
        self.ear = Ear()
        self.client = Client(name, credentials, "the server", timing, os.urandom, now)
        super().__init__(self.client, udp_socket(host, port), self.ear, timing)
        self._route_at = inf  # it stays at the address that it was given
        self._thread = threading.Thread(target=self.run)

    def heed(self) -> None:
        """Signals end the measurement, and not only a member."""

    def start(self) -> None:
        """Goes on by itself."""
        self._thread.start()

    def end(self) -> None:
        """Leaves, if it is in, and closes its sockets."""
        with self._lock:
            self.client.leave(protocol.TIMING.leave_patience, time.monotonic())
        self._wake()
        if self._thread.is_alive():
            self._thread.join()
        else:
            self.run()
        for end in (self._udp, self._wakeup, self._alarm):
            end.close()


def time_lines(alice: Member, bob: Member, seconds: float) -> Row:
    """Alice says numbers, and bob hears them."""
    said: list[float] = []
    start = time.monotonic()
    while (due := start + LINE_EVERY * len(said)) < start + seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        said.append(time.monotonic())
        alice.say([protocol.Public(str(len(said) - 1))])
    until = time.monotonic() + PATIENCE
    while len(bob.ear.heard) < len(said) and time.monotonic() < until:
        time.sleep(LINE_EVERY)
    heard = [number for number, _ in bob.ear.heard]
    missing, again = len(said) - len(set(heard)), len(heard) - len(set(heard))
    wrong = missing + again + sum(map(operator.gt, heard, heard[1:]))
    delays = sorted((when - said[number]) * 1000 for number, when in bob.ear.heard) or [inf]
    p50, p99 = (delays[int(share * len(delays))] for share in (0.5, 0.99))
    row: Row = {"lines": len(said), "wrong": wrong}
    return row | {"p50 ms": p50, "p99 ms": p99, "max ms": delays[-1]}


class Rig:
    """A server with its accounts, and what is done to it."""

    def __init__(self, stack: ExitStack) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        db = str(folder / "chat.db")
        it = protocol.registration(b"right", os.urandom(protocol.SALT_LENGTH))
        with closing(Store(db)) as store:
            for name in (MEMBER, *ACCOUNTS):
                store.add(Account(name.encode(), name, it.salt, it.iterations, it.verifier))
        # All accounts have one salt, and so each of these makes x once only.
        self._owner, self._guest, self._guesser = map(Credentials, (b"right", None, b"wrong"))
        options = ["0", "--host", LOCALHOST, "--db", db, "--rate", "0"]
        arguments = Command("chatserver", options).line
        # What it logs would have to be read, here, while lines are timed.
        self._server = stack.enter_context(process(arguments, DEVNULL))
        self._port = int(next_line(self._server).rpartition(" ")[2])

    def _cpu(self) -> float:
        """Seconds of CPU time that the server has used; see clock_getcpuclockid(3)."""
        return time.clock_gettime(~self._server.pid << 3 | 2)

    def costs(self) -> dict[str, float]:
        """The server's CPU milliseconds by what a visitor does."""
        host = any_address()
        for _ in range(FAILURES_OF_BOTH):
            self._visit("wrong", ACCOUNTS[0], self._guesser, host)
        visits: dict[str, Callable[[], float]] = {
            "login": lambda: self._visit("in", MEMBER, self._owner),
            "guest's join": lambda: self._visit("in", "bob", self._guest),
            "wrong password": lambda: self._visit("wrong", random.choice(ACCOUNTS), self._guesser),
            "braked try": lambda: self._visit("too many", ACCOUNTS[0], self._guesser, host),
        }
        batches = range(BATCHES)
        return {
            what: median(sum(visit() for _ in range(BATCH)) for _ in batches) / BATCH * 1000
            for what, visit in visits.items()
        }

    def _visit(self, outcome: str, name: str, credentials: Credentials, host: str = "") -> float:
        member = Member(name, credentials, host or any_address(), self._port)
        before = self._cpu()
        member.enter()
        seconds = self._cpu() - before
        member.end()
        if not (member.client.failure or "in").startswith(outcome):
            raise AssertionError(f"{name}: not {outcome!r}, but {member.client.failure!r}")
        return seconds

    def lines(self, attack: str, attackers: int, seconds: float) -> Row:
        """How lines fare while other processes attack."""
        alice = Member(MEMBER, self._owner, LOCALHOST, self._port)
        bob = Member("bob", self._guest, LOCALHOST, self._port)
        call = f"attack_for({seconds}, {attack!r}, {self._port})"
        arguments = [sys.executable, "-c", f"from tests.logins import attack_for; {call}"]
        with ExitStack() as stack:
            for member in (alice, bob):
                member.enter()
                stack.callback(member.end)
                if member.client.failure:
                    raise AssertionError(member.client.failure)
                member.start()
            them = [stack.enter_context(process(arguments)) for _ in range(attackers)]
            for each in them:
                next_line(each)  # it is ready
            for each in them:
                print(file=each.stdin, flush=True)
            before, start = self._cpu(), time.monotonic()
            row = time_lines(alice, bob, seconds)
            row["server %"] = 100 * (self._cpu() - before) / (time.monotonic() - start)
            counts: Counter[str] = Counter()
            for each in them:
                counts.update(json.loads(next_line(each)))
        rates = {f"{what}/s": counts[what] / seconds for what in ("Try", "Challenge", "Refused")}
        return {"attack": attack} | rates | row


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.logins")
    add = parser.add_argument
    add("--seconds", type=float, default=10.0, help="of each attack (default: %(default)s)")
    add("--attackers", type=int, default=4, help="processes (default: %(default)s)")
    add("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if sys.platform != "linux":
        parser.error("a process's CPU clock, and addresses all over 127.0.0.0/8, need Linux")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the others
    with ExitStack() as stack:
        costs = Rig(stack).costs()
    rows = []
    for attack in ("calm", *ATTACKS):
        attackers = 0 if attack == "calm" else args.attackers
        with ExitStack() as stack:  # a new server, which has seen nothing yet
            seconds = args.seconds if attackers else args.seconds / 2
            rows.append(Rig(stack).lines(attack, attackers, seconds))
    if args.json:
        print(json.dumps({"cpu_ms": costs, "lines": rows}))
    else:
        print("server's CPU in ms:", *(f"{what} {ms:.1f}" for what, ms in costs.items()))
        print(*(f"{what:>11}" for what in rows[0]))
        for row in rows:
            print(*(f"{it if isinstance(it, str) else round(it, 1):>11}" for it in row.values()))
    is_good = all(float(row["p99 ms"]) < LIMIT and not row["wrong"] for row in rows)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
