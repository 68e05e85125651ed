"""What a person sees and types: the real client on a pseudo-terminal, by its screen."""

from __future__ import annotations

import unittest

from tests.programs import LOCALHOST, command
from tests.terminal import HAS_PTY, TerminalProgram
from tests.test_end_to_end import RoomTest, public


@unittest.skipUnless(HAS_PTY, "this system has no pseudo-terminals")
class Editing(RoomTest):
    ROWS, COLUMNS = 8, 40

    def setUp(self) -> None:
        super().setUp()
        server = self.start_server()
        (self.alice,) = self.join(server.port, "alice")
        arguments = [LOCALHOST, "0", "bob", "--server-port", str(server.port)]
        start = command("chatclient", arguments, {})
        self.bob = TerminalProgram(start, self.folder, self.ROWS, self.COLUMNS)
        self.addCleanup(self.bob.stop)
        self.bob.wait_for("* here: alice, bob", ">", cursor=2)

    def test_an_incoming_line_leaves_a_half_typed_one_intact(self) -> None:
        self.bob.type("half a lne")
        self.bob.wait_for("> half a lne", cursor=12)
        self.bob.type("\033[D\033[D")  # two columns to the left
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

    def test_ctrl_d_leaves_with_status_0_and_restores_the_terminal(self) -> None:
        self.bob.type("\x04")
        status, attributes = self.bob.status()
        self.assertEqual(status, 0)
        self.assertEqual(attributes, self.bob.attributes_before)
        self.alice.wait_for("[HH:MM] * bob left")

    def test_ctrl_c_leaves_with_status_0_and_restores_the_terminal(self) -> None:
        self.bob.type("half a li")
        self.bob.wait_for("> half a li", cursor=11)
        self.bob.type("\x03")
        status, attributes = self.bob.status()
        self.assertEqual(status, 0)
        self.assertEqual(attributes, self.bob.attributes_before)
        self.alice.wait_for("[HH:MM] * bob left")
        self.assertNotIn("Traceback", "\n".join(self.bob.rows))


if __name__ == "__main__":
    unittest.main()
