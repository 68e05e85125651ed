"""Compare the numbers, options and examples of the README and of protocol.py's docstring with the
programs. Phrases are compared nowhere, so that a sentence can be reworded without an edit here."""

from __future__ import annotations

import ast
import io
import re
import shlex
import sys
import tomllib
import unittest
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import chatclient
import chatserver
import protocol
from protocol import TIMING, LogId
from tests import views

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SPECIFICATION = protocol.__doc__ or ""
WINDOWS = protocol.WINDOW_LINES
PROGRAMS = {"chatserver.py": chatserver.main, "chatclient.py": chatclient.main}

UNITS = {"ms": 0.001, "s": 1, "second": 1, "seconds": 1, "minute": 60, "minutes": 60}
UNITS |= {"days": 86400, "month": 30 * 86400, "MB": 1 << 20}
WORDS = {"a": 1, "one": 1, "two": 2, "three": 3, "five": 5, "ten": 10}
WORDS |= {"hundred": 100, "thousand": 1000, "million": 1_000_000}
# Not SHA-256, SRP-6a or §5; "20" in "20 to 25 s" has the unit s.
_VALUE = rf"(2\*\*\d+|\d+(?:,\d{{3}})*(?:\.\d+)?|{'|'.join(WORDS)})"
_NEXT_WORDS = r"(?: to [\d.,]+)?(?:[ -](\w+))?(?:[ -](\w+))?(?:[ -](\w+))?"
NUMBER = re.compile(rf"(?<![\w§.])(?<!\w[-,]){_VALUE}\b(?={_NEXT_WORDS})", re.IGNORECASE)
NEAR = 110  # letters between a number and its key word

Number = tuple[re.Match[str], float]


def numbers(text: str) -> Iterator[Number]:
    """Yield each number, and its value in seconds or bytes if one of the UNITS follows."""
    for found in NUMBER.finditer(text):
        digits = found[1].replace(",", "").lower()
        power = digits.partition("**")[2]
        value = 2.0 ** int(power) if power else float(WORDS.get(digits) or digits)
        yield found, round(value * UNITS.get(found[2], 1), 9)


def digits_of(cell: str) -> list[float]:
    """Return the numbers of a table's cell. 0 is left out: it only explains an option."""
    return [value for found, value in numbers(cell) if found[1][0].isdigit() and value]


def is_stated(text: str, key: str, constant: Number) -> bool:
    """Return True if the text has the number, with its unit, near the key word."""
    unit = constant[0][2]
    for part in re.split(r"\n(?=\s*\n|\||    |\* )", text):  # paragraph, row or bullet
        passage = " ".join(part.replace("`", "").split())
        for found, value in numbers(passage):
            around = passage[max(0, found.start() - NEAR) : found.end() + NEAR]
            has_unit = found[2] in UNITS if unit in UNITS else not unit or unit in found.groups()
            values = {value} if unit else {value, value / UNITS.get(found[2], 1)}
            if constant[1] in values and has_unit and re.search(key, around, re.IGNORECASE):
                return True
    return False


def table_with(word: str) -> list[list[str]]:
    """Return the cells of the first table of the README with that word in its first column."""
    for lines in re.findall(r"(?:^\|.*\|\n)+", README, re.MULTILINE):
        rows = [[c.strip() for c in line.split("|")[1:-1]] for line in lines.splitlines()[2:]]
        if any(word in row[0] for row in rows):
            return rows
    raise AssertionError(f"no table with {word}")


def output_of(program: str, option: str) -> str:
    with redirect_stdout(io.StringIO()) as out, unittest.TestCase().assertRaises(SystemExit) as end:
        PROGRAMS[program]([option])
    assert end.exception.code == 0
    return out.getvalue()


def arguments_of(program: str) -> dict[str, str]:
    """Return how --help writes each argument, and its default."""
    text = (
        output_of(program, "--help").partition("positional arguments:")[2].partition("examples:")[0]
    )
    entries = re.findall(r"^  (\S.*?)(?:\n|  )(.*(?:\n {4}.*)*)", text, re.MULTILINE)
    defaults = {name: " ".join(words.split()).partition("(default: ") for name, words in entries}
    return {name: re.split("[;)]", defaults[name][2])[0] for name in defaults if name[:2] != "-h"}


class OptionsTest(unittest.TestCase):
    def test_option_tables_match_the_parsers(self) -> None:
        for program, option in (("chatserver.py", "--add-user"), ("chatclient.py", "--no-bell")):
            rows = [[cell.replace("`", "") for cell in row] for row in table_with(option)]
            self.assertEqual({row[0]: row[-1] for row in rows}, arguments_of(program))

    def test_examples_are_accepted_by_the_parsers(self) -> None:
        parsers: dict[str, Callable[[list[str]], object]] = {
            "chatserver.py": chatserver._parser().parse_args,
            "chatclient.py": chatclient._parse_arguments,
        }
        for text in (README, *(output_of(program, "--help") for program in PROGRAMS)):
            examples = re.findall(r"^  .*?\bpython (chat\w+\.py)(.*)$", text, re.MULTILINE)
            self.assertGreaterEqual(len(examples), 3)
            for program, arguments in examples:
                with self.subTest(program, arguments=arguments):
                    self.assertTrue(parsers[program](shlex.split(arguments)))

    def test_commands_are_those_of_the_client(self) -> None:
        commands = {command.strip() for command in chatclient.COMMANDS}
        listed = {row[0].strip("`").split()[0] for row in table_with("EX")}
        self.assertEqual({word for word in listed if word.isupper()}, commands)
        for command in commands - {"HELP"}:
            self.assertRegex(" ".join(chatclient.HELP), rf"\b{command}\b")

    def test_version_of_programs_is_the_packages(self) -> None:
        for program in PROGRAMS:
            version = output_of(program, "--version")
            self.assertEqual(version, f"{program} {protocol.__version__}\n")
        package = tomllib.loads((ROOT / "pyproject.toml").read_text())
        source = package["tool"]["hatch"]["version"]
        text = (ROOT / source["path"]).read_text(encoding="utf-8")
        found = re.findall(source["pattern"], text, re.MULTILINE)
        self.assertEqual(found, [protocol.__version__])

    def test_help_fits_a_small_screen(self) -> None:
        self.assertLessEqual(max(len(line) for line in chatclient.HELP), 38)
        self.assertLessEqual(len(chatclient.HELP), 8)


class OutputTest(unittest.TestCase):
    TIME = re.compile(r"\[[\d: -]+\]")
    FORM = re.compile(r"(?:\* (\w+): )?\[\] (?:(\w+)(?: -> (you))?: (.+)|\* (.+))|\* ([^:.]+): .+")

    def test_output_forms_are_the_clients(self) -> None:
        """Each form with a time is printed again; of the others the client has the label."""
        cells = " ".join(row[0] for row in table_with("-> you"))
        forms = re.findall(r"`([^`]+)`", self.TIME.sub("[]", cells))
        matches = [match for form in forms if (match := self.FORM.fullmatch(form))]
        self.assertEqual(forms, [match[0] for match in matches] + ["* ..."])
        for form, label, sender, to, text, note, other in ((m[0], *m.groups("")) for m in matches):
            with self.subTest(form):
                if other:
                    self.assertIn(f'"{other}: ', (ROOT / "chatclient.py").read_text("utf-8"))
                    continue
                said = chatclient.Said(0, sender, to, text, label=label)
                (line,) = chatclient.plain([chatclient.Note(note, 0) if note else said], "me", 0)
                self.assertEqual(self.TIME.sub("[]", line), form)
        labels = {match[label] for match in matches for label in (1, 6)}
        self.assertLessEqual({"earlier", "kept", "here", "failed", "may not have arrived"}, labels)

    def test_exit_statuses_are_the_clients(self) -> None:
        """A status stands after the words "Exit status" and before its own key word."""
        failed = chatclient.Failed("")
        ends = (KeyboardInterrupt, "delivered"), (failed, "deliver"), (None, "usage")
        for status, (end, key) in enumerate(ends):
            with (
                mock.patch.multiple(chatclient, heed=mock.DEFAULT, open_screen=mock.DEFAULT) as its,
                redirect_stderr(io.StringIO()),
                self.assertRaises(SystemExit) as raised,
            ):
                its["open_screen"].side_effect = end
                sys.exit(chatclient.main(["::1", "0", "alice"] if end else []))
            self.assertEqual(raised.exception.code, status)
            stated = rf"(?is)exit status:?\W.{{0,300}}?\b{status}\b\D{{0,80}}{key}"
            self.assertRegex(README, stated)
            self.assertRegex(chatclient.__doc__ or "", stated)


class NumbersTest(unittest.TestCase):
    """Rows of a key word and the constants near it, each with a unit or what it counts."""

    def assert_cells(self, cells: list[str], *rows: tuple[str, str]) -> None:
        """Each row's key is in a cell with just its numbers, and no other cell has any."""
        for key, constants in rows:
            with self.subTest(key, constants=constants):
                found = [digits_of(cell) for cell in cells if re.search(key, cell, re.IGNORECASE)]
                self.assertIn(digits_of(constants), found)
        all_found = [digits for digits in map(digits_of, cells) if digits]
        self.assertCountEqual(all_found, [digits_of(constants) for _, constants in rows])

    def assert_stated(self, text: str, *rows: tuple[str, str]) -> None:
        for key, constants in rows:
            for constant in numbers(constants):
                with self.subTest(key, value=constant[1], unit=constant[0][2]):
                    self.assertTrue(is_stated(text, key, constant))

    def test_table_of_bounds_has_the_constants(self) -> None:
        it, timing, cookie = chatserver, TIMING, TIMING.cookie_life
        self.assertEqual(it.DATAGRAMS_PER_TURN, it.LINES_PER_TURN)  # "256 of each"
        self.assert_cells(
            [" | ".join(row) for row in table_with("challenge")],
            ("datagrams", f"{it.RECEIVE_BUFFER >> 20} MB"),
            ("turn", f"{it.LINES_PER_TURN}"),
            ("handshakes", f"{it.HANDSHAKES_PER_TURN} ms"),
            ("handshakes", f"{it.WAITING_HANDSHAKES}"),
            ("challenges", f"{it.PENDING_CHALLENGES}, {it.NETWORK_CHALLENGES}, {cookie} s"),
            ("network", f"{it.COMINGS}"),
            ("network", f"{it.NETWORKS}"),
            ("sessions", f"{it.LINGERING}, {timing.linger} s"),
            ("--rate", f"{it.BURST_MARGIN * protocol.BURST_SECONDS} s"),
            ("lines", f"{WINDOWS[LogId.LINES]}"),
            ("packets", f"{protocol.AT_ONCE}, {timing.pacing} s"),
            ("packets", f"{views.UNANSWERED_PACKETS}"),
            ("blocks", f"{views.SEALED_BLOCKS}"),
            ("WHO", f"{it.UNREAD_NOTICES}"),
            ("inbox", f"{it.UNREAD_INBOX}, {it.UNREAD_SHARE}, {it.UNREAD_LINES}"),
            ("memory", f"{it.ROOM_TAIL}, {it.INBOX_TAIL}"),
            ("--keep-days", f"{it.ROOM_LINES}"),
            ("--history", f"{it.HISTORY_LINES}"),
            ("accounts", f"{it.MAX_ACCOUNTS}"),
            ("clients", f"{it.INSTANCES}, {it.INSTANCE_MEMORY} s"),
            ("passwords", f"{it.BRAKES}"),
            (r"\blog\b", f"{it.LOG_BURST}, {it.LOG_PAUSE} s"),
        )

    def test_table_of_sources_has_the_constants(self) -> None:
        self.assert_cells(
            [row[0] for row in table_with("PBKDF2")],
            ("SRP-6a", f"{protocol.GROUP.prime.bit_length()}"),
            ("PBKDF2", f"{protocol.ITERATIONS}"),
            ("bytes", f"{protocol.MAX_DATAGRAM}"),
        )

    def test_readme_states_the_constants(self) -> None:
        server, client, timing = chatserver, chatclient, TIMING
        unseen, login_pause = timing.keepalive + timing.keepalive_jitter, timing.login_pause / 60
        self.assert_stated(
            README,
            ("USERNAME", f"1 letters, {protocol.MAX_NAME} letters"),
            ("text|line", f"{protocol.MAX_TEXT} bytes"),
            ("gone|join|left", f"{server.TELL_PAUSE} s"),
            ("kept", f"{server.UNREAD_INBOX}"),
            ("account|away", f"{server.UNREAD_INBOX} messages"),
            ("register", f"{server.MAX_ACCOUNTS}"),
            ("wrong", f"{server.FAILURES_OF_BOTH} passwords, {timing.login_window} s"),
            ("address|wait", f"{timing.max_login_wait} s"),
            ("come back|try|tries|reconnect", f"{timing.max_pause} s"),
            ("come back|reconnect|seconds", f"{timing.first_login_pause} s, {login_pause:.0f}"),
            ("refused password", f"{login_pause:.0f} minutes"),
            ("not delivered yet", f"{timing.late} s, {client.SHOWN_PENDING} lines"),
            ("Ctrl-C", f"{timing.leave_patience} s"),
            ("input", f"{timing.deliver_patience} s"),
            ("address", f"{timing.route} s, {unseen} s"),
            ("month|begin", f"{server.INSTANCE_MEMORY} s, {server.INSTANCES}"),
            ("client", f"{client.MAX_NAMES} names, {client.MAX_BACKLOG} lines"),
            ("client", f"{client.SALTS} salts"),
            ("standard error", f"{server.LOG_BURST} lines, {server.LOG_PAUSE} s"),
            ("--verbose", f"{server.LOG_PAUSE} s"),
            ("for ever", f"{server.ROOM_LINES}"),
            ("--keep-days", f"{server.PRUNE_EVERY} s"),
        )

    def test_specification_states_the_constants(self) -> None:
        timing, iterations = TIMING, protocol.ITERATIONS_ALLOWED
        self.assert_stated(
            SPECIFICATION,
            ("HELLO", f"{protocol.VERSION}"),
            ("lines", f"1 bytes, {protocol.MAX_LINE} bytes"),
            ("username", f"1 letters, {protocol.MAX_NAME} letters"),
            ("text", f"{protocol.MAX_TEXT} bytes"),
            ("datagram", f"{protocol.MAX_DATAGRAM}"),
            ("quarter|acknowledge", f"{protocol.ACK_PACKETS} packets"),
            ("burst", f"{protocol.BURST_SECONDS} s"),
            ("register", f"{protocol.ITERATIONS} iterations"),
            ("iterations", f"{iterations[0]}, {iterations[-1]}"),
            ("cursor", f"{WINDOWS[LogId.LINES]} lines, {WINDOWS[LogId.ROOM]}"),
            ("number", f"2**{8 * chatserver.GAP_BYTES}"),
            ("COOKIE", f"{timing.cookie_life / 2} s"),
            ("instance", f"{timing.linger} s"),
            ("acknowledge", f"{timing.ack_delay} s"),
            ("repeats", f"{timing.first_timeout} s, {timing.max_pause} s"),
            ("timeout|RTTVAR", f"{timing.first_timeout - timing.ack_allowance} s"),
            ("timeout|RTTVAR", f"{timing.granularity} s, {timing.ack_allowance} s"),
            ("timeout|doubled", f"{timing.max_timeout} s"),
            ("GONE", f"{timing.hint_pause} s, {timing.server_silence} s"),
            ("login", f"{timing.first_login_pause} s, {timing.login_pause} s"),
            ("client", f"{timing.keepalive} s, {timing.keepalive + timing.keepalive_jitter} s"),
            ("joins again", f"{timing.answer_patience} s"),
            ("member", f"{timing.server_silence} s"),
        )

    def test_specification_names_refusals_and_fields(self) -> None:
        """JOIN's line may refer to HELLO's for what both have."""
        for refusal in protocol.Refusal:
            self.assertIn(f'"{refusal.value}"', SPECIFICATION)
        hello = protocol.Hello.__dataclass_fields__.keys()
        for name, kind in views.RECORD_TYPES.items():
            fields = kind.__dataclass_fields__.keys() - (hello if name == "JOIN" else set())
            lines = re.findall(rf"^[ |].*\b{name}\b.*$", SPECIFICATION, re.MULTILINE)
            with self.subTest(name):
                self.assertTrue(any(all(field in line for field in fields) for line in lines))


class ModulesTest(unittest.TestCase):
    def test_modules_import_the_standard_library_only(self) -> None:
        own = {"protocol", "chatserver", "chatclient", "tests"}
        for path in [*ROOT.glob("*.py"), *(ROOT / "tests").glob("*.py")]:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                for name in names:
                    self.assertIn(name.partition(".")[0], own | set(sys.stdlib_module_names))


if __name__ == "__main__":
    unittest.main()
