"""Handshake records and session packets: their form, what is refused, and what nobody can read."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import unittest
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, ClassVar

import protocol
from protocol import (
    MAX_DATAGRAM,
    MAX_LINE,
    VERSION,
    WINDOW_LINES,
    BadPacket,
    BadSeal,
    Challenge,
    Channel,
    Cookie,
    Gone,
    Handshake,
    Hello,
    Join,
    Keys,
    Log,
    LogId,
    Objection,
    Packet,
    Part,
    ProtocolError,
    Prove,
    Refusal,
    Refused,
    Resume,
    RoomBlocks,
    SessionKeys,
    Terms,
    Timing,
    Welcome,
    derive_keys,
    format_handshake,
    open_packet_untrusted,
    open_record_untrusted,
    parse_handshake_untrusted,
    seal_packet,
    seal_record,
    session_of_untrusted,
)
from tests import views
from tests.actions import constant_room_nonce, replaced_keystream

SOME = random.Random(0).randbytes(512)
NONCE, SESSION, PUBLIC, PROOF = SOME[:16], SOME[16:24], SOME[32:288], SOME[288:320]
ROOM_KEY, INSTANCE, LOG_ID = SOME[320:352], SOME[352:368], SOME[368:376]

HANDSHAKES: dict[str, Handshake] = {
    "HELLO": Hello(VERSION, "bob", NONCE, PUBLIC),
    "COOKIE": Cookie(NONCE, SOME[:16]),
    "JOIN": Join(VERSION, "bob", NONCE, PUBLIC, SOME[:16]),
    "CHALLENGE": Challenge(NONCE, SESSION, PUBLIC, b"", 0),
    "PROVE": Prove(NONCE, SESSION, PROOF, SOME[:90]),
    "WELCOME": Welcome(NONCE, SESSION, PROOF, SOME[:90]),
    "REFUSED": Refused(NONCE, "in-use", "'bob' is taken"),
    "GONE": Gone(SESSION),
}
RESUME = Resume(LOG_ID, INSTANCE, 5, 2**31)
TERMS = Terms(LOG_ID, True, 1, 2, 3, 4, 5, ROOM_KEY, 10)
FIXED_LENGTHS = {
    "nonce": 16,
    "public": 256,
    "session": 8,
    "proof": 32,
    "instance": 16,
    "room_key": 32,
}


def wrong_values(name: str, kind: str, value: Any) -> list[Any]:
    """What must not pass for the field ``name`` of a record, as JSON has it."""
    nothing_fits: list[Any] = [None, [], {}, [1], 1.5]
    match kind:
        case "bytes":
            wrong = [
                True,
                7,
                "zz",
                "0",
                "\u0661\u0661",
                "\ud800",
            ]
            if value:
                wrong += [value.hex().upper(), value.hex(" ")]
            if name in FIXED_LENGTHS:
                wrong += ["", value.hex()[2:], value.hex() + "00", value.hex()[1:]]
        case "int":
            wrong = [True, False, "1", -1, 2**31 + 1, 10**30, 1.0]
        case "str":
            wrong = [True, 7]
        case "bool":
            wrong = [0, 1, "true"]
        case _:
            raise AssertionError(kind)
    return nothing_fits + wrong


def as_json(record: Handshake) -> dict[str, Any]:
    value = json.loads(format_handshake(record))
    assert isinstance(value, dict)
    return value


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def bit_flips(data: bytes) -> Iterator[bytes]:
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


def session_keys(challenge: bytes = b"challenge", secret: int = 2**2000 + 1) -> SessionKeys:
    return derive_keys(secret, b"join", challenge)


# The docstring of the protocol again, apart from its code: both ends could err together.


def mac(key: bytes, data: bytes, length: int) -> bytes:
    return hashlib.blake2b(data, key=key, digest_size=length).digest()


def xor(data: bytes, key: bytes, nonce: bytes = b"") -> bytes:
    stream = hashlib.shake_256(key + nonce).digest(len(data))
    return bytes(a ^ b for a, b in zip(data, stream))


def datagram(keys: Keys, header: bytes, *parts: bytes) -> bytes:
    digests = b"".join(mac(b"", part, 32) for part in parts)
    return header + mac(keys.tag, header + digests, 16) + b"".join(parts)


def header_of(number: int, flags: int = 0, kind: int = 1) -> bytes:
    return struct.pack(">B8sQQHBIII", kind, SESSION, number, 2, 250, flags, 3, 4, 5)


class HandshakePackets(unittest.TestCase):
    def test_every_type_is_read_back(self) -> None:
        for name, record in HANDSHAKES.items():
            with self.subTest(name):
                data = format_handshake(record)
                self.assertEqual(parse_handshake_untrusted(data), record)
                self.assertEqual(data[:1], b"{")
                self.assertLessEqual(len(data), MAX_DATAGRAM)

    def test_form_is_json_with_lower_case_hexadecimal(self) -> None:
        for name, record in HANDSHAKES.items():
            with self.subTest(name):
                wanted = {f.name: getattr(record, f.name) for f in fields(record)}
                wanted = {k: v.hex() if isinstance(v, bytes) else v for k, v in wanted.items()}
                self.assertEqual(as_json(record), {"type": name, **wanted})

    def test_lengths_are_those_of_the_specification(self) -> None:
        for record in (*HANDSHAKES.values(), RESUME):
            for name in (f.name for f in fields(record) if f.name in FIXED_LENGTHS):
                self.assertEqual(len(getattr(record, name)), FIXED_LENGTHS[name])

    def test_unknown_keys_are_ignored(self) -> None:
        for record in HANDSHAKES.values():
            data = encode(as_json(record) | {"mood": ["good"]})
            self.assertEqual(parse_handshake_untrusted(data), record)

    def test_wrong_or_missing_field_is_refused(self) -> None:
        for type_name, record in HANDSHAKES.items():
            right = as_json(record)
            for f in fields(record):
                if f.name == "version":
                    continue  # it has a refusal of its own
                missing = {k: v for k, v in right.items() if k != f.name}
                wrong = wrong_values(f.name, str(f.type), getattr(record, f.name))
                for value in (missing, *(right | {f.name: value} for value in wrong)):
                    with (
                        self.subTest(type_name, field=f.name, value=value.get(f.name)),
                        self.assertRaises(BadPacket),
                    ):
                        parse_handshake_untrusted(encode(value))

    def test_unknown_type_is_refused(self) -> None:
        right = as_json(HANDSHAKES["HELLO"])
        wrong: tuple[object, ...] = (None, "", "hello", "RESUME", 1, True, [], ["HELLO"], {})
        for value in wrong:
            with self.subTest(type=value), self.assertRaises(BadPacket):
                parse_handshake_untrusted(encode(right | {"type": value}))
        del right["type"]
        self.assertRaises(BadPacket, parse_handshake_untrusted, encode(right))

    def check_objection(self, code: Refusal, value: dict[str, Any]) -> None:
        with self.assertRaises(Objection) as caught:
            parse_handshake_untrusted(encode(value))
        self.assertEqual((caught.exception.code, caught.exception.nonce), (code, NONCE))
        # REFUSED takes these words to a person
        self.assertTrue(str(caught.exception).isprintable())

    def test_other_version_is_an_objection_that_carries_the_nonce(self) -> None:
        others: tuple[object, ...] = (0, VERSION - 1, VERSION + 1, -1, 10**30, "2", None, [2])
        for name in ("HELLO", "JOIN"):
            for version in others:
                # a later version may have other fields: the nonce is all that counts
                value = {"type": name, "version": version, "nonce": NONCE.hex()}
                with self.subTest(name, version=version):
                    self.check_objection(Refusal.VERSION, value)

    def test_bad_username_is_an_objection_that_carries_the_nonce(self) -> None:
        for name in ("HELLO", "JOIN"):
            for username in ("", "*", "a b", "n" * 33, "\x1b[2J", "\ud800", "\u0430lice"):
                with self.subTest(name, username=username):
                    value = as_json(HANDSHAKES[name]) | {"username": username}
                    self.check_objection(Refusal.USERNAME, value)

    def test_other_version_without_a_nonce_is_a_bad_packet(self) -> None:
        for nonce in (None, NONCE.hex()[2:], 7):
            value = {"type": "HELLO", "version": VERSION + 1, "nonce": nonce}
            self.assertRaises(BadPacket, parse_handshake_untrusted, encode(value))

    def test_version_that_only_equals_ours_is_refused(self) -> None:
        value = as_json(HANDSHAKES["HELLO"]) | {"version": float(VERSION)}
        self.assertRaises(ProtocolError, parse_handshake_untrusted, encode(value))

    def test_what_is_not_a_json_object_is_refused(self) -> None:
        whole = format_handshake(HANDSHAKES["HELLO"])
        for data in (
            b"",
            b"{",
            b"[]",
            b"1",
            b"null",
            b'"HELLO"',
            b"\xff",
            whole[:-1],
            whole + b"}",
        ):
            with self.subTest(data=data[:20]), self.assertRaises(BadPacket):
                parse_handshake_untrusted(data)

    def test_deep_nest_is_refused(self) -> None:
        for start in (b"[", b'{"type":', b'{"type":"GONE","x":' + b"["):
            with self.subTest(start), self.assertRaises(BadPacket):
                parse_handshake_untrusted(start * 100_000)

    def test_endless_number_is_refused(self) -> None:
        with self.assertRaises(BadPacket):
            parse_handshake_untrusted(b'{"type":"GONE","session":' + b"9" * 10_000 + b"}")

    def test_any_bytes_are_taken_or_refused_and_nothing_else_happens(self) -> None:
        rng = random.Random(1)
        for record in HANDSHAKES.values():
            data = format_handshake(record)
            for _ in range(100):
                damaged = bytearray(data)
                for _ in range(rng.randrange(1, 4)):
                    damaged[rng.randrange(len(data))] = rng.randrange(256)
                with suppress(ProtocolError):
                    parse_handshake_untrusted(bytes(damaged[: rng.randrange(9999)]))


class SealedRecords(unittest.TestCase):
    keys = session_keys()
    records: tuple[tuple[type[Resume | Terms], Resume | Terms, Keys, bytes], ...] = (
        (Resume, RESUME, keys.prove, keys.transcript),
        (Terms, TERMS, keys.welcome, PROOF),
    )

    def test_keys_are_those_of_the_specification(self) -> None:
        secret = 12345
        keys = derive_keys(secret, b"the JOIN", b"the CHALLENGE")
        root = hashlib.sha256(secret.to_bytes(256, "big")).digest()
        transcript = (
            hashlib.sha256(b"the JOIN").digest() + hashlib.sha256(b"the CHALLENGE").digest()
        )
        self.assertEqual(keys.transcript, transcript)
        for use in ("prove", "welcome", "client", "server"):
            for purpose in ("seal", "tag"):
                with self.subTest(use, purpose=purpose):
                    key = mac(root, f"{use} {purpose}".encode() + transcript, 32)
                    self.assertEqual(getattr(getattr(keys, use), purpose), key)

    def test_keys_change_with_the_secret_and_every_byte_of_the_transcript(self) -> None:
        seen = {session_keys(), session_keys(secret=1)}
        seen |= {derive_keys(1, join, b"challenge") for join in bit_flips(b"join")}
        seen |= {session_keys(challenge) for challenge in bit_flips(b"challenge")}
        each = {
            key
            for keys in seen
            for pair in (keys.prove, keys.welcome, keys.client, keys.server)
            for key in (pair.seal, pair.tag)
        }
        self.assertEqual(len(each), 8 * len(seen))
        self.assertEqual(len(seen), 2 + 8 * len(b"join" + b"challenge"))

    def test_form_is_that_of_the_specification(self) -> None:
        for _, record, keys, context in self.records:
            proof, sealed = seal_record(keys, context, record)
            self.assertEqual(proof, mac(keys.tag, context + sealed, 32))
            value = json.loads(xor(sealed, keys.seal))
            self.assertEqual(value.keys(), {f.name for f in fields(record)})

    def test_record_is_read_back(self) -> None:
        first = Resume(b"", INSTANCE, 0, 0)
        for kind, record, keys, context in (
            *self.records,
            (Resume, first, self.keys.prove, self.keys.transcript),
        ):
            proof, sealed = seal_record(keys, context, record)
            self.assertEqual(open_record_untrusted(kind, keys, context, proof, sealed), record)

    def test_flipped_bit_is_refused(self) -> None:
        for kind, record, keys, context in self.records:
            proof, sealed = seal_record(keys, context, record)
            altered = [(proof, flipped, context) for flipped in bit_flips(sealed)]
            altered += [(flipped, sealed, context) for flipped in bit_flips(proof)]
            altered += [(proof, sealed, flipped) for flipped in bit_flips(context)]
            altered += [(proof[:16], sealed, context), (b"", sealed, context)]
            altered += [(proof, sealed[:-1], context), (proof, sealed + b" ", context)]
            for its_proof, its_sealed, its_context in altered:
                with self.assertRaises(BadSeal):
                    open_record_untrusted(kind, keys, its_context, its_proof, its_sealed)

    def test_other_keys_are_refused(self) -> None:
        for kind, record, keys, context in self.records:
            proof, sealed = seal_record(keys, context, record)
            strangers = (session_keys(b"other"), session_keys(secret=1), self.keys)
            for stranger in strangers:
                for other in (stranger.prove, stranger.welcome, stranger.client, stranger.server):
                    if other != keys:
                        with self.assertRaises(BadSeal):
                            open_record_untrusted(kind, other, context, proof, sealed)

    def test_wrong_or_missing_field_is_refused_though_sealed(self) -> None:
        for kind, record, keys, context in self.records:
            for f in fields(record):
                for wrong in wrong_values(f.name, str(f.type), getattr(record, f.name)):
                    change: dict[str, Any] = {f.name: wrong}
                    proof, sealed = seal_record(keys, context, replace(record, **change))
                    with (
                        self.subTest(kind, field=f.name, value=wrong),
                        self.assertRaises(BadPacket),
                    ):
                        open_record_untrusted(kind, keys, context, proof, sealed)
            proof, sealed = seal_record(keys, context, record)
            other: type[Resume | Terms] = Terms if kind is Resume else Resume
            with self.assertRaises(BadPacket):
                open_record_untrusted(other, keys, context, proof, sealed)

    def test_what_is_not_an_object_is_refused_though_sealed(self) -> None:
        keys = self.keys.prove
        for text in (b"", b"[]", b"7", b"{", b"[" * 100_000):
            sealed = xor(text, keys.seal)
            with self.subTest(text=text[:9]), self.assertRaises(BadPacket):
                open_record_untrusted(Resume, keys, b"", mac(keys.tag, sealed, 32), sealed)

    def test_record_cannot_be_read(self) -> None:
        for _, record, keys, context in self.records:
            _, sealed = seal_record(keys, context, record)
            for f in fields(record):
                self.assertNotIn(f.name.encode(), sealed)
                if isinstance(secret := getattr(record, f.name), bytes):
                    self.assertNotIn(secret.hex().encode(), sealed)
                    self.assertNotIn(secret, sealed)


ROOM_LINES = (b"1700000000 bob PM hello there", b"1700000003 carol HI")
INBOX_LINES = (b"1700000001 carol DM bob psst", b"1700000002 * NO 7 no such member")
NOTICE_LINES = (b"1700000004 * HERE 0 bob carol",)
CLIENT_LINES = (b"DM carol psst", b"PM hello there", b"WHO")


class SessionPackets(unittest.TestCase):
    keys = session_keys()
    # name: (the sender's keys, a packet)
    packets: ClassVar[dict[str, tuple[Keys, Packet]]] = {
        "acknowledgement": (keys.client, Packet(1, 0, 7, False, (0, 0, 0), ())),
        "question": (keys.server, Packet(2**64 - 1, 2**64 - 1, 65535, True, (2**32 - 1,) * 3, ())),
        "lines": (
            keys.client,
            Packet(9, 4, 7, False, (1, 2, 3), (Part(LogId.LINES, 70, CLIENT_LINES),)),
        ),
        "room": (
            keys.server,
            Packet(3, 9, 7, False, (7, 0, 0), (Part(LogId.ROOM, 12, ROOM_LINES),)),
        ),
        "several parts": (
            keys.server,
            Packet(
                4,
                9,
                7,
                True,
                (7, 0, 0),
                (
                    Part(LogId.ROOM, 12, ROOM_LINES),
                    Part(LogId.INBOX, 0, INBOX_LINES),
                    Part(LogId.NOTICES, 0, NOTICE_LINES),
                ),
            ),
        ),
    }

    def seal(self, keys: Keys, packet: Packet) -> bytes:
        return seal_packet(packet, SESSION, keys, RoomBlocks(ROOM_KEY))

    def open(self, keys: Keys, data: bytes) -> Packet:
        return open_packet_untrusted(data, keys, RoomBlocks(ROOM_KEY))

    def test_packet_is_read_back(self) -> None:
        for name, (keys, packet) in self.packets.items():
            with self.subTest(name):
                data = self.seal(keys, packet)
                self.assertEqual(self.open(keys, data), packet)
                self.assertEqual(session_of_untrusted(data), SESSION)
                self.assertEqual(data[0], 1)  # never "{"

    def test_longest_line_fits(self) -> None:
        for log in LogId:
            packet = Packet(1, 0, 7, False, (0, 0, 0), (Part(log, 0, (b"x" * MAX_LINE,)),))
            data = self.seal(self.keys.server, packet)
            self.assertEqual(len(data), MAX_DATAGRAM)
            self.assertEqual(self.open(self.keys.server, data), packet)

    def test_form_is_that_of_the_specification(self) -> None:
        keys = self.keys.server

        def part(log: int, first: int, text: bytes, key: bytes, nonce: bytes) -> bytes:
            return struct.pack(">BIH", log, first, len(text)) + xor(text, key, nonce)

        def own_part(log: int, first: int, text: bytes) -> bytes:
            return part(log, first, text, keys.seal, struct.pack(">QBI", 6, log, first))

        data = datagram(
            keys,
            header_of(6, flags=1),
            part(1, 12, b"one\ntwo", ROOM_KEY, struct.pack(">I", 12)),
            own_part(2, 0, b"three"),
            own_part(3, 9, b"four\nfive\nsix"),
            own_part(0, 2, b"seven"),
        )
        packet = Packet(
            6,
            2,
            250,
            True,
            (3, 4, 5),
            (
                Part(LogId.ROOM, 12, (b"one", b"two")),
                Part(LogId.INBOX, 0, (b"three",)),
                Part(LogId.NOTICES, 9, (b"four", b"five", b"six")),
                Part(LogId.LINES, 2, (b"seven",)),
            ),
        )
        self.assertEqual(self.seal(keys, packet), data)
        self.assertEqual(self.open(keys, data), packet)

    def refuse(self, keys: Keys, data: bytes) -> None:
        with self.assertRaises((BadSeal, BadPacket)):
            self.open(keys, data)

    def test_every_flipped_bit_is_refused(self) -> None:
        for name, (keys, packet) in self.packets.items():
            with self.subTest(name):
                for flipped in bit_flips(self.seal(keys, packet)):
                    self.refuse(keys, flipped)

    def test_every_truncation_is_refused(self) -> None:
        for name, (keys, packet) in self.packets.items():
            with self.subTest(name):
                data = self.seal(keys, packet)
                for length in range(len(data)):
                    self.refuse(keys, data[:length])

    def test_every_extension_is_refused(self) -> None:
        for name, (keys, packet) in self.packets.items():
            with self.subTest(name):
                data = self.seal(keys, packet)
                # any byte, the same part again, padding up to and beyond the longest datagram
                more = [bytes((value,)) for value in range(256)] + [data[56:], SOME]
                more += [bytes(length) for length in range(1, 1300)]
                for extra in filter(None, more):
                    self.refuse(keys, data + extra)

    def test_parts_cannot_change_places(self) -> None:
        keys, packet = self.packets["several parts"]
        swapped = replace(packet, parts=packet.parts[::-1])
        data, other = self.seal(keys, packet), self.seal(keys, swapped)
        self.refuse(keys, data[:54] + other[54:])
        self.refuse(keys, other[:54] + data[56:])

    def test_replay_into_another_session_is_refused(self) -> None:
        # the room key is the same in every session; a session's id is no secret
        for other in (session_keys(b"other"), session_keys(secret=1)):
            for name, (keys, packet) in self.packets.items():
                theirs = other.client if keys == self.keys.client else other.server
                with self.subTest(name), self.assertRaises(BadSeal):
                    self.open(theirs, self.seal(keys, packet))

    def test_replay_in_the_other_direction_is_refused(self) -> None:
        for name, (keys, packet) in self.packets.items():
            other = self.keys.server if keys == self.keys.client else self.keys.client
            with self.subTest(name), self.assertRaises(BadSeal):
                self.open(other, self.seal(keys, packet))

    def test_member_who_knows_the_room_key_cannot_forge_for_another(self) -> None:
        keys, packet = self.packets["room"]
        forged = replace(packet, parts=(Part(LogId.ROOM, 12, (b"1700000000 bob PM forged",)),))
        own, theirs = self.seal(keys, forged), self.seal(session_keys(b"victim").server, packet)
        with self.assertRaises(BadSeal):
            self.open(session_keys(b"victim").server, theirs[:54] + own[54:])

    def test_impossible_content_is_refused_though_sealed(self) -> None:
        keys = self.keys.client

        def part(log: int, length: int, text: bytes) -> bytes:
            return struct.pack(">BIH", log, 0, length) + text

        table = {
            "number 0": datagram(keys, header_of(0)),
            "unknown flag": datagram(keys, header_of(1, flags=2)),
            "unknown flag and a known one": datagram(keys, header_of(1, flags=3)),
            "another type": datagram(keys, header_of(1, kind=2)),
            "unknown log": datagram(keys, header_of(1), part(4, 1, b"x")),
            "empty part": datagram(keys, header_of(1), part(0, 0, b"")),
            "empty part before another": datagram(
                keys, header_of(1), part(0, 0, b""), part(0, 1, b"x")
            ),
            "part longer than the packet": datagram(keys, header_of(1), part(0, 2, b"x")),
            "two parts of a log": datagram(keys, header_of(1), part(0, 1, b"x"), part(0, 1, b"x")),
            "part without a header": datagram(keys, header_of(1), part(0, 1, b"x"), b"123456"),
            "datagram too long": datagram(keys, header_of(1), part(0, 1140, b"x" * 1140)),
        }
        for name, data in table.items():
            with self.subTest(name), self.assertRaises(BadPacket):
                self.open(keys, data)

    def test_more_lines_than_a_window_has_are_refused(self) -> None:
        keys = self.keys.client
        for log, window in WINDOW_LINES.items():
            for lines in (window, window + 1):
                packet = Packet(1, 0, 0, False, (0, 0, 0), (Part(log, 0, (b"",) * lines),))
                with self.subTest(log=log, lines=lines):
                    data = self.seal(keys, packet)
                    if lines == window:
                        self.assertEqual(self.open(keys, data), packet)
                    else:
                        self.assertRaises(BadPacket, self.open, keys, data)

    def test_session_id_of_what_is_no_session_packet_is_refused(self) -> None:
        whole = self.seal(self.keys.client, Packet(1, 0, 7, False, (0, 0, 0), ()))
        too_long = whole.ljust(MAX_DATAGRAM + 1, b"\0")
        for data in (b"", whole[:-1], too_long, b"{" + whole[1:], b"\0" + whole[1:]):
            self.assertRaises(BadPacket, session_of_untrusted, data)

    def test_any_bytes_are_refused_and_nothing_else_happens(self) -> None:
        rng = random.Random(2)
        for _ in range(500):
            self.refuse(self.keys.client, b"\1" + rng.randbytes(rng.randrange(1300)))

    def test_no_line_can_be_read(self) -> None:
        for name, (keys, packet) in self.packets.items():
            data = self.seal(keys, packet)
            for line in (line for part in packet.parts for line in part.lines):
                for at in range(len(line) - 2):
                    with self.subTest(name, line=line):
                        self.assertNotIn(line[at : at + 3], data)

    def test_same_line_never_looks_the_same_outside_the_room(self) -> None:
        line = b"DM carol the same words again"
        seen = set()
        for number in (1, 2):
            for first in (0, 1):
                for log in (LogId.LINES, LogId.INBOX, LogId.NOTICES):
                    packet = Packet(number, 0, 7, False, (0, 0, 0), (Part(log, first, (line,)),))
                    for keys in (self.keys.client, self.keys.server):
                        seen.add(self.seal(keys, packet)[-len(line) :])
        self.assertEqual(len(seen), 2 * 2 * 3 * 2)

    def test_block_of_the_room_is_the_same_for_every_member(self) -> None:
        block = Part(LogId.ROOM, 12, ROOM_LINES)
        blocks = RoomBlocks(ROOM_KEY)
        datagrams = [
            seal_packet(
                Packet(number, number, 7, False, (number, 0, 0), (block,)),
                bytes((number,)) * 8,
                session_keys(bytes((number,))).server,
                room,
            )
            for number, room in ((1, blocks), (2, blocks), (3, RoomBlocks(ROOM_KEY)))
        ]
        self.assertEqual(len({data[56:] for data in datagrams}), 1)
        self.assertEqual(len({data[38:54] for data in datagrams}), 3)

    def test_longer_block_of_the_room_begins_with_the_shorter_one(self) -> None:
        blocks = RoomBlocks(ROOM_KEY)
        texts = []
        for count in (2, 1):  # the longer one first: a cache must not hand it out
            data, _ = blocks.seal(Part(LogId.ROOM, 12, ROOM_LINES[:count]))
            texts.append(data[7:])
        self.assertLess(len(texts[1]), len(texts[0]))
        self.assertTrue(texts[0].startswith(texts[1]))

    def test_room_block_is_right_after_many_others(self) -> None:
        blocks, reader = RoomBlocks(ROOM_KEY), RoomBlocks(ROOM_KEY)
        for _ in range(2):
            for first in range(1500):
                data, _ = blocks.seal(Part(LogId.ROOM, first, (b"%d" % first,)))
                self.assertEqual(reader.open(first, data[7:]), b"%d" % first)


@dataclass
class End:
    """One end of a session, and what the network is about to bring to it."""

    channel: Channel
    keys: Keys  # that seal what it sends
    logs: dict[LogId, Log]  # that it writes
    arriving: list[tuple[float, bytes]] = field(default_factory=list)


@dataclass
class Member:
    lines: Log = field(default_factory=Log)
    inbox: Log = field(default_factory=Log)
    notices: Log = field(default_factory=Log)  # of the session
    sessions: int = 0


class LossyRoom:
    """Two members of one room on a network that loses, delays and reorders.

    Notes every (key, nonce, plaintext) that is sealed, and what the packets carried.
    """

    LOSS = 0.25

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.room_key = self.rng.randbytes(32)
        self.blocks = RoomBlocks(self.room_key)
        self.room = Log()
        self.members = [Member(), Member()]
        self.texts: defaultdict[tuple[bytes, bytes], set[bytes]] = defaultdict(set)
        self.times_sent: Counter[tuple[bytes, LogId, int]] = Counter()  # key, log, line
        self.ends_sent: defaultdict[tuple[bytes, LogId, int], set[int]] = defaultdict(set)
        self.is_read_right = True
        self.ends = [self.join(member) for member in self.members]

    def seal(self, name: str, *arguments: Any) -> Any:
        """Calls the protocol's ``name`` and notes what it puts under a keystream."""

        def noting(data: bytes, key: bytes, nonce: bytes) -> bytes:
            self.texts[key, nonce].add(data)
            return views.xor_keystream(data, key, nonce)

        with replaced_keystream(noting):
            return getattr(protocol, name)(*arguments)

    def join(self, member: Member, before: tuple[End, End] | None = None) -> tuple[End, End]:
        """A new session, from the cursors at which the one before stopped."""
        # The secret is the same: it is the transcript that must set sessions apart.
        challenge = b"%d %d" % (self.members.index(member), member.sessions)
        keys = session_keys(challenge)
        member.sessions += 1
        member.notices = Log()
        lines = room = inbox = 0
        if before:
            room, inbox, _ = (reader.cursor for reader in before[0].channel.readers.values())
            lines = before[1].channel.readers[LogId.LINES].cursor
        resume = Resume(b"log", INSTANCE, room, inbox)
        terms = Terms(b"log", True, lines, room, inbox, 0, 0, self.room_key, 0)
        proof, _ = self.seal("seal_record", keys.prove, keys.transcript, resume)
        self.seal("seal_record", keys.welcome, proof, terms)
        down, up = {LogId.ROOM: room, LogId.INBOX: inbox, LogId.NOTICES: 0}, {LogId.LINES: lines}
        timing = Timing()
        return (
            End(Channel(timing, self.now, down, up), keys.client, {LogId.LINES: member.lines}),
            End(
                Channel(timing, self.now, up, down),
                keys.server,
                {LogId.ROOM: self.room, LogId.INBOX: member.inbox, LogId.NOTICES: member.notices},
            ),
        )

    def write(self) -> None:
        """A few lines, most of them short, so that packets hold various numbers of them."""
        logs = [self.room, *(log for m in self.members for log in (m.lines, m.inbox, m.notices))]
        for log in logs:
            while self.rng.random() < 0.08:
                log.append(self.rng.randbytes(self.rng.choice((5, 20, 60, 500))).hex().encode())

    def send(self, sender: End, receiver: End) -> None:
        for packet in sender.channel.packets(self.now, sender.logs):
            data = self.seal("seal_packet", packet, SESSION, sender.keys, self.blocks)
            for part in packet.parts:
                self.ends_sent[sender.keys.seal, part.log, part.first].add(part.end)
                for number in range(part.first, part.end):
                    self.times_sent[sender.keys.seal, part.log, number] += 1
            if self.rng.random() >= self.LOSS:
                receiver.arriving.append((self.now + self.rng.uniform(0.01, 0.3), data))

    def receive(self, sender: End, receiver: End) -> None:
        due = sorted(item for item in receiver.arriving if item[0] <= self.now)
        receiver.arriving = [item for item in receiver.arriving if item[0] > self.now]
        for _, data in due:
            packet = open_packet_untrusted(data, sender.keys, RoomBlocks(self.room_key))
            receiver.channel.receive(packet, self.now)
        for log, reader in receiver.channel.readers.items():
            while reader.is_ready:
                number, line = reader.take()
                self.is_read_right &= sender.logs[log].lines[number] == line

    def is_all_read(self) -> bool:
        return all(
            reader.cursor == sender.logs[log].end
            for client, server in self.ends
            for sender, receiver in ((client, server), (server, client))
            for log, reader in receiver.channel.readers.items()
        )

    def run(self) -> None:
        """Lines are written for a minute, and each member joins again in the midst of it."""
        for step in range(6000):
            self.now = step / 20
            if self.now < 60:
                self.write()
            elif self.is_all_read():
                break
            for index, at in enumerate((400, 700)):
                if step == at:
                    self.ends[index] = self.join(self.members[index], self.ends[index])
            for client, server in self.ends:
                for sender, receiver in ((client, server), (server, client)):
                    self.send(sender, receiver)
                    self.receive(sender, receiver)


def are_prefixes(texts: set[bytes]) -> bool:
    """Whether of any two the longer begins with the shorter."""
    # neighbours in the order of length are enough: "begins with" is transitive
    return all(longer.startswith(shorter) for shorter, longer in pairwise(sorted(texts, key=len)))


class NonceUse(unittest.TestCase):
    def test_no_nonce_covers_two_texts_of_which_neither_begins_with_the_other(self) -> None:
        for seed in range(4):
            with self.subTest(seed=seed):
                room = LossyRoom(seed)
                room.run()
                self.assertTrue(room.is_all_read() and room.is_read_right)
                self.check_that_it_was_put_to_the_test(room)
                self.assertTrue(all(map(are_prefixes, room.texts.values())))

    def check_that_it_was_put_to_the_test(self, room: LossyRoom) -> None:
        """Without repetition and new packing there would be nothing to see."""
        for log in LogId:
            times = [count for (_, its_log, _), count in room.times_sent.items() if its_log is log]
            ends = [ends for (_, its_log, _), ends in room.ends_sent.items() if its_log is log]
            self.assertGreater(sum(count > 1 for count in times), 10, log)
            self.assertGreater(sum(len(its_ends) > 1 for its_ends in ends), 2, log)
        blocks = [texts for (key, _), texts in room.texts.items() if key == room.room_key]
        self.assertGreater(sum(len(texts) > 1 for texts in blocks), 10)
        # of two members in two sessions each: both directions, PROVE and WELCOME; and the room's
        self.assertEqual(len({key for key, _ in room.texts}), 2 * 2 * 4 + 1)

    def test_reused_nonce_would_be_found(self) -> None:
        with constant_room_nonce():
            room = LossyRoom(0)
            room.run()
        self.assertFalse(all(map(are_prefixes, room.texts.values())))


if __name__ == "__main__":
    unittest.main()
