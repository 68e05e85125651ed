"""Whole clients and a whole server on a bad network in virtual time, without a socket."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from pathlib import Path
from random import Random
from typing import Final
from unittest import mock

import protocol
from chatclient import Client, Credentials, RandomBytes, plain
from chatserver import Options, Server, Session, Store, StoreError
from protocol import LogId, Timing
from tests import views
from tests.network import HEALTHY, LOST, Faults, Network

EPOCH: Final = 1_600_000_000  # Unix seconds when the virtual clock shows 0
OPTIONS: Final = Options(history=20, rate=10, max_users=100)
SERVER: Final = "server"
PORT: Final = 7890
_PBKDF2: Final = hashlib.pbkdf2_hmac


def address_of(end: str) -> tuple[str, int]:
    """Return the address of an end that is called "host", or "host port 7891"."""
    host, _, port = end.partition(" port ")
    return host, int(port or PORT)


def end_at(host: str, port: int) -> str:
    """Return the name of the end with that address."""
    return host if port == PORT else f"{host} port {port}"


def seeded_bytes(seed: str) -> RandomBytes:
    """Return a source of random bytes that ``seed`` decides; of 32 only the last 4 are random.

    Secret exponents have 32 bytes. Their powers would take up most of the tests' time, and are no
    matter of virtual time: ``tests/test_srp.py`` has them, and holds the programs to their size.
    """
    random = Random(seed)

    def random_bytes(count: int) -> bytes:
        return random.randbytes(4).rjust(32, b"\0") if count == 32 else random.randbytes(count)

    return random_bytes


@contextmanager
def quick_passwords() -> Iterator[None]:
    """Let PBKDF2 do one iteration only; its key still depends on how many it was asked for.

    ``tests/test_srp.py`` and the real programs do all of them.
    """

    def quick(hash_name: str, password: bytes, salt: bytes, iterations: int) -> bytes:
        return _PBKDF2(hash_name, password, salt + iterations.to_bytes(4, "big"), 1, 4)

    with mock.patch.object(hashlib, "pbkdf2_hmac", quick):
        yield


class ServerEnd:
    """The server as its loop drives it; ``kill`` is the death of its process."""

    def __init__(self, network: Network, path: Path, options: Options, timing: Timing) -> None:
        self.network = network
        self.path = path
        self.options = options
        self.timing = timing
        self.retry_at = -inf  # until then the server waits for a room file that can be written
        self.epoch = EPOCH
        self._queue: list[tuple[bytes, str]] = []
        self._starts = 0
        network.ends[SERVER] = self
        self.start()

    def start(self) -> None:
        self._starts += 1
        random = seeded_bytes(f"server {self._starts}")
        now = self.network.now
        self.store = Store(str(self.path), random)
        self.server = Server(self.store, self.options, self.timing, random, now)
        self.is_up = True

    def kill(self) -> None:
        self.is_up, self.retry_at = False, -inf
        self._queue.clear()
        self.store.close()

    def receive(self, data: bytes, source: str, now: float) -> None:
        if self.is_up:
            self._queue.append((data, source))

    def datagrams(self, now: float) -> Iterator[tuple[bytes, str]]:
        while self.is_up and self._turn(now):
            for data, address in self.server.datagrams(now):
                yield data, end_at(str(address[0]), address[1])
            if self.server.deadline() > now:
                return

    @property
    def is_waiting(self) -> bool:
        return self.retry_at > -inf

    def _turn(self, now: float) -> bool:
        if now < self.retry_at:
            return False
        if not self.is_waiting:
            for data, source in self._queue:
                self.server.receive_untrusted(data, address_of(source), now)
            self._queue.clear()
            self.server.handle(now, self.epoch + int(now))
        try:
            self.server.commit()
        except StoreError:
            self.retry_at = now + self.timing.store_pause
        else:
            self.retry_at = -inf
        return not self.is_waiting

    def deadline(self) -> float:
        if not self.is_up:
            return inf
        if self.is_waiting:
            return self.retry_at
        return self.server.deadline()


class ClientEnd:
    """A client, and the lines that its person was shown."""

    def __init__(
        self,
        network: Network,
        name: str,
        timing: Timing,
        host: str = "",
        credentials: Credentials | None = None,
    ) -> None:
        self.host = host or name
        self.network = network
        random = seeded_bytes(f"client {self.host} {network.now}")
        credentials = credentials or Credentials()
        self.client = Client(name, credentials, "the server", timing, random, network.now)
        self.shown: list[str] = []
        self.is_up = True
        self.has_ended = False
        network.ends[self.host] = self

    def say(self, *lines: str) -> None:
        """Type lines now."""
        now = self.network.now
        for line in lines:
            message = protocol.parse_message(line)
            self.network.at(now, self.host, partial(self.client.say, message, now))

    def leave(self, patience: float = 60.0) -> None:
        now = self.network.now
        self.network.at(now, self.host, partial(self.client.leave, patience, now))

    def receive(self, data: bytes, source: str, now: float) -> None:
        if self.is_up and not self.has_ended:
            self.client.receive_untrusted(data, now)

    def datagrams(self, now: float) -> list[tuple[bytes, str]]:
        out = self.client.datagrams(now) if self.is_up and not self.has_ended else []
        self.has_ended = self.client.is_over
        self.shown += plain(self.client.shown, self.client.username, EPOCH + self.network.now)
        self.client.shown.clear()
        return [(data, SERVER) for data in out]

    def deadline(self) -> float:
        is_silent = self.has_ended or not self.is_up
        return inf if is_silent else self.client.deadline()

    def texts(self) -> list[str]:
        """Return the lines that were shown, without their times."""
        return [line.partition("] ")[2] if line.startswith("[") else line for line in self.shown]


class Deaf:
    """An end that never says anything."""

    def receive(self, data: bytes, source: str, now: float) -> None:
        pass

    def datagrams(self, now: float) -> list[tuple[bytes, str]]:
        return []

    def deadline(self) -> float:
        return inf


class World:
    """A network with a server and some members."""

    def __init__(
        self, path: Path, seed: int, faults: Faults, options: Options, timing: Timing
    ) -> None:
        self.network = Network(seed, faults)
        self.timing = timing
        self.server = ServerEnd(self.network, path, options, timing)

    def client(
        self, name: str, host: str = "", credentials: Credentials | None = None
    ) -> ClientEnd:
        """Start a client, which tries to join."""
        return ClientEnd(self.network, name, self.timing, host, credentials)

    def joined(self, *names: str) -> list[ClientEnd]:
        """Start clients and return them once all have joined, one after the other."""
        return [self.join(name) for name in names]

    def join(self, name: str, host: str = "", credentials: Credentials | None = None) -> ClientEnd:
        """Start a client and return it once it has joined."""
        end = self.client(name, host, credentials)
        if not self.network.run(self.network.now + 60, lambda: end.client.has_joined):
            raise AssertionError(f"{name} has not joined: {end.client.failure}")
        return end

    def move(self, end: ClientEnd, host: str) -> None:
        """Give a client another address; datagrams to the old one are lost from now on.

        That happens in another network, or behind a router that has forgotten the client.
        """
        self.network.ends |= {end.host: Deaf(), host: end}
        end.host = host

    def run(self, seconds: float) -> None:
        self.network.run(self.network.now + seconds)

    def restart(self, pause: float = 0.0) -> None:
        """Kill the server's process and start another one on its room file after ``pause``."""
        self.server.kill()
        if pause:
            self.run(pause)
        self.server.start()


@contextmanager
def world(
    seed: int = 1,
    faults: Faults = HEALTHY,
    options: Options = OPTIONS,
    timing: Timing = protocol.TIMING,
) -> Iterator[World]:
    """Yield a world, whose room file is removed after it."""
    with tempfile.TemporaryDirectory() as folder, quick_passwords():
        it = World(Path(folder) / "chat.db", seed, faults, options, timing)
        try:
            yield it
        finally:
            it.server.store.close()


class _Stubborn(protocol.Reader):
    def hold(self, part: protocol.Part) -> int:
        return 0


def ignore(end: ClientEnd, log: LogId, kind: type[protocol.Reader] = _Stubborn) -> None:
    """Make a client take no line of a log from now on."""
    readers = views.session(end.client).channel.readers
    readers[log] = kind(readers[log].cursor, protocol.WINDOW_LINES[log])


def heed(end: ClientEnd, log: LogId) -> None:
    """Make a client take lines of a log again."""
    ignore(end, log, protocol.Reader)


@contextmanager
def asleep(w: World, end: ClientEnd) -> Iterator[None]:
    """Stop a client meanwhile, as a laptop that is shut and opened again does."""
    end.is_up = False
    yield
    end.is_up = True


@contextmanager
def cut_off(w: World, end: ClientEnd) -> Iterator[None]:
    """Lose all that a client sends and is sent meanwhile; it goes on, and notices that."""

    class Lonely(Deaf):
        def datagrams(self, now: float) -> list[tuple[bytes, str]]:
            end.datagrams(now)
            return []

        def deadline(self) -> float:
            return end.deadline()

    w.network.ends[end.host] = Lonely()
    yield
    w.network.ends[end.host] = end


def session_of(w: World, name: str) -> Session:
    """Return the server's session with a member."""
    server = w.server.server
    return views.sessions(server)[views.members(server)[name].session]


def deliver(w: World, target: str, source: str, data: bytes) -> None:
    """Hand a datagram to an end at once, in a turn of its own."""
    for host in (target, source):
        w.network.ends.setdefault(host, Deaf())
    receive = partial(w.network.ends[target].receive, data, source, w.network.now)
    w.network.at(w.network.now, target, receive)
    w.run(0)


def replies(w: World, data: bytes, source: str = "stranger") -> list[bytes]:
    """Deliver a datagram to the server and return what it sends back at once."""
    before = len(w.network.sent)
    deliver(w, SERVER, source, data)
    return [d.data for d in w.network.sent[before:] if d.target == source]


def intercepted(w: World, end: ClientEnd, *lines: str) -> list[bytes]:
    """Return what an end sends to say these lines, none of which arrives."""
    w.network.faults = LOST
    before = len(w.network.sent)
    end.say(*lines)
    w.run(0.1)
    w.network.faults = HEALTHY
    return [d.data for d in w.network.sent[before:] if d.source == end.host]
