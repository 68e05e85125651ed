"""What a person sees and types: the real client on a pseudo-terminal, by its screen."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import sys
import unittest
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import partial
from typing import Final

from chatclient import HELP
from tests.account_programs import PASSWORD, AccountProgramsTest
from tests.forkserver import ROOT, Command
from tests.programs import LOCALHOST, Program, lasting_port, wait_until
from tests.terminal import HAS_PTY, PASTE, WIDER_HERE, TerminalProgram
from tests.transcripts import conversation, direct, of_sender, public

LEFT, TAB, UP, CTRL_L, CTRL_Z = "\033[D", "\t", "\033[A", "\x0c", "\x1a"
READS: Final = b"\033[?2004h"  # what readline writes when it begins to read
LATE: Final = "[not delivered yet]"
PENDING: Final = "[.....]"


def run_with(code: str, module: str, arguments: Iterable[str]) -> list[str]:
    """What starts a program in which something is different."""
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}; import {module}"
    return [sys.executable, "-c", f"{start}; sys.exit({module}.main())", *arguments]


def said(rows: Iterable[str]) -> list[str]:
    """The rows in which somebody says something to everyone."""
    return [row for row in rows if re.match(r"\[HH:MM\] [\w-]+: ", row)]


@unittest.skipUnless(HAS_PTY, "this system has no pseudo-terminals")
class TerminalTest(AccountProgramsTest):
    """bob has a terminal, alice has pipes; more rows than ``ROWS`` scroll away."""

    ROWS, COLUMNS = 8, 40

    def arguments(self, name: str, *options: str) -> list[str]:
        return [LOCALHOST, "0", name, "--server-port", str(self.port), *options]

    def terminal(
        self,
        name: str,
        *options: str,
        rows: int = 0,
        columns: int = 0,
        variables: Mapping[str, str] | None = None,
        **timing: float,
    ) -> TerminalProgram:
        start = Command("chatclient", self.arguments(name, *options), timing)
        return self.on_terminal(start, rows, columns, variables)

    def on_terminal(
        self,
        start: Command | list[str],
        rows: int = 0,
        columns: int = 0,
        variables: Mapping[str, str] | None = None,
    ) -> TerminalProgram:
        size = rows or self.ROWS, columns or self.COLUMNS
        program = TerminalProgram(start, self.folder, *size, variables)
        self.addCleanup(program.stop)
        program.wait_until(lambda: self.is_ready(program.rows), "the prompt")
        return program

    def is_ready(self, rows: list[str]) -> bool:
        return any(row.startswith("* here: ") for row in rows) and rows[-1].endswith(">")

    def enter_nothing(self, terminal: TerminalProgram) -> None:
        """A terminal of which nothing is known may show a first prompt twice, before and after a
        line that comes in at that moment."""
        before = len(terminal.all_rows)
        terminal.type("\r")
        terminal.wait_until(lambda: len(terminal.all_rows) > before, "another row")
        terminal.wait_for(">", cursor=2)

    def serve(self, *options: str, port: int = 0) -> None:
        self.server = self.start_server("--rate", "0", *options, port=port)
        self.port = self.server.port

    def wait_for_rows(self, terminal: TerminalProgram, *rows: str) -> None:
        """Until it shows each of them, also where something else comes in between."""
        terminal.wait_until(lambda: set(rows) <= set(terminal.all_rows), rows)

    def stop_server(self) -> None:
        """Until ``go_on`` it neither answers nor ends."""
        os.kill(self.server.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.server.process.pid, signal.SIGCONT)

    def answer_half(self, bob: TerminalProgram, alice: Program, prompt: str, half: str) -> None:
        """Types half an answer, which a line that comes in leaves as it is."""
        bob.wait_for(prompt.rstrip(), cursor=len(prompt))
        bob.type(half)
        bob.wait_for(prompt + half, cursor=len(prompt + half))
        alice.type(f"before {half}")
        row = f"[HH:MM] alice: before {half}"
        bob.wait_for(row, prompt + half, cursor=len(prompt + half))


class Room(TerminalTest):
    """alice and bob are in it."""

    ACCOUNTS: tuple[str, ...] = ()

    def setUp(self) -> None:
        super().setUp()
        self.have(*self.ACCOUNTS)
        self.serve()
        (self.alice,) = self.join(self.port, "alice")
        self.bob = self.terminal("bob", late=60.0)
        self.bob.wait_for("* here: alice, bob", ">", cursor=2)


class Incoming(Room):
    """Lines that come in, and one that is half typed."""

    def test_an_incoming_line_leaves_a_half_typed_one_intact(self) -> None:
        self.bob.type("half a lne")
        self.bob.wait_for("> half a lne", cursor=12)
        self.bob.type(LEFT * 2)
        self.bob.wait_for("> half a lne", cursor=10)
        self.alice.type("hello")
        self.bob.wait_for("[HH:MM] alice: hello", "> half a lne", cursor=10)
        self.alice.type(*map(str, range(20)))  # more than there are rows: the screen scrolls
        last = public("alice", *map(str, range(13, 20)))
        self.bob.wait_for(*last, "> half a lne", cursor=10)
        self.bob.type("i")
        self.bob.wait_for("> half a line", cursor=11)
        self.bob.type("\r")
        self.alice.wait_for(*public("bob", "half a line"))
        self.bob.wait_for(*last[1:], "[HH:MM] bob: half a line", ">", cursor=2)

    def test_lines_that_are_wider_than_the_screen_do_not_touch_each_other(self) -> None:
        typed = "wide " * 10 + "enough"
        self.bob.type(typed)

        def is_typed() -> bool:  # its end is in the row, and has scrolled the rest away
            row = self.bob.rows[-1]
            return row.endswith("enough") and self.bob.cursor == len(row)

        self.bob.wait_until(is_typed, "what was typed")
        row, column = self.bob.rows[-1], self.bob.cursor
        self.alice.type("123456789 " * 6 + "end")
        pieces = [
            "[HH:MM] alice: 123456789 123456789",
            "  123456789 123456789 123456789",
            "  123456789 end",
        ]
        self.bob.wait_for("* here: alice, bob", *pieces, row, cursor=column)
        self.bob.type("\r")
        self.alice.wait_for(*public("bob", typed))

    def test_a_burst_of_more_lines_than_the_screen_has_is_all_above_the_prompt(self) -> None:
        self.bob.type("half" + LEFT)
        self.bob.wait_for("> half", cursor=5)
        texts = [f"line {n}" for n in range(200)]
        self.alice.type(*texts)
        self.bob.wait_for(*public("alice", *texts[-7:]), "> half", cursor=5)
        shown = ["* here: alice, bob", *public("alice", *texts), "> half"]
        self.assertEqual(self.bob.all_rows[-len(shown) :], shown)

    def test_wide_and_combining_characters_keep_their_places(self) -> None:
        self.bob.type("日本e\u0301🎈x" + LEFT * 2)  # before the balloon, after 2 + 2 + 1 columns
        self.bob.wait_for("> 日本e\u0301🎈x", cursor=7)
        self.alice.type("こんにちはe\u0301🎈", "🎈" * 25)
        rows = ["[HH:MM] alice: こんにちはe\u0301🎈", "[HH:MM] alice:", f"  {'🎈' * 19}"]
        rows += ["  🎈🎈🎈🎈🎈🎈"]
        self.bob.wait_for(*rows, "> 日本e\u0301🎈x", cursor=7)
        self.bob.type("語\r")
        self.bob.wait_for(*rows, "[HH:MM] bob: 日本e\u0301語🎈x", ">", cursor=2)

    def test_a_row_that_the_terminal_takes_for_wider_does_not_touch_the_next_one(self) -> None:
        self.bob.type("half" + LEFT)
        self.bob.wait_for("> half", cursor=5)
        self.alice.type(WIDER_HERE * 25)
        self.bob.wait_until(lambda: len(self.bob.rows) == 3, "one row")
        self.bob.wait_for("> half", cursor=5)
        self.assertTrue(self.bob.rows[1].startswith(f"[HH:MM] alice: {WIDER_HERE * 10}"))

    def test_a_resized_window_keeps_what_is_half_typed(self) -> None:
        self.bob.type("half" + LEFT)
        self.bob.wait_for("> half", cursor=5)
        long = "one two three four five six"
        for rows, columns, pieces in (
            (8, 30, ["one two", "  three four five six"]),
            (8, 60, ["one two three four five six"]),
            (4, 60, ["one two three four five six"]),
            (12, 34, ["one two three", "  four five six"]),
        ):
            self.bob.resize(rows, columns)
            self.alice.type(f"{columns} {rows} {long}")
            first, *others = pieces
            first = f"[HH:MM] alice: {columns} {rows} {first}"
            self.bob.wait_for(first, *others, "> half", cursor=5)
        self.bob.type("\r")
        self.bob.wait_for("[HH:MM] bob: half", ">", cursor=2)

    def test_a_line_that_is_longer_than_a_narrowed_row_is_still_sent_as_a_whole(self) -> None:
        self.bob.type("0123456789 0123456789 0123456789")
        self.bob.wait_for("> 0123456789 0123456789 0123456789", cursor=34)
        self.bob.resize(8, 20)
        self.bob.wait_until(lambda: self.bob.rows[-1].endswith("6789"), "its end")
        self.alice.type("hello")
        self.bob.wait_until(lambda: "[HH:MM] alice: hello" in self.bob.rows, "what alice says")
        self.bob.wait_until(lambda: self.bob.rows[-1].endswith("6789"), "its end")
        self.bob.type("!\r")
        self.alice.wait_for(*public("bob", "0123456789 0123456789 0123456789!"))
        self.bob.wait_for(
            "[HH:MM] alice: hello",
            "[HH:MM] bob:",
            "  0123456789",
            "  0123456789",
            "  0123456789!",
            ">",
            cursor=2,
        )

    def test_a_resized_window_keeps_what_is_waiting(self) -> None:
        self.stop_server()
        self.bob.type("one\r")
        self.bob.wait_for("* here: alice, bob", f"{PENDING} bob: one", ">", cursor=2)
        self.bob.type("half" + LEFT)
        for rows, columns in ((8, 60), (5, 60), (10, 60)):
            self.bob.resize(rows, columns)
            self.bob.wait_for("* here: alice, bob", f"{PENDING} bob: one", "> half", cursor=5)
        self.go_on()
        self.bob.wait_for("* here: alice, bob", "[HH:MM] bob: one", "> half", cursor=5)

    def test_what_is_waiting_in_a_narrowed_window_still_comes_once(self) -> None:
        self.stop_server()
        self.bob.type("one\r")
        self.bob.wait_for(f"{PENDING} bob: one", ">", cursor=2)
        self.bob.type("half" + LEFT)
        self.bob.wait_for(f"{PENDING} bob: one", "> half", cursor=5)
        self.bob.resize(8, 25)
        self.go_on()
        self.bob.wait_for("[HH:MM] bob: one", "> half", cursor=5)
        self.assertEqual(said(self.bob.all_rows), ["[HH:MM] bob: one"])
        self.assertFalse([row for row in self.bob.all_rows if PENDING in row])

    def test_a_row_that_is_wider_than_a_narrowed_window_is_not_taken_for_another(self) -> None:
        self.alice.type("before")
        self.bob.wait_for("[HH:MM] alice: before", ">", cursor=2)
        self.stop_server()
        self.bob.type("a long one in one row\r")
        self.bob.wait_for(f"{PENDING} bob: a long one in one row", ">", cursor=2)
        self.bob.resize(8, 25)
        self.go_on()
        self.bob.wait_for("[HH:MM] bob: a long one", "  in one row", ">", cursor=2)
        self.assertIn("[HH:MM] alice: before", self.bob.rows)

    def test_the_prompts_of_pm_and_dm_are_like_any_other(self) -> None:
        self.bob.type("DM\r")
        self.answer_half(self.bob, self.alice, "Username: ", "ali")
        self.bob.type("ce\r")
        self.answer_half(self.bob, self.alice, "Message for alice: ", "psst")
        self.bob.type("!\r")
        self.alice.wait_for(*direct("bob", "psst!"))
        self.bob.wait_for("[HH:MM] you -> alice: psst!", ">", cursor=2)
        self.bob.type("PM\r")
        self.answer_half(self.bob, self.alice, "Message: ", "lou")
        self.bob.type("d\r")
        self.alice.wait_for(*public("bob", "loud"))
        self.bob.wait_for("[HH:MM] bob: loud", ">", cursor=2)
        self.assertFalse([row for row in self.bob.all_rows if re.match(r"Mess|User|> .", row)])

    def test_a_line_that_comes_in_between_two_tabs_changes_nothing(self) -> None:
        (alfred,) = self.join(self.port, "alfred")
        alfred.type("hello")
        self.bob.wait_for("[HH:MM] alfred: hello", ">", cursor=2)
        self.bob.type("al\t")
        self.bob.wait_for("> alfred:", cursor=10)
        self.alice.type("now I have spoken last")
        self.bob.wait_for("[HH:MM] alice: now I have spoken last", "> alfred:", cursor=10)
        self.bob.type(TAB)
        self.bob.wait_for("> alice:", cursor=9)
        self.bob.type(TAB)
        self.bob.wait_for("> alfred:", cursor=10)


class OwnLines(Room):
    ACCOUNTS = ("dave",)

    def test_what_one_says_is_shown_once_where_everybody_sees_it(self) -> None:
        self.bob.type("mine\r")
        self.bob.wait_for("* here: alice, bob", "[HH:MM] bob: mine", ">", cursor=2)
        self.alice.wait_for(*public("bob", "mine"))

    def test_what_waits_is_shown_above_the_prompt_and_below_all_that_was_said(self) -> None:
        self.alice.type("before")
        self.bob.wait_for("[HH:MM] alice: before", ">", cursor=2)
        self.stop_server()
        self.bob.type("one\r")
        self.bob.wait_for("[HH:MM] alice: before", f"{PENDING} bob: one", ">", cursor=2)
        self.bob.type("DM alice two\r")
        waiting = [f"{PENDING} bob: one", f"{PENDING} you -> alice: two"]
        self.bob.wait_for("[HH:MM] alice: before", *waiting, ">", cursor=2)
        self.bob.type("half")
        self.bob.wait_for("[HH:MM] alice: before", *waiting, "> half", cursor=6)
        self.go_on()
        self.alice.wait_for(*public("bob", "one"), *direct("bob", "two"))
        self.alice.type("after")
        self.bob.wait_until(lambda: "[HH:MM] alice: after" in self.bob.rows, "what alice says")
        rows = ["[HH:MM] bob: one", "[HH:MM] you -> alice: two", "[HH:MM] alice: after"]
        self.assertEqual(sorted(self.bob.rows[-4:-1]), sorted(rows))  # from two logs
        self.bob.wait_for("> half", cursor=6)
        self.assertFalse([row for row in self.bob.all_rows if PENDING in row])

    def test_what_waits_is_counted_where_it_does_not_fit(self) -> None:
        self.stop_server()
        self.bob.type("one\rtwo\rthree\rfour\r")
        waiting = [f"{PENDING} bob: one", f"{PENDING} 3 more lines"]
        self.bob.wait_for("* here: alice, bob", *waiting, ">", cursor=2)
        self.go_on()
        texts = public("bob", "one", "two", "three", "four")
        self.bob.wait_for("* here: alice, bob", *texts, ">", cursor=2)

    def test_a_direct_message_that_cannot_be_delivered_does_not_vanish(self) -> None:
        self.bob.type("DM nobody psst\r")
        hint = ["* not delivered: nobody here is called", "  nobody. To say it to everyone: PM DM"]
        self.bob.wait_for(*hint, "  nobody psst", ">", cursor=2)
        self.bob.type("DM dave psst\r")
        self.wait_for_rows(self.bob, "[HH:MM] you -> dave: psst")
        self.bob.wait_until(lambda: "away" in "".join(self.bob.rows), "that dave is away")
        self.bob.wait_for(">", cursor=2)
        self.assertEqual(sum("psst" in row for row in self.bob.all_rows), 2)
        self.assertEqual(conversation(self.alice.shown), [])


class Bursts(Room):
    ROWS, COLUMNS = 24, 80

    def enter(self, text: str) -> None:
        """Enters it, and waits until the next line is being read: what is typed before may be
        echoed by the terminal itself."""
        prompts = self.bob.written.count(READS)
        self.bob.type(f"{text}\r")
        self.bob.wait_until(lambda: self.bob.written.count(READS) > prompts, "the prompt")

    def test_what_is_entered_in_a_burst_is_shown_once_and_in_everybodys_order(self) -> None:
        (carol,) = self.join(self.port, "carol")
        self.bob.wait_for("[HH:MM] * carol joined", ">", cursor=2)
        for number in range(60):  # rows come in while another is entered, and taken away
            self.alice.type(*(f"{number} {part}" for part in "abcdef"))
            self.enter(f"{number}")
            # A whole screen of rows in the instant of entering is more than can be put right.
            self.wait_for_rows(self.bob, f"[HH:MM] alice: {number} f", f"[HH:MM] bob: {number}")
        carol.wait_for(*public("alice", "59 f"), *public("bob", "59"))
        order = said(carol.shown)
        self.assertEqual(len(order), 7 * 60)
        self.bob.wait_for(order[-1], ">", cursor=2)
        rows = ["* here: alice, bob", "[HH:MM] * carol joined", *order, ">"]
        self.assertEqual(self.bob.all_rows, rows)


class LateLines(TerminalTest):
    def test_a_line_is_said_to_be_not_delivered_yet_once_it_is_late(self) -> None:
        self.serve()
        (alice,) = self.join(self.port, "alice")
        bob = self.terminal("bob", late=1.0)
        bob.wait_for("* here: alice, bob", ">", cursor=2)
        self.stop_server()
        bob.type("hello\r")
        bob.wait_for("* here: alice, bob", f"{LATE} bob: hello", ">", cursor=2)
        self.go_on()
        bob.wait_for("* here: alice, bob", "[HH:MM] bob: hello", ">", cursor=2)
        alice.wait_for(*public("bob", "hello"))
        self.stop_server()
        bob.type("again\r")
        bob.wait_for("[HH:MM] bob: hello", f"{LATE} bob: again", ">", cursor=2)
        self.assertIn(f"{PENDING} bob: again".encode(), bob.written)  # for a moment
        self.go_on()

    def test_a_server_that_is_slow_to_answer_is_waited_for_in_words(self) -> None:
        self.serve()
        self.stop_server()
        start = Command("chatclient", self.arguments("bob"), {"trouble": 0.2})
        bob = TerminalProgram(start, self.folder, self.ROWS, 80)
        self.addCleanup(bob.stop)
        waits = f"* no answer from {LOCALHOST} port {self.port} yet: still trying"
        bob.wait_until(lambda: waits in bob.rows, waits)
        self.go_on()
        bob.wait_for(waits, "* connected", "* here: bob", ">", cursor=2)

    def test_a_crash_of_the_server_is_told_once_and_what_was_typed_comes_once(self) -> None:
        self.serve(port=lasting_port())
        (alice,) = self.join(self.port, "alice")
        bob = self.terminal("bob", rows=12, trouble=0.2, late=0.1)
        bob.wait_for("* here: alice, bob", ">", cursor=2)
        alice.type("before")
        bob.wait_for("[HH:MM] alice: before", ">", cursor=2)
        self.server.process.kill()
        self.server.status()
        bob.type("one\r")
        lost = "* the connection is lost: reconnecting"
        bob.wait_for("[HH:MM] alice: before", lost, f"{LATE} bob: one", ">", cursor=2)
        bob.type("two\r")
        waiting = [f"{LATE} bob: one", f"{LATE} bob: two"]
        bob.wait_for(lost, *waiting, ">", cursor=2)
        bob.type("half")
        self.serve(port=self.port)
        texts = public("bob", "one", "two")
        bob.wait_for("[HH:MM] alice: before", lost, "* connected", *texts, "> half", cursor=6)
        alice.wait_for(*texts)
        self.assertEqual(said(bob.all_rows), [*public("alice", "before"), *texts])


class Editing(Room):
    def test_up_brings_back_the_last_line_and_no_answers(self) -> None:
        self.bob.type("first\r")
        self.bob.wait_for("[HH:MM] bob: first", ">", cursor=2)
        self.bob.type("DM alice\r")
        self.bob.wait_for("Message for alice:", cursor=19)
        self.bob.type("an answer\r")
        self.bob.wait_for("[HH:MM] you -> alice: an answer", ">", cursor=2)
        self.bob.type(UP)
        self.bob.wait_for("> DM alice", cursor=10)
        self.bob.type(UP)
        self.bob.wait_for("> first", cursor=7)
        self.bob.type("!\r")
        self.bob.wait_for("[HH:MM] bob: first!", ">", cursor=2)

    def test_tab_completes_names_and_commands_and_never_lists_anything(self) -> None:
        (anna,) = self.join(self.port, "anna")
        self.bob.wait_for("[HH:MM] * anna joined", ">", cursor=2)
        for client in (self.alice, anna):  # who has spoken last is proposed first
            client.type("hello")
            self.alice.wait_for("[HH:MM] anna: hello") if client is anna else anna.wait_for(
                "[HH:MM] alice: hello"
            )
        self.bob.wait_for("[HH:MM] anna: hello", ">", cursor=2)
        before = self.bob.all_rows[:-1]
        for typed, completed in (
            ("a\t", "anna: "),
            ("a\t\t", "alice: "),
            ("a\t\t\t", "anna: "),
            ("AL\t", "alice: "),
            ("DM \t", "DM anna "),
            ("dm al\t", "dm alice "),
            ("w\t", "WHO"),
            ("h\t", "HELP"),
            ("a word and AL\t", "a word and alice "),
            ("zz\t\t", "zz"),
            ("tests/\t\t", "tests/"),  # no file names
            ("\t\t\t\t\t\t\t\t", "anna: "),  # all names and commands, and the first again
        ):
            self.bob.type(typed)
            self.bob.wait_for(f"> {completed}".rstrip(), cursor=2 + len(completed))
            self.bob.type("\x15")  # Ctrl-U: away with it
            self.bob.wait_for(">", cursor=2)
        self.bob.type("DM\r")
        self.bob.wait_for("Username:", cursor=10)
        self.bob.type("a\t\t")
        self.bob.wait_for("Username: alice", cursor=15)
        self.bob.type("\r")
        self.bob.wait_for("Message for alice:", cursor=19)
        self.bob.type("\t")
        self.bob.type("x\r")
        self.alice.wait_for(*direct("bob", "x"))
        self.bob.wait_for("[HH:MM] you -> alice: x", ">", cursor=2)
        self.assertEqual(self.bob.all_rows[: len(before)], before)
        self.assertEqual(len(self.bob.all_rows), len(before) + 2)

    def test_an_end_of_input_in_a_prompt_cancels_it_and_leaves_no_row(self) -> None:
        self.bob.type("PM\r")
        self.bob.wait_for("* here: alice, bob", "Message:", cursor=9)
        self.bob.type("\x04")
        self.bob.wait_for("* here: alice, bob", ">", cursor=2)
        for text in ("one", "two"):
            self.bob.type(f"{text}\r")
            self.bob.wait_for(f"[HH:MM] bob: {text}", ">", cursor=2)
        self.assertEqual(
            self.bob.all_rows, ["* here: alice, bob", *public("bob", "one", "two"), ">"]
        )

    def test_ctrl_l_takes_nothing_away(self) -> None:
        self.stop_server()
        self.bob.type("one\r")
        self.bob.wait_for("* here: alice, bob", f"{PENDING} bob: one", ">", cursor=2)
        self.bob.type("half" + LEFT + CTRL_L)
        self.bob.wait_for("* here: alice, bob", f"{PENDING} bob: one", "> half", cursor=5)
        self.go_on()
        self.bob.wait_for("* here: alice, bob", "[HH:MM] bob: one", "> half", cursor=5)

    def test_vi_keys_work_for_who_wants_them(self) -> None:
        (self.folder / "inputrc").write_text("set editing-mode vi\n")
        dave = self.terminal("dave", variables={"INPUTRC": str(self.folder / "inputrc")})
        dave.type("hallo\033")
        dave.wait_for("> hallo", cursor=6)
        dave.type("0lre")  # to the start, one to the right, replaced
        dave.wait_for("> hello", cursor=3)
        self.alice.type("hi")
        dave.wait_for("[HH:MM] alice: hi", "> hello", cursor=3)
        dave.type("\r")
        dave.wait_for("[HH:MM] dave: hello", ">", cursor=2)


class Looks(TerminalTest):
    def test_names_have_colours_and_what_concerns_the_person_stands_out(self) -> None:
        self.serve()
        alice, frank = self.join(self.port, "alice", "frank")
        alice.type("first")
        frank.wait_for(*public("alice", "first"))
        bob, carol = (self.terminal(name, rows=24) for name in ("bob", "carol"))
        self.wait_for_rows(bob, "* earlier: [HH:MM] alice: first", "[HH:MM] * carol joined")
        self.assertEqual(bob.looks_of("alice: first"), {"2"})
        alice.type("Bob, bobby and abob: look")
        frank.wait_for(*public("alice", "Bob, bobby and abob: look"))
        alice.type("DM bob psst")
        frank.type("hello")
        heard = ["[HH:MM] alice -> you: psst", "[HH:MM] frank: hello"]
        self.wait_for_rows(bob, *heard)
        self.wait_for_rows(carol, "[HH:MM] frank: hello")
        row = "alice: Bob, bobby and abob: look"
        self.assertEqual(bob.looks_of("Bob"), {"1;7"})
        self.assertEqual(bob.looks_of(", bobby and abob: look"), {""})
        self.assertEqual(carol.looks_of(row.removeprefix("alice")), {""})
        self.assertEqual(bob.looks_of(" -> you"), {"1;35"})
        colours = []
        for name in ("alice", "frank"):
            (colour,) = bob.looks_of(name) | carol.looks_of(name)
            self.assertRegex(colour, r"^1;(3|9)\d$")
            colours.append(colour)
        self.assertEqual(len(set(colours)), 2)

    def test_the_bell_is_for_what_concerns_the_person_and_is_no_history(self) -> None:
        self.serve()
        (alice,) = self.join(self.port, "alice")
        alice.type("bob, where are you?")
        alice.type("WHO")
        alice.wait_for("* here: alice", times=2)
        bob = self.terminal("bob")
        quiet = self.terminal("carol", "--no-bell")
        self.wait_for_rows(bob, "* earlier: [HH:MM] alice: bob, where are", "  you?")
        self.wait_for_rows(bob, "[HH:MM] * carol joined")
        for number, (text, bells) in enumerate(
            (
                ("DM bob psst", 1),
                ("bobby", 1),
                ("hello Bob!", 2),
                ("DM carol psst", 2),
                ("hello carol", 2),
            )
        ):
            alice.type(text, f"that was {number}")
            self.wait_for_rows(bob, f"[HH:MM] alice: that was {number}")
            bob.wait_until(partial(self.has_rung, bob, bells), f"{bells} bells")
        bob.type("bob is me\r")
        bob.wait_for("[HH:MM] bob: bob is me", ">", cursor=2)
        self.assertEqual(bob.bells, 2)
        self.wait_for_rows(quiet, "[HH:MM] alice -> you: psst", "[HH:MM] alice: hello carol")
        self.assertEqual(quiet.bells, 0)

    def has_rung(self, terminal: TerminalProgram, times: int) -> bool:
        return terminal.bells == times

    def test_no_color_or_a_terminal_without_any_means_none_and_all_the_rest(self) -> None:
        self.serve()
        (alice,) = self.join(self.port, "alice")
        for name, variables in (("bob", {"NO_COLOR": "1"}), ("carol", {"TERM": "vt220"})):
            terminal = self.terminal(name, variables=variables)
            terminal.type("half")
            terminal.wait_for("> half", cursor=6)
            alice.type(f"hello {name}")
            terminal.wait_for(f"[HH:MM] alice: hello {name}", "> half", cursor=6)
            terminal.type("\x15EX\r")
            self.assertEqual(terminal.status()[0], 0)
            self.assertNotRegex(terminal.written, rb"\033\[[0-9;]*m")

    def test_a_terminal_that_can_do_nothing_is_sent_no_escape_sequence(self) -> None:
        self.serve()
        (alice,) = self.join(self.port, "alice")
        for term in ("dumb", "", "no-such-terminal"):
            with self.subTest(term=term):
                name = f"b-{term}"[:9]
                bob = self.terminal(name, variables={"TERM": term})
                self.enter_nothing(bob)
                bob.type("half")
                bob.wait_for("> half", cursor=6)
                alice.type(f"hello {name}")
                bob.wait_for("> half", f"[HH:MM] alice: hello {name}", "> half", cursor=6)
                bob.type(" a line\r")
                alice.wait_for(*public(name, "half a line"))
                bob.type("EX\r")
                self.assertEqual(bob.status(), (0, bob.attributes_before))
                self.assertNotIn(b"\033", bob.written)

    def test_what_is_older_than_today_has_its_date(self) -> None:
        self.serve()
        (alice,) = self.join(self.port, "alice")
        alice.type("old", "young")
        self.leave(alice)
        self.server.stop()
        with closing(sqlite3.connect(self.db)) as file, file:  # "old" was said on another day
            (line,) = file.execute(
                "SELECT line FROM lines ORDER BY number LIMIT 1 OFFSET 1"
            ).fetchone()
            _, rest = line.split(b" ", 1)
            older = b"%d %s" % (1_790_000_000, rest)
            file.execute("UPDATE lines SET line = ? WHERE line = ?", (older, line))
        self.serve("--keep-days", "0")
        bob = self.terminal("bob", columns=60)
        bob.wait_until(lambda: "alice: young" in "".join(bob.rows), "what was said")
        (old,) = [row for row in bob.rows if row.endswith("alice: old")]
        self.assertRegex(old, r"^\* earlier: \[2026-09-2\d \d\d:\d\d\] alice: old$")
        self.assertIn("* earlier: [HH:MM] alice: young", bob.rows)


class Hostile(TerminalTest):
    """A server, and members, whose programs let everything through, and add to it."""

    MEMBER: Final = (
        "import protocol; protocol.clean_text = str; protocol._check_text = lambda text: None"
    )
    SERVER: Final = MEMBER + (
        "; from dataclasses import replace; message, shake = protocol.format_message, "
        "protocol.format_handshake; evil = '\\033[5m\\u202e\\x9b2J';"
        "protocol.format_message = lambda x: message(x).replace('called', evil + 'called');"
        "protocol.format_handshake = lambda x: shake("
        "replace(x, text=evil + x.text) if hasattr(x, 'text') else x)"
    )
    TEXT: Final = "\033[2Jred\033]0;title\a\x9b31m\x07 \u202eabc\u2066 end"
    # What readline and the client say to a terminal that has no colours.
    THEIRS: Final = rb"\033(\[(\?7[lh]|\?2004[lh]|\d*[ABCDJKLMP]|H)|7|8)"
    DANGEROUS: Final = "[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e\u2066]"

    def assert_harmless(self, terminal: TerminalProgram) -> None:
        written = re.sub(self.THEIRS, b"", terminal.written).decode()
        self.assertNotRegex(written, self.DANGEROUS)

    def test_nothing_that_a_terminal_obeys_reaches_it(self) -> None:
        arguments = ["0", "--db", str(self.db), "--host", LOCALHOST]
        server = self.start(run_with(self.SERVER, "chatserver", arguments))
        server.wait_until(lambda: bool(server.printed), "the address")
        self.port = int(server.printed[0].rpartition(" ")[2])
        bob = self.terminal("bob", "--no-bell", rows=24, variables={"NO_COLOR": "1"})
        mallory = self.start(run_with(self.MEMBER, "chatclient", self.arguments("mallory")))
        mallory.type(self.TEXT, f"DM bob {self.TEXT}", "the end")
        self.wait_for_rows(
            bob,
            "[HH:MM] mallory: [2Jred]0;title31m abc",  # it goes on in the next row
            "  [2Jred]0;title31m abc end",
            "[HH:MM] mallory: the end",
        )
        bob.type("DM me x\r")
        self.wait_for_rows(bob, "* not delivered: nobody here is")
        bob.wait_for("  [5m2Jcalled me. To say it to everyone:", "  PM DM me x", ">", cursor=2)
        self.assert_harmless(bob)
        again = Command("chatclient", self.arguments("bob"))
        refused = TerminalProgram(again, self.folder, 24, 80, {"NO_COLOR": "1"})
        self.addCleanup(refused.stop)
        refused.wait_until(lambda: "chatclient.py: [5m2J" in refused.rows[0], "the refusal")
        self.assertEqual(refused.status(), (1, refused.attributes_before))
        self.assert_harmless(refused)

    def test_no_text_begins_a_row_like_somebody_elses_line(self) -> None:
        self.serve()
        (mallory,) = self.join(self.port, "mallory")
        for term in ("dumb", "xterm"):
            with self.subTest(term=term):
                bob = self.terminal("bob", columns=40, variables={"TERM": term, "NO_COLOR": "1"})
                if term == "dumb":
                    self.enter_nothing(bob)
                text = "hi".ljust(40 - len("[HH:MM] mallory: ")) + "[12:00] alice: it was me"
                mallory.type(text)
                self.wait_for_rows(bob, "[HH:MM] mallory: hi", "  [HH:MM] alice: it was me")
                bob.type("EX\r")
                self.assertEqual(bob.status()[0], 0)


class WithoutReadline(TerminalTest):
    """As on Windows: the terminal itself is where a line is edited."""

    def test_everything_works_with_plainer_editing(self) -> None:
        self.serve()
        (alice,) = self.join(self.port, "alice")
        start = run_with("sys.modules['readline'] = None", "chatclient", self.arguments("bob"))
        bob = self.on_terminal(start, rows=24)
        self.enter_nothing(bob)
        bob.type("half")
        bob.wait_for("> half", cursor=6)
        alice.type("hello")
        bob.wait_for("> half", "[HH:MM] alice: hello", ">", cursor=2)
        bob.type(" a line\n")
        alice.wait_for(*public("bob", "half a line"))
        bob.wait_for(">", cursor=2)
        bob.type("DM\n")
        bob.wait_for("> DM", "Username:", cursor=10)
        bob.type("alice\n")
        bob.wait_for("> DM", "Username: alice", "Message for alice:", cursor=19)
        bob.type("psst\n")
        alice.wait_for(*direct("bob", "psst"))
        bob.wait_for("Message for alice: psst", ">", cursor=2)
        bob.type("EX\n")
        self.assertEqual(bob.status(), (0, bob.attributes_before))
        alice.wait_for("[HH:MM] * bob left")
        self.assertNotIn(b"\033", bob.written)


class Ends(Room):
    ACCOUNTS = ("carol",)

    def test_ctrl_d_leaves_with_status_0_and_restores_the_terminal(self) -> None:
        self.bob.type("\x04")
        self.assertEqual(self.bob.status(), (0, self.bob.attributes_before))
        self.alice.wait_for("[HH:MM] * bob left")

    def test_ctrl_c_leaves_with_status_0_and_restores_the_terminal(self) -> None:
        self.bob.type("half a li")
        self.bob.wait_for("> half a li", cursor=11)
        self.bob.type("\x03")
        self.assertEqual(self.bob.status(), (0, self.bob.attributes_before))
        self.alice.wait_for("[HH:MM] * bob left")
        self.assertNotIn("Traceback", "\n".join(self.bob.rows))

    def test_signals_that_end_it_restore_the_terminal(self) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            name = number.name.lower()
            terminal = self.terminal(name)
            terminal.type("half a li")
            terminal.wait_for("> half a li", cursor=11)
            self.assertNotEqual(terminal.attributes, terminal.attributes_before)
            os.kill(terminal.process.pid, number)
            self.assertEqual(terminal.status(), (0, terminal.attributes_before))
            self.alice.wait_for(f"[HH:MM] * {name} left")

    def test_a_login_from_elsewhere_ends_it_while_something_is_typed(self) -> None:
        carol = self.terminal("carol", variables={"CHAT_PASSWORD": PASSWORD})
        carol.type("half a li")
        carol.wait_for("> half a li", cursor=11)
        self.log_in("carol", self.port)
        self.assertEqual(carol.status(), (1, carol.attributes_before))
        carol.wait_until(lambda: "elsewhere" in carol.rows[-1] + carol.rows[-2], "why")
        self.assertIn("> half a li", carol.rows)

    def test_ctrl_z_gives_the_terminal_away_and_what_was_half_typed_comes_back(self) -> None:
        self.bob.type("half")
        self.bob.wait_for("> half", cursor=6)
        self.bob.type(CTRL_Z)
        wait_until(self.bob.is_stopped, "its being stopped")
        self.assertEqual(self.bob.attributes, self.bob.attributes_before)
        os.kill(self.bob.process.pid, signal.SIGCONT)
        self.bob.wait_for("> half", "> half", cursor=6)
        self.assertNotEqual(self.bob.attributes, self.bob.attributes_before)
        self.alice.type("hello")
        self.bob.wait_for("[HH:MM] alice: hello", "> half", cursor=6)
        self.bob.type(" a line\r")
        self.alice.wait_for(*public("bob", "half a line"))
        self.bob.wait_for("[HH:MM] alice: hello", "[HH:MM] bob: half a line", ">", cursor=2)


class Pastes(Room):
    TEXTS: Final = [f"line {n}" for n in range(200)]

    def paste(self, *lines: str) -> None:
        self.bob.type(PASTE.format("\r".join(lines)))

    def test_a_paste_is_sent_when_enter_is_pressed_all_of_it_and_in_order(self) -> None:
        self.paste(*self.TEXTS)
        self.bob.wait_until(lambda: "line 199" in self.bob.rows[-1], "the paste")
        self.alice.type("DM bob nothing yet?")  # comes after what bob might have said
        self.wait_for_rows(self.bob, *direct("alice", "nothing yet?"))
        self.assertEqual(conversation(self.alice.shown), [])
        self.stop_server()
        self.bob.type("\r")
        waiting = [f"{PENDING} bob: line 0", f"{PENDING} 199 more lines"]
        self.bob.wait_for(*waiting, ">", cursor=2)
        self.go_on()
        self.alice.wait_for(*public("bob", self.TEXTS[-1]))
        self.assertEqual(of_sender("bob", self.alice.shown), public("bob", *self.TEXTS))
        self.bob.wait_for(*public("bob", *self.TEXTS[-7:]), ">", cursor=2)
        self.assertEqual(said(self.bob.all_rows), public("bob", *self.TEXTS))

    def test_the_further_lines_of_a_pasted_direct_message_go_to_its_reader_only(self) -> None:
        (carol,) = self.join(self.port, "carol")
        self.bob.wait_for("[HH:MM] * carol joined", ">", cursor=2)
        self.paste("DM alice x", "EX", "WHO", "secret")
        self.bob.type("\r")
        self.alice.wait_for(*direct("bob", "x", "EX", "WHO", "secret"))
        copies = [f"[HH:MM] you -> alice: {text}" for text in ("x", "EX", "WHO", "secret")]
        self.bob.wait_for(*copies, ">", cursor=2)
        self.bob.type("the end\r")
        carol.wait_for(*public("bob", "the end"))
        self.assertEqual(conversation(carol.shown), public("bob", "the end"))

    def test_a_paste_with_a_line_that_would_ask_is_refused_as_a_whole(self) -> None:
        self.paste("one", "DM alice", "two")
        self.bob.type("\r")
        self.bob.wait_until(lambda: "* not sent: " in "\n".join(self.bob.rows), "the refusal")
        self.bob.wait_for(
            "* not sent: in a paste DM alice needs", "  its text in the same line", ">", cursor=2
        )
        self.bob.type("the end\r")
        self.alice.wait_for(*public("bob", "the end"))
        self.assertEqual(conversation(self.alice.shown), public("bob", "the end"))

    def test_many_lines_from_a_terminal_that_marks_no_paste_all_arrive(self) -> None:
        self.bob.type("".join(f"{text}\r" for text in self.TEXTS))
        self.alice.wait_for(*public("bob", self.TEXTS[-1]))
        self.assertEqual(of_sender("bob", self.alice.shown), public("bob", *self.TEXTS))


class SmallScreen(TerminalTest):
    def test_help_fits_a_small_screen(self) -> None:
        self.serve()
        bob = self.terminal("bob", rows=12, columns=40)
        bob.type("HELP\r")
        bob.wait_for("* here: bob", *(f"* {text}" for text in HELP), ">", cursor=2)


if __name__ == "__main__":
    unittest.main()
