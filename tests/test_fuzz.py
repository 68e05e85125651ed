"""Ten thousand damaged and invented datagrams into every function that strangers can reach."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from random import Random
from unittest import mock

import protocol
from chatclient import Credentials
from protocol import Keys, Log, LogId, ProtocolError, RoomBlocks
from tests.network import HEALTHY
from tests.room import OPTIONS, SERVER, Deaf, World, world

CASES = 10_000
WORDS = ["PM", "DM", "EX", "NO", "HERE", "HI", "BYE", "WHO", "*", "alice", "1", "-1", "\x00", "é"]
REGISTRATION = ["REGISTER", "00" * 16, "600000", "00" * 255 + "02"]
WORDS += ["OK", "OUT", *REGISTRATION]


@cache
def captured() -> list[bytes]:
    """The datagrams of a real conversation: guests, and an account from its registration to a
    login that takes over."""
    with mock.patch.object(protocol, "ITERATIONS", 100_000), world(1, HEALTHY) as w:
        dora, emil = w.joined("dora", "emil")
        dora.say("hello", "DM emil psst", "WHO", "DM nobody psst")
        emil.leave()
        w.run(30)
        w.join("fritz", "desk", Credentials(new=b"password", salt=b"s" * 16))
        w.run(3)
        w.join("fritz", "phone", Credentials(b"password"))
        wrong = w.client("fritz", "cafe", Credentials(b"wrong"))
        w.run(3)
        assert wrong.client.failure
        return [datagram.data for datagram in w.network.sent]


def mutated(random: Random, seeds: list[bytes]) -> Iterator[bytes]:
    """Invented, cut, lengthened, spliced and bit-flipped datagrams."""
    while True:
        data = bytearray(random.choice(seeds))
        match random.randrange(6):
            case 0:
                data = bytearray(random.randbytes(random.randrange(1300)))
            case 1:
                del data[random.randrange(len(data) + 1) :]
            case 2:
                data += random.randbytes(random.randrange(1, 200))
            case 3:
                other = random.choice(seeds)
                cut = random.randrange(len(data) + 1)
                data = data[:cut] + bytearray(other[cut:])
            case _:
                for _ in range(random.randrange(1, 8)):
                    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        yield bytes(data)


def line(random: Random) -> bytes:
    """Something that resembles a line."""
    words = random.choices(WORDS, k=random.randrange(6))
    if random.random() < 0.2:  # by chance alone none would ever be complete
        words[:0] = REGISTRATION[: random.randrange(6)]
    raw = " ".join(words).encode()
    return raw + random.randbytes(random.randrange(4)) if random.random() < 0.3 else raw


class FuzzTest(unittest.TestCase):
    def each(self, call: Callable[[bytes], object], cases: Iterator[bytes]) -> None:
        """Nothing but ProtocolError's kind comes out of ``call``."""
        for _ in range(CASES):
            data = next(cases)
            try:
                call(data)
            except ProtocolError:
                pass
            except Exception as error:  # any other kind is what this hunts for
                raise AssertionError(f"{error!r} from {data!r}") from error

    def test_the_protocols_parsers_raise_one_kind_of_error(self) -> None:
        random = Random(1)
        seeds = captured()
        keys, blocks = Keys(b"k" * 32, b"t" * 32), RoomBlocks(b"r" * 32)
        self.each(protocol.parse_handshake_untrusted, mutated(random, seeds))
        self.each(lambda d: protocol.open_packet_untrusted(d, keys, blocks), mutated(random, seeds))
        lines = iter(lambda: line(random), None)
        self.each(protocol.parse_line_untrusted, lines)
        self.each(protocol.parse_relayed_untrusted, lines)

    def test_a_member_can_send_any_packet(self) -> None:
        """Well sealed packets of a hostile member or server: any numbers, any lines."""
        random = Random(2)
        keys, blocks = Keys(b"k" * 32, b"t" * 32), RoomBlocks(b"r" * 32)
        channel = protocol.Channel(
            protocol.TIMING, 0.0, {LogId.LINES: 0}, {LogId.ROOM: 0, LogId.INBOX: 0}
        )

        def send(_: bytes) -> None:
            numbers = [random.choice([0, 1, 2, random.randrange(2**32)]) for _ in range(6)]
            held = random.randrange(2**16)
            part = protocol.Part(LogId(random.randrange(4)), numbers[0], (line(random),) * 3)
            packet = protocol.Packet(numbers[1], numbers[2], held, False, (*numbers[3:6],), (part,))
            data = protocol.seal_packet(packet, b"s" * 8, keys, blocks)
            channel.receive(protocol.open_packet_untrusted(data, keys, blocks), 1.0)
            logs = {LogId.ROOM: Log(), LogId.INBOX: Log()}
            self.assertLessEqual(len(channel.packets(1.0, logs)), 1)

        self.each(send, iter(lambda: b"", None))
        reader = channel.readers[LogId.LINES]
        self.assertLessEqual(len(reader.early), reader.window)

    def test_the_server_survives_any_datagram_and_the_room_goes_on(self) -> None:
        with world(3, HEALTHY) as w:
            alice, bob = w.joined("alice", "bob")
            seeds = captured() + [datagram.data for datagram in w.network.sent]
            random = Random(3)
            w.network.ends["stranger"] = Deaf()
            for number, data in zip(range(CASES), mutated(random, seeds)):
                source = random.choice(["alice", "bob", "stranger"])
                w.server.server.receive_untrusted(data, (source, 7890), w.network.now)
                if number % 100 == 0:
                    self.turn(w)
            self.check_that_they_talk(w, alice.say, bob.texts)

    def test_a_member_that_sends_anything_well_sealed_concerns_nobody_else(self) -> None:
        with world(6, HEALTHY, replace(OPTIONS, rate=0)) as w:
            alice, bob, mallory = w.joined("alice", "bob", "mallory")
            random = Random(6)
            session = mallory.client._session
            assert session
            lines = w.server.server._sessions[session.id].channel.readers[LogId.LINES]
            for number in range(CASES):
                numbers = [random.choice([0, 1, 2, random.randrange(2**32)]) for _ in range(5)]
                numbers[0] = random.choice([numbers[0], lines.received])
                part = protocol.Part(LogId(random.randrange(4)), numbers[0], (line(random),) * 3)
                packet = protocol.Packet(
                    100 + number, numbers[1], 0, random.random() < 0.1, (*numbers[2:],), (part,)
                )
                data = protocol.seal_packet(packet, session.id, session.keys.client, session.blocks)
                w.server.server.receive_untrusted(data, ("mallory", 7890), w.network.now)
                if number % 50 == 0:
                    self.turn(w)
            self.check_that_they_talk(w, alice.say, bob.texts)

    def turn(self, w: World) -> None:
        w.server.server.handle(w.network.now, 0)
        w.server.server.commit()
        list(w.server.server.datagrams(w.network.now))

    def test_a_client_survives_any_datagram_and_the_room_goes_on(self) -> None:
        with world(4, HEALTHY) as w:
            alice, bob = w.joined("alice", "bob")
            seeds = captured() + [datagram.data for datagram in w.network.sent]
            random = Random(4)
            for _, data in zip(range(CASES), mutated(random, seeds)):
                bob.receive(data, SERVER, w.network.now)
            self.assertFalse(bob.client.is_over)
            self.check_that_they_talk(w, alice.say, bob.texts)

    def check_that_they_talk(
        self, w: World, say: Callable[[str], None], texts: Callable[[], list[str]]
    ) -> None:
        say("still here")
        w.run(30)
        self.assertIn("alice: still here", texts())

    def test_a_client_that_joins_survives_any_datagram(self) -> None:
        with world(5, HEALTHY) as w:
            carol = w.client("carol")
            seeds = captured()
            random = Random(5)
            for _, data in zip(range(CASES), mutated(random, seeds)):
                carol.receive(data, SERVER, w.network.now)
            w.run(30)
            self.assertTrue(carol.client.has_joined)


if __name__ == "__main__":
    unittest.main()
