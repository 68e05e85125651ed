"""The room file: what it keeps, and what it refuses."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import sys
import tempfile
import unittest
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from chatserver import (
    GUEST,
    INBOX_TAIL,
    ORPHANS_AT_ONCE,
    ROOM_KEY,
    Account,
    Alarms,
    Member,
    Session,
    State,
    Store,
    StoredLog,
    StoreError,
)
from protocol import LogId, Part, fold
from tests import views
from tests.actions import full_disk


class StoreFile(unittest.TestCase):
    """A test with a room file."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "chat.db"
        self.open: Store | None = None
        self.addCleanup(self.close)

    def close(self) -> None:
        if self.open:
            self.open.close()
            self.open = None

    def store(self) -> Store:
        """Opens the file, as one server after the other would."""
        self.close()
        self.open = Store(str(self.path), Random(1).randbytes)
        return self.open

    def write(self, store: Store, key: bytes, *lines: bytes) -> StoredLog:
        log = StoredLog(store, key, INBOX_TAIL)
        for line in lines:
            log.stage(line)
        store.commit()
        return log

    def commit(self, store: Store, *changes: Member | Account) -> None:
        for each in changes:
            if isinstance(each, Member):
                store.changed_members[each.key] = each
            else:
                store.changed_accounts[fold(each.name)] = each
        store.commit()

    def execute(self, *statements: str) -> None:
        with sqlite3.connect(self.path) as file:
            for statement in statements:
                file.execute(statement)
        file.close()

    def refused(self, words: str) -> None:
        """The file is refused with these words, and none of those that were opened stays open."""
        opened: list[sqlite3.Connection] = []
        connect = sqlite3.connect

        def recorded(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            opened.append(connect(*args, **kwargs))
            return opened[-1]

        with (
            mock.patch.object(sqlite3, "connect", recorded),
            self.assertRaisesRegex(StoreError, words),
        ):
            Store(str(self.path))
        for connection in opened:
            with self.assertRaisesRegex(sqlite3.ProgrammingError, "closed"):
                connection.execute("SELECT 1")


class StoreTest(StoreFile):
    def test_lines_and_log_id_survive(self) -> None:
        store = self.store()
        self.write(store, b"room", b"one", b"two")
        again = self.store()
        self.assertEqual(again.log_id, store.log_id)
        log = StoredLog(again, b"room", 10)
        self.assertEqual((log.start, log.end, log.lines), (0, 2, [b"one", b"two"]))

    def test_a_new_file_has_an_id_of_its_own(self) -> None:
        one, two = Path(f"{self.path}1"), Path(f"{self.path}2")
        ids = set()
        for path in (one, two):
            store = Store(str(path))
            ids.add(store.log_id)
            store.close()
        self.assertEqual(len(ids), 2)

    @unittest.skipIf(sys.platform == "win32", "Windows has no file modes")
    def test_only_its_owner_can_read_it(self) -> None:
        self.store()
        for path in self.path.parent.iterdir():
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, path.name)

    def test_what_is_staged_is_not_readable_before_it_is_published(self) -> None:
        log = StoredLog(self.store(), b"room", 10)
        self.assertEqual(log.stage(b"one"), 0)
        self.assertEqual((log.end, log.next), (0, 1))
        self.assertIsNone(log.part(LogId.ROOM, 0, 9, 1000))
        log.publish()
        self.assertEqual(log.part(LogId.ROOM, 0, 9, 1000), Part(LogId.ROOM, 0, (b"one",)))

    def test_numbers_do_not_depend_on_what_the_table_happens_to_hold(self) -> None:
        self.write(self.store(), b"room", b"one", b"two")
        self.execute("DELETE FROM lines")
        log = self.write(self.store(), b"room", b"three")
        self.assertEqual((log.end, log.line(2)), (3, b"three"))

    def test_older_lines_are_read_from_the_file(self) -> None:
        lines = [b"%d" % number for number in range(300)]
        self.write(self.store(), b"room", *lines)
        log = StoredLog(self.store(), b"room", 10)
        self.assertEqual(len(log.lines), 10)
        self.assertEqual([log.line(number) for number in range(300)], lines)
        self.assertEqual(log.line(5), b"5")

    def test_lines_that_have_gone_from_the_file_are_an_error_and_no_crash(self) -> None:
        log = self.write(self.store(), b"inbox", *[b"x"] * 300)
        self.execute("DELETE FROM lines")
        with self.assertRaisesRegex(StoreError, "line 5 of a log"):
            log.line(5)

    def test_memory_holds_only_the_newest_lines(self) -> None:
        log = self.write(self.store(), b"room", *[b"x"] * 500)
        self.assertEqual(len(log.lines), INBOX_TAIL)

    def test_read_lines_leave_the_file_with_the_next_ones(self) -> None:
        store = self.store()
        log = self.write(store, b"inbox", b"one", b"two")
        log.forget(1)
        log.stage(b"three")
        store.commit()
        self.assertEqual(store.bounds(b"inbox"), (1, 3))
        self.assertEqual(store.read(b"inbox", 0, 9), [b"two", b"three"])

    def test_members_come_back_as_they_were(self) -> None:
        store = self.store()
        inbox = StoredLog(store, b"key", INBOX_TAIL)
        here = Member(b"key", "Alice", b"", inbox, 7, State.PRESENT, 5, b"session", "::1", 99)
        left = Member(b"gone", "bob", b"", StoredLog(store, b"gone", 1), 3, State.LEFT, 6)
        self.commit(store, here, left)
        store = self.store()
        (again,) = store.present()
        for field in ("key", "name", "lines", "state", "since", "session", "host", "port"):
            self.assertEqual(getattr(again, field), getattr(here, field))
        found = store.member(b"gone")
        assert found
        self.assertEqual((found.name, found.lines, found.state), ("bob", 3, State.LEFT))
        self.assertIsNone(store.member(b"nobody"))

    def test_old_instances_are_forgotten_with_their_messages_and_present_ones_are_not(self) -> None:
        store = self.store()
        for name, state in (("here", State.PRESENT), ("left", State.LEFT)):
            key = name.encode()
            inbox = self.write(store, key, b"psst")
            self.commit(store, Member(key, name, b"", inbox, state=state, since=100))
        store.forget(100)
        self.assertIsNotNone(store.member(b"left"))
        store.forget(101)
        self.assertIsNone(store.member(b"left"))
        self.assertEqual((store.bounds(b"left"), store.read(b"left", 0, 9)), ((0, 0), []))
        self.assertIsNotNone(store.member(b"here"))
        self.assertEqual(store.read(b"here", 0, 9), [b"psst"])

    def test_of_too_many_instances_the_oldest_are_forgotten(self) -> None:
        store = self.store()
        states = [State.PRESENT, State.PRESENT, State.WRITTEN_OUT, *[State.LEFT] * 7]
        for number, state in enumerate(states):
            key = b"%d" % number
            self.commit(store, Member(key, f"n{number}", b"", store.log(key), 0, state, number))
        with mock.patch("chatserver.INSTANCES", 5):
            store.forget(0)
        kept = [number for number in range(10) if store.member(b"%d" % number)]
        self.assertEqual(kept, [0, 1, 2, 8, 9])  # first those go who will not come back

    def test_what_nobody_owns_any_more_is_forgotten_little_by_little(self) -> None:
        store = self.store()
        for number in range(2 * ORPHANS_AT_ONCE + 1):
            self.write(store, b"%d" % number, b"psst")
        self.write(store, ROOM_KEY, b"for everybody")
        left = [views.query(store, "SELECT count(*) FROM lines")[0][0]]
        while store.forget(0):
            left.append(views.query(store, "SELECT count(*) FROM lines")[0][0])
        self.assertEqual(left, [2 * ORPHANS_AT_ONCE + 2, ORPHANS_AT_ONCE + 2, 2])
        self.assertEqual(views.query(store, "SELECT log FROM logs"), [(ROOM_KEY,)])

    def test_a_lost_guest_is_the_last_to_have_had_the_name(self) -> None:
        store = self.store()

        def lost(name: str = "ALICE") -> bytes | None:
            found = store.lost_guest(name)
            return found.key if found else None

        def add(key: bytes, state: State, since: int, account: bytes = b"") -> None:
            inbox = store.log(account or key)
            self.commit(store, Member(key, "Alice", account, inbox, 0, state, since))

        self.assertIsNone(lost())
        add(b"first", State.WRITTEN_OUT, 1)
        self.assertEqual((lost(), lost("alicia")), (b"first", None))
        add(b"second", State.LEFT, 2)
        self.assertIsNone(lost())
        add(b"third", State.WRITTEN_OUT, 3)
        self.assertEqual(lost(), b"third")
        add(b"fourth", State.WRITTEN_OUT, 4, b"account")
        self.assertIsNone(lost())

    def test_it_takes_no_search_to_find_a_lost_guest(self) -> None:
        store = self.store()
        with views.statements(store) as queries:
            store.lost_guest("alice")
        plan = views.query(store, f"EXPLAIN QUERY PLAN {queries[0]}")
        self.assertNotIn("SCAN", " ".join(row[3] for row in plan))

    def test_a_failed_transaction_leaves_nothing_and_can_be_repeated(self) -> None:
        store = self.store()
        log = StoredLog(store, b"room", 10)
        log.stage(b"one")
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        for _ in range(2):
            with self.assertRaisesRegex(StoreError, "cannot be written"):
                store.commit()
        other.execute("ROLLBACK")
        self.assertEqual(store.read(b"room", 0, 9), [])
        store.commit()
        self.assertEqual(store.read(b"room", 0, 9), [b"one"])

    def test_a_transaction_that_fails_half_way_leaves_nothing(self) -> None:
        store = self.store()
        log = StoredLog(store, b"room", 10)
        log.stage(b"one")
        log.stage(b"two")
        self.execute("INSERT INTO lines VALUES (CAST('room' AS BLOB), 1, x'00')")
        with self.assertRaises(StoreError):
            store.commit()
        self.assertEqual(store.read(b"room", 0, 9), [b"\0"])
        self.execute("DELETE FROM lines")
        store.commit()
        self.assertEqual(store.read(b"room", 0, 9), [b"one", b"two"])

    def test_a_full_disk_is_a_pause_and_not_a_loss(self) -> None:
        store = self.store()
        log = StoredLog(store, b"room", 10)
        with full_disk(store):
            for _ in range(100):
                log.stage(b"x" * 1000)
            with self.assertRaisesRegex(StoreError, "full"):
                store.commit()
        store.commit()
        self.assertEqual(len(store.read(b"room", 0, 999)), 100)

    def test_a_commit_survives_the_process_and_readers_do_not_hold_it_up(self) -> None:
        store = self.store()
        self.assertEqual(views.query(store, "PRAGMA journal_mode"), [("wal",)])
        self.assertEqual(views.query(store, "PRAGMA synchronous"), [(1,)])  # NORMAL

    def test_a_lock_that_is_no_lock_is_refused_in_words(self) -> None:
        Path(f"{self.path}-lock").write_bytes(b"my diary\n" * 100)
        self.refused("not a database")

    def test_no_name_has_a_meaning_for_sqlite(self) -> None:
        with contextlib.chdir(self.path.parent):
            self.path = Path(":memory:")
            self.write(self.store(), b"room", b"one")
            self.assertEqual(self.store().read(b"room", 0, 9), [b"one"])

    def test_other_files_are_refused_in_words_and_not_touched(self) -> None:
        self.path.write_bytes(b"my diary\n" * 100)
        self.refused("not a database")
        self.assertEqual(self.path.read_bytes(), b"my diary\n" * 100)

    def test_a_file_of_a_newer_version_is_refused(self) -> None:
        self.store()
        self.close()
        newest = len(views.MIGRATION_STEPS)
        self.execute(f"PRAGMA user_version = {newest + 1}")
        self.refused(f"it is of version {newest + 1}, and this program knows 1 to {newest}")

    def test_a_database_of_something_else_is_refused(self) -> None:
        for version in (*range(len(views.MIGRATION_STEPS) + 1), 99):
            self.path = self.path.with_name(f"{version}.db")
            self.execute("CREATE TABLE recipes (name)", f"PRAGMA user_version = {version}")
            before = self.path.read_bytes()
            self.refused("it is another program's")
            self.assertEqual(self.path.read_bytes(), before)

    def test_a_second_server_on_the_same_file_is_refused(self) -> None:
        self.write(self.store(), b"room", b"one")
        self.refused("another chatserver.py has it: choose another one with --db")
        self.assertEqual(self.store().read(b"room", 0, 9), [b"one"])

    @unittest.skipIf(sys.platform == "win32", "not everybody may make links there")
    def test_a_second_server_on_the_same_file_by_another_name_is_refused(self) -> None:
        self.store()
        link = self.path.with_name("link.db")
        link.symlink_to(self.path)
        self.path = link
        self.refused("another chatserver.py has it: choose another one with --db")

    def test_a_path_that_does_not_exist_is_refused(self) -> None:
        self.path = self.path / "nowhere"
        self.refused("No such file|cannot find")


ALICE = Account(b"alice's id", "Alice", b"salt" * 4, 600_000, b"v" * 256, 1_700_000_000)


class MigrationTest(StoreFile):
    def make_version_1(self) -> None:
        """A file as the first version of the program left it."""
        self.execute(
            *views.MIGRATION_STEPS[0].format(random="11" * 16).split(";"),
            "INSERT INTO logs VALUES (CAST('room' AS BLOB), 3, 5), (x'01', 7, 8)",
            "INSERT INTO lines VALUES (CAST('room' AS BLOB), 3, CAST('three' AS BLOB))",
            "INSERT INTO lines VALUES (CAST('room' AS BLOB), 4, CAST('four' AS BLOB))",
            "INSERT INTO lines VALUES (x'01', 7, CAST('psst' AS BLOB))",
            "INSERT INTO instances VALUES (x'01', 'Alice', 7, 'present', 5, x'02', '::1', 99)",
            "INSERT INTO instances VALUES (x'03', 'bob', 1, 'left', 6, x'04', 'host', 98)",
            "PRAGMA user_version = 1",
        )

    def version(self) -> int:
        with contextlib.closing(sqlite3.connect(self.path)) as file:
            ((version,),) = file.execute("PRAGMA user_version")
        return int(version)

    def test_a_file_of_version_1_keeps_all_that_it_has(self) -> None:
        self.make_version_1()
        store = self.store()
        self.assertEqual(self.version(), len(views.MIGRATION_STEPS))
        self.assertEqual(store.log_id, b"\x11" * 16)
        self.assertEqual(store.bounds(ROOM_KEY), (3, 5))
        self.assertEqual(store.read(ROOM_KEY, 0, 9), [b"three", b"four"])
        self.assertEqual(store.read(b"\x01", 0, 9), [b"psst"])
        (alice,) = store.present()
        self.assertEqual(
            (alice.key, alice.name, alice.account, alice.lines, alice.since, alice.session),
            (b"\x01", "Alice", b"", 7, 5, b"\x02"),
        )
        self.assertEqual((alice.host, alice.port), ("::1", 99))
        self.assertEqual((alice.inbox.key, alice.inbox.oldest, alice.inbox.end), (b"\x01", 7, 8))
        bob = store.member(b"\x03")
        assert bob
        self.assertEqual((bob.name, bob.account, bob.state), ("bob", b"", State.LEFT))
        self.assertEqual(store.accounts(), [])

    def test_a_file_of_version_1_then_works_like_a_new_one(self) -> None:
        self.make_version_1()
        store = self.store()
        new = Store(f"{self.path}2", Random(1).randbytes)
        self.addCleanup(new.close)
        query = "SELECT name FROM pragma_table_info(?)"
        for (table,) in views.query(new, "SELECT name FROM sqlite_master WHERE type = 'table'"):
            self.assertEqual(
                views.query(store, query, table), views.query(new, query, table), table
            )
        self.assertTrue(store.add(ALICE))
        (alice,) = store.present()
        alice.account = ALICE.id
        self.commit(store, alice)
        store = self.store()
        self.assertEqual((store.present()[0].account, store.account("alice")), (ALICE.id, ALICE))

    def test_a_migrated_file_gets_a_secret_of_its_own_and_keeps_it(self) -> None:
        self.make_version_1()
        store = self.store()
        nobody = store.nobody("nemo")
        self.assertEqual(len(views.secret(store)), 16)
        self.assertNotEqual(views.secret(store), store.log_id)
        self.assertEqual(self.store().nobody("NEMO"), replace(nobody, name="NEMO"))

    def test_no_file_is_migrated_while_a_server_has_it(self) -> None:
        self.make_version_1()
        with contextlib.closing(sqlite3.connect(f"{self.path}-lock")) as server:
            server.execute("BEGIN EXCLUSIVE")
            with self.assertRaisesRegex(StoreError, "a server of an older version has it"):
                Store(str(self.path), alone=False)
            self.refused("another chatserver.py has it")
            self.assertEqual(self.version(), 1)
        with contextlib.closing(Store(str(self.path), alone=False)):
            self.assertEqual(self.version(), len(views.MIGRATION_STEPS))


class StoredAccountsTest(StoreFile):
    def test_accounts_survive_and_are_found_in_any_letter_case(self) -> None:
        bob = replace(ALICE, id=b"bob's id", name="bob", salt=b"pepper", verifier=b"w" * 256)
        store = self.store()
        self.assertTrue(store.add(bob))
        self.assertTrue(store.add(ALICE))
        store = self.store()
        self.assertEqual(store.accounts(), [ALICE, bob])
        self.assertEqual(store.count_accounts(), 2)
        for name in ("alice", "ALICE", "Alice"):
            self.assertEqual(store.account(name), ALICE)
        self.assertEqual(store.account("carol"), GUEST)

    def register(self, store: Store, account: Account) -> None:
        """As the one with that id would."""
        inbox = store.log(account.id)
        self.commit(store, account, Member(account.id, account.name, account.id, inbox))

    def test_the_latest_instance_survives_too(self) -> None:
        store = self.store()
        store.add(ALICE)
        inbox = store.log(ALICE.id)
        for key, state in ((b"present", State.PRESENT), (b"older", State.LEFT)):
            self.commit(store, Member(key, "Alice", ALICE.id, inbox, state=state))
        of_before = Member(b"of before", "Alice", b"removed", inbox, state=State.PRESENT)
        self.commit(store, of_before)
        self.assertEqual(self.store().account("alice").latest, b"present")

    def test_an_account_that_changes_keeps_its_name_and_age(self) -> None:
        store = self.store()
        store.add(ALICE)
        changed = replace(ALICE, salt=b"pepper", iterations=1, verifier=b"w")
        self.register(store, replace(changed, name="ALICE", created=0))
        self.assertEqual(store.accounts(), [changed])

    def test_a_name_that_has_another_account_keeps_it(self) -> None:
        store = self.store()
        store.add(ALICE)
        other = replace(ALICE, id=b"another", name="aLICE", verifier=b"w" * 256)
        self.assertFalse(store.add(other))
        self.register(store, other)
        self.assertEqual(store.accounts(), [ALICE])

    def test_removing_takes_what_was_kept_and_nothing_else(self) -> None:
        store = self.store()
        bob = replace(ALICE, id=b"bob's id", name="bob")
        for account in (ALICE, bob):
            store.add(account)
            self.write(store, account.id, b"psst")
        self.write(store, ROOM_KEY, b"hello")
        self.assertTrue(store.remove("aLICE"))
        self.assertFalse(store.remove("aLICE"))
        self.assertEqual(store.accounts(), [bob])
        self.assertEqual((store.bounds(ALICE.id), store.read(ALICE.id, 0, 9)), ((0, 0), []))
        self.assertEqual(store.read(bob.id, 0, 9), [b"psst"])
        self.assertEqual(store.read(ROOM_KEY, 0, 9), [b"hello"])

    def test_removing_takes_what_was_kept_for_one_who_began_as_a_guest(self) -> None:
        store = self.store()
        self.began_as_a_guest(store, State.LEFT)
        self.assertTrue(store.remove("alice"))
        self.assertEqual(store.read(ALICE.id, 0, 9), [])

    def began_as_a_guest(self, store: Store, state: State) -> None:
        """Whose account, and so inbox, has the key of the instance that registered."""
        store.add(ALICE)
        inbox = self.write(store, ALICE.id, b"psst")
        self.commit(store, Member(ALICE.id, "Alice", ALICE.id, inbox, state=state, since=100))

    def test_forgetting_an_instance_spares_the_inbox_of_its_account(self) -> None:
        store = self.store()
        self.began_as_a_guest(store, State.LEFT)
        store.forget(101)
        self.assertIsNone(store.member(ALICE.id))
        self.assertEqual(store.read(ALICE.id, 0, 9), [b"psst"])
        self.assertEqual(store.bounds(ALICE.id), (0, 1))

    def test_lines_members_and_accounts_are_one_transaction(self) -> None:
        store = self.store()
        store.add(ALICE)
        changed = replace(ALICE, salt=b"pepper")
        inbox = StoredLog(store, b"key", INBOX_TAIL)
        inbox.stage(b"changed")
        member = Member(b"key", "Alice", ALICE.id, inbox)
        for event in ("UPDATE ON accounts", "INSERT ON lines", "INSERT ON instances"):
            with self.subTest(event):
                self.execute(
                    f"CREATE TRIGGER no BEFORE {event} BEGIN SELECT RAISE(ABORT, 'no'); END"
                )
                with self.assertRaises(StoreError):
                    self.commit(store, member, changed)
                self.assertEqual(store.accounts(), [ALICE])
                self.assertEqual(store.read(b"key", 0, 9), [])
                self.assertEqual(views.query(store, "SELECT * FROM instances"), [])
                self.execute("DROP TRIGGER no")
        store.commit()
        self.assertEqual(store.accounts(), [changed])
        self.assertEqual(store.read(b"key", 0, 9), [b"changed"])

    def test_a_log_is_the_same_for_everybody_who_has_it(self) -> None:
        store = self.store()
        inbox = store.log(ALICE.id)
        self.assertIs(store.log(ALICE.id), inbox)
        self.assertIsNot(store.log(b"another"), inbox)
        for key in (b"older", b"newer"):
            self.commit(store, Member(key, "Alice", ALICE.id, inbox))
            member = store.member(key)
            assert member
            self.assertIs(member.inbox, inbox)
        guest = Member(b"guest", "bob", b"", store.log(b"guest"))
        self.commit(store, guest)
        again = store.member(b"guest")
        assert again
        self.assertIs(again.inbox, guest.inbox)

    def test_what_another_program_changes_is_noticed_once(self) -> None:
        store = self.store()
        store.add(ALICE)
        self.assertEqual(store.foreign_changes(), {"alice": ALICE.id})
        self.assertIsNone(store.foreign_changes())
        bob = replace(ALICE, id=b"bob's id", name="bob")
        store.add(replace(bob, id=b"another", name="carol"))  # its own changes it knows
        self.assertIsNone(store.foreign_changes())
        with contextlib.closing(Store(str(self.path), alone=False)) as other:
            self.assertIsNone(store.foreign_changes())
            other.add(bob)
            other.remove("carol")
        self.assertEqual(store.foreign_changes(), {"alice": ALICE.id, "bob": b"bob's id"})
        self.assertIsNone(store.foreign_changes())

    def test_nobody_looks_like_somebody(self) -> None:
        store = self.store()
        nobody = store.nobody("Nemo")
        self.assertEqual(
            (len(nobody.salt), nobody.iterations, len(nobody.verifier)), (16, 600_000, 256)
        )
        self.assertTrue(nobody.id)
        self.assertEqual(self.store().nobody("Nemo"), nobody)
        self.assertEqual(store.nobody("nemo").salt, nobody.salt)
        self.assertNotEqual(store.nobody("nobo").salt, nobody.salt)
        self.assertNotIn(nobody.salt, nobody.verifier)
        with contextlib.closing(Store(f"{self.path}2")) as other:
            self.assertNotEqual(other.nobody("Nemo").salt, nobody.salt)


class AlarmsTest(unittest.TestCase):
    def session(self, name: bytes) -> Session:
        session = object.__new__(Session)
        session.id, session.tick = name, -1
        return session

    def test_an_alarm_goes_off_once_and_not_before_its_time(self) -> None:
        alarms, session = Alarms(), self.session(b"a")
        alarms.at_latest(session, 1.0)
        self.assertEqual(alarms.due(1.0), [])
        self.assertEqual(alarms.due(alarms.next()), [session])
        self.assertEqual(alarms.due(99.0), [])
        self.assertEqual(alarms.next(), float("inf"))

    def test_an_earlier_alarm_stays_and_a_later_one_makes_way(self) -> None:
        alarms, session = Alarms(), self.session(b"a")
        for when in (5.0, 2.0, 9.0):
            alarms.at_latest(session, when)
        self.assertEqual(alarms.due(2.1), [session])
        self.assertEqual(alarms.due(99.0), [])

    def test_a_cleared_alarm_does_not_go_off(self) -> None:
        alarms, one, two = Alarms(), self.session(b"1"), self.session(b"2")
        alarms.at_latest(one, 1.0)
        alarms.at_latest(two, 1.0)
        alarms.clear(one)
        alarms.clear(one)
        self.assertEqual(alarms.due(2.0), [two])


if __name__ == "__main__":
    unittest.main()
