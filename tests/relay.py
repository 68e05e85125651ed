"""A bad network in real time: a UDP relay between real clients and a real server."""

from __future__ import annotations

import heapq
import select
import socket
import time
from dataclasses import dataclass
from itertools import count
from math import inf
from random import Random
from threading import Thread
from types import TracebackType
from typing import Any, Final, Self

BAD_DROP: Final = 0.25
BAD_DOUBLE: Final = 0.1
BAD_DELAYS: Final = (0.0, 0.06)  # seconds; they differ, and so datagrams overtake each other


@dataclass(frozen=True, slots=True, order=True)
class _Flight:
    """A datagram on its way."""

    due: float
    order: int
    data: bytes
    socket: socket.socket
    target: Any  # an address, or None for a connected socket


class Relay(Thread):
    """Drops, doubles, delays and so reorders what clients and server say to each other.

    Each client has a socket of its own towards the server, which takes them for as many clients.
    """

    def __init__(
        self,
        server_port: int,
        seed: int,
        drop: float = BAD_DROP,
        double: float = BAD_DOUBLE,
        delays: tuple[float, float] = BAD_DELAYS,
    ) -> None:
        super().__init__(daemon=True)
        self.seen: list[bytes] = []  # every datagram that was sent, lost or not
        self._server = ("127.0.0.1", server_port)
        self._random = Random(seed)
        self.drop = drop  # may change
        self._double, self._delays = double, delays
        self._order = count()
        self._flights: list[_Flight] = []  # a heap
        self._front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._front.bind(("127.0.0.1", 0))
        self._upstream: dict[Any, socket.socket] = {}  # by the client's address
        self._retired: list[socket.socket] = []
        self._end, self._ended = socket.socketpair()
        self.port: int = self._front.getsockname()[1]

    def __enter__(self) -> Self:
        self.start()
        return self

    def rebind(self) -> None:
        """Gives every client another address towards the server, as a router that has forgotten
        them; what the server still sends to the old ones is lost."""
        self._retired += self._upstream.values()
        self._upstream = {}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.close()
        self.join()
        for each in (self._ended, self._front, *self._upstream.values(), *self._retired):
            each.close()

    def run(self) -> None:
        while True:
            sockets = [self._ended, self._front, *self._upstream.values()]
            due = self._flights[0].due if self._flights else inf
            timeout = None if due == inf else max(0.0, due - time.monotonic())
            readable, _, _ = select.select(sockets, [], [], timeout)
            if self._ended in readable:
                return
            if self._front in readable:
                data, client = self._front.recvfrom(65536)
                self._carry(data, self._upstream_of(client), None)
            for client, upstream in self._upstream.items():
                if upstream in readable:
                    self._answer(upstream, client)
            self._deliver()

    def _upstream_of(self, client: Any) -> socket.socket:
        if client not in self._upstream:
            upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            upstream.connect(self._server)
            self._upstream[client] = upstream
        return self._upstream[client]

    def _answer(self, upstream: socket.socket, client: Any) -> None:
        try:
            data = upstream.recv(65536)
        except ConnectionError:  # the server's port is closed: a network says nothing
            return
        self._carry(data, self._front, client)

    def _carry(self, data: bytes, out: socket.socket, target: Any) -> None:
        self.seen.append(data)
        if self._random.random() < self.drop:
            return
        for _ in range(1 + (self._random.random() < self._double)):
            due = time.monotonic() + self._random.uniform(*self._delays)
            heapq.heappush(self._flights, _Flight(due, next(self._order), data, out, target))

    def _deliver(self) -> None:
        while self._flights and self._flights[0].due <= time.monotonic():
            flight = heapq.heappop(self._flights)
            try:
                if flight.target:
                    flight.socket.sendto(flight.data, flight.target)
                else:
                    flight.socket.send(flight.data)
            except OSError:  # the same as a lost one
                pass
