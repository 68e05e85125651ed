"""What the programs say when they cannot do what they are asked: one line that helps, and the
exit status that fits."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import unittest
from contextlib import closing
from threading import Thread
from typing import Final

from protocol import DEFAULT_PORT
from tests.forkserver import Command
from tests.programs import LOCALHOST, ProgramsTest

EXAMPLE: Final = "for example: python chatclient.py 127.0.0.1 7890 alice"


class ClientUsage(ProgramsTest):
    def test_what_is_missing_or_no_port_or_no_username_is_status_2_with_an_example(self) -> None:
        port = ("is not a port number (1 to 65535, or 0 for any)", EXAMPLE)
        name = ("is not a username: 1 to 32 ASCII letters", EXAMPLE)
        own = f"{DEFAULT_PORT} is the server's own port: choose another for this client"
        self.assert_all_fail(
            "chatclient",
            2,
            {
                (): ("IP, PORT, USERNAME", EXAMPLE),
                (LOCALHOST,): ("PORT, USERNAME", EXAMPLE),
                (LOCALHOST, "7890"): ("USERNAME", EXAMPLE),
                (LOCALHOST, "alice", "7890"): ("'alice'", *port),
                (LOCALHOST, "65536", "alice"): ("'65536'", *port),
                (LOCALHOST, "-1", "alice"): ("'-1'", *port),
                (LOCALHOST, "7_890", "alice"): ("'7_890'", *port),
                (LOCALHOST, "\u0661\u0662\u0663", "alice"): port,
                (LOCALHOST, str(DEFAULT_PORT), "alice"): (own, EXAMPLE),
                (LOCALHOST, "7890", "alice", "--server-port", "7890"): (
                    "7890 is the server's own port: choose another for this client",
                ),
                (LOCALHOST, "7890", "alice", "--server-port", "x"): ("'x'", *port),
                (LOCALHOST, "7890", "al ice"): ("'al ice'", *name),
                (LOCALHOST, "7890", "_alice"): ("'_alice'", *name),
                (LOCALHOST, "7890", "\u0430lice"): name,
                (LOCALHOST, "7890", "a" * 33): name,
                (LOCALHOST, "7890", ""): name,
                (LOCALHOST, "7890", "alice", "bob"): ("bob", EXAMPLE),
                (LOCALHOST, "7890", "alice", "--colour"): ("--colour", EXAMPLE),
            },
        )

    def test_a_local_port_that_is_taken_is_status_1(self) -> None:
        taken = str(self.silent_socket().getsockname()[1])
        program = self.start(Command("chatclient", [LOCALHOST, taken, "alice"]))
        self.assert_fails(
            program, 1, f"the local UDP port {taken} is already in use: choose another PORT"
        )

    def test_a_host_that_does_not_exist_is_status_1(self) -> None:
        program = self.start(Command("chatclient", ["no such host", "0", "alice"]))
        self.assert_fails(program, 1, "there is no host called no such host")


class CannotJoin(ProgramsTest):
    """The room answers with no, or nobody answers at all: status 1."""

    def test_a_port_that_stays_closed_is_said_to_be_nobodys(self) -> None:
        port = self.closed_port()
        program = self.start_client("alice", port, closed_patience=0.5, join_patience=3600.0)
        self.assert_fails(
            program,
            1,
            f"nobody is listening on {LOCALHOST} port {port}: is chatserver.py running there?",
        )

    def test_no_answer(self) -> None:
        port = self.silent_socket().getsockname()[1]
        program = self.start_client("alice", port, join_patience=0.5)
        self.assert_fails(program, 1, f"no answer from {LOCALHOST} port {port}: is the address")

    def test_a_name_that_is_in_use_in_any_letter_case(self) -> None:
        server = self.start_server()
        (alice,) = self.join(server.port, "alice")
        for program in [self.start_client(name, server.port) for name in ("alice", "ALICE")]:
            self.assert_fails(
                program, 1, f"the name alice is in use ({LOCALHOST} port {server.port})"
            )
        self.assertEqual(self.leave(alice), ["* here: alice"])

    def test_a_room_that_is_full(self) -> None:
        server = self.start_server("--max-users", "1")
        (alice,) = self.join(server.port, "alice")
        bob = self.start_client("bob", server.port)
        self.assert_fails(bob, 1, "the room is full", f"{LOCALHOST} port {server.port}")
        self.leave(alice)
        self.join(server.port, "bob")  # there is room again

    def test_a_server_of_another_version(self) -> None:
        future = self.silent_socket()
        words = "this server speaks version 9 of the protocol"

        def refuse() -> None:
            hello, client = future.recvfrom(2048)
            reply = {"type": "REFUSED", "nonce": json.loads(hello)["nonce"]}
            reply |= {"code": "version", "text": words + "\x1b[2J"}  # nor may it clear the screen
            future.sendto(json.dumps(reply).encode(), client)

        server = Thread(target=refuse, daemon=True)
        server.start()
        port = future.getsockname()[1]
        program = self.start_client("alice", port)
        self.assert_fails(program, 1, words, f"{LOCALHOST} port {port}")
        self.assertNotIn("\x1b", program.complaints[0])
        server.join()


class ServerUsage(ProgramsTest):
    def test_bad_options_are_status_2(self) -> None:
        self.assert_all_fail(
            "chatserver",
            2,
            {
                ("port",): ("PORT", "'port' is not a number from 0 to 65535", "--help"),
                ("65536",): ("'65536'", "--help"),
                ("0", "1"): ("1", "--help"),
                ("0", "--history", "-1"): ("--history", "--help"),
                ("0", "--history", "many"): ("--history", "'many' is not a number", "--help"),
                ("0", "--rate", "1.5"): ("--rate", "'1.5' is not a number", "--help"),
                ("0", "--max-users", "0"): ("--max-users", "'0' is not a number", "--help"),
                ("0", "--db"): ("--db", "--help"),
                ("0", "--db", ""): ("--db", "the name of the room file is empty", "--help"),
                ("0", "--keep-days", "-1"): ("--keep-days", "--help"),
                ("0", "--colour"): ("--colour", "--help"),
            },
        )

    def test_a_second_server_on_the_same_room_file_is_status_1(self) -> None:
        self.start_server()
        second = self.start(Command("chatserver", ("0", "--db", str(self.db))))
        self.assert_fails(second, 1, f"the room file {self.db}", "choose another one with --db")

    def test_a_port_or_a_host_that_cannot_be_had_is_status_1(self) -> None:
        taken = str(self.silent_socket().getsockname()[1])
        db = ("--db", str(self.db))
        self.assert_all_fail(
            "chatserver",
            1,
            {
                (taken, "--host", LOCALHOST, *db): (
                    f"UDP port {taken} on {LOCALHOST} is already in use",
                    "Choose another port and another room file, for example: python chatserver.py ",
                ),
                (taken, *db): (f"UDP port {taken} on all addresses is already in use",),
                ("0", "--host", "a..b", *db): ("cannot listen on UDP port 0 on a..b",),
                ("0", "--host", "", *db): ("cannot listen on UDP port 0 on ''",),
                ("0", "--host", "192.0.2.1", *db): ("cannot listen on UDP port 0 on 192.0.2.1",),
                ("0", "--host", "no such host", *db): ("no such host",),
            },
        )

    def test_a_room_file_that_cannot_be_used_is_status_1(self) -> None:
        garbage, newer, other = (self.folder / name for name in ("garbage", "newer", "other"))
        garbage.write_bytes(b"no database" * 1000)
        for path, statement in (
            (newer, "PRAGMA user_version = 99"),
            (other, "CREATE TABLE somebody_elses (x)"),
        ):
            with closing(sqlite3.connect(path)) as file:
                file.execute(statement)
        before = other.read_bytes()
        files = {
            str(self.folder): "directory",
            str(self.folder / "missing" / "chat.db"): "No such file or directory",
            str(garbage): "not a database",
            str(newer): "it is of version 99, and this program knows 1 to 4",
            str(other): "",
        }
        self.assert_all_fail(
            "chatserver",
            1,
            {
                ("0", "--host", LOCALHOST, "--db", path): (f"the room file {path} ", words)
                for path, words in files.items()
            },
        )
        self.assertEqual(other.read_bytes()[100:], before[100:])  # the file is left as it was

    @unittest.skipUnless(os.name == "posix", "needs a shell")
    def test_a_disk_that_is_full_at_the_start_is_status_1(self) -> None:
        server = Command("chatserver", ("0", "--host", LOCALHOST, "--db", str(self.db))).line
        program = self.start(["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", *server])
        self.assert_fails(program, 1, f"the room file {self.db} cannot be used: disk")
        self.start_server()  # what is left of that is no obstacle

    def test_help_of_both_is_status_0(self) -> None:
        for module in ("chatserver", "chatclient"):
            program = self.start(Command(module, ["--help"]))
            self.assertEqual(self.end(program)[0][:5], "usage")
            self.assertTrue(re.search(r"--\w", "".join(program.shown)))


if __name__ == "__main__":
    unittest.main()
