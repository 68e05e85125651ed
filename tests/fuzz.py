"""Whether strangers and bad members can hurt anybody: broken and invented datagrams by the million.

    python -m tests.fuzz [--seconds N | --datagrams N] [--seed N]

They are made of those of a real conversation, and of those that have reached code in a new way:
every eighth is watched for that, line by line. What is sealed is broken before it is sealed. It
goes to

    parsers    every function that is given bytes from the network, and a bare channel
    room       a server: from addresses that are nobody's or a member's, from hostile members who
               seal well whatever they send, and from visitors who say anything in a good PROVE;
               and its members, one of them still joining
    dupe       the client of a hostile server, which can also seal, and says anything in WELCOME

Meanwhile members move, come and leave, are put out and written out, the server is killed and
started, and the operator gives names away. Nothing may be raised but what a parser promises; bob
must be shown alice's lines once, and nothing else under her name; nobody unproven may be sent more
bytes than came from there; no table may outgrow its limit, nor the process its memory. Or else the
last datagrams are printed, and the status is 1: the same seed brings them again.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import math
import re
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from random import Random
from types import CodeType, FrameType
from typing import Any, Final, TypeAlias, TypeVar
from unittest import mock

import chatclient
import chatserver
import protocol
from chatclient import Client, Credentials
from protocol import GROUP, Channel, Keys, Log, LogId, ProtocolError, RoomBlocks
from tests import views
from tests.actions import replaced_keystream, start_handshake
from tests.network import HEALTHY, Datagram
from tests.room import EPOCH, OPTIONS, PORT, SERVER, ClientEnd, Deaf, World, replies, world

ITERATIONS: Final = 2  # of PBKDF2: more are only slow
LARGEST: Final = protocol.MAX_DATAGRAM + 1  # no socket is asked for more
WATCH_EVERY: Final = 8  # datagrams: to watch them all takes several times as long
TURN_EVERY: Final = 8  # datagrams of one way in
TURN: Final = 0.05  # seconds of virtual time
LIFE_EVERY: Final = 100  # turns of the room: then alice says a line, and things happen
PATIENCE: Final = 60.0  # seconds of virtual time, until she is heard
MOLES: Final = 6  # hostile members at the same time
LEARNT: Final = 1000  # datagrams that are kept for each way in
OVERHEARD: Final = 100  # datagrams of the room that strangers know
RECENT: Final = 16  # datagrams that are printed: some wait for their turn
MEMORY: Final = 3 << 20  # bytes that may come on top after a fifth of the time
# So small that they are met.
BOUNDS: Final = {
    "LINGERING": 2,
    "NETWORKS": 3,
    "PENDING_CHALLENGES": 4,
    "NETWORK_CHALLENGES": 2,
    "WAITING_HANDSHAKES": 4,
    "BRAKES": 9,
    "INSTANCES": 5,
    "ROOM_LINES": 200,
    "UNREAD_LINES": 20,
    "UNREAD_SHARE": 5,
    "ORPHANS_AT_ONCE": 2,
}

STRANGERS: Final = ("stranger", "2001:db8::1", "fe80::1%eth0", "::ffff:192.0.2.1")
NAMES: Final = ("mallory", "Mallet", "dora", "emil", "fritz")
HOMES: Final = tuple(f"{name} at {place}" for name in NAMES for place in ("home", "work"))
# Who registers here has a password whose x is known: whoever has the name next can prove it.
SECRET: Final = 1
REGISTRATION: Final = protocol.Register(bytes(16), ITERATIONS, GROUP.pad(GROUP.power(SECRET)))
COMMANDS: Final = (
    *("PM", "DM alice", "DM bob", "DM dora", "EX", "WHO", "HI", "BYE", "OUT", "HERE 0", "HERE 1"),
    *("OK 0", "OK 1", "NO 0", "NO 2", *protocol.format_message(REGISTRATION).split(" ")),
)
WORDS: Final = (
    *("", "*", "alice", "dora", "0", "-1", "99", "\0", "\x1b[2J", "é", "\u202e", "\u2028", "\t"),
    "x" * 900,
)
TIMES: Final = (str(EPOCH), "9" * 10, "9" * 20)  # the last one is in no calendar
NUMBERS: Final = (
    *(0, 1, 2, 3, 7, 63, 64, 255, 256, 511, 512, 2**16 - 1, 2**31, 2**31 + 1, 2**32 - 1),
    *(2**63 - 1, 2**63, 2**64 - 1),
)
PUBLICS: Final = (0, 1, GROUP.prime - 1, GROUP.prime, GROUP.prime + 1, 2**2048 - 1)
VALUES: Final[tuple[object, ...]] = (
    *(*NUMBERS, None, True, False, -1, 10**400, 1.0, 1e308, math.inf, math.nan),
    *("", "*", "alice", "\0", "\ud800", "1", "0 0", "FF" * 16, [], {}, [[1]], {"type": 1}),
    *("00" * length for length in (1, 8, 16, 32, 256)),
    *(f"{public:0512x}" for public in PUBLICS),
    *views.RECORD_TYPES,
)
# Where a session packet has its fields, and a part: offset and size.
NUMBER, ECHO = (9, 8), (17, 8)
CURSORS: Final = ((28, 4), (32, 4), (36, 4))
FIELDS: Final = ((0, 1), (1, 8), NUMBER, ECHO, (25, 2), (27, 1), *CURSORS)
FIRST: Final = (1, 4)
PART_FIELDS: Final = ((0, 1), FIRST, (5, 2))
BODY: Final = views.PACKET_OVERHEAD
PART: Final = views.PART_HEADER

# Of the programs, what strangers reach; of the protocol that is everything.
REACHED: Final = (
    "Room Door Brake Waiting Session Alarms Server open_prove_untrusted network_of "
    "Attempt Credentials Delivery Client"
).split(" ")

Answer = TypeVar("Answer", bound=protocol.Handshake)
Place: TypeAlias = tuple[str, int]  # file and line
Trace: TypeAlias = Callable[[FrameType, str, object], Any]


# ------------------------------------------------------------------------------ in the clear


def captured() -> list[Datagram]:
    """A conversation in the clear: guests, one of whom moves, and an account from its registration
    to a login that takes over. For who has other keys, seals would make no difference."""
    with replaced_keystream(lambda data, key, nonce: data), world(1, HEALTHY) as w:
        dora, emil = w.joined("dora", "emil")
        dora.say("hello", "DM emil psst", "WHO", "DM nobody psst", "DM dora note")
        w.run(1)
        w.move(dora, "elsewhere")
        dora.say("here I am")
        emil.leave()
        w.run(30)
        w.join("fritz", "desk", Credentials(new=b"password", salt=bytes(16)))
        w.run(3)
        w.join("fritz", "phone", Credentials(b"password"))
        wrong = w.client("fritz", "cafe", Credentials(b"wrong"))
        w.run(3)
        if not wrong.client.failure:
            raise AssertionError("a wrong password was good enough")
        w.server.server.close()
        w.run(3)
        return w.network.sent


def split(body: bytes) -> list[bytes]:
    """The parts of a packet, as far as they are any."""
    parts = []
    while body:
        length = PART.unpack_from(body)[2] if len(body) >= PART.size else 0
        parts.append(body[: PART.size + length])
        body = body[PART.size + length :]
    return parts


def sealed(clear: bytes, session: bytes, keys: Keys, blocks: RoomBlocks) -> bytes:
    """What who has the keys makes of a packet in the clear, however wrong that is."""
    header = bytes((protocol.SESSION_PACKET,)) + session + clear.ljust(BODY, b"\0")[9 : BODY - 16]
    body, digests = b"", header
    for part in split(clear[BODY:]):
        if len(part) > PART.size:
            log, first, _ = PART.unpack_from(part)
            text, nonce = part[PART.size :], header[9:17] + part[:5]
            if log == LogId.ROOM:
                text = blocks.open(first, text)
            else:
                text = views.xor_keystream(text, keys.seal, nonce)
            part = part[: PART.size] + text
        body, digests = body + part, digests + views.digest(part)
    return (header + views.mac(keys.tag, digests, 16) + body)[:LARGEST]


def sealed_record(clear: bytes, keys: Keys, context: bytes) -> tuple[bytes, bytes]:
    """(proof, sealed) of PROVE or WELCOME, which then still fits into a datagram."""
    mixed = views.xor_keystream(clear[:500], keys.seal, b"")
    return views.mac(keys.tag, context + mixed, 32), mixed


def put(data: bytes, place: tuple[int, int], value: int) -> bytes:
    offset, size = place
    field = (value & (1 << 8 * size) - 1).to_bytes(size, "big")
    return data[:offset] + field + data[offset + size :]


# ------------------------------------------------------------------------------ made of others


class Dice(Random):
    """Random numbers, and datagrams made of others: of their bytes, or of what these mean."""

    def mutated(self, data: bytes, other: bytes) -> bytes:
        for _ in range(self.choice((0, 0, 1, 1, 1, 2, 4))):  # 0: it comes once more
            data = self._once(data, other)
        return data[:LARGEST]

    def _once(self, data: bytes, other: bytes) -> bytes:
        if self.random() < 0.4:
            return self._bytes(data, other)
        if data[:1] == b"{":
            return self._json(data)
        if data[:1] != b"\1" or len(data) < BODY:
            return self.line()
        if self.random() < 0.5:
            return self._field(data, FIELDS)
        return data[:BODY] + b"".join(self._parts(split(data[BODY:])))

    def _bytes(self, data: bytes, other: bytes) -> bytes:
        at = self.randrange(len(data) + 1)
        match self.randrange(8):
            case 0:
                return self.randbytes(self.randrange(LARGEST))
            case 1:
                return data[:at]
            case 2:
                return data + self.randbytes(self.randrange(1, 200))
            case 3:
                return data[:at] + other[at:]
            case 4:
                return data[:at] + self.choice((b"[", b"{", b"\n", b"\xff")) * LARGEST
        flipped = bytearray(data)
        for _ in range(self.randrange(1, 8) if data else 0):
            flipped[self.randrange(len(data))] ^= 1 << self.randrange(8)
        return bytes(flipped)

    def _json(self, data: bytes) -> bytes:
        try:
            value = json.loads(data)
            name, other = self.choices(list(value), k=2)
            match self.randrange(4), value[name]:
                case 0, _:
                    del value[name]
                case 1, _:
                    value[name], value[other] = value[other], value[name]
                case 2, str(text):
                    value[name] = self.randbytes(len(text) // 2).hex()
                case 2, int(number):
                    value[name] = number + self.choice((-1, 1))
                case _:
                    value[name] = self.choice(VALUES)
            return json.dumps(value, separators=(",", ":")).encode()
        except (ValueError, TypeError, IndexError, RecursionError):  # it is broken already
            return data

    def _field(self, data: bytes, fields: tuple[tuple[int, int], ...]) -> bytes:
        offset, size = place = self.choice(fields)
        old = int.from_bytes(data[offset : offset + size], "big")
        new = old + 1, old - 1, self.getrandbits(8 * size)
        return put(data, place, self.choice((*NUMBERS, *new)))

    def _parts(self, parts: list[bytes]) -> list[bytes]:
        at = self.randrange(len(parts) + 1)
        match self.randrange(4):
            case 0:
                del parts[at : at + 1]
            case 1 if parts:
                parts.insert(at, self.choice(parts))
            case 2 if parts:
                parts[at - 1] = self._field(parts[at - 1], PART_FIELDS)
            case _:
                lines = [self.line() for _ in range(self.randrange(4))]
                text = b"\n".join(self.choice((lines, lines, lines, [b"x"] * 400)))[:1100]
                part = PART.pack(self.randrange(5), 0, len(text)) + text
                parts.insert(at, self._field(part, (FIRST,)))
        return parts

    def line(self) -> bytes:
        """Something that resembles a line."""
        words = [self.choice(COMMANDS), *self.choices(WORDS, k=self.randrange(4))]
        if self.random() < 0.1:  # by chance alone none would ever be complete
            words = [protocol.format_message(REGISTRATION)]
        if self.random() < 0.5:
            words[:0] = self.choice(TIMES), self.choice(("*", "alice", *NAMES))
        raw = " ".join(words).encode()
        return raw + self.randbytes(self.randrange(4)) if self.random() < 0.3 else raw

    def adapted(self, clear: bytes, channel: Channel) -> bytes:
        """Mostly what can come next in the session whose other end has this channel."""
        clear, parts = clear[:BODY].ljust(BODY, b"\0"), split(clear[BODY:])
        cursors = (writer.next for writer in channel.writers.values())
        values = views.highest_received(channel) + 1, channel.number - 1, *cursors
        for place, value in zip((NUMBER, ECHO, *CURSORS), values):
            if self.random() < 0.7:
                clear = put(clear, place, value)
        for log, reader in channel.readers.items():
            for at, part in enumerate(parts):
                if part[0] == log and len(part) > PART.size and self.random() < 0.7:
                    parts[at] = put(part, FIRST, reader.received)
        return clear + b"".join(parts)


# ------------------------------------------------------------------------------ what is reached


class Coverage:
    """Which lines of the programs have followed each other while somebody watched."""

    _MODULES: Final = (protocol, chatserver, chatclient)
    _FILES: Final = frozenset(str(module.__file__) for module in _MODULES)

    def __init__(self) -> None:
        self.steps: set[tuple[Place, Place]] = set()
        self._last: Place = "", 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, arg: object) -> Trace | None:
        return self._pass if frame.f_code.co_filename in self._FILES else None

    def _pass(self, frame: FrameType, event: str, arg: object) -> Trace:
        if event == "line":
            here = frame.f_code.co_filename, frame.f_lineno
            self.steps.add((self._last, here))
            self._last = here
        return self._pass

    def summary(self) -> list[str]:
        """Lines and functions, but for those that run when a module is imported."""
        seen, lines = {here for _, here in self.steps}, {}
        for module in self._MODULES:
            codes = [compile(inspect.getsource(module), str(module.__file__), "exec")]
            for code in codes:
                codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
                its_class = code.co_qualname.partition(".")[0]
                if code.co_flags & inspect.CO_OPTIMIZED and (
                    module is protocol or its_class in REACHED
                ):
                    body = {line for _, _, line in code.co_lines()} - {code.co_firstlineno, None}
                    lines[code.co_qualname] = {(code.co_filename, line) for line in body}
        every = {line for its in lines.values() for line in its}
        missed = [name for name, its in lines.items() if its and not its & seen and name[0] != "<"]
        found = f"{len(every & seen)} of {len(every)} lines reached, in {len(self.steps)} steps"
        return [found, f"not reached: {', '.join(missed)}"]


# --------------------------------------------------------------------------------- who is hit


def check_readers(channel: Channel) -> None:
    for log, reader in channel.readers.items():
        if len(reader.early) > reader.window:
            raise AssertionError(f"{len(reader.early)} lines of {log.name} are held back")


class Parsers:
    """The functions of the protocol that take bytes from the network, and a channel."""

    _KEYS: Final = Keys(b"k" * 32, b"t" * 32)

    def __init__(self) -> None:
        self._blocks = RoomBlocks(b"r" * 32)
        writes = {LogId.ROOM: 0, LogId.INBOX: 0}
        self._channel = Channel(protocol.TIMING, 0.0, {LogId.LINES: 0}, writes)

    def raw(self, data: bytes) -> None:
        for parse in (
            *(protocol.parse_handshake_untrusted, protocol.session_of_untrusted, self._open),
            *(protocol.parse_line_untrusted, protocol.parse_relayed_untrusted),
        ):
            with suppress(ProtocolError):
                parse(data)

    def record(self, clear: bytes) -> None:
        proven = sealed_record(clear, self._KEYS, b"")
        for kind in (protocol.Resume, protocol.Terms):
            with suppress(ProtocolError):
                protocol.open_record_untrusted(kind, self._KEYS, b"", *proven)

    def packet(self, clear: bytes) -> None:
        with suppress(ProtocolError):
            packet = self._open(sealed(clear, bytes(8), self._KEYS, self._blocks))
            self._channel.receive(packet, 1.0)
            if len(self._channel.packets(1.0, {LogId.ROOM: Log(), LogId.INBOX: Log()})) > 1:
                raise AssertionError("one packet was answered with several")
            check_readers(self._channel)

    def _open(self, data: bytes) -> protocol.Packet:
        return protocol.open_packet_untrusted(data, self._KEYS, self._blocks)

    def settle(self) -> None:
        """There is nothing that waits."""


@dataclass(frozen=True, slots=True)
class Mole:
    """A hostile member."""

    session: bytes
    keys: Keys
    host: str


class Room:
    """A room with hostile members, in which alice and bob go on talking."""

    def __init__(self, w: World, dice: Dice, known: list[bytes]) -> None:
        self._world, self._dice = w, dice
        self.known = [*known, *known[:OVERHEARD]]  # to strangers; the last ones are replaced
        self._moles: list[Mole] = []
        self._credit: Counter[str] = Counter()  # bytes in this turn from there, less those to there
        self._said = self._turns = 0
        w.network.ends |= {host: Deaf() for host in (*STRANGERS, *HOMES)}
        self._alice, self._bob = w.joined("alice", "bob")
        self._carol = self._newcomer()

    @property
    def _server(self) -> chatserver.Server:
        return self._world.server.server

    def _newcomer(self) -> ClientEnd:
        """To whom nothing gets through, but for what strangers send."""
        self._world.network.unplugged.add("carol")
        return self._world.client("carol")

    def stranger(self, data: bytes) -> None:
        self._receive(data, self._dice.choice((*STRANGERS, "alice", "bob")))

    def client(self, data: bytes) -> None:
        end = self._dice.choice((self._alice, self._bob, self._carol))
        end.receive(data, SERVER, self._world.network.now)

    def member(self, clear: bytes) -> None:
        alive = [mole for mole in self._moles if mole.session in views.sessions(self._server)]
        if len(alive) < MOLES // 2 and self._dice.random() < 0.05:
            self.visitor(self._good_resume())
        if not self._moles:
            return
        mole = self._dice.choice(alive or self._moles)
        session = views.sessions(self._server).get(mole.session)
        if session:
            clear = self._dice.adapted(clear, session.channel)
        data = sealed(clear, mole.session, mole.keys, views.room_blocks(self._server))
        is_elsewhere = self._dice.random() < 0.1
        self._receive(data, self._dice.choice(STRANGERS) if is_elsewhere else mole.host)
        if session:
            check_readers(session.channel)

    def _receive(self, data: bytes, source: str) -> None:
        self._credit[source] += len(data)
        self._server.receive_untrusted(data, (source, PORT), self._world.network.now)

    def visitor(self, resume: bytes) -> None:
        """Has a = 1, which costs nothing, or an A for which S would be 0, or 1 at every other b."""
        dice, g = self._dice, GROUP.generator
        host, nonce = dice.choice(HOMES), dice.randbytes(16)
        a_public = dice.choice(PUBLICS) if dice.random() < 0.2 else g
        hello = protocol.VERSION, host.split()[0], nonce, a_public.to_bytes(256, "big")
        cookie = self._ask(protocol.Hello(*hello), host, protocol.Cookie)
        join = protocol.Join(*hello, cookie.cookie if cookie else b"")
        challenge = self._ask(join, host, protocol.Challenge)
        if challenge is None:
            return
        x, b_public = SECRET if challenge.salt else 0, int.from_bytes(challenge.public, "big")
        secret = pow(a_public, 2, GROUP.prime)
        if is_proper := a_public == g:
            secret = protocol.client_secret_untrusted(1, g, b_public, x)
        keys = protocol.derive_keys(secret, join.identity, protocol.format_handshake(challenge))
        proven = sealed_record(resume, keys.prove, keys.transcript)
        prove = protocol.Prove(nonce, challenge.session, *proven)
        if welcome := self._ask(prove, host, protocol.Welcome):
            if not is_proper:
                raise AssertionError(f"{a_public:x} was welcome as A")
            self._moles = [*self._moles[1 - MOLES :], Mole(welcome.session, keys.client, host)]

    def _good_resume(self) -> bytes:
        """Of an instance that is new, or was there before."""
        dice = self._dice
        instance = dice.choice((dice.randbytes(16), dice.randbytes(16), b"i" * 16))
        log_id = dice.choice((b"", self._world.server.store.log_id))
        return views.format_record(protocol.Resume(log_id, instance, 0, 0))

    def _ask(self, request: protocol.Handshake, host: str, kind: type[Answer]) -> Answer | None:
        data = protocol.format_handshake(request)
        for _ in range(self._dice.choice((1, 1, 1, 2))):
            answers = replies(self._world, data, host)
        found = (protocol.parse_handshake_untrusted(it) for it in answers if it[:1] == b"{")
        return next((record for record in found if isinstance(record, kind)), None)

    def settle(self) -> None:
        """The turns in which the server, and who hears it, do what is due."""
        network = self._world.network
        network.at(network.now, SERVER, lambda: None)
        self._world.run(TURN)
        for datagram in network.sent:
            if datagram.source == SERVER:
                self._credit[datagram.target] -= len(datagram.data)
        self.known[-self._dice.randrange(1, OVERHEARD)] = self._dice.choice(
            [self.known[0], *(datagram.data for datagram in network.sent)]
        )
        network.sent.clear()
        if any(self._credit[host] < 0 for host in STRANGERS):
            raise AssertionError(f"more went to strangers than came from them: {self._credit}")
        self._credit.clear()
        self._turns += 1
        if self._turns % LIFE_EVERY == 0:
            self._check_tables()
            self._check_that_they_talk()
            self._dice.choice((self._wait, self._restart, self._move, self._give_away))()
            self._carol = self._newcomer()

    def _check_tables(self) -> None:
        tables = views.bounded_tables(self._server)
        for name, limit in (
            ("draining sessions", chatserver.LINGERING),
            ("networks", chatserver.NETWORKS),
            ("sealed blocks", views.SEALED_BLOCKS),
            ("shared parts", views.SHARED_PARTS),
            ("queued handshakes", chatserver.WAITING_HANDSHAKES),
            ("pending challenges", chatserver.PENDING_CHALLENGES),
            ("failed logins", chatserver.BRAKES),
            ("lines of the room", chatserver.ROOM_TAIL),
        ):
            if len(tables[name]) > limit:
                raise AssertionError(f"{len(tables[name])} {name} are more than {limit}")
        sessions = views.sessions(self._server).values()
        if any(it.ends_at < self._world.network.now - 1 for it in sessions):
            raise AssertionError("a session goes on after its end")

    def _check_that_they_talk(self) -> None:
        self._said += 1
        line, network = f"alice: line {self._said}", self._world.network
        self._alice.say(line.partition(": ")[2])
        network.unplugged.discard("carol")
        network.run(
            network.now + PATIENCE,
            lambda: self._carol.client.has_joined and line in self._bob.texts(),
        )
        self._carol.leave()
        self._world.run(1)
        heard = [text for text in self._bob.texts() if re.match(r"(\* )?alice\b", text)]
        if heard != [line]:
            raise AssertionError(f"bob should be shown {line!r}, and was shown {heard}")
        if not self._carol.client.has_left or self._alice.client.is_over:
            raise AssertionError(f"carol: {self._carol.texts()}, alice: {self._alice.texts()}")
        self._alice.shown.clear()
        self._bob.shown.clear()

    def _wait(self) -> None:
        """Until who has left is forgotten, or who says nothing is written out; lines grow old."""
        self._world.server.epoch += self._dice.choice((0, chatserver.DAY))
        self._world.run(self._dice.choice((1, 12, 80, 700)))

    def _restart(self) -> None:
        if self._dice.random() < 0.5:
            self._server.close()
            self._world.run(1)
        self._world.server.kill()
        self._world.run(self._dice.choice((0.5, 20)))
        self._world.server.start()

    def _move(self) -> None:
        end = self._dice.choice((self._alice, self._bob))
        name = end.client.username
        self._world.move(end, f"{name} elsewhere" if end.host == name else name)

    def _give_away(self) -> None:
        """The operator makes a name an account, or removes it."""
        name, it = self._dice.choice(NAMES), REGISTRATION
        account = chatserver.Account(
            self._dice.randbytes(16), name, it.salt, it.iterations, it.verifier
        )
        with closing(chatserver.Store(str(self._world.server.path), alone=False)) as store:
            if not store.remove(name):
                store.add(account)


class Dupe:
    """A client of a hostile server, and that server."""

    _CREDENTIALS: Final = ((), (), (b"password",), (None, b"new password", bytes(16)))
    _SAID: Final = (protocol.Public("hello"), protocol.Direct("bob", "psst"), protocol.Who())

    def __init__(self, dice: Dice, terms: list[bytes]) -> None:
        self._dice, self._now, self._terms = dice, 0.0, terms
        self._client = self._another()

    def _another(self) -> Client:
        self._credentials = Credentials(*self._dice.choice(self._CREDENTIALS))
        who = "alice", self._credentials, "the server"
        return Client(*who, protocol.TIMING, self._random_bytes, self._now)

    def _random_bytes(self, count: int) -> bytes:
        """So that a is 1, which costs nothing."""
        return self._dice.randbytes(count) if count < 32 else b"\1".rjust(count, b"\0")

    def _hear(self, data: bytes) -> None:
        self._client.receive_untrusted(data, self._now)

    def _tell(self, record: protocol.Handshake) -> None:
        self._hear(protocol.format_handshake(record))

    def handshake(self, data: bytes) -> None:
        """Mostly with the nonce and the session that the client knows."""
        client = self._client
        attempt, session = views.find_handshake(client), views.find_session(client)
        ours = {b"nonce": attempt.nonce} if attempt else {}
        if attempt and attempt.proven:
            ours[b"session"] = attempt.proven[0].session
        elif session:
            ours[b"session"] = session.id
        for name, value in ours.items():
            if self._dice.random() < 0.8:
                new = b'"%b":"%b"' % (name, value.hex().encode())
                data = re.sub(rb'"%b": ?"\w+"' % name, new, data)
        self._hear(data)

    def packet(self, clear: bytes) -> None:
        session = views.find_session(self._client)
        if session:
            clear = self._dice.adapted(clear, session.channel)
            clear = sealed(clear, session.id, session.keys.server, session.blocks)
        self._hear(clear)
        if session:
            check_readers(session.channel)

    def welcome(self, terms: bytes) -> None:
        """What is proper is the handshake before it, with b = 1, which costs nothing."""
        session, salt, iterations = self._dice.randbytes(8), b"", 0
        if views.find_session(self._client):
            start_handshake(self._client, self._now)
        if (attempt := views.find_handshake(self._client)) is None:
            return
        self._tell(protocol.Cookie(attempt.nonce, bytes(16)))
        if self._credentials.password:
            salt, iterations = bytes(16), ITERATIONS
        verifier = GROUP.power(self._credentials.secret_untrusted(salt, iterations, self._now))
        b_public = protocol.server_public(1, verifier)
        challenge = protocol.Challenge(
            attempt.nonce, session, GROUP.pad(b_public), salt, iterations
        )
        self._tell(challenge)
        if not attempt.is_for(session) or attempt.proven is None:
            return
        hello, data = views.first_request(attempt), protocol.format_handshake(challenge)
        a_public = int.from_bytes(hello.public, "big")
        secret = protocol.server_secret_untrusted(a_public, 1, b_public, verifier)
        keys = protocol.derive_keys(secret, hello.identity, data)
        context = attempt.proven[0].proof
        for clear in (terms, self._dice.choice((terms, *self._terms))):  # or it would seldom be in
            proven = sealed_record(clear, keys.welcome, context)
            self._tell(protocol.Welcome(attempt.nonce, session, *proven))

    def settle(self) -> None:
        """Time goes by, and the person does something."""
        client, dice = self._client, self._dice
        self._now += dice.choice((0, 0.01, 0.3, 1, 5))
        match dice.randrange(100):
            case 0:
                client.leave(PATIENCE, self._now)
            case 1:
                client.port_closed(self._now)
            case number if number < 20:
                client.say(dice.choice(self._SAID), self._now)
        client.datagrams(self._now)
        lines = [*client.shown, *client.waiting()]
        shown = chatclient.plain(lines, client.username, EPOCH) + client.others
        client.shown.clear()
        if any(protocol.clean_text(line) != line for line in shown):
            raise AssertionError(f"not fit for a terminal: {shown}")
        if client.is_over:
            self._client = self._another()
        elif client.deadline() <= self._now:
            raise AssertionError("the client would send for ever")


# --------------------------------------------------------------------------------- the program


@dataclass(slots=True)
class Way:
    """One way in, and what has become of what was sent there."""

    name: str
    weight: int
    seeds: list[bytes]
    send: Callable[[bytes], None]
    settle: Callable[[], None]
    learnt: list[bytes] = field(default_factory=list)
    count: int = 0
    seconds: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)


class Fuzzer:
    """All ways in, one datagram after the other."""

    def __init__(self, stack: ExitStack, seed: int) -> None:
        self.number = self.added = 0  # datagrams, and bytes of memory after a fifth of the time
        self.digest = sha256()  # of all datagrams: the same for the same seed and count
        self.coverage = Coverage()
        self._seed, self._dice = seed, Dice(seed)
        self._recent: deque[str] = deque(maxlen=RECENT)
        for name, value in (("ITERATIONS", ITERATIONS), ("ITERATIONS_ALLOWED", range(1, 10))):
            stack.enter_context(mock.patch.object(protocol, name, value))
        for name, bound in BOUNDS.items():
            stack.enter_context(mock.patch.object(chatserver, name, bound))
        w = stack.enter_context(world(seed, HEALTHY, replace(OPTIONS, rate=0, keep_days=1)))
        self.ways = self._all_ways(w)
        self._way = self.ways[0]
        stack.enter_context(mock.patch.object(ProtocolError, "__init__", self._counted()))

    def _all_ways(self, w: World) -> list[Way]:
        sent = captured()
        every = [it.data for it in sent]
        handshakes = [data for data in every if data[:1] == b"{"]
        of_client = [it.data for it in sent if it.data[0] == 1 and it.target == SERVER]
        of_server = [it.data for it in sent if it.data[0] == 1 and it.source == SERVER]
        lines = [part[PART.size :] for data in of_client + of_server for part in split(data[BODY:])]
        records = [protocol.parse_handshake_untrusted(data) for data in handshakes]
        resumes = [it.sealed for it in records if isinstance(it, protocol.Prove)]
        terms = [it.sealed for it in records if isinstance(it, protocol.Welcome)]
        parsers, room, dupe = Parsers(), Room(w, self._dice, every), Dupe(self._dice, terms)
        return [
            Way("parsers, raw", 6, every, parsers.raw, parsers.settle),
            Way("parsers, line", 6, lines, parsers.raw, parsers.settle),
            Way("parsers, record", 3, resumes + terms, parsers.record, parsers.settle),
            Way("parsers, packet", 6, of_client + of_server, parsers.packet, parsers.settle),
            Way("room, stranger", 20, room.known, room.stranger, room.settle),
            Way("room, member", 20, of_client, room.member, room.settle),
            Way("room, visitor", 1, resumes, room.visitor, room.settle),
            Way("room, client", 10, room.known, room.client, room.settle),
            Way("dupe, handshake", 8, handshakes, dupe.handshake, dupe.settle),
            Way("dupe, packet", 20, of_server, dupe.packet, dupe.settle),
            Way("dupe, welcome", 2, terms, dupe.welcome, dupe.settle),
        ]

    def _counted(self) -> Callable[..., None]:
        """The programs tell nobody what they refuse."""

        def count(error: ProtocolError, *words: str) -> None:
            self._way.refused[type(error).__name__] += 1
            Exception.__init__(error, *words)

        return count

    def run(self, progress: Callable[[int], float]) -> None:
        """Until the progress, which goes from 0 to 1 and is given the number of datagrams, is 1."""
        before = 0
        while (done := progress(self.number)) < 1:
            if not before and done >= 0.2:
                before = memory()
            self._step()
        self.added = memory() - before
        if before and self.added > MEMORY:
            raise AssertionError(f"seed {self._seed}: {self.added} bytes came on top")

    def _step(self) -> None:
        start = time.process_time()
        (way,) = self._dice.choices(self.ways, [way.weight for way in self.ways])
        self._way, self.number, way.count = way, self.number + 1, way.count + 1
        known = way.learnt if way.learnt and self._dice.random() < 0.5 else way.seeds
        data = self._dice.mutated(self._dice.choice(known), self._dice.choice(way.seeds))
        self.digest.update(data)
        self._recent.append(f"datagram {self.number}, {way.name}: {data.hex()}")
        steps, is_watched = len(self.coverage.steps), self.number % WATCH_EVERY == 0
        try:
            with self.coverage.watched() if is_watched else nullcontext():
                way.send(data)
                if is_watched or way.count % TURN_EVERY == 0:
                    way.settle()
        except Exception as error:  # of whatever kind it is
            words = f"seed {self._seed}: {error!r}, after the last of"
            raise AssertionError("\n".join((words, *self._recent))) from error
        if len(self.coverage.steps) > steps and len(way.learnt) < LEARNT:
            way.learnt.append(data)
        way.seconds += time.process_time() - start

    def table(self) -> list[str]:
        rows = [f"{'way in':16}{'datagrams':>10}{'per CPU s':>10}{'learnt':>8}  refused"]
        for it in self.ways:
            refused = ", ".join(f"{kind} {count}" for kind, count in sorted(it.refused.items()))
            rate = it.count / it.seconds if it.seconds else 0  # the clock may be a coarse one
            rows.append(f"{it.name:16}{it.count:10}{rate:10.0f}{len(it.learnt):8}  {refused}")
        rows += self.coverage.summary()
        return [*rows, f"{self.added >> 10} KiB added, digest {self.digest.hexdigest()[:16]}"]


def memory() -> int:
    """Bytes that the process has; 0 where the system does not tell."""
    gc.collect()
    with suppress(OSError):
        found = re.search(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text("ascii"))
        return int(found[1]) << 10 if found else 0
    return 0


def positive(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise ValueError(text)
    return float(text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--seconds", type=positive, default=10.0, help="(default: %(default)s)")
    add("--datagrams", type=positive, help="so many, instead of a time")
    parser.add_argument("--seed", type=int, default=1, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    start = time.monotonic()

    def progress(number: int) -> float:
        seconds = time.monotonic() - start
        return float(number / args.datagrams if args.datagrams else seconds / args.seconds)

    with ExitStack() as stack:
        fuzzer = Fuzzer(stack, args.seed)
        try:
            fuzzer.run(progress)
        except AssertionError as found:
            traceback.print_exception(found.__cause__)
            print(found)
            return 1
        finally:
            print(*fuzzer.table(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
