"""A member whose address changes: the session goes on, and nobody else can move it."""

from __future__ import annotations

import unittest
from typing import Final

import protocol
from protocol import Packet
from tests import views
from tests.network import HEALTHY, LOST, Faults
from tests.observed import handshakes_begun, marked, sent_to
from tests.room import (
    SERVER,
    ClientEnd,
    Deaf,
    World,
    address_of,
    intercepted,
    replies,
    session_of,
    world,
)

LOSSY: Final = Faults(drop=0.1, delays=(0.02, 0.08))


class MovingTest(unittest.TestCase):
    def test_a_session_goes_on_from_another_address_and_nothing_is_lost(self) -> None:
        for seed in range(8):
            with self.subTest(seed=seed), world(seed, LOSSY) as w:
                alice, bob = w.joined("alice", "bob")
                w.run(5)
                tries, said = handshakes_begun(w), 0
                seen = len(alice.texts()), len(bob.texts())
                for place in ("cafe", "train", "office"):
                    for _ in range(20):
                        alice.say(f"#{said}", f"DM bob #private {said}")
                        bob.say(f"#{said}", f"DM alice #private {said}")
                        said += 1
                        w.run(0.2)
                        if said % 20 == 10:
                            w.move(alice, place)
                w.run(30)
                for end, before, name in ((bob, seen[1], "alice"), (alice, seen[0], "bob")):
                    public = [f"{name}: #{n}" for n in range(said)]
                    private = [f"{name} -> you: #private {n}" for n in range(said)]
                    shown = end.texts()[before:]
                    self.assertEqual([text for text in shown if "you" not in text], public)
                    self.assertEqual([text for text in shown if "you" in text], private)
                self.assertEqual(handshakes_begun(w), tries)
                self.assertEqual(session_of(w, "alice").address, address_of("office"))

    def test_a_silent_reader_is_followed_when_it_gives_its_next_sign_of_life(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(5)
            tries = handshakes_begun(w)
            w.move(alice, "cafe")
            bob.say("#hello")
            w.run(10)
            self.assertEqual(marked(alice), [])  # nobody can know where she is
            channel = session_of(w, "alice").channel
            self.assertLess(channel.window.size, protocol.INITIAL_WINDOW)
            w.run(protocol.TIMING.keepalive + protocol.TIMING.keepalive_jitter)
            self.assertEqual(marked(alice), ["bob: #hello"])
            self.assertEqual(channel.window.size, protocol.INITIAL_WINDOW)
            self.assertEqual(handshakes_begun(w), tries)
            self.assertEqual(len(alice.texts()), 3, alice.texts())

    def test_after_a_restart_a_member_is_sought_where_it_was_last(self) -> None:
        with world() as w:
            alice, _ = w.joined("alice", "bob")
            w.move(alice, "cafe")
            alice.say("#hello")
            w.run(2)
            w.restart()
            w.run(1)
            self.assertEqual(session_of(w, "alice").address, address_of("cafe"))

    def test_a_question_that_is_lost_is_asked_again(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.move(alice, "cafe")
            (data, *_) = intercepted(w, alice, "#hello")
            w.network.faults = LOST
            self.assertEqual(len(replies(w, data, "cafe")), 1)
            w.network.faults = HEALTHY
            w.run(4)
            self.assertEqual(session_of(w, "alice").address, address_of("cafe"))
            self.assertEqual(marked(bob), ["alice: #hello"])

    def test_a_long_new_way_is_no_obstacle(self) -> None:
        """The answer to a question comes after the next question has been asked."""
        for delay in (0.3, 1.0, 2.5):
            with self.subTest(delay=delay), world() as w:
                alice, bob = w.joined("alice", "bob")
                for number in range(20):  # which shows how short the old one is
                    alice.say(f"#{number}")
                    w.run(0.3)
                w.move(alice, "cafe")
                w.network.faults = Faults(delays=(delay, delay))
                for number in range(20, 20 + round(3.3 * delay / 0.1)):
                    alice.say(f"#{number}")
                    w.run(0.1)
                self.assertEqual(session_of(w, "alice").address, address_of("cafe"))
                alice.leave()
                w.run(30)
                self.assertEqual(marked(bob), [f"alice: #{n}" for n in range(number + 1)])

    def test_there_and_back_again(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            for place in ("cafe", "alice", "cafe", "alice"):
                w.move(alice, place)
                alice.say(f"#{place}")
                w.run(0.2)
                self.assertEqual(session_of(w, "alice").address, address_of(place))
            self.assertEqual(len(marked(bob)), 4)

    def test_numbers_do_not_run_out(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            session_of(w, "alice").channel.number = protocol.MAX_NUMBER
            w.move(alice, "cafe")
            alice.say("#hello")
            w.run(5)
            self.assertEqual(len(sent_to(w, "cafe")), 0)
            w.run(20)  # she joins again, for a session with new numbers
            self.assertEqual(session_of(w, "alice").address, address_of("cafe"))

    def test_one_question_at_a_time_is_asked_at_a_new_address(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            w.network.ends["cafe"] = Deaf()
            for number in range(20):
                for data in intercepted(w, alice, f"#{number}"):
                    replies(w, data, "cafe")
            self.assertIn(len(sent_to(w, "cafe")), (2, 3, 4))  # in two seconds


class StayingTest(unittest.TestCase):
    """What strangers, or members, may do with datagrams moves nobody."""

    def assert_unmoved(self, w: World, *ends: ClientEnd) -> None:
        for end in ends:
            self.assertEqual(session_of(w, end.host).address, address_of(end.host))
        before = [len(marked(end)) for end in ends]
        for end in ends:
            end.say(f"#{end.host} is still here")
        w.run(3)
        for end, count in zip(ends, before):
            others = [f"{e.host}: #{e.host} is still here" for e in ends if e is not end]
            self.assertEqual(marked(end)[count:], others)

    def test_an_old_datagram_from_elsewhere_is_not_even_answered(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            alice.say("#one", "#two")
            w.run(1)
            old = [d.data for d in w.network.sent if d.source == "alice" and d.data[:1] != b"{"]
            self.assertGreater(len(old), 2)
            for data in old:
                self.assertEqual(replies(w, data, "thief"), [])
            self.assert_unmoved(w, alice, bob)

    def test_the_newest_datagram_from_elsewhere_moves_nothing_and_is_not_amplified(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            (data,) = intercepted(w, alice, "#stolen")
            (answer,) = replies(w, data, "thief")
            self.assertLessEqual(len(answer), len(data))
            w.run(30)
            self.assertEqual([d.data for d in sent_to(w, "thief")], [answer])
            self.assertEqual(marked(bob), ["alice: #stolen"])
            self.assert_unmoved(w, alice, bob)

    def test_the_question_for_elsewhere_answered_from_here_moves_nothing(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            (data,) = intercepted(w, alice, "#stolen")
            (question,) = replies(w, data, "thief")
            alice.receive(question, SERVER, w.network.now)
            w.run(1)
            self.assert_unmoved(w, alice, bob)

    def test_the_answer_from_a_third_address_moves_nothing(self) -> None:
        with world() as w:
            alice, bob = w.joined("alice", "bob")
            w.run(1)
            (data,) = intercepted(w, alice, "#stolen")
            (question,) = replies(w, data, "thief")
            w.network.faults = LOST
            alice.receive(question, SERVER, w.network.now)
            w.network.at(w.network.now, "alice", lambda: None)
            w.run(0.1)
            w.network.faults = HEALTHY
            replies(w, w.network.sent[-1].data, "another")
            w.run(1)
            self.assert_unmoved(w, alice, bob)

    def test_a_member_cannot_make_the_server_send_to_somebody_else(self) -> None:
        """It has the keys, and knows what the numbers would be if they went on one by one."""
        with world() as w:
            mallory, bob = w.joined("mallory", "bob")
            w.run(1)
            session = views.session(mallory.client)
            following = session_of(w, "mallory").channel.number
            for number, echo in enumerate((0, *range(following, following + 50)), 1000):
                packet = Packet(number, echo, 0, False, (0, 0, 0), ())
                data = protocol.seal_packet(packet, session.id, session.keys.client, session.blocks)
                replies(w, data, "victim")
            bob.say(*(f"#{n}" for n in range(30)))
            w.run(2)
            self.assertEqual(len(sent_to(w, "victim")), 1)
            self.assertEqual(session_of(w, "mallory").address, address_of("mallory"))

    def test_from_however_many_addresses_packets_come_one_is_asked_at_a_time(self) -> None:
        with world() as w:
            (alice,) = w.joined("alice")
            w.run(1)
            stolen = [intercepted(w, alice, f"#{number}")[0] for number in range(8)]
            answers = [replies(w, data, f"thief {n}") for n, data in enumerate(stolen)]
            self.assertEqual([len(each) for each in answers], [1, 0, 0, 0, 0, 0, 0, 0])

    def test_a_member_does_not_learn_the_number_from_what_is_sent_to_itself(self) -> None:
        with world() as w:
            (mallory,) = w.joined("mallory")
            w.run(1)
            session = views.session(mallory.client)
            numbers = []
            for number, (echo, asks, source) in enumerate(
                ((0, False, "victim"), (0, True, "mallory")), 1000
            ):
                packet = Packet(number, echo, 0, asks, (0, 0, 0), ())
                data = protocol.seal_packet(packet, session.id, session.keys.client, session.blocks)
                for answer in replies(w, data, source):
                    keys, blocks = session.keys.server, session.blocks
                    numbers.append(protocol.open_packet_untrusted(answer, keys, blocks).number)
            for_victim, for_mallory = numbers
            self.assertGreater(for_mallory - for_victim, 2**20)


if __name__ == "__main__":
    unittest.main()
