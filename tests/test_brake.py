"""How long guessers wait, to the second, and who need not; and who waits for a handshake."""

from __future__ import annotations

import unittest
from typing import Final

from chatserver import (
    BRAKES,
    FAILURES_OF_BOTH,
    FAILURES_OF_NAME,
    FAILURES_OF_NETWORK,
    WAITING_HANDSHAKES,
    Arrived,
    Brake,
    Waiting,
    network_of,
)
from protocol import TIMING, Prove
from tests import views

WINDOW: Final = TIMING.login_window
FIRST: Final = TIMING.login_wait
LONGEST: Final = TIMING.max_login_wait
EPSILON: Final = 0.001
PROVE: Final = Prove(b"n" * 16, b"session!", b"p" * 32, b"sealed")


class BrakeTest(unittest.TestCase):
    def setUp(self) -> None:
        self.brake = Brake(TIMING)

    def be_wrong(
        self, count: int, now: float = 0.0, name: str = "alice", network: str = "lan"
    ) -> None:
        for _ in range(count):
            self.brake.fail(name, network, now)

    def assert_wait(
        self, seconds: float, now: float, name: str = "alice", network: str = "lan"
    ) -> None:
        self.assertAlmostEqual(self.brake.wait(name, network, now), seconds, 6)

    def test_the_durations_are_those_that_are_documented(self) -> None:
        self.assertEqual((WINDOW, FIRST, LONGEST), (60.0, 15.0, 300.0))
        self.assertEqual((FAILURES_OF_BOTH, FAILURES_OF_NETWORK, FAILURES_OF_NAME), (5, 20, 100))

    def test_who_has_not_been_wrong_does_not_wait(self) -> None:
        self.assert_wait(0, 0.0)

    def test_the_fifth_failure_brings_the_first_wait(self) -> None:
        self.be_wrong(4)
        self.assert_wait(0, 0.0)
        self.be_wrong(1, 10.0)
        self.assert_wait(FIRST, 10.0)
        self.assert_wait(1, 10.0 + FIRST - 1)
        self.assert_wait(EPSILON, 10.0 + FIRST - EPSILON)
        self.assert_wait(0, 10.0 + FIRST)

    def test_each_further_one_doubles_the_wait_up_to_the_longest(self) -> None:
        self.be_wrong(FAILURES_OF_BOTH)
        now = 0.0
        for wait in (FIRST, 30.0, 60.0, 120.0, 240.0, LONGEST, LONGEST, LONGEST):
            self.assert_wait(wait, now)
            now += wait
            self.assert_wait(0, now)
            self.be_wrong(1, now)

    def test_failures_within_a_minute_count_together_and_no_others_do(self) -> None:
        for last, wait in ((WINDOW - EPSILON, FIRST), (WINDOW, 0.0)):
            self.brake = Brake(TIMING)
            self.be_wrong(1)
            self.be_wrong(3, 1.0)
            self.be_wrong(1, last)
            self.assert_wait(wait, last)

    def test_any_minute_counts_and_not_only_that_from_the_first_failure_on(self) -> None:
        self.be_wrong(1)
        self.be_wrong(3, WINDOW - 1)
        self.be_wrong(2, WINDOW + 1)
        self.assert_wait(FIRST, WINDOW + 1)

    def test_one_failure_a_minute_never_makes_anybody_wait(self) -> None:
        """As a client that goes on with a password that was changed."""
        for minute in range(100):
            self.be_wrong(1, minute * WINDOW)
            self.assert_wait(0, minute * WINDOW)

    def test_a_client_that_goes_on_with_an_old_password_does_not_keep_a_wait_alive(self) -> None:
        self.be_wrong(2 * FAILURES_OF_BOTH)
        self.assert_wait(LONGEST, 0.0)
        for count in range(1, 10):
            self.be_wrong(1, count * TIMING.login_pause)
            self.assert_wait(0, count * TIMING.login_pause)

    def test_after_as_long_a_peace_as_the_longest_wait_all_is_forgiven(self) -> None:
        for peace, wait in ((LONGEST - EPSILON, 30.0), (LONGEST, 0.0)):
            self.brake = Brake(TIMING)
            self.be_wrong(FAILURES_OF_BOTH)
            now = FIRST + peace
            self.be_wrong(1, now)
            self.assert_wait(wait, now)

    def test_asking_costs_nothing(self) -> None:
        self.be_wrong(FAILURES_OF_BOTH)
        for second in range(int(FIRST)):
            self.assert_wait(FIRST - second, float(second))
        self.assert_wait(0, FIRST)

    def test_it_concerns_that_name_from_that_network_only(self) -> None:
        self.be_wrong(FAILURES_OF_BOTH)
        self.assert_wait(FIRST, 0.0)
        self.assert_wait(0, 0.0, network="home")
        self.assert_wait(0, 0.0, name="bob")

    def test_twenty_from_one_network_make_it_wait_for_any_name(self) -> None:
        for number in range(FAILURES_OF_NETWORK):
            self.assert_wait(0, 0.0, name="bob")
            self.be_wrong(1, name=f"name{number % 5}")
        self.assert_wait(FIRST, 0.0, name="bob")
        self.assert_wait(0, FIRST, name="bob")
        self.assert_wait(0, 0.0, name="bob", network="home")

    def test_nobody_waits_for_the_failures_of_others_elsewhere(self) -> None:
        for number in range(10 * FAILURES_OF_NAME):
            self.be_wrong(1, network=f"network{number // 4}")
        self.assert_wait(0, 0.0, network="home")

    def test_while_a_name_is_hunted_the_first_failure_from_a_network_is_one_too_many(self) -> None:
        for number in range(FAILURES_OF_NAME - 1):
            self.be_wrong(1, network=f"network{number // 4}")
        self.be_wrong(1, WINDOW - EPSILON, network="one")  # the hundredth within a minute
        self.assert_wait(FIRST, WINDOW - EPSILON, network="one")
        self.assert_wait(0, WINDOW - EPSILON, name="bob", network="one")
        self.be_wrong(1, WINDOW, network="another")
        self.assert_wait(0, WINDOW, network="another")

    def test_the_longest_of_several_waits_counts(self) -> None:
        self.be_wrong(FAILURES_OF_NETWORK - 1, name="bob")
        self.be_wrong(FAILURES_OF_BOTH, 10.0)
        self.assert_wait(FIRST * 2**4, 10.0)  # the network's, whose limit was passed by 4
        self.assert_wait(FIRST * 2**4, 10.0, name="carol")

    def test_the_right_password_begins_anew(self) -> None:
        self.be_wrong(FAILURES_OF_BOTH - 1)
        self.brake.succeed("alice", "lan")
        self.be_wrong(FAILURES_OF_BOTH - 1)
        self.assert_wait(0, 0.0)
        self.be_wrong(1)
        self.assert_wait(FIRST, 0.0)

    def test_the_right_password_of_one_name_does_not_free_the_network(self) -> None:
        for number in range(FAILURES_OF_NETWORK):
            self.be_wrong(1, name=f"name{number % 5}")
            self.brake.succeed("mallory", "lan")
        self.assert_wait(FIRST, 0.0, name="bob")

    def test_its_memory_is_bounded_and_the_longest_quiet_make_way(self) -> None:
        self.be_wrong(FAILURES_OF_BOTH)
        for number in range(BRAKES):
            self.be_wrong(1, name=f"name{number}", network=f"network{number}")
            if number % 1000 == 0:
                self.be_wrong(1)
        self.assertLessEqual(len(views.failed_logins(self.brake)), BRAKES)
        self.assertGreater(self.brake.wait("alice", "lan", 0.0), FIRST)
        self.assertNotIn(("name0", "network0"), views.failed_logins(self.brake))

    def test_what_it_knows_of_one_name_is_bounded(self) -> None:
        self.be_wrong(10 * FAILURES_OF_NAME)
        times = views.failed_logins(self.brake)["alice", ""].times
        self.assertEqual(len(times), FAILURES_OF_NAME)


class WaitingTest(unittest.TestCase):
    def setUp(self) -> None:
        self.waiting = Waiting()

    def put(self, count: int, host: str) -> None:
        for number in range(count):
            self.waiting.put(Arrived(PROVE, b"%d" % number, (host, 7890)))

    def take_all(self) -> list[tuple[bytes, str]]:
        taken = []
        while self.waiting:
            arrived = self.waiting.take()
            taken.append((arrived.data, str(arrived.address[0])))
        return taken

    def test_networks_take_turns(self) -> None:
        self.put(3, "flood")
        self.put(1, "one")
        self.put(2, "two")
        taken = self.take_all()
        hosts = [host for _, host in taken]
        self.assertEqual(hosts, ["flood", "one", "two", "flood", "two", "flood"])
        self.assertEqual([data for data, host in taken if host == "flood"], [b"0", b"1", b"2"])

    def test_a_network_that_has_had_its_turn_waits_for_the_others(self) -> None:
        self.put(2, "flood")
        self.put(2, "one")
        self.waiting.take()
        self.put(1, "flood")
        self.assertEqual([host for _, host in self.take_all()], ["one", "flood", "one", "flood"])

    def test_who_sends_most_loses_what_is_too_much(self) -> None:
        for number in range(16):
            self.put(WAITING_HANDSHAKES // 16, f"flood {number}")
        self.put(1, "newcomer")
        self.assertEqual(len(self.waiting), WAITING_HANDSHAKES)
        taken = self.take_all()
        self.assertEqual(len(taken), WAITING_HANDSHAKES)
        self.assertIn((b"0", "newcomer"), taken[:17])

    def test_it_is_bounded_however_many_networks_there_are(self) -> None:
        """Of those with as much as each other the latest lose it: the others are nearly served."""
        for number in range(2 * WAITING_HANDSHAKES):
            self.put(1, f"host {number}")
        self.assertEqual(views.queueing_networks(self.waiting)[0], "host 0")
        self.assertEqual(len(self.waiting), WAITING_HANDSHAKES)
        self.assertEqual(len(views.queueing_networks(self.waiting)), WAITING_HANDSHAKES)


class NetworkOfTest(unittest.TestCase):
    def test_an_ipv4_address_is_a_network_of_its_own(self) -> None:
        self.assertEqual(network_of("192.0.2.7"), "192.0.2.7")

    def test_the_two_spellings_of_an_ipv4_address_are_one_network(self) -> None:
        self.assertEqual(network_of("::ffff:192.0.2.7"), "192.0.2.7")

    def test_an_ipv6_network_has_64_bits(self) -> None:
        one = network_of("2001:db8:1:2:3:4:5:6")
        self.assertEqual(one, network_of("2001:db8:1:2::"))
        self.assertEqual(one, network_of("2001:db8:1:2:ffff:ffff:ffff:ffff"))
        self.assertNotEqual(one, network_of("2001:db8:1:3:3:4:5:6"))

    def test_a_link_local_address_is_a_network_of_its_own(self) -> None:
        one = network_of("fe80::1%eth0")
        self.assertNotEqual(one, network_of("fe80::2%eth0"))
        self.assertNotEqual(one, network_of("fe80::1%eth1"))


if __name__ == "__main__":
    unittest.main()
