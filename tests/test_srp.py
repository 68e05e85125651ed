"""The key exchange: RFC 5054's own numbers, the group in use, and values that must be refused."""

from __future__ import annotations

import hashlib
import hmac
import random
import unicodedata
import unittest
from typing import Final
from unittest import mock

import protocol
from chatclient import Attempt, Credentials
from chatserver import GUEST, Door
from protocol import (
    GROUP,
    GUEST_SECRET,
    GUEST_VERIFIER,
    ITERATIONS,
    ITERATIONS_ALLOWED,
    SALT_LENGTH,
    BadHandshake,
    BadMessage,
    Group,
    client_secret_untrusted,
    password_secret_untrusted,
    prepare_password,
    registration,
    server_public,
    server_secret_untrusted,
)


def number(text: str) -> int:
    return int("".join(text.split()), 16)


# RFC 5054 appendix B, with the 1024-bit group of its appendix A
RFC_GROUP = Group(
    number(
        """
        EEAF0AB9ADB38DD69C33F80AFA8FC5E86072618775FF3C0B9EA2314C9C256576D674DF7496EA81D3383B4813
        D692C6E0E0D5D8E250B98BE48E495C1D6089DAD15DC7D7B46154D6B6CE8EF4AD69B15D4982559B297BCF1885
        C529F566660E57EC68EDBC3C05726CC02FD4CBF4976EAA9AFD5138FE8376435B9FC61D2FC0EB06E3
        """
    ),
    2,
    "sha1",
)
NAME_AND_PASSWORD = b"alice:password123"
SALT = bytes.fromhex("BEB25379D1A8581EB5A727673A2441EE")
K = number("7556AA045AEF2CDD07ABAF0F665C3E818913186F")
X = number("94B7555AABE9127CC58CCF4993DB6CF84D16C124")
VERIFIER = number(
    """
    7E273DE8696FFC4F4E337D05B4B375BEB0DDE1569E8FA00A9886D8129BADA1F1822223CA1A605B530E379BA4729FDC59
    F105B4787E5186F5C671085A1447B52A48CF1970B4FB6F8400BBF4CEBFBB168152E08AB5EA53D15C1AFF87B2B9DA6E04
    E058AD51CC72BFC9033B564E26480D78E955A5E29E7AB245DB2BE315E2099AFB
    """
)
SMALL_A = number("60975527035CF2AD1989806F0407210BC81EDC04E2762A56AFD529DDDA2D4393")
SMALL_B = number("E487CB59D31AC550471E81F00F6928E01DDA08E974A004F49E61F5D105284D20")
PUBLIC_A = number(
    """
    61D5E490F6F1B79547B0704C436F523DD0E560F0C64115BB72557EC44352E8903211C04692272D8B2D1A5358A2CF1B6E
    0BFCF99F921530EC8E39356179EAE45E42BA92AEACED825171E1E8B9AF6D9C03E1327F44BE087EF06530E69F66615261
    EEF54073CA11CF5858F0EDFDFE15EFEAB349EF5D76988A3672FAC47B0769447B
    """
)
PUBLIC_B = number(
    """
    BD0C61512C692C0CB6D041FA01BB152D4916A1E77AF46AE105393011BAF38964DC46A0670DD125B95A981652236F99D9
    B681CBF87837EC996C6DA04453728610D0C6DDB58B318885D7D82C7F8DEB75CE7BD4FBAA37089E6F9C6059F388838E7A
    00030B331EB76840910440B1B27AAEAEEB4012B7D7665238A8E3FB004B117B58
    """
)
U = number("CE38B9593487DA98554ED47D70A7AE5F462EF019")
SECRET = number(
    """
    B0DC82BABCF30674AE450C0287745E7990A3381F63B387AAF271A10D233861E359B48220F7C4693C9AE12B0A6F67809F
    0876E2D013800D6C41BB59B6D5979B5C00A172B4A2A5903A0BDCAF8A709585EB2AFAFA8F3499B200210DCC1F10EB3394
    3CD67FC88A2F39A4BE5BEC4EC0A3212DC346D7E474B29EDE8A469FFECA686E5A
    """
)


class ZeroU(Group):
    """A group in which u, and u alone, comes out 0."""

    def digest(self, first: int, second: int) -> int:
        return super().digest(first, second) if first == self.prime else 0


def is_prime(candidate: int, rng: random.Random, rounds: int = 6) -> bool:
    """Miller and Rabin's test; it errs with a probability of at most 4 ** -rounds."""
    if candidate < 4 or candidate % 2 == 0:
        return candidate in (2, 3)
    twos = (candidate - 1 & -(candidate - 1)).bit_length() - 1
    for _ in range(rounds):
        power = pow(rng.randrange(2, candidate - 1), candidate - 1 >> twos, candidate)
        if power in (1, candidate - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % candidate
            if power == candidate - 1:
                break
        else:
            return False
    return True


def secrets(seed: int, x: int, verifier: int) -> tuple[int, int]:
    """What the client and the server make of one exchange in the group in use."""
    rng = random.Random(seed)
    a, b = rng.getrandbits(256), rng.getrandbits(256)
    a_public, b_public = GROUP.power(a), server_public(b, verifier)
    return (
        client_secret_untrusted(a, a_public, b_public, x),
        server_secret_untrusted(a_public, b, b_public, verifier),
    )


class Rfc5054(unittest.TestCase):
    def test_numbers_are_those_of_appendix_b(self) -> None:
        x = int.from_bytes(
            hashlib.sha1(SALT + hashlib.sha1(NAME_AND_PASSWORD).digest()).digest(), "big"
        )
        table = {
            "x": (x, X),
            "k": (RFC_GROUP.digest(RFC_GROUP.prime, RFC_GROUP.generator), K),
            "v": (RFC_GROUP.power(x), VERIFIER),
            "A": (RFC_GROUP.power(SMALL_A), PUBLIC_A),
            "B": (server_public(SMALL_B, VERIFIER, RFC_GROUP), PUBLIC_B),
            "u": (RFC_GROUP.digest(PUBLIC_A, PUBLIC_B), U),
            "client's S": (
                client_secret_untrusted(SMALL_A, PUBLIC_A, PUBLIC_B, X, RFC_GROUP),
                SECRET,
            ),
            "server's S": (
                server_secret_untrusted(PUBLIC_A, SMALL_B, PUBLIC_B, VERIFIER, RFC_GROUP),
                SECRET,
            ),
        }
        for name, (ours, rfc) in table.items():
            with self.subTest(name):
                self.assertEqual(ours, rfc)


class TheGroup(unittest.TestCase):
    def test_prime_is_safe_and_has_2048_bits(self) -> None:
        rng = random.Random(5054)
        self.assertEqual(GROUP.prime.bit_length(), 2048)
        self.assertTrue(is_prime(GROUP.prime, rng))
        self.assertTrue(is_prime(GROUP.prime // 2, rng))

    def test_primality_test_knows_composites(self) -> None:
        rng = random.Random(1)
        primes = [n for n in range(200) if is_prime(n, rng)]
        self.assertEqual(primes, [n for n in range(2, 200) if all(n % d for d in range(2, n))])
        # 561 is a Carmichael number: Fermat's test takes it for a prime
        for composite in (561, GROUP.prime + 2, GROUP.prime * RFC_GROUP.prime):
            self.assertFalse(is_prime(composite, rng))

    def test_pad_has_the_length_of_the_prime(self) -> None:
        for group, length in ((GROUP, 256), (RFC_GROUP, 128)):
            for value in (0, 1, group.prime - 1):
                self.assertEqual(group.pad(value), value.to_bytes(length, "big"))


class Exchange(unittest.TestCase):
    def test_guests_agree_with_the_server(self) -> None:
        self.assertEqual(GROUP.power(GUEST_SECRET), GUEST_VERIFIER)
        found = set()
        for seed in range(3):
            client, server = secrets(seed, GUEST_SECRET, GUEST_VERIFIER)
            self.assertEqual(client, server)
            found.add(client)
        self.assertEqual(len(found), 3)

    def test_guest_secret_is_that_of_diffie_and_hellman(self) -> None:
        rng = random.Random(0)
        a, b = rng.getrandbits(256), rng.getrandbits(256)
        self.assertEqual(secrets(0, GUEST_SECRET, GUEST_VERIFIER)[0], GROUP.power(a * b))

    def test_right_password_agrees_and_a_wrong_one_does_not(self) -> None:
        x = random.Random(7).getrandbits(256)
        client, server = secrets(7, x, GROUP.power(x))
        self.assertEqual(client, server)
        for wrong in (x + 1, GUEST_SECRET):
            client, server = secrets(7, wrong, GROUP.power(x))
            self.assertNotEqual(client, server)


class SecretExponents(unittest.TestCase):
    """Both ends draw 256 random bits, though tests in virtual time make most of them 0."""

    LARGEST: Final = 2**256 - 1

    def ones(self, count: int) -> bytes:
        return b"\xff" * count

    def test_client_draws_256_bits(self) -> None:
        attempt = Attempt("alice", Credentials(), self.ones, 0.0)
        hello = protocol.parse_handshake_untrusted(attempt.request)
        assert isinstance(hello, protocol.Hello)
        self.assertEqual(hello.public, GROUP.pad(GROUP.power(self.LARGEST)))

    def test_server_draws_256_bits(self) -> None:
        public = GROUP.pad(GROUP.power(5))
        join = protocol.Join(protocol.VERSION, "alice", bytes(16), public, bytes(16))
        data = Door(protocol.TIMING, self.ones).challenge(join, GUEST, ("host", 7890), 0.0)
        challenge = protocol.parse_handshake_untrusted(data)
        assert isinstance(challenge, protocol.Challenge)
        self.assertEqual(challenge.public, GROUP.pad(server_public(self.LARGEST, 1)))


class Passwords(unittest.TestCase):
    """RFC 8265 §4.2 and §4.3: OpaqueString, and its examples."""

    def test_what_it_says_is_what_counts(self) -> None:
        for typed in (
            "correct horse battery staple",
            "Correct Horse Battery Staple",  # letter case does
            "\u03c0\u00df\u00e5",  # "πßå" is not folded to "πssa"
            "Jack of \u2666s",
            " spaces at both ends ",
            "\uff41",  # a full-width letter stays one: NFC, not NFKC
            "\U0001f469\u200d\U0001f4bb",
        ):
            with self.subTest(typed=typed):
                self.assertEqual(prepare_password(typed), typed.encode())

    def test_how_it_is_composed_does_not_count(self) -> None:
        for composed in ("caf\u00e9", "\u1e69", "\ud55c", "\u00c5"):
            parts = unicodedata.normalize("NFD", composed)
            self.assertNotEqual(parts, composed)
            self.assertEqual(prepare_password(parts), prepare_password(composed))
        self.assertEqual(prepare_password("\u212b"), "\u00c5".encode())  # the Angstrom sign

    def test_every_kind_of_space_is_a_space(self) -> None:
        for space in "\u00a0\u1680\u2002\u2003\u2009\u202f\u205f\u3000":
            self.assertEqual(prepare_password(f"foo{space}bar"), b"foo bar")

    def test_empty_one_is_refused(self) -> None:
        self.assertRaises(BadMessage, prepare_password, "")

    def test_one_with_control_characters_is_refused(self) -> None:
        for character in "\0\t\n\r\x1b\x7f\x85\udcff\ud83d":
            with self.subTest(character=character), self.assertRaises(BadMessage) as caught:
                prepare_password(f"my cat is a {character}by")
            self.assertNotIn("cat", str(caught.exception))

    def test_secret_is_what_rfc_8018_makes_of_password_and_salt(self) -> None:
        """F of its §5.2 for the first and only block, without hashlib's PBKDF2."""
        salt, iterations = bytes(range(SALT_LENGTH)), ITERATIONS_ALLOWED[0]
        last = hmac.digest(b"password", salt + (1).to_bytes(4, "big"), "sha256")
        x = int.from_bytes(last, "big")
        for _ in range(iterations - 1):
            last = hmac.digest(b"password", last, "sha256")
            x ^= int.from_bytes(last, "big")
        self.assertEqual(password_secret_untrusted(b"password", salt, iterations), x)

    def test_dangerous_salts_and_iterations_are_refused(self) -> None:
        salt, fewest, most = b"s" * SALT_LENGTH, ITERATIONS_ALLOWED[0], ITERATIONS_ALLOWED[-1]
        self.assertEqual((fewest, most), (100_000, 10_000_000))
        for bad, iterations in (
            *((salt, number) for number in (0, 1, fewest - 1, most + 1, 2**31)),
            *((each, fewest) for each in (b"", salt[1:], salt + b"s")),
        ):
            with (
                self.subTest(salt=bad, iterations=iterations),
                mock.patch.object(hashlib, "pbkdf2_hmac", side_effect=AssertionError),
                self.assertRaises(BadHandshake),
            ):
                password_secret_untrusted(b"password", bad, iterations)

    def test_registration_says_what_a_server_has_to_know(self) -> None:
        salt = b"s" * SALT_LENGTH
        with mock.patch.object(protocol, "ITERATIONS", ITERATIONS_ALLOWED[0]):
            it = registration(b"password", salt)
        self.assertEqual((it.salt, it.iterations), (salt, ITERATIONS_ALLOWED[0]))
        x = password_secret_untrusted(b"password", salt, it.iterations)
        self.assertEqual(it.verifier, GROUP.pad(pow(2, x, GROUP.prime)))
        self.assertEqual(ITERATIONS, 600_000)

    def test_who_knows_the_password_agrees_with_who_knows_the_verifier(self) -> None:
        with mock.patch.object(protocol, "ITERATIONS", ITERATIONS_ALLOWED[0]):
            it = registration(b"password", b"s" * SALT_LENGTH)
        verifier = int.from_bytes(it.verifier, "big")
        for password, salt, is_right in (
            (b"password", it.salt, True),
            (b"Password", it.salt, False),
            (b"password", b"t" * SALT_LENGTH, False),
        ):
            x = password_secret_untrusted(password, salt, it.iterations)
            client, server = secrets(9, x, verifier)
            self.assertEqual(client == server, is_right)
        client, server = secrets(9, GUEST_SECRET, verifier)
        self.assertNotEqual(client, server)


class Refusals(unittest.TestCase):
    A, B = 11, 13

    def ask_server(self, a_public: int, group: Group = GROUP) -> int:
        b_public = server_public(self.B, GUEST_VERIFIER, group)
        return server_secret_untrusted(a_public, self.B, b_public, GUEST_VERIFIER, group)

    def ask_client(self, b_public: int, x: int = GUEST_SECRET, group: Group = GROUP) -> int:
        return client_secret_untrusted(self.A, group.power(self.A), b_public, x, group)

    def test_a_that_fixes_the_secret_is_refused(self) -> None:
        n = GROUP.prime
        for a_public in (0, 1, n - 1, n, n + 1, 2 * n, 2**2048 - 1):
            with self.subTest(a_public=a_public % n), self.assertRaises(BadHandshake):
                self.ask_server(a_public)
        for a_public in (2, n - 2):  # the first that fix nothing
            self.ask_server(a_public)

    def test_b_that_is_0_or_beyond_the_prime_is_refused(self) -> None:
        n = GROUP.prime
        for x in (GUEST_SECRET, 17):
            good = server_public(self.B, GROUP.power(x))
            self.ask_client(good, x)
            for b_public in (0, n, 2 * n, good + n, 2**2048 - 1):
                with self.subTest(x=x, b_public=b_public % n), self.assertRaises(BadHandshake):
                    self.ask_client(b_public, x)

    def test_b_of_small_order_is_refused(self) -> None:
        n = GROUP.prime
        for x in (GUEST_SECRET, 17):
            mask = GROUP.digest(n, GROUP.generator) * GROUP.power(x)
            for base in (0, 1, -1):
                with self.subTest(x=x, base=base), self.assertRaises(BadHandshake):
                    self.ask_client((mask + base) % n, x)
            for base in (2, -2):
                self.ask_client((mask + base) % n, x)

    def test_u_of_0_is_refused_on_both_sides(self) -> None:
        zero_u = ZeroU(GROUP.prime, GROUP.generator, GROUP.hash)
        a_public, b_public = GROUP.power(self.A), server_public(self.B, GUEST_VERIFIER)
        self.assertEqual(server_public(self.B, GUEST_VERIFIER, zero_u), b_public)
        self.assertEqual(self.ask_server(a_public), self.ask_client(b_public))
        with self.assertRaises(BadHandshake):
            self.ask_server(a_public, zero_u)
        with self.assertRaises(BadHandshake):
            self.ask_client(b_public, group=zero_u)


if __name__ == "__main__":
    unittest.main()
