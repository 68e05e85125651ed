"""What the README and the docstrings say about the programs is what the programs do."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tomllib
import unittest
from collections.abc import Callable
from pathlib import Path

import chatclient
import chatserver
import protocol
from protocol import LogId

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


OPTIONS = README.partition("## Options")[2].partition("## How it works")[0]
TABLES = dict(zip(("chatserver.py", "chatclient.py"), OPTIONS.split("`python chatclient.py IP")))


def help_of(program: str) -> str:
    main = {"chatserver.py": chatserver.main, "chatclient.py": chatclient.main}[program]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(["--help"])
    return out.getvalue()


def rows(table: str) -> dict[str, str]:
    """The first and the last column: how an argument is written, and its default."""
    return dict(re.findall(r"^\| `(.+)` \|.*\| (.*?) ?\|$", table, re.MULTILINE))


class ReadmeTest(unittest.TestCase):
    def test_every_option_is_in_the_table_and_no_other(self) -> None:
        for program, table in TABLES.items():
            with self.subTest(program):
                told = set(re.findall(r"--[a-z][a-z-]+", " ".join(rows(table))))
                told_by_help = help_of(program).partition("examples:")[0]
                has = set(re.findall(r"--[a-z][a-z-]+", told_by_help)) - {"--help"}
                self.assertTrue(told)
                self.assertEqual(told, has)

    def test_the_defaults_are_those_of_the_programs(self) -> None:
        for program, table in TABLES.items():
            words = " ".join(help_of(program).partition("examples:")[0].split())
            for option, default in rows(table).items():
                with self.subTest(program=program, option=option):
                    self.assertIn(option.replace("`", ""), words)
                    if default:
                        start = words.rindex(f" {option} ")
                        self.assertRegex(words[start:], rf"^[^)]*\(default: {re.escape(default)}")

    def test_its_commands_are_those_of_help(self) -> None:
        commands = {"PM", "DM", "WHO", "EX"}
        for command in commands:
            self.assertTrue(any(command in line for line in chatclient.HELP))
            self.assertRegex(README, rf"\| `{command}\b")

    def test_every_example_of_help_is_one(self) -> None:
        parsers: dict[str, Callable[[list[str]], object]] = {
            "chatserver.py": chatserver._parser().parse_args,
            "chatclient.py": chatclient._parse_arguments,
        }
        for program, parse in parsers.items():
            examples = help_of(program).partition("examples:")[2].splitlines()[1:]
            self.assertGreaterEqual(len(examples), 3)
            for example in examples:
                with self.subTest(example):
                    command = shlex.split(example.split("|")[-1])
                    self.assertEqual(command[:2], ["python", program])
                    self.assertTrue(parse(command[2:]))

    def test_the_version_of_both_is_the_packages(self) -> None:
        for main in (chatserver.main, chatclient.main):
            with (
                contextlib.redirect_stdout(io.StringIO()) as out,
                self.assertRaises(SystemExit) as end,
            ):
                main(["--version"])
            self.assertEqual(end.exception.code, 0)
            self.assertRegex(out.getvalue(), rf"^chat\w+\.py {protocol.__version__}\n$")
        package = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
        attribute = package["tool"]["setuptools"]["dynamic"]["version"]["attr"]
        self.assertEqual(attribute, "protocol.__version__")

    def test_help_fits_a_small_screen(self) -> None:
        self.assertLessEqual(max(len(line) for line in chatclient.HELP), 38)
        self.assertLessEqual(len(chatclient.HELP), 8)

    def test_the_limits_in_the_texts_are_the_constants(self) -> None:
        self.assertIn(f"1 to {protocol.MAX_NAME} ASCII", README)
        self.assertIn(f"{protocol.MAX_TEXT:,} bytes", README)
        self.assertIn(f"told to everybody each {chatserver.TELL_PAUSE} s at most", README)
        assert protocol.__doc__
        words = " ".join(protocol.__doc__.split())
        windows, timing = protocol.WINDOW_LINES, protocol.TIMING
        for told in (
            f"1 to {protocol.MAX_LINE:,} bytes",
            f"no datagram has more than {protocol.MAX_DATAGRAM:,}",
            f"when {protocol.ACK_PACKETS} packets",
            f"{timing.ack_delay} s after the last packet",
            f"{timing.first_timeout - timing.ack_allowance} s at first",
            f"{timing.granularity * 1000:.0f} ms at least), and {timing.ack_allowance} s more",
            f"at most {windows[LogId.LINES]} lines (of the room {windows[LogId.ROOM]})",
            f"burst of {protocol.BURST_SECONDS} seconds",
            ", ".join(f'"{refusal.value}"' for refusal in protocol.Refusal).replace(
                ', "wait"', ' or "wait"'
            ),
            f"version={protocol.VERSION}",
            f"Register with {protocol.ITERATIONS:,} iterations; refuse fewer than "
            f"{protocol.ITERATIONS_ALLOWED[0]:,} or more than {protocol.ITERATIONS_ALLOWED[-1]:,}",
        ):
            self.assertIn(told, words)

    def test_the_limits_of_accounts_are_the_constants(self) -> None:
        words = " ".join(README.split())
        numbers = {5: "five"}
        timing = protocol.TIMING
        for told in (
            f"Up to {chatserver.UNREAD_INBOX:,} of them",
            f"until {chatserver.UNREAD_INBOX:,} messages wait there",
            f"up to {chatserver.MAX_ACCOUNTS:,} of them",
            f"After {numbers[chatserver.FAILURES_OF_BOTH]} wrong passwords within a minute",
            f"longer, up to {timing.max_login_wait / 60:.0f} minutes",
            f"PBKDF2-HMAC-SHA256, {protocol.ITERATIONS:,} iterations",
        ):
            self.assertIn(told, words)
        self.assertEqual(timing.login_window, 60)

    def assert_rows(self, *rows: tuple[str, str]) -> None:
        """Of its tables: how each begins, and what else it says."""
        for what, told in rows:
            with self.subTest(what):
                self.assertRegex(README, rf"\n\| {re.escape(what)}[^|]*\|.*{re.escape(told)}")

    def test_who_comes_in_is_bounded_as_it_says(self) -> None:
        server, timing = chatserver, protocol.TIMING
        self.assertEqual(server.DATAGRAMS_PER_TURN, server.LINES_PER_TURN)
        self.assertEqual(server.INSTANCE_MEMORY, 30 * server.DAY)
        self.assert_rows(
            ("datagrams that wait", f"{server.RECEIVE_BUFFER >> 20} MB"),
            ("datagrams, and lines", f"{server.LINES_PER_TURN} of each"),
            ("handshakes' arithmetic", f"{server.HANDSHAKES_PER_TURN:.0f} ms"),
            ("handshakes that wait", f"{server.WAITING_HANDSHAKES:,}"),
            ("members that come in from one network", f"{server.COMINGS}, then `--rate` a second"),
            ("networks from which somebody has tried to", f"{server.NETWORKS:,}"),
            (
                "challenges without an answer",
                f"{server.PENDING_CHALLENGES:,}, and {server.NETWORK_CHALLENGES} of one network, "
                f"for {timing.cookie_life:.0f} s",
            ),
            ("sessions that have ended", f"{server.LINGERING}, for {timing.linger:.0f} s"),
            ("accounts", f"{server.MAX_ACCOUNTS:,}"),
            ("clients that are away", f"{server.INSTANCES:,}, for 30 days"),
            ("names and networks", f"{server.BRAKES:,}"),
        )

    def test_what_is_said_is_bounded_as_it_says(self) -> None:
        server, timing = chatserver, protocol.TIMING
        burst = server.BURST_MARGIN * protocol.BURST_SECONDS
        pause = f"{timing.pacing * 1000:.0f}"
        self.assert_rows(
            ("packets of one member that nobody has echoed", f"{protocol._UNANSWERED:,}"),
            ("packets that leave", f"{protocol.AT_ONCE} | the next ones {pause}"),
            ("blocks of the room", f"{protocol.RoomBlocks._LIMIT}"),
            ("lines of one member that come too fast", f"a burst of {burst} s"),
            ("lines of one member that come early", f"{protocol.WINDOW_LINES[LogId.LINES]}"),
            ("answers to `WHO`", f"{server.UNREAD_NOTICES} lines"),
            (
                "unread lines",
                f"{server.UNREAD_INBOX:,}; or {server.UNREAD_SHARE}, while there are "
                f"{server.UNREAD_LINES:,} in all",
            ),
            ("lines in memory", f"{server.ROOM_TAIL:,}, and {server.INBOX_TAIL} of an inbox"),
            ("lines of the room", f"{server.ROOM_LINES:,}"),
            ("of which a newcomer", f"{server.HISTORY_LINES:,} in all"),
            ("lines of one kind", f"{server.LOG_BURST}, then one in {server.LOG_PAUSE:.0f} s"),
        )
        words = " ".join(README.split())
        for told in (
            f"{chatclient.MAX_NAMES:,} names, {chatclient.MAX_BACKLOG:,} lines",
            f"comes of {chatclient.SALTS} salts",
        ):
            self.assertIn(told, words)

    def test_what_it_says_of_an_outage_is_what_the_constants_say(self) -> None:
        words = " ".join(README.split())
        timing = protocol.TIMING
        numbers = {10: "ten"}
        for told in (
            f"{numbers[chatclient.SHOWN_PENDING]} lines at most",
            f"at least every {timing.max_pause:.0f} seconds",
            f"once nothing has got through for {timing.late:.0f} seconds",
            f"when nothing has got through for {timing.leave_patience:.0f} seconds",
            f"within {timing.route:.0f} seconds when this computer has a new address",
            f"within {timing.keepalive + timing.keepalive_jitter:.0f} seconds, when only",
            "away for a month",
            f"latest {chatserver.INSTANCES:,}",
            f"after a minute, and then every {timing.login_pause / 60:.0f}",
            "got through for a minute",
        ):
            self.assertIn(told, words)
        self.assertEqual(chatserver.INSTANCE_MEMORY, 30 * 24 * 3600)
        self.assertEqual(timing.deliver_patience, 60)
        assert protocol.__doc__
        on_the_wire = " ".join(protocol.__doc__.split())
        for told in (
            f"no answer for {timing.answer_patience:.0f} s joins again",
            f"up to 2**{8 * chatserver.GAP_BYTES} are left out",
            f"{timing.max_pause:.0f} s at most, less up to a quarter at random",
            f'after a "login" not before {timing.first_login_pause:.0f} s, and after another one '
            f"{timing.login_pause:.0f} s",
            f"for {timing.server_silence:.0f} s or until they are back",
        ):
            self.assertIn(told, on_the_wire)
        self.assertEqual((timing.first_timeout, timing.hint_pause), (1, 1))

    def test_every_handshake_packet_and_its_fields_are_documented(self) -> None:
        assert protocol.__doc__
        for name, kind in protocol._TYPES.items():
            with self.subTest(name):
                line = re.search(rf"  {name} +(.*)", protocol.__doc__)
                assert line
                for field in kind.__dataclass_fields__:
                    if name != "JOIN":  # "as HELLO, and cookie"
                        self.assertIn(field, line[1])

    def test_the_modules_import_the_standard_library_only(self) -> None:
        import ast
        import sys

        root = Path(__file__).parent.parent
        own = {"protocol", "chatserver", "chatclient", "tests"}
        for path in [*root.glob("*.py"), *(root / "tests").glob("*.py")]:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                for name in names:
                    self.assertIn(name.partition(".")[0], own | set(sys.stdlib_module_names))


if __name__ == "__main__":
    unittest.main()
