"""The datagrams of strangers, and of members who pretend to be others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from sqlite3 import connect
from typing import Final, TypeAlias

import protocol
from chatserver import ROOM_KEY
from protocol import (
    MAX_DATAGRAM,
    SESSION_PACKET,
    VERSION,
    Challenge,
    Cookie,
    Gone,
    Hello,
    Join,
    Keys,
    LogId,
    Packet,
    Part,
    Prove,
    Refused,
    RoomBlocks,
    Welcome,
    format_handshake,
)
from tests.fuzz import Dice

Dump: TypeAlias = dict[str, list[tuple[object, ...]]]

NONCE: Final = b"n" * 16
PUBLIC: Final = protocol.GROUP.pad(protocol.GROUP.power(12345))
NO_SESSION: Final = b"unknown!"  # the id of no session
HIGH: Final = 2**40  # a packet number that makes the packet the newest one


def hello(name: str = "mallory", version: int = VERSION, nonce: bytes = NONCE) -> Hello:
    return Hello(version, name, nonce, PUBLIC)


def join(cookie: bytes, it: Hello | None = None) -> Join:
    it = it or hello()
    return Join(it.version, it.username, it.nonce, it.public, cookie)


def shortest_handshakes() -> Iterator[bytes]:
    """Return the shortest packet of each type, and shorter ones that are refused."""
    for kind in ("HELLO", "JOIN"):
        yield json.dumps({"type": kind, "nonce": NONCE.hex()}, separators=(",", ":")).encode()
    for name in ("", "m"):
        yield format_handshake(hello(name))
        yield format_handshake(join(b"", hello(name)))
    for record in (
        Cookie(NONCE, b""),
        Challenge(NONCE, NO_SESSION, PUBLIC, b"", 0),
        Prove(NONCE, NO_SESSION, b"p" * 32, b""),
        Welcome(NONCE, NO_SESSION, b"p" * 32, b""),
        Refused(NONCE, "", ""),
        Gone(NO_SESSION),
    ):
        yield format_handshake(record)


def handshakes_of_all_lengths(more: int = MAX_DATAGRAM) -> Iterator[bytes]:
    """Return each of these, also with up to ``more`` bytes of padding."""
    for shortest in shortest_handshakes():
        for length in range(len(shortest), min(len(shortest) + more, MAX_DATAGRAM + 1) + 1):
            yield shortest.ljust(length)


def session_packets_of_all_lengths(session: bytes) -> Iterator[bytes]:
    """Return packets of every length, also of one that is too long, whose tag does not fit."""
    start = bytes([SESSION_PACKET]) + session
    for length in range(MAX_DATAGRAM + 2):
        yield start.ljust(length, b"\1")[:length]


def refused_names() -> Iterator[bytes]:
    """Return HELLOs whose names are longer in the words of a refusal than in the HELLO."""
    for letter in ("\N{SMILE}", "\U000e0020", "é", '"', "\\", "\0", " "):
        for length in (1, 39, 40, 41, 100):
            fields = json.loads(format_handshake(hello())) | {"username": letter * length}
            yield json.dumps(fields, ensure_ascii=False).encode()


def naming(host: str, port: int) -> Iterator[bytes]:
    """Return handshake packets whose content names an address."""
    nonce = f"{host}:{port}".encode()[:16].ljust(16)
    for name in (host, f"{host}.{port}", f"{host}:{port}"):
        for record in (hello(name), hello(name, 9), hello(name, nonce=nonce)):
            for packet in (record, join(b"c" * 16, record)):
                fields = json.loads(format_handshake(packet))
                more = {"host": host, "port": port, "address": [host, port], "to": nonce.hex()}
                yield json.dumps(fields | more).encode()


def shapes(session: bytes, keys: Keys, blocks: RoomBlocks, first: int) -> Iterator[bytes]:
    """Return well sealed packets of a member, from the shortest on, each the newest so far.

    The server takes none of their lines, because these are far beyond its cursor.
    """
    for number, (asks, lines) in enumerate(((False, 0), (True, 0), (False, 3), (True, 60)), first):
        part = Part(LogId.LINES, protocol.WINDOW_LINES[LogId.LINES], (b"WHO",) * lines)
        packet = Packet(number, 0, 0, asks, (0, 0, 0), (part,) if lines else ())
        yield protocol.seal_packet(packet, session, keys, blocks)


def forged(session: bytes, keys: Keys, blocks: RoomBlocks) -> Iterator[bytes]:
    """Return packets under a session's id, sealed with keys that their sender happens to have.

    It does not know which line the server waits for, so it writes as many as the window has.
    """
    register = "REGISTER", "00" * 16, "600000", "00" * 255 + "02"
    for line in ("EX", "PM forged", "WHO"):
        lines = (line.encode(),) * protocol.WINDOW_LINES[LogId.LINES]
        packet = Packet(HIGH, 0, 0, True, (0, 0, 0), (Part(LogId.LINES, 0, lines),))
        yield protocol.seal_packet(packet, session, keys, blocks)
    for number in range(8):
        part = Part(LogId.LINES, number, (" ".join(register).encode(),))
        packet = Packet(HIGH, 0, 0, True, (0, 0, 0), (part,))
        yield protocol.seal_packet(packet, session, keys, blocks)


def mutated(record: list[bytes], count: int) -> Iterator[bytes]:
    """Return ``count`` datagrams that are made of recorded ones."""
    dice = Dice(1)
    return (dice.mutated(dice.choice(record), dice.choice(record)) for _ in range(count))


def under(session: bytes, data: bytes) -> bytes:
    """Return a session packet with that session's id in place of its own."""
    return data[:1] + session + data[1 + len(session) :]


def in_many_orders(datagrams: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Return the datagrams as they were, backwards, and shuffled."""
    it = list(dict.fromkeys(datagrams))
    yield it
    yield it[::-1]
    yield Random(1).sample(it, len(it))


def dump(path: Path) -> Dump:
    """Return all of a room file that changes when somebody joins, moves, leaves or says something.

    Rows that change when a line is read are not among it.
    """
    with closing(connect(path)) as file:
        return {
            "instances": file.execute("SELECT * FROM instances ORDER BY key").fetchall(),
            "accounts": file.execute("SELECT * FROM accounts ORDER BY folded").fetchall(),
            "room": file.execute("SELECT * FROM lines WHERE log = ?", (ROOM_KEY,)).fetchall(),
            "logs": file.execute("SELECT log, next FROM logs ORDER BY log").fetchall(),
        }
