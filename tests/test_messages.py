"""Names, texts and lines: what people type, what clients send, what the server relays."""

from __future__ import annotations

import random
import unittest
from contextlib import suppress
from itertools import pairwise

from protocol import (
    GROUP,
    ITERATIONS,
    ITERATIONS_ALLOWED,
    MAX_LINE,
    MAX_NAME,
    MAX_TEXT,
    SERVER,
    Accepted,
    BadMessage,
    Closing,
    Declined,
    Direct,
    Event,
    Exit,
    Expelled,
    Joined,
    Message,
    Public,
    Register,
    Relayed,
    Roster,
    Who,
    check_username,
    clean_text,
    fold,
    format_message,
    format_relayed,
    parse_line_untrusted,
    parse_message,
    parse_relayed_untrusted,
    split_text,
)

LONGEST_NAME = "n" * MAX_NAME
CYRILLIC_A = "\u0430"
TECHNICIAN = "\U0001f469\u200d\U0001f4bb"  # an emoji joined by ZWJ
SCOTLAND = "\U0001f3f4" + "".join(chr(0xE0000 + ord(c)) for c in "gbsct\x7f")
PERSIAN = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"  # ZWNJ is part of its spelling

# name: a character that moves the cursor, reorders, hides or cuts other text
HARMFUL = {
    "escape": "\x1b",
    "bell": "\a",
    "carriage return": "\r",
    "newline": "\n",
    "delete": "\x7f",
    "NUL": "\0",
    "C1 CSI": "\x9b",
    "next line": "\x85",
    "right-to-left override": "\u202e",
    "right-to-left isolate": "\u2067",
    "right-to-left mark": "\u200f",
    "zero-width space": "\u200b",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
}

GOOD_NAMES = ("a", "Z", "0", "al-ice_2.x", "9.", LONGEST_NAME)
BAD_NAMES = (
    "",
    LONGEST_NAME + "n",
    "_a",
    "-a",
    ".a",
    SERVER,
    "a b",
    "a\n",
    " a",
    "a*",
    "a/b",
    CYRILLIC_A + "lice",
    "alic\u00e9",
    "\uff41lice",  # full-width a
    "\u212a",  # Kelvin sign, whose lower case is an ASCII k
    "\u0661",  # Arabic digit one
    "a\u0301",
    "a\u200d",
)


def random_text(rng: random.Random, length: int) -> str:
    """A text that a client may send: clean, and without spaces at its ends."""
    alphabet = ["a", "Z", " ", "  ", "PM ", "DM ", "*", "7", "\u00e9", "\u4e2d", TECHNICIAN]
    return "".join(rng.choices(alphabet, k=length)).strip() or "x"


class TypedLines(unittest.TestCase):
    def check(self, table: dict[str, Message]) -> None:
        for line, message in table.items():
            with self.subTest(line=line):
                self.assertEqual(parse_message(line), message)

    def test_line_without_a_command_is_public(self) -> None:
        self.check(
            {
                "hello there": Public("hello there"),
                "  hello   there ": Public("hello   there"),
                "PMs are fine": Public("PMs are fine"),
                "dmx bob hi": Public("dmx bob hi"),
                "HI": Public("HI"),
                "NO 1 really": Public("NO 1 really"),
                "": Public(""),
                "   ": Public(""),
            }
        )

    def test_command_takes_the_rest_as_its_text(self) -> None:
        self.check(
            {
                "PM hello there": Public("hello there"),
                "PM  hello  there ": Public("hello  there"),
                "PM EX": Public("EX"),
                "PM PM x": Public("PM x"),
                "DM bob hello there": Direct("bob", "hello there"),
                "  DM   bob   hello  there ": Direct("bob", "hello  there"),
                "DM bob DM carol x": Direct("bob", "DM carol x"),
                f"DM {LONGEST_NAME} x": Direct(LONGEST_NAME, "x"),
            }
        )

    def test_missing_fields_come_out_empty(self) -> None:
        self.check(
            {
                "PM": Public(""),
                "PM ": Public(""),
                "DM": Direct("", ""),
                "DM  ": Direct("", ""),
                "DM bob": Direct("bob", ""),
                "DM bob ": Direct("bob", ""),
            }
        )

    def test_lone_command_is_that_command(self) -> None:
        self.check({"EX": Exit(), " EX ": Exit(), "WHO": Who()})

    def test_lone_command_with_more_words_is_public(self) -> None:
        for line in ("ex machina", "EX 1", "who is there?", "Help me", "EXIT", "WHOM", "HELP"):
            with self.subTest(line=line):
                self.assertEqual(parse_message(line), Public(line))

    def test_case_of_the_first_word_does_not_count(self) -> None:
        for line in ("PM Hello", "DM Bob Hello", "EX", "WHO"):
            word, _, rest = line.partition(" ")
            for spelling in (word.lower(), word.title(), word.swapcase()):
                with self.subTest(spelling=spelling):
                    self.assertEqual(parse_message(f"{spelling} {rest}"), parse_message(line))

    def test_case_of_names_and_texts_is_kept(self) -> None:
        self.assertEqual(parse_message("dm BoB HeLLo"), Direct("BoB", "HeLLo"))

    def test_direct_message_to_a_bad_name_is_refused(self) -> None:
        for name in BAD_NAMES:
            # a space or nothing cannot reach the name's place
            if name and name == "".join(name.split()):
                with self.subTest(name=name), self.assertRaises(BadMessage):
                    parse_message(f"DM {name} hello")

    def test_what_a_client_may_send_is_read_back(self) -> None:
        rng = random.Random(1)
        messages: list[Message] = [Exit(), Who(), Public("EX"), Public("pm"), Direct("bob", "PM")]
        for length in (1, 2, 10, 100):
            messages += (Public(random_text(rng, length)) for _ in range(20))
            messages += (
                Direct(rng.choice(GOOD_NAMES), random_text(rng, length)) for _ in range(20)
            )
        for message in messages:
            with self.subTest(message=message):
                line = format_message(message)
                self.assertEqual(parse_message(line), message)
                self.assertEqual(parse_line_untrusted(line.encode()), message)


class WireLines(unittest.TestCase):
    def test_complete_line_is_taken(self) -> None:
        table: dict[str, Message] = {
            "PM hello": Public("hello"),
            "hello": Public("hello"),
            "HI": Public("HI"),
            "NO 1 x": Public("NO 1 x"),
            "BYE": Public("BYE"),
            "DM bob hello": Direct("bob", "hello"),
            "EX": Exit(),
            "who": Who(),
            "PM " + "x" * MAX_TEXT: Public("x" * MAX_TEXT),
            "PM " + "\u00e9" * (MAX_TEXT // 2): Public("\u00e9" * (MAX_TEXT // 2)),
            f"DM {LONGEST_NAME} " + "x" * MAX_TEXT: Direct(LONGEST_NAME, "x" * MAX_TEXT),
            f"PM {TECHNICIAN}{SCOTLAND}{PERSIAN}": Public(TECHNICIAN + SCOTLAND + PERSIAN),
        }
        for line, message in table.items():
            with self.subTest(line=line[:40]):
                self.assertEqual(parse_line_untrusted(line.encode()), message)

    def refuse(self, raw: bytes) -> None:
        with self.subTest(raw=raw[:40]), self.assertRaises(BadMessage):
            parse_line_untrusted(raw)

    def test_line_without_a_text_is_refused(self) -> None:
        for line in ("", " ", "PM", "PM ", "DM", "DM bob", "DM bob  "):
            self.refuse(line.encode())

    def test_too_long_text_is_refused_by_its_bytes(self) -> None:
        for text in ("x" * (MAX_TEXT + 1), "\u00e9" * (MAX_TEXT // 2) + "x"):
            for start in ("", "PM ", "DM bob "):
                self.refuse((start + text).encode())

    def test_harmful_character_is_refused(self) -> None:
        for name, character in HARMFUL.items():
            with self.subTest(name):
                self.refuse(f"PM a{character}b".encode())
                self.refuse(f"a{character}b".encode())
                self.refuse(f"DM bob a{character}b".encode())
                self.refuse(f"DM bo{character}b ab".encode())

    def test_tab_is_refused(self) -> None:
        # the client has made a space of it
        self.refuse(b"PM a\tb")

    def test_line_that_is_not_utf8_is_refused(self) -> None:
        # a stray byte, a cut character, an overlong "/", a surrogate, a number beyond Unicode
        for raw in (b"\xff", b"\xe2\x82", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"):
            self.refuse(b"PM a" + raw)

    def test_bad_name_is_refused(self) -> None:
        for name in BAD_NAMES:
            if name and name == "".join(name.split()):
                self.refuse(f"DM {name} hello".encode())

    def test_any_bytes_are_taken_or_refused_and_nothing_else_happens(self) -> None:
        rng = random.Random(2)
        starts = (b"", b"PM ", b"DM ", b"DM bob ", b"EX", b"1 bob PM ", b"1 * NO ", b"1 * HERE 1 ")
        for _ in range(2000):
            raw = rng.choice(starts) + rng.randbytes(rng.randrange(12))
            for parse in (parse_line_untrusted, parse_relayed_untrusted):
                try:
                    parse(raw)
                except BadMessage as error:
                    self.assertTrue(str(error).isprintable(), raw)


SALT = "00ff" * 8
VERIFIER = GROUP.pad(2**1000).hex()

# what is wrong with it: a line
MALFORMED_REGISTRATIONS = {
    "nothing": "REGISTER ",
    "no verifier": f"REGISTER {SALT} 600000",
    "a word more": f"REGISTER {SALT} 600000 {VERIFIER} x",
    "a space more": f"REGISTER  {SALT} 600000 {VERIFIER}",
    "a space at the end": f"REGISTER {SALT} 600000 {VERIFIER} ",
    "a tab": f"REGISTER {SALT}\t600000 {VERIFIER}",
    "a newline at the end": f"REGISTER {SALT} 600000 {VERIFIER}\n",
    "another order": f"REGISTER 600000 {SALT} {VERIFIER}",
    "short salt": f"REGISTER {SALT[2:]} 600000 {VERIFIER}",
    "half a byte of salt": f"REGISTER {SALT[1:]} 600000 {VERIFIER}",
    "long salt": f"REGISTER {SALT}00 600000 {VERIFIER}",
    "short verifier": f"REGISTER {SALT} 600000 {VERIFIER[2:]}",
    "long verifier": f"REGISTER {SALT} 600000 {VERIFIER}00",
    "upper-case hexadecimal": f"REGISTER {SALT.upper()} 600000 {VERIFIER}",
    "no hexadecimal": f"REGISTER {SALT} 600000 {VERIFIER[:-1]}g",
    "no iterations": f"REGISTER {SALT} 0 {VERIFIER}",
    "too few iterations": f"REGISTER {SALT} {ITERATIONS_ALLOWED[0] - 1} {VERIFIER}",
    "too many iterations": f"REGISTER {SALT} {ITERATIONS_ALLOWED[-1] + 1} {VERIFIER}",
    "endless iterations": f"REGISTER {SALT} {'9' * 400} {VERIFIER}",
    "negative iterations": f"REGISTER {SALT} -600000 {VERIFIER}",
    "Arabic digits": f"REGISTER {SALT} \u0666\u0660\u0660\u0660\u0660\u0660 {VERIFIER}",
    "verifier 0": f"REGISTER {SALT} 600000 {GROUP.pad(0).hex()}",
    "a guest's verifier": f"REGISTER {SALT} 600000 {GROUP.pad(1).hex()}",
    "verifier -1": f"REGISTER {SALT} 600000 {GROUP.pad(GROUP.prime - 1).hex()}",
    "verifier 0 again": f"REGISTER {SALT} 600000 {GROUP.pad(GROUP.prime).hex()}",
    "verifier beyond the prime": f"REGISTER {SALT} 600000 {'ff' * 256}",
}


class Registrations(unittest.TestCase):
    def test_registration_is_read_back(self) -> None:
        for iterations in (ITERATIONS_ALLOWED[0], ITERATIONS, ITERATIONS_ALLOWED[-1]):
            for number in (2, 2**2047, GROUP.prime - 2):
                with self.subTest(iterations=iterations, number=number):
                    it = Register(bytes.fromhex(SALT), iterations, GROUP.pad(number))
                    line = f"REGISTER {SALT} {iterations} {GROUP.pad(number).hex()}"
                    self.assertEqual(format_message(it), line)
                    self.assertEqual(parse_line_untrusted(line.encode()), it)
                    self.assertLessEqual(len(line), MAX_LINE)

    def test_malformed_registration_is_refused(self) -> None:
        for name, line in MALFORMED_REGISTRATIONS.items():
            with self.subTest(name), self.assertRaises(BadMessage) as caught:
                parse_line_untrusted(line.encode())
            self.assertTrue(str(caught.exception).isprintable())
            self.assertLess(len(str(caught.exception)), 100)

    def test_registration_is_never_a_text_however_it_is_spelled(self) -> None:
        for start in ("register", "Register", " REGISTER"):
            with self.subTest(start=start):
                line = f"{start} {SALT} {ITERATIONS} {VERIFIER}".encode()
                with suppress(BadMessage):
                    self.assertIsInstance(parse_line_untrusted(line), Register)

    def test_what_a_person_types_is_no_registration(self) -> None:
        typed = f"REGISTER {SALT} {ITERATIONS} {VERIFIER}"
        self.assertEqual(parse_message(typed), Public(typed))
        sent = format_message(parse_message(typed)).encode()
        self.assertEqual(parse_line_untrusted(sent), Public(typed))


class CleanText(unittest.TestCase):
    def test_harmless_text_stays(self) -> None:
        for text in ("", "plain", "\u00e9\u4e2d", "e\u0301", TECHNICIAN, SCOTLAND, PERSIAN):
            with self.subTest(text=text):
                self.assertEqual(clean_text(text), text)

    def test_tab_becomes_a_space(self) -> None:
        self.assertEqual(clean_text("a\tb"), "a b")
        self.assertEqual(clean_text("\u00e9\tb"), "\u00e9 b")

    def test_harmful_characters_go(self) -> None:
        for name, character in HARMFUL.items():
            with self.subTest(name):
                self.assertEqual(clean_text(f"a{character}b"), "ab")
                self.assertEqual(clean_text(f"\u00e9{character}"), "\u00e9")

    def test_escape_sequence_loses_its_effect(self) -> None:
        self.assertEqual(clean_text("\x1b[2J\x1b]0;title\a"), "[2J]0;title")

    def test_lone_surrogate_goes(self) -> None:
        # what a terminal's undecodable byte becomes in Python
        self.assertEqual(clean_text("a\udcffb\ud83d"), "ab")

    def test_cleaning_twice_changes_nothing_more(self) -> None:
        rng = random.Random(3)
        pool = [*HARMFUL.values(), "\t", "a", "\u00e9", "\u200d", "\udcff", "\U0001f469"]
        for _ in range(200):
            text = "".join(rng.choices(pool, k=8))
            clean = clean_text(text)
            self.assertEqual(clean_text(clean), clean)
            clean.encode()  # raises for a surrogate


class SplitText(unittest.TestCase):
    def test_short_text_stays_whole(self) -> None:
        for text in ("a", "a  b", "x" * MAX_TEXT, "\U0001f469" * (MAX_TEXT // 4)):
            self.assertEqual(split_text(text), [text])

    def test_long_text_is_cut_between_characters_as_late_as_possible(self) -> None:
        rng = random.Random(4)
        texts = ["x" * (MAX_TEXT + 1), *(c * 1500 for c in ("x", "\u00e9", "\u4e2d", "\U0001f469"))]
        texts += ["x" * n + "\U0001f469" * 500 for n in (1, 2, 3)]
        texts += ["".join(rng.choices("x\u00e9\u4e2d\U0001f469", k=2000)) for _ in range(5)]
        for text in texts:
            with self.subTest(start=text[:4], length=len(text)):
                pieces = split_text(text)
                self.assertEqual("".join(pieces), text)
                self.assertLessEqual(max(len(piece.encode()) for piece in pieces), MAX_TEXT)
                for piece, following in pairwise(pieces):
                    self.assertGreater(len((piece + following[0]).encode()), MAX_TEXT)

    def test_every_piece_can_be_sent(self) -> None:
        # a piece of spaces alone would be refused, and spaces at its ends would be lost anyway
        rng = random.Random(5)
        texts = ["", " ", " a ", "x" * (MAX_TEXT - 1) + "  y", "x" + " " * 3 * MAX_TEXT + "y"]
        texts += ["".join(rng.choices(("x", "\u4e2d", " ", " " * 600), k=99)) for _ in range(20)]
        for text in texts:
            with self.subTest(start=text[:4], length=len(text)):
                pieces = split_text(text)
                self.assertEqual("".join("".join(pieces).split()), "".join(text.split()))
                for piece in pieces:
                    line = format_message(Public(piece)).encode()
                    self.assertEqual(parse_line_untrusted(line), Public(piece))


class Usernames(unittest.TestCase):
    def test_good_name_is_returned_as_it_is(self) -> None:
        for name in GOOD_NAMES:
            with self.subTest(name=name):
                self.assertEqual(check_username(name), name)

    def test_bad_name_is_refused(self) -> None:
        for name in BAD_NAMES:
            with self.subTest(name=name), self.assertRaises(BadMessage):
                check_username(name)

    def test_limits_are_1_and_32(self) -> None:
        self.assertEqual(MAX_NAME, 32)
        for length, is_good in ((0, False), (1, True), (32, True), (33, False)):
            with self.subTest(length=length):
                if is_good:
                    check_username("a" * length)
                else:
                    self.assertRaises(BadMessage, check_username, "a" * length)

    def test_refusal_is_safe_to_show(self) -> None:
        for character in HARMFUL.values():
            with self.assertRaises(BadMessage) as caught:
                check_username(f"a{character}" * 1000)
            self.assertTrue(str(caught.exception).isprintable())
            self.assertLess(len(str(caught.exception)), 200)

    def test_letter_case_makes_no_other_name(self) -> None:
        self.assertEqual(fold("Al-Ice_2.X"), fold("al-ice_2.x"))
        self.assertEqual(len({fold(name) for name in ("bob", "BOB", "Bob", "bob1", "b0b")}), 3)


MALFORMED = (
    "",
    " ",
    "1",
    "1 bob",
    "1 bob ",
    "bob PM x",
    "-1 bob PM x",
    "1.5 bob PM x",
    " 1 bob PM x",
    "1  bob PM x",
    f"{10**12} bob PM x",
    "\u0661 bob PM x",
    f"1 {LONGEST_NAME}n PM x",
    f"1 {CYRILLIC_A}lice PM x",
    "1 ** PM x",
    "1 bob PM",
    "1 bob PM ",
    "1 bob PM \u200b",
    "1 bob pm x",
    "1 bob DM",
    "1 bob DM carol",
    "1 bob DM carol ",
    "1 bob DM * x",
    f"1 bob DM {LONGEST_NAME}n x",
    "1 bob WHO",
    "1 bob HELP",
    "1 bob XX x",
    "1 * OK",
    "1 * OK x",
    "1 * OK 12345678901 x",
    "1 bob OUT",
    "1 bob REGISTER x",
    "1 * NO",
    "1 * NO x",
    "1 * NO -1 x",
    "1 * NO 12345678901 x",
    "1 * NO \u0661 x",
    "1 * HERE",
    "1 * HERE bob",
    "1 * HERE 1234567 bob",
    "1 * HERE 0 b*b",
    f"1 * HERE 0 bob {CYRILLIC_A}lice",
    "1 * WHO",
)


class RelayedLines(unittest.TestCase):
    def test_every_kind_has_its_form_and_is_read_back(self) -> None:
        table: dict[str, tuple[str, Event]] = {
            "PM hello there": ("bob", Public("hello there")),
            "PM  two  spaces ": ("bob", Public(" two  spaces ")),
            "PM EX": ("bob", Public("EX")),
            f"PM {TECHNICIAN}{PERSIAN}": ("bob", Public(TECHNICIAN + PERSIAN)),
            "DM Carol hello there": ("bob", Direct("Carol", "hello there")),
            "HI": ("bob", Joined()),
            "EX": ("bob", Exit()),
            "EX timed out": ("bob", Exit("timed out")),
            "OK 0 registered bob": (SERVER, Accepted(0, "registered bob")),
            "NO 0 nobody is called that": (SERVER, Declined(0, "nobody is called that")),
            "NO 4294967295 x": (SERVER, Declined(2**32 - 1, "x")),
            "HERE 0": (SERVER, Roster(0, ())),
            "HERE 2 bob Carol": (SERVER, Roster(2, ("bob", "Carol"))),
            "BYE": (SERVER, Closing()),
            "OUT logged in from elsewhere": (SERVER, Expelled("logged in from elsewhere")),
        }
        self.assertEqual({type(e) for _, e in table.values()}, set(Event.__args__))
        for unix in (0, 1_700_000_000, 10**10 - 1):
            for line, (sender, event) in table.items():
                with self.subTest(unix=unix, line=line):
                    relayed = Relayed(unix, sender, event)
                    raw = f"{unix} {sender} {line}".encode()
                    self.assertEqual(format_relayed(relayed), raw)
                    self.assertEqual(parse_relayed_untrusted(raw), relayed)

    def refuse(self, line: str) -> None:
        with self.subTest(line=line), self.assertRaises(BadMessage):
            parse_relayed_untrusted(line.encode())

    def test_malformed_line_is_refused(self) -> None:
        for line in MALFORMED:
            self.refuse(line)

    def test_line_that_is_not_utf8_is_refused(self) -> None:
        self.assertRaises(BadMessage, parse_relayed_untrusted, b"1 bob PM \xff")

    def test_a_time_that_a_calendar_may_refuse_is_none(self) -> None:
        self.assertEqual(parse_relayed_untrusted(b"9999999999 bob HI").unix, 9_999_999_999)
        self.assertRaises(BadMessage, parse_relayed_untrusted, b"99999999999 bob HI")

    def test_member_cannot_speak_for_the_server(self) -> None:
        for line in ("OK 1 x", "NO 1 x", "HERE 0 bob", "BYE", "OUT x"):
            parse_relayed_untrusted(f"1 {SERVER} {line}".encode())
            self.refuse(f"1 bob {line}")

    def test_server_cannot_speak_for_a_member(self) -> None:
        for line in ("PM x", "DM bob x", "HI", "EX", "EX x"):
            parse_relayed_untrusted(f"1 bob {line}".encode())
            self.refuse(f"1 {SERVER} {line}")

    def test_text_is_clean_whatever_the_server_sends(self) -> None:
        for name, character in HARMFUL.items():
            for line in (
                "bob PM a{}b",
                "bob DM carol a{}b",
                "bob EX a{}b",
                "* NO 1 a{}b",
                "* OUT a{}b",
            ):
                with self.subTest(name, line=line):
                    raw = f"1 {line.format(character)}".encode()
                    clean = f"1 {line.format('')}".encode()
                    self.assertEqual(parse_relayed_untrusted(raw), parse_relayed_untrusted(clean))

    def test_longest_line_fits_into_a_packet(self) -> None:
        relayed = Relayed(10**12 - 1, LONGEST_NAME, Direct(LONGEST_NAME, "x" * MAX_TEXT))
        self.assertLessEqual(len(format_relayed(relayed)), MAX_LINE)


if __name__ == "__main__":
    unittest.main()
