"""Many members of one server in one process: the room's, and a naive relay's to compare with.

Those of the room are real: they open, check and acknowledge what they get. A ``Crowd`` lets them
join and say numbered lines, compares what they read, and counts what that took.
"""

from __future__ import annotations

import heapq
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from random import Random
from selectors import EVENT_READ, DefaultSelector
from typing import Final, TypeAlias

import protocol
from chatclient import Attempt, Credentials, RandomBytes
from protocol import Log, LogId
from tests.programs import LOCALHOST, PATIENCE, udp_socket

SENDERS: Final = 4
OUTSTANDING: Final = 16  # lines of one sender that are not back
CALM_EVERY: Final = 0.1  # seconds
TEXT: Final = 60  # bytes
AT_ONCE: Final = 32  # joining
JOIN_PATIENCE: Final = 0.1  # seconds for each member
QUIET: Final = 1.0  # seconds: nobody has anything to send for so long
SO_TIMESTAMPNS: Final = 35  # Linux: socket(7)
HEADERS: Final = 28  # bytes of IP and UDP in front of a datagram
GUEST: Final = Credentials()


class Wrong(Exception):
    """A line was lost, doubled or out of order."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A line, as the first who read it did; of one that nobody has said here only the bytes."""

    raw: bytes
    sender: str = ""
    number: int = 0  # among the sender's
    sent_at: float = inf


def heard(raw: bytes, sender: str, text: str) -> Heard:
    found = re.fullmatch(r"(\d+) (\d+\.\d+) \.*", text)
    return Heard(raw, sender, int(found[1]), float(found[2])) if found else Heard(raw)


class Member:
    """A member of the room."""

    def __init__(
        self,
        name: str,
        port: int,
        cursor: int,
        host: str = LOCALHOST,
        random_bytes: RandomBytes = os.urandom,
    ) -> None:
        """``cursor`` is of no use: the server tells it."""
        self.name = name
        self.udp = stamped_socket(port, host)
        self.cursor = 0  # the number of the next line to hear
        self.said = 0
        self.unheard = 0  # of what it has said
        self.has_joined = False
        self.wake_at = inf  # for whoever drives it
        self._attempt = Attempt(name, GUEST, random_bytes, time.monotonic())
        self.outbox = Log()

    def receive(self, data: bytes, now: float) -> list[bytes]:
        """The lines of the room from ``cursor`` on that have come."""
        if data[:1] == b"{":
            self._shake_hands(data, now)
            return []
        packet = protocol.open_packet_untrusted(data, self.keys.server, self.blocks)
        self._channel.receive(packet, now)
        self.outbox.drop(self._channel.writers[LogId.LINES].cursor)
        reader, lines = self._channel.readers[LogId.ROOM], []
        while reader.is_ready:
            lines.append(reader.take()[1])
        return lines

    def _shake_hands(self, data: bytes, now: float) -> None:
        record = protocol.parse_handshake_untrusted(data)
        if isinstance(record, protocol.Refused):
            raise AssertionError(record.text)
        resume = protocol.Resume(b"", os.urandom(16), 0, 0)
        terms = self._attempt.receive_untrusted(record, data, resume, now)
        if terms is None or self._attempt.proven is None or self.has_joined:
            return
        self.has_joined = True
        self.cursor = terms.room
        prove, self.keys = self._attempt.proven
        self.session, self.blocks = prove.session, protocol.RoomBlocks(terms.room_key)
        timing = protocol.TIMING
        keepalive = timing.keepalive + timing.keepalive_jitter * os.urandom(1)[0] / 256
        reads = {LogId.ROOM: terms.room, LogId.INBOX: 0, LogId.NOTICES: 0}
        self._channel = protocol.Channel(timing, now, reads, {LogId.LINES: 0}, keepalive)

    @staticmethod
    def parse(raw: bytes) -> Heard:
        relayed = protocol.parse_relayed_untrusted(raw)
        if not isinstance(relayed.event, protocol.Public):
            return Heard(raw)
        return heard(raw, relayed.sender, relayed.event.text)

    def say(self, text: str) -> None:
        self.write(protocol.Public(text))

    def leave(self) -> None:
        self.write(protocol.Exit())

    def write(self, message: protocol.Message) -> None:
        self.outbox.append(protocol.format_message(message).encode())

    def datagrams(self, now: float) -> list[bytes]:
        """What is to be sent now."""
        if self.has_joined:
            packets = self._channel.packets(now, {LogId.LINES: self.outbox})
            own = self.session, self.keys.client, self.blocks
            return [protocol.seal_packet(packet, *own) for packet in packets]
        if self._attempt.send_at > now:
            return []
        self._attempt.send_at = now + protocol.TIMING.first_timeout
        return [self._attempt.request]

    def deadline(self) -> float:
        return self._channel.deadline() if self.has_joined else self._attempt.send_at


class NaiveMember:
    """A member of the relay's, who believes everything."""

    def __init__(self, name: str, port: int, cursor: int) -> None:
        self.name = name
        self.udp = stamped_socket(port)
        self.cursor = cursor
        self.said = 0
        self.unheard = 0
        self.has_joined = False
        self.wake_at = inf  # for whoever drives it
        self._queue = [name.encode()]

    def receive(self, data: bytes, now: float) -> list[bytes]:
        if self.has_joined:
            return [data]
        self.has_joined = True
        return []

    @staticmethod
    def parse(raw: bytes) -> Heard:
        sender, _, text = raw.decode().partition(" ")
        return heard(raw, sender, text)

    def say(self, text: str) -> None:
        self._queue.append(text.encode())

    def leave(self) -> None:
        """Nobody can."""

    def datagrams(self, now: float) -> list[bytes]:
        queue, self._queue = self._queue, []
        return queue

    def deadline(self) -> float:
        return -inf if self._queue else inf


# ------------------------------------------------------------------------------------- the crowd

AnyMember: TypeAlias = Member | NaiveMember


@dataclass(slots=True)
class Tally:
    """What members have got and sent since it was begun."""

    lines: int = 0  # read by one member each
    datagrams: int = 0  # that brought some
    wire: int = 0  # bytes, both ways
    delays: list[float] = field(default_factory=list)  # seconds, of each line of another member
    began_at: float = field(default_factory=time.monotonic)
    ended_at: float = 0.0  # when the last line came


def stamped_socket(port: int, host: str = LOCALHOST) -> socket.socket:
    """One that knows when its datagrams have come, where the system can tell that."""
    udp = udp_socket(host, port)
    if sys.platform == "linux":
        udp.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    return udp


def received(udp: socket.socket) -> tuple[bytes, float]:
    """A datagram, and when it came."""
    data, ancillary, _, _ = udp.recvmsg(2048, 64)
    for _, _, stamp in ancillary:
        seconds, nanoseconds = struct.unpack("qq", stamp)
        return data, time.monotonic() - (time.time() - seconds - nanoseconds / 1e9)
    return data, time.monotonic()


class Crowd:
    """The members of one server, and the loop around them."""

    def __init__(self, kind: type[AnyMember], port: int) -> None:
        self.members: list[AnyMember] = []
        self.tally = Tally()
        self._kind, self._port = kind, port
        self._selector = DefaultSelector()
        self._alarms: list[tuple[float, int]] = []  # a heap: when to look after which member
        self._room: dict[int, Heard] = {}
        self._end = 0  # of it, as far as anybody knows

    def close(self) -> None:
        self._selector.close()
        for each in self.members:
            each.udp.close()

    def grow(self, size: int, name: str = "member") -> float:
        """Lets members join until there are so many; returns how many seconds that took."""
        since = time.monotonic()
        while joining := size - sum(each.has_joined for each in self.members):
            while len(self.members) < size and joining - (size - len(self.members)) < AT_ONCE:
                number = len(self.members)
                self.members.append(self._kind(f"{name}{number}", self._port, self._end))
                self._selector.register(self.members[number].udp, EVENT_READ, number)
                self._send(number, time.monotonic())
            if time.monotonic() > since + PATIENCE + size * JOIN_PATIENCE:
                raise AssertionError(f"{joining} members do not get into the {self._where}")
            self._turn(time.monotonic() + QUIET)
        return time.monotonic() - since

    def calm(self, is_over: Callable[[], bool]) -> Tally:
        """A line now and then, and one at least. Moments are random, or each line would meet the
        acknowledgements of an earlier one."""
        self.tally = Tally()
        random, count = Random(len(self.members)), 0
        due = self.tally.began_at
        while not (count and is_over()):
            if (now := time.monotonic()) >= due:
                number = count % min(SENDERS, len(self.members))
                self.say(number)
                self._send(number, now)
                count += 1
                due += random.uniform(0, 2 * CALM_EVERY)
            else:
                self._turn(due)
        return self.settle()

    def loaded(self, is_over: Callable[[], bool]) -> Tally:
        """As many lines as come back."""
        self.tally = Tally()
        while not is_over():
            for number, member in enumerate(self.members[:SENDERS]):
                while member.unheard < OUTSTANDING:
                    self.say(number)
            self._turn(time.monotonic() + QUIET)
        return self.settle()

    def leave(self) -> None:
        for number, member in enumerate(self.members):
            member.leave()
            self._wake(number, time.monotonic())
        self.settle()

    def say(self, number: int) -> None:
        member, now = self.members[number], time.monotonic()
        member.say(f"{member.said} {now} ".ljust(TEXT, "."))
        member.said += 1
        member.unheard += 1
        self._wake(number, now)

    def settle(self) -> Tally:
        """Until everybody has heard everything, and acknowledged it."""
        until = time.monotonic() + PATIENCE
        self._turn(0.0)  # for what is here already
        while not self._is_quiet():
            if time.monotonic() > until:
                raise Wrong(f"a line is lost in the {self._where}")
            self._turn(time.monotonic() + QUIET)
        return self.tally

    def _is_quiet(self) -> bool:
        soon = time.monotonic() + QUIET
        return all(
            not each.unheard and each.cursor == self._end and each.deadline() > soon
            for each in self.members
        )

    @property
    def _where(self) -> str:
        return "room" if self._kind is Member else "relay"

    def _turn(self, until: float) -> None:
        """Waits for something to do, and does it. The sockets are emptied first, so that no line
        seems late because of the work that others make here."""
        backlog = list(self._arrivals(until))
        for number, data, when in backlog:
            self.take(self.members[number], data, when)
        busy, now = {number for number, _, _ in backlog}, time.monotonic()
        while self._alarms and self._alarms[0][0] <= now:
            _, number = heapq.heappop(self._alarms)
            self.members[number].wake_at = inf
            busy.add(number)
        for number in busy:
            self._send(number, now)

    def _arrivals(self, until: float) -> Iterator[tuple[int, bytes, float]]:
        if self._alarms:
            until = min(until, self._alarms[0][0])
        timeout = None if until == inf else max(0.0, until - time.monotonic())
        while ready := self._selector.select(timeout):
            timeout = 0.0
            for key, _ in ready:
                with suppress(BlockingIOError):
                    yield key.data, *received(self.members[key.data].udp)

    def take(self, member: AnyMember, data: bytes, when: float) -> None:
        tally, before = self.tally, self.tally.lines
        tally.wire += len(data) + HEADERS
        for raw in member.receive(data, when):
            line = self._room.get(member.cursor)
            if line is None:
                line = self._room[member.cursor] = member.parse(raw)
            elif line.raw != raw:
                raise Wrong(f"line {member.cursor} of the {self._where} differs between members")
            member.cursor += 1
            self._end = max(self._end, member.cursor)
            if line.sender == member.name:
                member.unheard -= 1
            elif line.sender:
                tally.delays.append(when - line.sent_at)
            tally.lines += bool(line.sender)
        if tally.lines > before:
            tally.datagrams += 1
            tally.ended_at = when

    def _send(self, number: int, now: float) -> None:
        member = self.members[number]
        for data in member.datagrams(now):
            with suppress(BlockingIOError):
                member.udp.send(data)
            self.tally.wire += len(data) + HEADERS
        self._wake(number, member.deadline())

    def _wake(self, number: int, when: float) -> None:
        member = self.members[number]
        if when < member.wake_at:
            member.wake_at = when
            heapq.heappush(self._alarms, (when, number))

    def check(self) -> None:
        """Wrong if a line was lost, doubled or out of order; that all have read the same, once
        and in order, has been seen to. Of somebody else the first lines may not be here."""
        due = {each.name: 0 for each in self.members}
        for _, line in sorted(self._room.items()):
            if line.sender:
                if line.number != due.setdefault(line.sender, line.number):
                    found = f"line {line.number}, not {due[line.sender]}, of {line.sender}"
                    raise Wrong(f"{found} came next in the {self._where}")
                due[line.sender] += 1
        for each in self.members:
            if each.cursor != self._end:
                raise Wrong(f"{each.name} lacks a line of the {self._where}")
            if each.said != due[each.name]:
                found = f"{due[each.name]} of {each.said} lines of {each.name}"
                raise Wrong(f"{found} came in the {self._where}")
