"""Channel: what arrives on a bad network, and when exactly an end sends what."""

from __future__ import annotations

import pickle
import unittest
from collections.abc import Callable, Iterable, Mapping
from math import inf
from random import Random
from typing import Final
from unittest import mock

from protocol import (
    ACK_PACKETS,
    BURST_SECONDS,
    INITIAL_WINDOW,
    MAX_DATAGRAM,
    MAX_LINE,
    MAXIMUM_WINDOW,
    MINIMUM_WINDOW,
    PACKET_THRESHOLD,
    WINDOW_LINES,
    BadPacket,
    Bucket,
    Channel,
    Log,
    LogId,
    Packet,
    Part,
    Reader,
    RoundTrip,
    Timing,
    Window,
)
from tests import views
from tests.actions import set_timeout
from tests.network import HEALTHY, Faults, Network, Pair

LINES, ROOM, INBOX, NOTICES = LogId
TIMING: Final = Timing()
EPSILON: Final = 1e-6
SEEDS: Final = 240

WHOLE: Final = b"w" * MAX_LINE  # a line that fills a datagram
SHORT: Final = b"s"


# ------------------------------------------------------------------------------ a bad network


def random_faults(random: Random) -> Faults:
    dark_from = random.uniform(0, 4)
    blackout = (dark_from, dark_from + random.uniform(0, 6))
    blackouts = (blackout,) if random.random() < 0.5 else ()
    return Faults(random.uniform(0, 0.3), 0.1, (0, 0.06), blackouts)


def random_lines(random: Random) -> list[bytes]:
    """Up to more than a window of them, from all short to up to the longest."""
    longest = random.choice((1, 20, 200, MAX_LINE))
    lines = [
        random.randbytes(random.randint(1, longest)).replace(b"\n", b" ")
        for _ in range(random.choice((0, 1, 3, 10, 30, 100)))
    ]
    return [*lines, b"L" * MAX_LINE] if longest == MAX_LINE else lines


class OnABadNetwork(unittest.TestCase):
    """One session for each seed: talk both ways in all logs, then silence."""

    def test_all_lines_arrive_once_and_in_order_and_then_the_ends_are_silent(self) -> None:
        for seed in range(SEEDS):
            with self.subTest(seed=seed):
                random = Random(seed)
                network = Network(seed, random_faults(random))
                pair = Pair(network, TIMING, start=random.choice((0, 10**9)))
                written = self.write_at_random(pair, random)
                self.run_until_settled(network, pair, written)
                self.check_amount(network, pair, sum(map(len, written.values())))
                self.check_silence(network, pair)

    def write_at_random(self, pair: Pair, random: Random) -> dict[LogId, list[bytes]]:
        written = {}
        for log in LogId:
            written[log] = lines = random_lines(random)
            if random.random() < 0.5:
                pair.write(random.uniform(0, 3), log, lines)
            else:
                for when, line in zip(sorted(random.uniform(0, 3) for _ in lines), lines):
                    pair.write(when, log, [line])
        return written

    def run_until_settled(
        self, network: Network, pair: Pair, written: Mapping[LogId, list[bytes]]
    ) -> None:
        def is_done() -> bool:
            arrived = all(len(pair.taken(log)) >= len(lines) for log, lines in written.items())
            return arrived and pair.is_settled

        self.assertTrue(network.run(120, is_done), "not settled after two minutes")
        self.assertEqual({log: pair.taken(log) for log in LogId}, written)

    def check_amount(self, network: Network, pair: Pair, lines: int) -> None:
        """A line costs little even where each was alone, lost and repeated."""
        sent = pair.client.sent + pair.server.sent
        with_lines = sum(bool(packet.parts) for packet in sent)
        self.assertLessEqual(with_lines, 1.5 * lines + 20)
        self.assertLessEqual(len(sent) - with_lines, with_lines + 5, "acknowledgements and probes")
        self.assertLessEqual(
            max((len(datagram.data) for datagram in network.sent), default=0), MAX_DATAGRAM
        )

    def check_silence(self, network: Network, pair: Pair) -> None:
        network.run(network.now + 1)  # what is still on its way, and its acknowledgements
        before = len(network.sent)
        for end in (pair.client, pair.server):
            self.assertFalse(any(writer.flights for writer in end.channel.writers.values()))
        self.assertEqual(pair.server.deadline(), inf)
        asks_at = pair.client.deadline()
        network.run(asks_at - EPSILON)
        self.assertEqual(len(network.sent), before, "packets in the silence")
        network.faults = HEALTHY
        network.run(asks_at + 1)
        self.assertEqual(len(network.sent), before + 2, "not one question and one answer")


class OnAGoodNetwork(unittest.TestCase):
    """One session for each seed on a network that is slow, but loses and mixes up nothing."""

    def test_no_line_is_sent_twice_however_far_apart_lines_are(self) -> None:
        for seed in range(60):
            with self.subTest(seed=seed):
                random = Random(seed)
                delay = random.uniform(0, 0.3)
                network = Network(seed, Faults(0, 0, (delay, delay)))
                pair = Pair(network, TIMING)
                gap, when = 10 ** random.uniform(-2.5, 0.3), 0.0
                logs = random.sample([*LogId], random.randint(1, 4))
                for _ in range(random.randint(5, 60)):
                    when += random.uniform(0, 2 * gap)
                    pair.write(when, random.choice(logs), [b"x" * random.randint(1, 900)])
                network.run(when + 20)
                for end in (pair.client, pair.server):
                    parts = [part for packet in end.sent for part in packet.parts]
                    sent = [(part.log, n) for part in parts for n in range(part.first, part.end)]
                    self.assertEqual(len(sent), len(set(sent)))
                    self.assertEqual(len(sent), sum(log.end for log in end.logs.values()))


# ------------------------------------------------------------------------------- exact scripts


def incoming(
    number: int,
    *parts: Part,
    echo: int = 0,
    cursors: tuple[int, ...] = (0, 0, 0),
    held: int = 0,
    asks: bool = False,
) -> Packet:
    return Packet(number, echo, held, asks, cursors, parts)


class Script:
    """One end, used as a program uses it, and a scripted other end."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.logs = {log: Log(writer.cursor) for log, writer in channel.writers.items()}
        self.taken: list[bytes] = []
        self.is_sign_of_life = False
        self._last = incoming(0)

    def due(self, now: float) -> list[Packet]:
        return self.channel.packets(now, self.logs)

    def write(self, now: float, *lines: bytes, log: LogId = LINES) -> list[Packet]:
        """Appends the lines; what is sent at once."""
        for line in lines:
            self.logs[log].append(line)
        return self.due(now)

    def hear(
        self,
        now: float,
        *parts: Part,
        echo: int | None = None,
        cursor: int | None = None,
        held: int = 0,
        asks: bool = False,
        skip: int = 0,
    ) -> list[Packet]:
        """The other end's next packet, or after ``skip`` lost ones; what is sent at once.

        Its echo and its first cursor are the last ones where they are not given.
        """
        self._last = incoming(
            self._last.number + 1 + skip,
            *parts,
            echo=self._last.echo if echo is None else echo,
            cursors=self._last.cursors if cursor is None else (cursor, 0, 0),
            held=held,
            asks=asks,
        )
        return self.hear_again(now)

    def hear_again(self, now: float) -> list[Packet]:
        """The same datagram as last time."""
        return self.hear_packet(now, self._last)

    def hear_packet(self, now: float, heard: Packet) -> list[Packet]:
        self.is_sign_of_life = self.channel.receive(heard, now)
        for reader in self.channel.readers.values():
            while reader.is_ready:
                self.taken.append(reader.take()[1])
        return self.due(now)


OTHERS: Final = dict.fromkeys((ROOM, INBOX, NOTICES), 0)


def client(timing: Timing = TIMING, keepalive: float = inf) -> Script:
    """An end that writes one log and reads three."""
    return Script(Channel(timing, 0.0, OTHERS, {LINES: 0}, keepalive))


def server() -> Script:
    """An end that writes three logs and reads one."""
    return Script(Channel(TIMING, 0.0, {LINES: 0}, OTHERS))


def unreadable(which: LogId, part: Callable[..., Part | None]) -> Callable[..., Part | None]:
    """Return ``Log.part`` as it is while one log cannot be read."""

    def read(self: Log, log: LogId, first: int, end: int, space: int) -> Part | None:
        if log is which:
            raise OSError
        return part(self, log, first, end, space)

    return read


def room(first: int, *lines: bytes) -> Part:
    return Part(ROOM, first, lines)


def numbers(packets: Iterable[Packet], log: LogId = LINES) -> list[list[int]]:
    """For each packet the numbers of the lines of ``log`` in it."""
    return [
        [n for part in packet.parts if part.log is log for n in range(part.first, part.end)]
        for packet in packets
    ]


class ScriptTest(unittest.TestCase):
    def next_at(self, end: Script, at: float) -> list[Packet]:
        """What is sent at ``at``, and nothing is before."""
        deadline = end.channel.deadline()
        self.assertAlmostEqual(deadline, at)
        self.assertEqual(end.due(deadline - EPSILON), [])
        return end.due(deadline)

    def assert_bare(self, packets: list[Packet], asks: bool = False) -> None:
        """One packet without lines: an acknowledgement, or a question."""
        self.assertEqual([(packet.parts, packet.asks) for packet in packets], [((), asks)])

    def assert_silent(self, end: Script) -> None:
        self.assertEqual(end.channel.deadline(), inf)


class Timeouts(ScriptTest):
    def test_an_idle_end_sends_a_line_at_once(self) -> None:
        self.assertEqual(numbers(client().write(0, SHORT)), [[0]])

    def test_the_first_timeout_is_one_second(self) -> None:
        end = client()
        end.write(0, SHORT)
        self.assertEqual(numbers(self.next_at(end, 1)), [[0]])

    def test_timeouts_double_up_to_eight_seconds(self) -> None:
        end = client()
        end.write(0, SHORT)
        for at in (1, 1 + 2, 3 + 4, 7 + 8, 15 + 8, 23 + 8):
            self.assertEqual(numbers(self.next_at(end, at))[0], [0])

    def test_from_the_second_timeout_on_a_packet_is_sent_twice(self) -> None:
        end = client()
        end.write(0, SHORT)
        self.assertEqual(numbers(self.next_at(end, 1)), [[0]])
        for at in (3, 7):
            first, second = self.next_at(end, at)
            self.assertEqual(first.parts, second.parts)
            self.assertEqual(first.number + 1, second.number)

    def test_the_first_timeout_after_an_answer_is_sent_once(self) -> None:
        end = client()
        end.write(0, SHORT)
        self.next_at(end, 1)
        self.next_at(end, 3)  # packets 3 and 4
        end.hear(3.5, echo=4, cursor=1)
        end.write(4, SHORT)
        self.assertEqual(numbers(self.next_at(end, 4 + 1.8)), [[1]])

    def test_only_the_first_of_several_packets_of_a_timeout_is_sent_twice(self) -> None:
        end = server()
        end.write(0, WHOLE, log=ROOM)
        end.write(0, WHOLE, log=INBOX)
        self.next_at(end, 1)
        self.assertEqual(numbers(self.next_at(end, 3), ROOM), [[0], [], [0]])

    def test_a_new_echo_resets_the_back_off(self) -> None:
        end = client()
        end.write(0, SHORT)
        self.next_at(end, 1)
        self.next_at(end, 3)
        end.hear(3.5, echo=3, cursor=1)
        end.write(4, SHORT)
        self.next_at(end, 4 + (0.5 + 4 * 0.25 + 0.3))

    def test_an_old_echo_does_not_reset_the_back_off(self) -> None:
        end = client()
        end.hear(0, asks=True)  # answered by packet 1
        end.hear(0, asks=True)  # answered by packet 2
        end.hear(0, echo=2)
        end.write(0, SHORT)
        self.next_at(end, 1)
        end.hear(1.5)
        end.hear(1.5, echo=1)
        self.next_at(end, 3)

    def test_a_packet_restarts_the_timeout_as_long_as_the_other_end_waits_for_more(self) -> None:
        end = client()
        for index in range(ACK_PACKETS + 3):
            end.write(index / 10, SHORT)
            awaited = min(index, ACK_PACKETS - 1) / 10
            self.assertAlmostEqual(end.channel.deadline(), awaited + 1)
        self.assertEqual(numbers(self.next_at(end, awaited + 1))[0][0], 0)

    def test_what_was_passed_over_is_late_sooner(self) -> None:
        """The other end has answered at once, since it has a gap."""
        end = client()
        end.write(0, SHORT)
        end.hear(0.1, echo=1, cursor=1)  # SRTT 0.1 s, RTTVAR 0.05 s
        end.write(1, SHORT)
        end.write(1.05, SHORT)
        end.hear(1.15, echo=3)  # RTTVAR 0.0375 s
        self.assertEqual(numbers(self.next_at(end, 1 + 0.1 + 4 * 0.0375)), [[1, 2]])

    def test_what_was_passed_over_has_a_little_time_to_arrive_after_all(self) -> None:
        end = client()
        for index in range(30):  # the round trip hardly varies
            end.write(index, SHORT)
            end.hear(index + 0.001, echo=index + 1, cursor=index + 1)
        end.write(30, SHORT)
        end.write(30, SHORT)
        end.hear(30.001, echo=32)
        self.next_at(end, 30 + 0.001 + TIMING.granularity)

    def test_progress_restarts_the_timeout(self) -> None:
        end = client()
        self.assertEqual(numbers(end.write(0, WHOLE, WHOLE)), [[0], [1]])
        end.hear(0.5, echo=1, cursor=1)
        self.assertEqual(numbers(self.next_at(end, 0.5 + (0.5 + 4 * 0.25 + 0.3))), [[1]])

    def test_a_packet_without_progress_does_not_restart_the_timeout(self) -> None:
        end = client()
        end.write(0, SHORT)
        end.hear(0.9)
        self.next_at(end, 1)

    def test_of_several_late_packets_only_the_oldest_is_resent(self) -> None:
        end = client()
        self.assertEqual(numbers(end.write(0, WHOLE, WHOLE, WHOLE)), [[0], [1], [2]])
        self.assertEqual(numbers(self.next_at(end, 1)), [[0]])

    def test_what_is_late_in_several_logs_shares_a_packet(self) -> None:
        end = server()
        for log in (ROOM, INBOX, NOTICES):
            end.write(0, SHORT, log=log)
        (packet,) = self.next_at(end, 1)
        self.assertEqual([part.log for part in packet.parts], [ROOM, INBOX, NOTICES])

    def test_what_is_late_in_one_log_does_not_resend_another(self) -> None:
        end = server()
        end.write(0, SHORT, log=ROOM)
        end.write(0.1, SHORT, log=INBOX)
        end.hear_packet(0.2, incoming(1, echo=2, cursors=(0, 1, 0)))
        end.write(0.3, SHORT, log=INBOX)
        (packet,) = end.due(0.2 + 0.1 + 4 * 0.05)
        self.assertEqual([part.log for part in packet.parts], [ROOM])

    def test_nothing_is_resent_once_it_is_acknowledged(self) -> None:
        end = client()
        end.write(0, WHOLE, WHOLE)
        end.hear(0.5, echo=2, cursor=2)
        self.assert_silent(end)
        self.assertEqual(end.due(100), [])

    def test_all_durations_come_from_the_timing(self) -> None:
        end = client(Timing(first_timeout=3, max_timeout=4, ack_delay=0.5, ack_allowance=0.25))
        end.write(0, SHORT)
        self.next_at(end, 3)
        self.next_at(end, 3 + 4)
        end.hear(8, room(0, SHORT), echo=3, cursor=1)
        self.assert_bare(self.next_at(end, 8.5))
        end.write(9, SHORT)
        self.next_at(end, 9 + (1 + 4 * 0.5 + 0.25))


class RoundTrips(ScriptTest):
    def assert_round_trip(self, end: Script, smoothed: float | None, variation: float) -> None:
        found = end.channel.round_trip
        self.assertEqual((found.smoothed, found.variation), (smoothed, variation))

    def test_samples_are_smoothed_by_rfc_6298(self) -> None:
        trip = RoundTrip(TIMING)
        for seconds, smoothed, variation in (
            (0.5, 0.5, 0.25),
            (1.0, 0.5625, 0.3125),
            (0.0625, 0.5, 0.359375),
        ):
            trip.sample(seconds)
            self.assertEqual((trip.smoothed, trip.variation), (smoothed, variation))

    def test_a_timeout_is_four_variations_longer_and_allows_for_the_delay(self) -> None:
        trip = RoundTrip(TIMING)
        trip.sample(0.5)
        self.assertAlmostEqual(trip.timeout(0), 0.5 + 4 * 0.25 + 0.3)
        self.assertAlmostEqual(trip.timeout(1), 2 * 1.8)
        self.assertEqual(trip.timeout(3), 8)
        self.assertEqual(trip.timeout(10**6), 8)

    def test_a_new_echo_is_a_sample(self) -> None:
        end = client()
        end.write(0, SHORT)
        end.hear(0.5, echo=1, cursor=1)
        self.assert_round_trip(end, 0.5, 0.25)
        end.write(1, SHORT)
        end.hear(2, echo=2, cursor=2)
        self.assert_round_trip(end, 0.5625, 0.3125)

    def test_an_echo_is_a_sample_once(self) -> None:
        end = client()
        end.write(0, SHORT)
        end.hear(0.5, echo=1, cursor=1)
        end.hear(5)
        end.hear_again(6)
        self.assert_round_trip(end, 0.5, 0.25)

    def test_an_echo_is_a_sample_of_its_packet_alone(self) -> None:
        end = client()
        end.write(0, WHOLE)
        end.write(0.25, WHOLE)
        end.hear(0.75, echo=2, cursor=2)
        self.assert_round_trip(end, 0.5, 0.25)

    def test_a_late_older_echo_is_no_sample(self) -> None:
        end = client()
        end.write(0, WHOLE, WHOLE)
        end.hear(0.5, echo=2, cursor=2)
        end.hear(3, echo=1, cursor=1)
        self.assert_round_trip(end, 0.5, 0.25)

    def test_the_echo_of_a_mere_acknowledgement_is_no_sample(self) -> None:
        end = client()
        self.assert_bare(end.hear(0, asks=True))
        end.hear(5, echo=1)  # whenever the other end had something to say
        self.assert_round_trip(end, None, 0)

    def test_the_answer_to_a_question_is_a_sample(self) -> None:
        end = client(keepalive=20)
        self.next_at(end, 20)
        end.hear(20.5, echo=1)
        self.assert_round_trip(end, 0.5, 0.25)

    def test_a_resent_packet_is_measured_from_when_it_was_resent(self) -> None:
        end = client()
        end.write(0, SHORT)
        self.next_at(end, 1)
        end.hear(1.5, echo=2, cursor=1)
        self.assert_round_trip(end, 0.5, 0.25)

    def test_the_time_that_the_other_end_held_an_echo_is_not_counted(self) -> None:
        end = client()
        end.write(0, SHORT)
        end.hear(0.75, echo=1, cursor=1, held=250)
        self.assert_round_trip(end, 0.5, 0.25)

    def test_no_round_trip_is_negative(self) -> None:
        end = client()
        end.write(0, SHORT)
        end.hear(0.5, echo=1, cursor=1, held=501)
        self.assert_round_trip(end, 0, 0)

    def test_an_echo_that_was_held_for_longer_than_can_be_said_is_no_sample(self) -> None:
        end = client()
        end.write(0, SHORT)
        end.hear(70, echo=1, cursor=1, held=65_535)
        self.assert_round_trip(end, None, 0)
        end.write(70, SHORT)
        end.hear(140, echo=2, cursor=2, held=65_534)
        self.assertAlmostEqual(end.channel.round_trip.smoothed or 0, 70 - 65.534)

    def test_an_end_says_how_long_it_has_known_its_echo(self) -> None:
        end = client()
        end.hear(0, room(0, SHORT))
        packets = self.next_at(end, 0.2)
        end.hear_again(0.25)  # replayed, and so not heard
        packets += end.write(0.5, SHORT)
        packets += end.hear(2, asks=True, echo=2, cursor=1)
        packets += end.write(60, SHORT) + end.write(70, SHORT)
        self.assertEqual([sent.held for sent in packets], [200, 500, 0, 58_000, 65_535])

    def test_the_original_of_a_resent_packet_is_measured_from_when_it_was_sent(self) -> None:
        end = client()
        end.write(0, SHORT)
        self.next_at(end, 1)
        end.hear(1.5, echo=1, cursor=1)
        self.assert_round_trip(end, 1.5, 0.75)


class Losses(ScriptTest):
    def six_on_their_way(self) -> Script:
        """Packets 1 to 6 with lines 0 to 5."""
        end = client()
        self.assertEqual(numbers(end.write(0, *[WHOLE] * 6)), [[n] for n in range(6)])
        return end

    def test_an_echo_two_packets_later_is_no_loss(self) -> None:
        end = self.six_on_their_way()
        self.assertEqual(end.hear(0.1, echo=2), [])
        self.assertEqual(end.hear(0.1, echo=3), [])

    def test_an_echo_three_packets_later_is_a_loss_resent_at_once_and_alone(self) -> None:
        self.assertEqual(PACKET_THRESHOLD, 3)
        end = self.six_on_their_way()
        self.assertEqual(numbers(end.hear(0.1, echo=4)), [[0]])

    def test_a_loss_is_resent_once(self) -> None:
        end = self.six_on_their_way()
        end.hear(0.1, echo=4)
        self.assertEqual(end.hear(0.1, echo=5), [])
        self.assertEqual(end.hear(0.1, echo=6), [])
        self.assertEqual(end.due(0.6), [])

    def test_what_the_reader_holds_is_not_resent(self) -> None:
        end = self.six_on_their_way()
        end.hear(0.1, echo=6)
        self.assertEqual(end.hear(0.2, echo=7, cursor=6), [])
        self.assert_silent(end)

    def test_the_next_loss_of_a_flight_is_resent_as_soon_as_the_cursor_comes_to_it(self) -> None:
        end = self.six_on_their_way()
        self.assertEqual(numbers(end.hear(0.1, echo=6)), [[0]])
        self.assertEqual(numbers(end.hear(0.2, echo=7, cursor=2)), [[2]])
        self.assertEqual(end.hear(0.3, echo=8, cursor=6), [])

    def test_what_was_resent_and_lost_again_is_found_in_the_same_way(self) -> None:
        end = self.six_on_their_way()
        end.hear(0.1, echo=6)  # resent as packet 7
        for _ in range(3):
            end.hear(0.1, asks=True)  # answered by packets 8 to 10
        self.assertEqual(end.hear(0.2, echo=9), [])
        self.assertEqual(numbers(end.hear(0.2, echo=10)), [[0]])

    def test_a_loss_in_one_log_does_not_resend_another(self) -> None:
        end = server()
        end.write(0, WHOLE, WHOLE, log=ROOM)
        end.write(0, WHOLE, WHOLE, WHOLE, log=INBOX)
        packets = end.hear(0.1, echo=4)
        self.assertEqual(numbers(packets, ROOM), [[0]])
        self.assertEqual(numbers(packets, INBOX), [[]])

    def test_lines_that_left_one_by_one_are_resent_together(self) -> None:
        end = client()
        for index in range(4):
            end.write(index / 10, SHORT)
        self.assertEqual(numbers(end.hear(0.5, echo=4)), [[0, 1, 2, 3]])
        self.assertEqual(end.hear(0.6, echo=5, cursor=4), [])
        self.assert_silent(end)

    def test_what_is_resent_takes_new_lines_along(self) -> None:
        end = client()
        for index in range(4):
            end.write(index / 10, SHORT)
        end.logs[LINES].append(SHORT)
        self.assertEqual(numbers(end.hear(0.5, echo=4)), [[0, 1, 2, 3, 4]])

    def test_what_no_longer_fits_beside_another_log_is_resent_by_itself_later(self) -> None:
        end = server()
        end.write(0, b"i" * 300, b"i" * 700, log=INBOX)
        end.write(0, b"r" * 500, log=ROOM)
        again = self.next_at(end, 1)
        self.assertEqual(numbers(again, ROOM), [[0]])
        self.assertEqual(numbers(again, INBOX), [[0]])
        end.hear_packet(1.5, incoming(1, echo=3, cursors=(1, 1, 0)))
        self.assertEqual(numbers(self.next_at(end, 1.5 + 1.5), INBOX), [[1]])

    def test_every_repetition_has_a_number_of_its_own(self) -> None:
        end = self.six_on_their_way()
        (first,) = end.hear(0.1, echo=4)
        (second,) = end.due(end.channel.deadline())
        self.assertEqual((first.number, second.number), (7, 8))


class Congestion(ScriptTest):
    def flood(self, end: Script) -> list[Packet]:
        return end.write(0, *[WHOLE] * WINDOW_LINES[LINES])

    def test_ten_packets_leave_at_first(self) -> None:
        self.assertEqual(INITIAL_WINDOW, 10)
        self.assertEqual(numbers(self.flood(client())), [[n] for n in range(10)])

    def test_a_full_window_grows_by_what_arrived_until_the_first_loss(self) -> None:
        end = client()
        self.flood(end)
        self.assertEqual(numbers(end.hear(0.1, echo=2, cursor=2)), [[n] for n in range(10, 14)])
        self.assertEqual(end.channel.window.size, 12)

    def test_after_a_loss_a_window_grows_by_one_in_a_round_trip(self) -> None:
        window = Window()
        window.lose(1, 11)
        for expected in (5 + 1 / 5, 5.2 + 1 / 5.2):
            window.acknowledge(1, 5)
            self.assertAlmostEqual(window.size, expected)
        window.acknowledge(3, 5)
        self.assertTrue(5.9 < window.size < 6)

    def test_an_echo_that_passes_no_line_changes_when_that_is_late(self) -> None:
        end = client()
        end.write(0, SHORT)
        end.hear(0.1, echo=1)
        self.next_at(end, 0.1 + 4 * 0.05 + 0.3)

    def test_a_log_that_cannot_be_read_leaves_the_others_as_they_were(self) -> None:
        end = server()
        end.logs[ROOM].append(SHORT)
        end.logs[INBOX].append(SHORT)
        with mock.patch.object(Log, "part", unreadable(INBOX, Log.part)):
            with self.assertRaises(OSError):
                end.due(0)
            end.channel.receive(incoming(1), 0.1)
            self.assert_silent(end)
        (packet,) = end.due(0.2)
        self.assertEqual((packet.number, [part.log for part in packet.parts]), (1, [ROOM, INBOX]))

    def test_packets_that_were_made_before_a_log_could_not_be_read_are_late(self) -> None:
        end = server()
        end.logs[ROOM].append(WHOLE)
        end.logs[ROOM].append(WHOLE)
        part = Log.part
        first_only = mock.patch.object(Log, "part", lambda *it: part(*it) if it[2] == 0 else 1 / 0)
        with first_only, self.assertRaises(ZeroDivisionError):
            end.due(0)
        self.assertEqual(end.channel.deadline(), 1)
        self.assertEqual(numbers(end.due(0.5), ROOM), [[1]])
        self.assertEqual(numbers(self.next_at(end, 1.5), ROOM), [[0]])

    def test_a_challenge_restarts_the_timeout(self) -> None:
        """Whoever gets it answers at once, and with cursors."""
        end = server()
        end.write(0, SHORT, log=ROOM)
        self.next_at(end, 1)
        end.channel.challenge(2.9, 5, 5)
        self.assertEqual(numbers(self.next_at(end, 2.9 + 2), ROOM), [[0], [0]])

    def test_a_timeout_that_has_become_moot_sends_nothing(self) -> None:
        """Were one ever noted too early, that would not end a server."""
        end = server()
        end.write(0, SHORT, log=ROOM)
        self.next_at(end, 1)
        set_timeout(end.channel, 2)
        self.assertEqual(end.due(2), [])
        self.assertEqual(numbers(self.next_at(end, 3), ROOM), [[0], [0]])

    def test_after_moving_nothing_is_late_before_the_new_timeout(self) -> None:
        end = client()
        end.write(0, SHORT)
        end.hear(0.01, echo=1, cursor=1)
        end.write(1, SHORT)
        was_late_at = end.channel.deadline()
        end.channel.migrate()
        self.assertEqual(end.due(was_late_at), [])
        self.next_at(end, 2)

    def test_a_window_too_narrow_to_be_acknowledged_by_itself_asks(self) -> None:
        """Or else its writer would stop for as long as acknowledgements are delayed."""
        end = client()
        self.assertFalse(any(packet.asks for packet in self.flood(end)))
        end.hear(0.1, echo=4)  # packet 1 is lost: five may be on their way
        sent = end.hear(0.2, echo=11, cursor=10)
        self.assertEqual(len(sent), int(end.channel.window.size))
        self.assertEqual([packet.asks for packet in sent], [False] * (len(sent) - 1) + [True])
        self.assertEqual(server().hear(0.3, *sent[-1].parts, asks=True)[0].echo, 1)

    def test_a_narrow_window_that_is_not_full_does_not_ask(self) -> None:
        end = client()
        end.channel.window.lose(1, 1)
        self.assertEqual([packet.asks for packet in end.write(0, *[WHOLE] * 4)], [False] * 4)

    def test_a_window_that_is_not_full_does_not_grow(self) -> None:
        end = client()
        end.write(0, *[WHOLE] * 9)
        end.hear(0.1, echo=9, cursor=9)
        self.assertEqual(end.channel.window.size, 10)
        end.write(1, *[WHOLE] * 10)
        end.hear(1.1, echo=19, cursor=19)
        self.assertEqual(end.channel.window.size, 20)

    def test_a_window_grows_to_its_maximum(self) -> None:
        window = Window()
        window.acknowledge(10 * MAXIMUM_WINDOW, 10)
        self.assertEqual(window.size, MAXIMUM_WINDOW)

    def test_a_loss_halves_the_window(self) -> None:
        end = client()
        self.flood(end)
        end.hear(0.1, echo=4)
        self.assertEqual(end.channel.window.size, 5)
        self.assertEqual(end.hear(0.2, echo=8, cursor=5), [], "five are still on their way")

    def test_several_losses_of_one_flight_halve_the_window_once(self) -> None:
        end = client()
        self.flood(end)
        self.assertEqual(numbers(end.hear(0.1, echo=10)), [[0]])
        self.assertEqual(numbers(end.hear(0.2, echo=11, cursor=2)), [[2]])
        self.assertEqual(numbers(end.hear(0.3, echo=12, cursor=4))[0], [4])
        self.assertEqual(int(end.channel.window.size), 5)
        self.assertEqual(end.channel.window.threshold, 5)

    def test_the_loss_of_a_later_packet_halves_the_window_again(self) -> None:
        end = client()
        end.channel.window.size = 32
        self.assertEqual(len(self.flood(end)), 32)
        end.hear(0.1, echo=4)  # packet 1 is lost, and resent as packet 33
        self.assertEqual(numbers(end.hear(0.2, echo=33, cursor=32))[0], [32])
        before = end.channel.window.size
        self.assertEqual(numbers(end.hear(0.3, echo=37)), [[32]])
        self.assertEqual(end.channel.window.size, before / 2)

    def test_every_timeout_is_a_loss(self) -> None:
        end = client()
        end.channel.window.size = 32
        end.write(0, SHORT)
        self.next_at(end, 1)
        self.assertEqual(end.channel.window.size, 16)
        self.next_at(end, 3)
        self.assertEqual(end.channel.window.size, 8)

    def test_a_window_never_falls_below_what_shows_a_loss(self) -> None:
        self.assertEqual(MINIMUM_WINDOW, 4)
        end = client()
        self.flood(end)
        for _ in range(6):
            end.due(end.channel.deadline())
        self.assertEqual(end.channel.window.size, 4)

    def test_what_is_lost_is_resent_though_the_window_is_full(self) -> None:
        end = client()
        self.assertEqual(len(self.flood(end)), 10)
        self.assertEqual(numbers(end.hear(0.1, echo=4)), [[0]])

    def test_under_load_waiting_lines_share_a_packet(self) -> None:
        end = client()
        self.assertEqual(len(end.write(0, *[WHOLE] * 10)), 10)
        for index in range(20):
            self.assertEqual(end.write(index / 100, SHORT), [])
        self.assertEqual(numbers(end.hear(0.3, echo=1, cursor=1)), [[*range(10, 30)]])

    def test_waiting_lines_of_several_logs_share_a_packet(self) -> None:
        end = server()
        self.assertEqual(len(end.write(0, *[WHOLE] * 10, log=ROOM)), 10)
        for log in (ROOM, INBOX, NOTICES):
            self.assertEqual(end.write(0, SHORT, log=log), [])
        (packet,) = end.hear(0.1, echo=1, cursor=1)  # a packet that leaves anyway takes all along
        self.assertEqual([part.log for part in packet.parts], [ROOM, INBOX, NOTICES])


class RunningAhead(ScriptTest):
    def test_a_writer_runs_a_window_of_lines_ahead_of_the_cursor_and_no_further(self) -> None:
        for log, window in WINDOW_LINES.items():
            with self.subTest(log=log):
                end = client() if log is LINES else server()
                first = end.write(0, *[SHORT] * (window + 40), log=log)
                self.assertEqual(numbers(first, log), [[*range(window)]])
                place = [*end.channel.writers].index(log)
                cursors = tuple(3 if index == place else 0 for index in range(3))
                more = end.hear_packet(0.1, incoming(1, echo=1, cursors=cursors))
                self.assertEqual(numbers(more, log), [[*range(window, window + 3)]])

    def test_what_is_resent_stays_within_the_window_of_lines(self) -> None:
        end = client()
        end.write(0, *[SHORT] * 100)
        self.assertEqual(numbers(self.next_at(end, 1)), [[*range(64)]])

    def test_a_session_starts_from_the_cursors_it_is_given(self) -> None:
        end = Script(Channel(TIMING, 0.0, OTHERS | {ROOM: 7}, {LINES: 5}))
        (packet,) = end.write(0, SHORT)
        self.assertEqual(numbers([packet]), [[5]])
        self.assertEqual(packet.cursors, (7, 0, 0))


class Acknowledgements(ScriptTest):
    def test_an_acknowledgement_waits_for_a_fifth_of_a_second(self) -> None:
        end = client()
        self.assertEqual(end.hear(0, room(0, SHORT)), [])
        packets = self.next_at(end, 0.2)
        self.assert_bare(packets)
        self.assertEqual((packets[0].echo, packets[0].cursors), (1, (1, 0, 0)))
        self.assert_silent(end)

    def test_a_packet_postpones_it_but_not_the_eighth(self) -> None:
        self.assertEqual(ACK_PACKETS, 8)
        end = client()
        for index in range(7):
            self.assertEqual(end.hear(index / 10, room(index, SHORT)), [])
            self.assertAlmostEqual(end.channel.deadline(), index / 10 + 0.2)
        self.assert_bare(end.hear(0.7, room(7, SHORT)))

    def test_nothing_postpones_one_that_is_due(self) -> None:
        """A server takes in several packets before it sends."""
        for first in (
            incoming(1, asks=True),
            incoming(2, room(0, SHORT)),
            incoming(1, room(1, SHORT)),
        ):
            with self.subTest(first=first):
                end = client()
                end.channel.receive(first, 0)
                second = incoming(first.number + 1, room(2 if first.parts else 0, SHORT))
                end.channel.receive(second, 0)
                self.assertEqual(end.channel.deadline(), 0)
                self.assert_bare(end.due(0))

    def test_a_skipped_number_is_acknowledged_at_once_whatever_log_it_was(self) -> None:
        end = client()
        end.hear(0, room(0, SHORT))
        self.assert_bare(end.hear(0.1, Part(INBOX, 0, (SHORT,)), skip=1))
        self.assertEqual(end.hear(0.2, Part(INBOX, 1, (SHORT,))), [])

    def test_what_comes_late_is_acknowledged_at_once(self) -> None:
        end = client()
        end.hear(0, Part(INBOX, 0, (SHORT,)), skip=1)
        self.assert_bare(end.hear_packet(0.1, incoming(1, room(0, SHORT))))

    def test_each_acknowledgement_waits_anew(self) -> None:
        end = client()
        end.hear(0, room(0, SHORT))
        self.next_at(end, 0.2)
        end.hear(0.3, room(1, SHORT))
        self.assert_bare(self.next_at(end, 0.5))

    def test_a_gap_is_acknowledged_at_once(self) -> None:
        end = client()
        end.hear(0, room(0, SHORT))
        packets = end.hear(0, room(2, SHORT), skip=1)
        self.assert_bare(packets)
        self.assertEqual((packets[0].echo, packets[0].cursors), (3, (1, 0, 0)))

    def test_a_packet_is_acknowledged_at_once_while_there_is_a_gap(self) -> None:
        end = client()
        end.hear(0, room(1, SHORT))
        self.assert_bare(end.hear(0, room(2, SHORT)))
        self.assert_bare(end.hear(0, Part(INBOX, 0, (SHORT,))))

    def test_a_filled_gap_is_acknowledged_at_once(self) -> None:
        end = client()
        end.hear(0, room(1, SHORT))
        packets = end.hear(0, room(0, SHORT))
        self.assert_bare(packets)
        self.assertEqual(packets[0].cursors, (2, 0, 0))
        self.assertEqual(end.hear(0, room(2, SHORT)), [], "the gap is over")

    def test_repeated_lines_are_acknowledged_at_once(self) -> None:
        end = client()
        end.hear(0, room(0, SHORT))
        self.assert_bare(end.hear(0, room(0, SHORT)))

    def test_eight_packets_are_acknowledged_at_once(self) -> None:
        self.assertEqual(ACK_PACKETS, 8)
        end = client()
        for number in range(7):
            self.assertEqual(end.hear(0, room(number, SHORT)), [])
        self.assert_bare(end.hear(0, room(7, SHORT)))

    def test_a_quarter_of_a_window_is_acknowledged_at_once(self) -> None:
        for log, window in WINDOW_LINES.items():
            with self.subTest(log=log):
                end = server() if log is LINES else client()
                quarter = window // 4
                self.assertEqual(end.hear(0, Part(log, 0, (SHORT,) * (quarter - 1))), [])
                self.assert_bare(end.hear(0, Part(log, quarter - 1, (SHORT,))))

    def test_an_acknowledgement_starts_the_counts_anew(self) -> None:
        end = client()
        for number in range(7):
            end.hear(0, room(number, *[SHORT]))
        end.hear(0, Part(INBOX, 0, (SHORT,) * 15))
        self.assertEqual(end.hear(0, room(7, SHORT)), [])
        self.assertEqual(end.hear(0, Part(INBOX, 15, (SHORT,))), [])

    def test_a_packet_of_ones_own_acknowledges(self) -> None:
        end = client()
        end.hear(0, room(0, SHORT))
        (packet,) = end.write(0.1, SHORT)
        self.assertEqual((packet.echo, packet.cursors), (1, (1, 0, 0)))
        self.assertEqual(end.due(0.2), [])
        end.hear(0.5, echo=1, cursor=1)
        self.assert_silent(end)

    def test_lines_that_leave_at_once_spare_the_acknowledgement(self) -> None:
        end = client()
        end.logs[LINES].append(SHORT)
        self.assertEqual(numbers(end.hear(0, room(0, SHORT), asks=True)), [[0]])

    def test_a_doubled_datagram_provokes_nothing(self) -> None:
        end = client()
        end.hear(0, room(0, SHORT))
        self.assertEqual(end.hear_again(0), [])
        self.assert_bare(self.next_at(end, 0.2))
        self.assertEqual(end.hear_again(0.3), [])
        self.assert_silent(end)
        self.assertEqual(end.taken, [SHORT])

    def test_doubled_datagrams_do_not_count_towards_the_eight(self) -> None:
        end = client()
        end.hear(0, room(0, SHORT))
        for _ in range(20):
            self.assertEqual(end.hear_again(0), [])

    def test_a_doubled_question_is_answered_once(self) -> None:
        end = client()
        self.assert_bare(end.hear(0, asks=True))
        self.assertEqual(end.hear_again(0), [])
        self.assert_silent(end)

    def test_a_mere_acknowledgement_is_not_answered(self) -> None:
        end = client()
        self.assertEqual(end.hear(0), [])
        self.assert_silent(end)

    def test_a_question_is_answered_at_once_and_not_by_a_question(self) -> None:
        self.assert_bare(server().hear(5, asks=True))

    def test_a_lost_acknowledgement_does_not_deliver_twice(self) -> None:
        end = client()
        end.hear(0, room(0, b"once"))
        self.next_at(end, 0.2)
        packets = end.hear(1, room(0, b"once", b"more"))
        self.assertEqual(end.taken, [b"once", b"more"])
        self.assertEqual(packets, [], "more is new, and so not urgent")

    def test_lines_come_in_order_however_the_packets_come(self) -> None:
        end = client()
        for first in (4, 2, 3):
            end.hear(0, room(first, b"%d" % first))
            self.assertEqual(end.taken, [])
        end.hear(0, room(0, b"0", b"1"))
        self.assertEqual(end.taken, [b"0", b"1", b"2", b"3", b"4"])


class Moving(ScriptTest):
    """The other end may have another address by now."""

    def test_a_challenge_asks_and_leaves_numbers_out(self) -> None:
        end = server()
        end.write(0, SHORT, log=ROOM)
        challenge = end.channel.challenge(0, before=1000, after=500)
        self.assert_bare([challenge], asks=True)
        self.assertEqual((challenge.number, end.channel.number), (1002, 1503))

    def test_the_echo_of_a_number_that_was_left_out_proves_nothing(self) -> None:
        end = server()
        end.channel.challenge(0, before=1000, after=500)
        with self.assertRaises(BadPacket):
            end.hear(0.1, echo=1502)

    def test_a_challenge_does_not_stand_for_an_acknowledgement(self) -> None:
        end = server()
        end.hear(0, Part(LINES, 0, (SHORT,)))
        end.channel.challenge(0, before=1000, after=500)
        self.assert_bare(self.next_at(end, 0.2))

    def test_what_went_to_the_old_address_is_sent_again_at_once(self) -> None:
        end = server()
        end.write(0, SHORT, log=ROOM)
        challenge = end.channel.challenge(0.5, before=1000, after=500)
        packets = end.hear(0.6, echo=challenge.number)
        self.assertEqual(numbers(packets, ROOM), [[0]])

    def test_a_new_path_begins_with_a_window_and_a_timeout_of_its_own(self) -> None:
        end = server()
        self.fill(end, 20)
        end.hear(3, echo=10, cursor=10)  # a slow path
        challenge = end.channel.challenge(4, before=1000, after=500)
        end.channel.receive(incoming(5, echo=challenge.number, cursors=(10, 0, 0)), 4.1)
        end.channel.migrate()
        end.due(4.1)
        self.assertEqual(end.channel.window.size, INITIAL_WINDOW, "losses of the old path count")
        self.assertEqual(end.channel.round_trip.timeout(0), TIMING.first_timeout)

    def fill(self, end: Script, count: int) -> None:
        end.write(0, *[WHOLE] * count, log=ROOM)


class Keepalive(ScriptTest):
    def test_an_end_that_has_heard_nothing_for_the_idle_time_asks(self) -> None:
        self.assert_bare(self.next_at(client(keepalive=20), 20), asks=True)

    def test_everything_heard_postpones_the_question(self) -> None:
        end = client(keepalive=20)
        end.hear(15)
        self.assert_bare(self.next_at(end, 35), asks=True)

    def test_what_is_sent_does_not_postpone_the_question(self) -> None:
        end = client(keepalive=20)
        end.write(1, SHORT)
        end.hear(1.5, echo=1, cursor=1)
        end.write(21, SHORT)
        self.assert_bare(self.next_at(end, 21.5), asks=True)

    def test_a_question_is_repeated_with_back_off(self) -> None:
        end = client(keepalive=20)
        for at in (20, 20 + 1, 21 + 2, 23 + 4, 27 + 8, 35 + 8):
            self.assert_bare(self.next_at(end, at), asks=True)

    def test_a_question_that_was_lost_is_repeated_though_the_other_end_speaks(self) -> None:
        end = client(keepalive=20)
        self.next_at(end, 20)
        end.hear(20.5, echo=0)
        self.assert_bare(self.next_at(end, 21), asks=True)
        end.hear(21.25, echo=2)
        self.assert_bare(self.next_at(end, 41.25), asks=True)

    def test_what_has_no_answer_is_known_since_the_oldest_of_it_was_sent(self) -> None:
        end = client(keepalive=20)
        self.assertEqual(end.channel.unanswered_since, inf)
        end.write(1, SHORT)
        end.write(1.5, SHORT)
        end.hear(1.6)  # no answer to these
        self.assertEqual(end.channel.unanswered_since, 1)
        end.hear(1.7, echo=1, cursor=1)
        self.assertEqual(end.channel.unanswered_since, 1.5)
        end.hear(1.8, echo=2, cursor=2)
        self.assertEqual(end.channel.unanswered_since, inf)

    def test_a_repetition_that_is_lost_leaves_nothing_unanswered(self) -> None:
        end = client(keepalive=20)
        end.write(0, SHORT)
        self.next_at(end, 1)  # sends it again, though it was only late
        end.hear(1.5, echo=1, cursor=1)
        self.assertEqual(end.channel.unanswered_since, inf)
        self.assert_bare(self.next_at(end, 21.5), asks=True)

    def test_an_answer_ends_the_questions_and_the_back_off(self) -> None:
        end = client(keepalive=20)
        for at in (20, 21, 23):
            self.next_at(end, at)
        end.hear(23.5, echo=3)
        self.assert_bare(self.next_at(end, 43.5), asks=True)
        self.assert_bare(self.next_at(end, 43.5 + (0.5 + 4 * 0.25 + 0.3)), asks=True)

    def test_an_end_without_an_idle_time_asks_only_when_told_to(self) -> None:
        end = server()
        self.assert_silent(end)
        end.channel.ask(7)
        self.assert_bare(self.next_at(end, 7), asks=True)
        self.assert_bare(self.next_at(end, 8), asks=True)
        end.hear(8.5, echo=2)
        self.assert_silent(end)

    def test_neither_lines_nor_acknowledgements_ask(self) -> None:
        end = client()
        packets = end.write(0, SHORT) + self.next_at(end, 1)
        packets += end.hear(1.5, room(1, SHORT), echo=2, cursor=1)
        self.assertEqual([packet.asks for packet in packets], [False] * 3)

    def test_a_question_acknowledges(self) -> None:
        end = client(keepalive=20)
        end.hear(0, room(0, SHORT))
        end.channel.ask(0.1)
        (packet,) = end.due(0.1)
        self.assertEqual((packet.asks, packet.echo, packet.cursors), (True, 1, (1, 0, 0)))
        self.assertEqual(end.due(0.2), [])

    def test_a_question_and_its_answer_are_all_that_is_sent(self) -> None:
        network = Network(0)
        Pair(network, TIMING)
        network.run(30)
        sent = [(datagram.at, datagram.source) for datagram in network.sent]
        self.assertEqual(sent, [(20, "client"), (20 + HEALTHY.delays[0], "server")])


class SignsOfLife(ScriptTest):
    def test_the_newest_packet_is_a_sign_of_life(self) -> None:
        end = client()
        end.hear(5)
        self.assertTrue(end.is_sign_of_life)
        self.assertEqual(end.channel.heard_at, 5)

    def test_a_replayed_packet_is_no_sign_of_life(self) -> None:
        end = client(keepalive=20)
        end.hear(5, room(0, SHORT))
        end.hear_again(10)
        self.assertFalse(end.is_sign_of_life)
        self.assertEqual(end.channel.heard_at, 5)
        self.next_at(end, 25)

    def test_an_overtaken_packet_is_no_sign_of_life(self) -> None:
        end = client(keepalive=20)
        end.hear(5, skip=3)
        end.hear_packet(10, incoming(2))
        self.assertFalse(end.is_sign_of_life)
        self.assertEqual(end.channel.heard_at, 5)
        self.assert_bare(self.next_at(end, 25), asks=True)

    def test_an_overtaken_packet_counts_otherwise(self) -> None:
        end = client()
        end.write(0, SHORT)
        end.hear(0.1, skip=3)
        late = incoming(2, room(0, b"late"), echo=1, cursors=(1, 0, 0))
        (packet,) = end.hear_packet(0.5, late)
        self.assertEqual(end.taken, [b"late"])
        self.assertEqual((packet.parts, packet.echo), ((), 4))
        self.assert_silent(end)

    def test_an_overtaken_question_is_not_answered(self) -> None:
        end = client()
        end.hear(0, skip=3)
        self.assertEqual(end.hear_packet(0, incoming(2, asks=True)), [])


class ImpossiblePackets(ScriptTest):
    """Each would be the newest, and brings an echo, a cursor and a line that would count."""

    def assert_refused(
        self, end: Script, *parts: Part, echo: int, cursors: tuple[int, ...]
    ) -> None:
        before = pickle.dumps(end.channel)
        with self.assertRaises(BadPacket):
            end.channel.receive(incoming(9, *parts, echo=echo, cursors=cursors, asks=True), 0.5)
        self.assertEqual(pickle.dumps(end.channel), before, "something changed")

    def test_a_cursor_beyond_what_was_sent_to_the_server(self) -> None:
        end = client()
        end.write(0, SHORT, SHORT)
        self.assert_refused(end, room(0, SHORT), echo=1, cursors=(3, 0, 0))
        end.hear(0.5, room(0, SHORT), echo=1, cursor=2)
        self.assertEqual(end.taken, [SHORT])

    def test_a_cursor_beyond_what_was_sent_to_a_client(self) -> None:
        for cursors in ((2, 1, 1), (1, 2, 1), (1, 1, 2)):
            with self.subTest(cursors=cursors):
                end = server()
                for log in (ROOM, INBOX, NOTICES):
                    end.write(0, SHORT, log=log)
                self.assert_refused(end, Part(LINES, 0, (SHORT,)), echo=3, cursors=cursors)

    def test_a_line_that_waits_to_be_sent_is_beyond_too(self) -> None:
        end = client()
        end.write(0, *[WHOLE] * 11)
        self.assert_refused(end, echo=1, cursors=(11, 0, 0))

    def test_the_echo_of_a_packet_that_was_never_sent(self) -> None:
        end = client()
        end.write(0, SHORT)
        self.assert_refused(end, room(0, SHORT), echo=2, cursors=(1, 0, 0))

    def test_a_part_of_a_log_that_this_end_writes(self) -> None:
        end = client()
        end.write(0, SHORT)
        part = Part(LINES, 0, (SHORT,))
        self.assert_refused(end, room(0, SHORT), part, echo=1, cursors=(1, 0, 0))
        self.assert_refused(server(), room(0, SHORT), echo=0, cursors=(0, 0, 0))


class Cursors(ScriptTest):
    def test_a_cursor_never_goes_back(self) -> None:
        end = client()
        end.write(0, WHOLE, WHOLE, WHOLE)
        end.hear(0.5, echo=2, cursor=2)
        end.hear(0.6, cursor=1)
        self.assertEqual(end.channel.writers[LINES].cursor, 2)
        self.assertEqual(numbers(self.next_at(end, 0.5 + 1.8)), [[2]])

    def test_a_cursor_within_a_packet_leaves_the_rest_on_its_way(self) -> None:
        end = client()
        end.write(0, SHORT, SHORT, SHORT)
        end.hear(0.5, echo=1, cursor=2)
        self.assertEqual(numbers(self.next_at(end, 0.5 + 1.8)), [[2]])

    def test_lines_beyond_the_readers_window_are_not_held(self) -> None:
        end = client()
        window = WINDOW_LINES[ROOM]
        end.hear(0, room(1, *[SHORT] * window))
        end.hear(0, room(4 * window, SHORT))
        self.assertEqual(len(end.channel.readers[ROOM].early), window - 1)
        end.hear(0, room(0, SHORT))
        self.assertEqual(len(end.taken), window)

    def test_the_window_is_counted_from_what_was_taken(self) -> None:
        reader = Reader(cursor=5, window=2)
        self.assertEqual(reader.hold(room(5, b"5", b"6", b"7")), 2)
        self.assertEqual(reader.hold(room(7, b"7")), 0)
        self.assertEqual(reader.take(), (5, b"5"))
        self.assertEqual(reader.hold(room(7, b"7", b"8")), 1)
        self.assertEqual([reader.take(), reader.take()], [(6, b"6"), (7, b"7")])
        self.assertFalse(reader.is_ready)

    def test_a_line_is_held_once_and_never_after_it_was_taken(self) -> None:
        reader = Reader(cursor=0, window=9)
        self.assertEqual(reader.hold(room(1, b"1")), 1)
        self.assertEqual(reader.hold(room(1, b"1")), 0)
        self.assertTrue(reader.has_gap)
        self.assertFalse(reader.is_ready)
        self.assertEqual(reader.hold(room(0, b"0", b"1", b"2")), 2)
        self.assertFalse(reader.has_gap)
        reader.take()
        self.assertEqual(reader.hold(room(0, b"0")), 0)
        self.assertEqual(reader.cursor, 1)


class Buckets(unittest.TestCase):
    def test_a_burst_passes_at_once_and_then_one_in_each_interval(self) -> None:
        bucket = Bucket(rate=4, burst=3)
        for now in (10, 10, 10, 10.25, 10.5):
            self.assertLessEqual(bucket.ready_at(), now)
            bucket.take(now)
        self.assertEqual(bucket.ready_at(), 10.75)

    def test_the_next_is_ready_exactly_an_interval_after_the_burst(self) -> None:
        bucket = Bucket(rate=4, burst=2)
        bucket.take(0)
        bucket.take(0)
        self.assertEqual(bucket.ready_at(), 0.25)

    def test_rest_restores_the_burst_and_no_more(self) -> None:
        bucket = Bucket(rate=4, burst=3)
        for now in (0, 0, 0, 0.5, 0.5):
            self.assertLessEqual(bucket.ready_at(), now)
            bucket.take(now)
        self.assertEqual(bucket.ready_at(), 0.75)
        for _ in range(3):
            self.assertLessEqual(bucket.ready_at(), 1000)
            bucket.take(1000)
        self.assertEqual(bucket.ready_at(), 1000.25)

    def test_a_paste_of_thirty_lines_passes_at_ten_lines_a_second(self) -> None:
        bucket = Bucket(rate=10, burst=10 * BURST_SECONDS)
        for _ in range(30):
            self.assertLess(bucket.ready_at(), 7 + EPSILON)
            bucket.take(7)
        self.assertAlmostEqual(bucket.ready_at(), 7.1)

    def test_rate_zero_is_no_limit(self) -> None:
        bucket = Bucket(rate=0, burst=0)
        for _ in range(1000):
            bucket.take(5)
        self.assertLessEqual(bucket.ready_at(), 5)


class Logs(unittest.TestCase):
    def log(self, *lines: bytes, start: int = 0) -> Log:
        log = Log(start)
        for line in lines:
            log.append(line)
        return log

    def test_numbers_start_where_the_log_starts(self) -> None:
        log = Log(7)
        self.assertEqual([log.append(SHORT), log.append(SHORT), log.end], [7, 8, 9])

    def test_what_was_dropped_is_not_mistaken_for_another_line(self) -> None:
        log = self.log(b"0", b"1", b"2")
        log.drop(2)
        with self.assertRaises(IndexError):
            log.line(1)

    def test_numbers_survive_what_is_dropped(self) -> None:
        log = self.log(b"0", b"1", b"2", b"3")
        log.drop(2)
        log.drop(1)
        self.assertEqual((log.start, log.end), (2, 4))
        self.assertEqual(log.line(3), b"3")
        self.assertEqual(log.append(b"4"), 4)
        self.assertEqual(log.part(INBOX, 2, 99, 99), Part(INBOX, 2, (b"2", b"3", b"4")))

    def test_a_log_may_be_dropped_whole(self) -> None:
        log = self.log(b"0", b"1")
        log.drop(2)
        self.assertEqual((log.start, log.end), (2, 2))
        self.assertEqual(log.append(b"2"), 2)

    def test_a_part_fills_its_space_exactly(self) -> None:
        lines = (b"a" * 10, b"b" * 20, b"c" * 30)
        log = self.log(*lines)
        for first, count in ((0, 1), (0, 2), (0, 3), (1, 2), (2, 1)):
            with self.subTest(first=first, count=count):
                size = Part(ROOM, first, lines[first : first + count]).size
                part = log.part(ROOM, first, 99, size)
                self.assertEqual(part and (part.size, part.end), (size, first + count))
                smaller = log.part(ROOM, first, 99, size - 1)
                self.assertEqual(smaller.end if smaller else first, first + count - 1)

    def test_readers_who_are_equally_far_share_a_part(self) -> None:
        log = self.log(b"0", b"1", b"2")
        part = log.part(ROOM, 1, 99, 99)
        self.assertIs(log.part(ROOM, 1, 50, 99), part)
        log.append(b"3")
        self.assertEqual(log.part(ROOM, 1, 99, 99), Part(ROOM, 1, (b"1", b"2", b"3")))
        log.drop(3)
        self.assertEqual(views.shared_parts(log), {}, "lines that nobody wants any more")

    def test_parts_that_one_reader_wants_are_not_kept(self) -> None:
        log = self.log(b"0", b"1")
        log.part(INBOX, 0, 99, 99)
        self.assertEqual(views.shared_parts(log), {})

    def test_a_log_keeps_few_parts(self) -> None:
        log = self.log(*[SHORT] * 1000)
        for first in range(1000):
            log.part(ROOM, first, first + 1, 99)
        self.assertLess(len(views.shared_parts(log)), 300)

    def test_a_part_ends_where_it_is_told_to(self) -> None:
        log = self.log(b"0", b"1", b"2")
        self.assertEqual(log.part(ROOM, 0, 2, 99), Part(ROOM, 0, (b"0", b"1")))
        self.assertIsNone(log.part(ROOM, 2, 2, 99))
        self.assertIsNone(log.part(ROOM, 3, 99, 99))

    def test_the_longest_line_fills_a_datagram_and_a_longer_one_is_refused(self) -> None:
        network = Network(0)
        Pair(network, TIMING).write(0, ROOM, [WHOLE])
        network.run(0)
        self.assertEqual([len(sent.data) for sent in network.sent], [MAX_DATAGRAM])
        for line in (WHOLE + b"w", b""):
            with self.assertRaises(ValueError):
                Log().append(line)


if __name__ == "__main__":
    unittest.main()
