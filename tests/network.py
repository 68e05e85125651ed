"""A bad network in virtual time: seeded, and no slower for the hours it pretends to last."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import inf
from random import Random
from typing import Final, Protocol

import protocol
from protocol import Channel, Keys, Log, LogId, Packet, RoomBlocks, Timing


class End(Protocol):
    """An end that is attached to a network: a channel, a client, a server."""

    def receive(self, data: bytes, source: str, now: float) -> None:
        """Take in a datagram."""

    def datagrams(self, now: float) -> Iterable[tuple[bytes, str]]:
        """Return the datagrams that are due now, each with the end that it is for."""

    def deadline(self) -> float:
        """Return when ``datagrams`` will next have some if nothing happens before."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Faults of a network; delays differ, and so datagrams overtake each other."""

    drop: float = 0.0  # a probability
    double: float = 0.0  # a probability
    delays: tuple[float, float] = (0.0, 0.0)  # seconds, drawn for each copy
    blackouts: tuple[tuple[float, float], ...] = ()  # from, to: nothing gets through


# Not without delay: two ends that talk for ever must come to the end of their time.
HEALTHY: Final = Faults(delays=(0.03125, 0.03125))
BAD: Final = Faults(drop=0.25, double=0.1, delays=(0.0, 0.06))
LOST: Final = Faults(drop=1.0)


@dataclass(frozen=True, slots=True)
class Datagram:
    """One that was sent, whether it arrived or not."""

    at: float
    source: str
    target: str
    data: bytes


class Network:
    """Carries opaque datagrams between named ends, and turns the clock to what happens next."""

    def __init__(self, seed: int, faults: Faults = HEALTHY) -> None:
        self.now = 0.0
        self.faults = faults
        self.ends: dict[str, End] = {}
        self.sent: list[Datagram] = []
        self.unplugged: set[str] = set()  # ends to and from which nothing gets through
        self.muted: set[str] = set()  # ends from which nothing does
        self._random = Random(seed)
        self._order = count()  # two events of one instant happen as they were planned
        self._events: list[tuple[float, int, str, Callable[[], object]]] = []

    def at(self, when: float, name: str, action: Callable[[], object]) -> None:
        """Plan an event at an end, which may then have something to send.

        The event must change no other end: nobody asks those for a new deadline.
        """
        heapq.heappush(self._events, (when, next(self._order), name, action))

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> bool:
        """Turn the clock to ``until``; stop earlier, and return True, as soon as it is ``done``."""
        deadlines: dict[str, float] = {}
        while not done():
            if deadlines.keys() != self.ends.keys():
                deadlines = {name: end.deadline() for name, end in self.ends.items()}
            due, name = min(zip(deadlines.values(), deadlines))
            event_at = self._events[0][0] if self._events else inf
            if min(due, event_at) > until:
                self.now = until
                return False
            self.now = max(self.now, min(due, event_at))
            if event_at <= due:
                _, _, name, action = heapq.heappop(self._events)
                action()
            self._flush(name)
            deadlines[name] = self.ends[name].deadline()
        return True

    def _flush(self, name: str) -> None:
        end = self.ends[name]
        for data, target in end.datagrams(self.now):
            self._carry(Datagram(self.now, name, target, data))
        if end.deadline() <= self.now:
            raise AssertionError(f"{name} would send at {self.now} for ever")

    def _carry(self, datagram: Datagram) -> None:
        if len(datagram.data) > protocol.MAX_DATAGRAM:
            raise AssertionError(f"a datagram of {len(datagram.data)} bytes from {datagram.source}")
        self.sent.append(datagram)
        is_dark = any(start <= self.now < end for start, end in self.faults.blackouts)
        is_dark = is_dark or datagram.source in self.muted
        is_dark = is_dark or not self.unplugged.isdisjoint((datagram.source, datagram.target))
        if is_dark or self._random.random() < self.faults.drop:
            return
        for _ in range(1 + (self._random.random() < self.faults.double)):
            when = self.now + self._random.uniform(*self.faults.delays)
            self.at(when, datagram.target, partial(self._arrive, datagram))

    def _arrive(self, datagram: Datagram) -> None:
        self.ends[datagram.target].receive(datagram.data, datagram.source, self.now)


class ChannelEnd:
    """A channel with its logs and its keys: what a program does with it, without the program."""

    def __init__(
        self, channel: Channel, other: str, keys: Keys, other_keys: Keys, room_key: bytes
    ) -> None:
        self.channel = channel
        self.logs = {log: Log(writer.cursor) for log, writer in channel.writers.items()}
        self.taken: dict[LogId, list[bytes]] = {log: [] for log in channel.readers}
        self.sent: list[Packet] = []
        self._other = other
        self._keys, self._other_keys, self._room = keys, other_keys, RoomBlocks(room_key)

    def receive(self, data: bytes, source: str, now: float) -> None:
        packet = protocol.open_packet_untrusted(data, self._other_keys, self._room)
        self.channel.receive(packet, now)
        for log, reader in self.channel.readers.items():
            while reader.is_ready:
                self.taken[log].append(reader.take()[1])
        for log, writer in self.channel.writers.items():
            self.logs[log].drop(writer.cursor)  # nobody wants these any more

    def datagrams(self, now: float) -> list[tuple[bytes, str]]:
        packets = self.channel.packets(now, self.logs)
        self.sent += packets
        return [
            (protocol.seal_packet(packet, b"SESSION1", self._keys, self._room), self._other)
            for packet in packets
        ]

    def deadline(self) -> float:
        return self.channel.deadline()

    @property
    def is_settled(self) -> bool:
        """Return True if the other end has all lines that were written here."""
        writers = self.channel.writers
        return all(writers[log].cursor == lines.end for log, lines in self.logs.items())


class Pair:
    """The two ends of one session, attached to a network as "client" and "server"."""

    def __init__(self, network: Network, timing: Timing, start: int = 0) -> None:
        """``start`` is where every log starts, as in a session that resumes."""
        client_keys, server_keys = (
            Keys(seal=letter * 32, tag=letter.upper() * 32) for letter in (b"c", b"s")
        )
        lines = {LogId.LINES: start}
        others = dict.fromkeys((LogId.ROOM, LogId.INBOX, LogId.NOTICES), start)
        now, key = network.now, b"R" * 32
        self.client = ChannelEnd(
            Channel(timing, now, others, lines, timing.keepalive),
            *("server", client_keys, server_keys, key),
        )
        self.server = ChannelEnd(
            Channel(timing, now, lines, others), *("client", server_keys, client_keys, key)
        )
        network.ends |= {"client": self.client, "server": self.server}
        self._network = network

    def write(self, when: float, log: LogId, lines: Iterable[bytes]) -> None:
        """Plan that the writing end of ``log`` then appends ``lines``."""
        name, end = ("client", self.client) if log is LogId.LINES else ("server", self.server)
        self._network.at(when, name, partial(_append, end.logs[log], tuple(lines)))

    def taken(self, log: LogId) -> list[bytes]:
        """Return the lines that the reading end of ``log`` has taken."""
        return (self.server if log is LogId.LINES else self.client).taken[log]

    @property
    def is_settled(self) -> bool:
        return self.client.is_settled and self.server.is_settled


def _append(log: Log, lines: Iterable[bytes]) -> None:
    for line in lines:
        log.append(line)
