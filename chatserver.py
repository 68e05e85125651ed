"""The chat room's server: one UDP socket, one file, one loop.

    turn:  wait -> drain the socket -> handle -> one transaction -> seal and send what is due

    Store     the room file: every log, every account, every instance that is still remembered
    Room      who is here, and which line goes to which log; it touches no socket and no clock
    Door      the handshake up to the proof: cookies and challenges, no sessions yet
    Brake     how long who has guessed passwords has to wait
    Waiting   handshake packets that cost arithmetic, until there is time for them
    Server    sessions by id, what each has to read and to send, and when; no socket, no clock
    Sparing   what the operator reads, though strangers do their worst
    serve     the loop around it: socket, clock and signals

What a turn changes is staged in the store, committed in one transaction, and only then published
to the logs that members read from; a line is therefore on disk before anybody, its sender
included, hears of it. If the transaction fails, the same turn is tried again until it succeeds,
and until then nothing is read or sent: members see a pause, and the cursors see to it that nothing
is lost.
"""

from __future__ import annotations

import argparse
import enum
import errno
import getpass
import hashlib
import heapq
import hmac
import ipaddress
import logging
import os
import select
import signal
import socket
import sqlite3
import sys
import textwrap
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import astuple, dataclass, field, replace
from math import ceil, floor, inf
from types import FrameType
from typing import Any, Final, NoReturn, TypeAlias, assert_never
from weakref import WeakValueDictionary

import protocol
from protocol import GROUP, TIMING, Log, LogId, ProtocolError, Refusal, Timing, fold

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
RandomBytes: TypeAlias = Callable[[int], bytes]

# -------------------------------------------------------------------------------------- limits

DATAGRAMS_PER_TURN: Final = 256  # so that a flood cannot put off what is due
LINES_PER_TURN: Final = 256
# Milliseconds that handshakes may begin to use up in a turn, for which everybody waits, and about
# what they cost: a packet, and a power modulo N with an exponent of 256 bits.
HANDSHAKES_PER_TURN: Final = 8.0
PACKET_COST: Final = 0.25
POWER_COST: Final = 3.0
WAITING_HANDSHAKES: Final = 256  # a second's work: after that clients repeat them anyway
PENDING_CHALLENGES: Final = 1024  # the oldest makes way
NETWORK_CHALLENGES: Final = 512  # of those; then the oldest of that network's own makes way
# Members that come in from one network at once, since a class may be behind one router; then
# ``--rate`` a second.
COMINGS: Final = 60
NETWORKS: Final = 1024  # of which that is remembered; the longest quiet make way
RECEIVE_BUFFER: Final = 4 << 20  # bytes of datagrams that may wait while a turn lasts
# To see whether a member has moved, so many numbers are left out that nobody guesses one, and so
# few that the millions of such packets that a session can have do not use up what there is.
GAP_BYTES: Final = 5
CHALLENGES_AT_ONCE: Final = 8  # at one address, if the way there is long
CACHE: Final = 1024  # kB of the file in memory, besides what follows
ROOM_KEY: Final = b"room"  # of the room's log in the file; an inbox has its owner's
HISTORY_LINES: Final = 10_000  # that a newcomer is sent, comings and goings included
ROOM_TAIL: Final = 1024  # lines of the room in memory; older ones are read from the file
INBOX_TAIL: Final = 64
ROSTER_BYTES: Final = 1000  # of names in one line
UNREAD_NOTICES: Final = 64  # nothing more is taken from a member who does not read its answers
# Lines of the room in the file, of a gigabyte at most; older ones make way.
ROOM_LINES: Final = 1_000_000
UNREAD_INBOX: Final = 1000  # DMs are then refused to their sender; a megabyte on disk
# Once so many lines are unread in all inboxes together, a hundred megabytes, none may grow beyond
# its share; a gigabyte, if each of ten thousand owners has that.
UNREAD_LINES: Final = 100_000
UNREAD_SHARE: Final = 100
MAX_ACCOUNTS: Final = 10_000  # some 10 MB, without what is kept for them
DAY: Final = 24 * 3600  # seconds
INSTANCE_MEMORY: Final = 30 * DAY  # that one that left is remembered, and can go on: a holiday
INSTANCES: Final = 10_000  # that are remembered: a few MB
FORGET_EVERY: Final = 60  # seconds
PRUNE_EVERY: Final = 600
CHECK_PAUSE: Final = 1.0  # seconds at least between two looks for changed accounts while all listen
ORPHANS_AT_ONCE: Final = 100  # inboxes
ORPHANED_AT_ONCE: Final = 5000  # lines of theirs
PRUNED_AT_ONCE: Final = 1000  # lines of the room that are old: more in one turn would be felt
EXCESS_AT_ONCE: Final = 10_000  # that are too many: these need not be read
PRUNE_PAUSE: Final = 1.0  # seconds until the next ones, of all these
# The server's own limit is wider than what it tells clients, so that one that keeps to it is
# never held up by a network that delivers its lines in one heap.
RATE_MARGIN: Final = 1.25
BURST_MARGIN: Final = 2
# Datagrams that are made before they are sent. One by one costs more, since making and sending
# drive each other out of the processor's caches; all at once makes the first ones wait.
AT_A_TIME: Final = 16
# Between two times that everybody is told who has come and gone: of a thousand who come together
# each would cost a thousand datagrams. What somebody says goes out at once, and takes it along.
TELL_PAUSE: Final = 0.1  # seconds
LINGERING: Final = 100  # sessions that have ended and may still ask; the oldest makes way
LATE: Final = 1.0  # seconds after which a turn that comes late has been prevented from coming
TICK: Final = 0.01  # seconds: the grain of the sessions' timers

# Wrong passwords within a minute that bring the first wait: see Brake.
FAILURES_OF_BOTH: Final = 5  # for one name, from one network
FAILURES_OF_NETWORK: Final = 20  # for any names
FAILURES_OF_NAME: Final = 100  # from any networks
BRAKES: Final = 4096  # networks and names that are remembered; the longest quiet make way

# Lines of each kind in the log: a class comes in together. A flood then costs some megabytes a day.
LOG_BURST: Final = 100
LOG_PAUSE: Final = 10.0  # seconds

ELSEWHERE: Final = "logged in from elsewhere"

log = logging.getLogger("chatserver")


class StoreError(Exception):
    """The room file cannot be opened, read or written; the text is for the operator."""


# --------------------------------------------------------------------------------------- store


class State(enum.Enum):
    """Where an instance of a client stands."""

    NEW = "new"  # not in the room file yet
    PRESENT = "present"
    LEFT = "left"  # by its own EX, or put out; it does not come back
    WRITTEN_OUT = "written out"  # silent for too long; it may come back


@dataclass(frozen=True, slots=True)
class Account:
    """A name that needs a password."""

    id: bytes  # and the key of its inbox; empty for a guest
    name: str
    salt: bytes
    iterations: int
    verifier: bytes
    created: int = 0  # Unix seconds
    latest: bytes = field(default=b"", compare=False)  # the instance that has its place

    @property
    def is_guest(self) -> bool:
        return not self.id


GUEST: Final = Account(b"", "", b"", 0, GROUP.pad(protocol.GUEST_VERIFIER))


@dataclass(slots=True, eq=False)
class Member:
    """One instance of a client: one start of the program, from its joining to its leaving."""

    key: bytes  # the hash of the instance's secret
    name: str
    account: bytes  # its id; empty for a guest
    inbox: StoredLog
    lines: int = 0  # the server's cursor in the log that the client writes
    state: State = State.NEW
    since: int = 0  # Unix seconds
    session: bytes = b""  # the latest, and where it was: whom to tell after a restart
    host: str = ""
    port: int = 0
    first: int = 0  # number of a line of the room that it may read: older ones are not for it
    bucket: protocol.Bucket | None = None  # of its lines, while it is here


class StoredLog(Log):
    """A log on disk whose newest lines are in memory.

    New lines are *staged*; once a transaction has them, they are *published* to readers.
    """

    def __init__(self, store: Store, key: bytes, tail: int) -> None:
        self.oldest, end = store.bounds(key)
        lines = store.read(key, max(self.oldest, end - tail), tail)
        super().__init__(end - len(lines), lines)
        if len(lines) < tail:  # there are no older ones
            self.oldest = self.start
        self.key = key
        self.staged: list[bytes] = []
        self._store = store
        self._tail = tail
        self._chunk = Log()  # of older lines, for members who lag behind

    @property
    def next(self) -> int:
        """The number that the next line to be staged will have."""
        return self.end + len(self.staged)

    def stage(self, line: bytes) -> int:
        self._store.changed_logs[self.key] = self
        if self.key != ROOM_KEY:
            self._store.unread += 1
        self.staged.append(line)
        return self.next - 1

    def publish(self) -> None:
        for line in self.staged:
            self.append(line)
        self.staged.clear()
        self.drop(self.end - self._tail)

    @property
    def unread(self) -> int:
        """How many lines its only reader has not read."""
        return self.next - self.oldest

    @property
    def is_full(self) -> bool:
        """Whether that is as much as an inbox may hold."""
        is_plenty = self._store.unread >= UNREAD_LINES
        return self.unread >= (UNREAD_SHARE if is_plenty else UNREAD_INBOX)

    def line(self, number: int) -> bytes:
        if number >= self.start:
            return super().line(number)
        if number >= self.oldest and not self._chunk.start <= number < self._chunk.end:
            self._chunk = Log(number, self._store.read(self.key, number, INBOX_TAIL))
        if number < self.oldest or not self._chunk.lines:  # the operator has removed the account
            raise StoreError(f"line {number} of a log is not in the room file any more")
        return self._chunk.line(number)

    def forget(self, before: int) -> None:
        """Nobody needs the lines below ``before`` any more; whoever comes later starts there."""
        if before > self.oldest:
            self._store.changed_logs[self.key] = self
            if self.key != ROOM_KEY:
                self._store.unread -= before - self.oldest
            self.drop(before)
            self.oldest = before


class Store:
    """The room file (sqlite3): logs, accounts and instances; nothing of packets is known here.
    What is put into ``changed_...`` is written by the next ``commit``.

    ``synchronous=NORMAL`` in WAL mode: a commit survives the death of the process at any moment,
    but the last ones may be lost in a power cut.
    """

    # What makes a file of each version from one of the version before.
    _STEPS: Final = (
        """
        CREATE TABLE room_file (log_id BLOB NOT NULL);
        INSERT INTO room_file VALUES (x'{random}');
        CREATE TABLE logs (log BLOB PRIMARY KEY, oldest INTEGER NOT NULL, next INTEGER NOT NULL)
            WITHOUT ROWID;
        CREATE TABLE lines (log BLOB NOT NULL, number INTEGER NOT NULL, line BLOB NOT NULL,
            PRIMARY KEY (log, number)) WITHOUT ROWID;
        CREATE TABLE instances (key BLOB PRIMARY KEY, name TEXT NOT NULL, lines INTEGER NOT NULL,
            state TEXT NOT NULL, since INTEGER NOT NULL, session BLOB NOT NULL,
            host TEXT NOT NULL, port INTEGER NOT NULL) WITHOUT ROWID;
        """,
        """
        ALTER TABLE room_file ADD COLUMN secret BLOB NOT NULL DEFAULT x'';
        UPDATE room_file SET secret = x'{random}';
        ALTER TABLE instances ADD COLUMN account BLOB NOT NULL DEFAULT x'';
        CREATE TABLE accounts (folded TEXT PRIMARY KEY, id BLOB NOT NULL, name TEXT NOT NULL,
            salt BLOB NOT NULL, iterations INTEGER NOT NULL, verifier BLOB NOT NULL,
            created INTEGER NOT NULL, latest BLOB NOT NULL) WITHOUT ROWID;
        """,
        "CREATE INDEX owners ON instances (name COLLATE NOCASE, since);",
        "ALTER TABLE instances ADD COLUMN first INTEGER NOT NULL DEFAULT 0;",
    )

    def __init__(
        self, path: str, random_bytes: RandomBytes = os.urandom, alone: bool = True
    ) -> None:
        """Opens the file, or makes one that only its owner can read; StoreError if it cannot, or
        if another server has it: both would give the same numbers to different lines. Only who
        comes for the accounts need not be ``alone``, and can wait for its turn to write."""
        self.changed_logs: dict[bytes, StoredLog] = {}
        self.changed_members: dict[bytes, Member] = {}
        self.changed_accounts: dict[str, Account] = {}  # by folded name
        self._logs: WeakValueDictionary[bytes, StoredLog] = WeakValueDictionary()
        self._data_version = -1  # of no file
        path = os.path.realpath(path)  # one lock for all its names, none with a meaning for SQLite
        try:
            with ExitStack() as refused:  # a file that is refused is closed again
                patience = 0.1 if alone else 1.0
                self._lock = refused.enter_context(closing(self._open(f"{path}-lock", patience)))
                if alone:
                    self._take_lock()
                self._file = refused.enter_context(closing(self._open(path, patience)))
                self._prepare(random_bytes)
                query = "SELECT log_id, secret FROM room_file"
                self.log_id, self._secret = self._file.execute(query).fetchone()
                self.unread = self._count_unread()  # lines of all inboxes
                refused.pop_all()
        except (OSError, sqlite3.Error) as error:
            words = getattr(error, "strerror", None) or str(error)
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                words = "another chatserver.py has it: choose another one with --db"
            raise StoreError(f"the room file {path} cannot be used: {words}") from error

    def _take_lock(self) -> None:
        """Until the process ends, however it does."""
        if not self._lock.in_transaction:
            self._lock.execute("BEGIN EXCLUSIVE")

    @staticmethod
    def _open(path: str, patience: float) -> sqlite3.Connection:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        return sqlite3.connect(path, timeout=patience, isolation_level=None)

    def _prepare(self, random_bytes: RandomBytes) -> None:
        """Set SQLite's modes, and bring the file up to date."""
        self._version()  # before anything is changed
        # Of a new file: the longest line has to fit into a page, or it takes another one.
        self._file.execute("PRAGMA page_size = 8192")
        self._file.execute("PRAGMA journal_mode = WAL")
        self._file.execute("PRAGMA synchronous = NORMAL")
        self._file.execute(f"PRAGMA cache_size = -{CACHE}")
        newest = len(self._STEPS)
        if self._version() == newest:
            return
        with suppress(sqlite3.OperationalError):
            self._take_lock()
        if (version := self._version()) == newest:  # another process was quicker
            return
        if not self._lock.in_transaction:
            raise sqlite3.DatabaseError("a server of an older version has it: end that one first")
        steps = (s.format(random=random_bytes(16).hex()) for s in self._STEPS[version:])
        script = f"BEGIN IMMEDIATE; {''.join(steps)} PRAGMA user_version = {newest}; COMMIT;"
        self._file.executescript(script)

    def _version(self) -> int:
        """The file's; 0 of a new one. DatabaseError if it is of something else."""
        # In this order: another process may be making the file.
        tables = {name for (name,) in self._file.execute("SELECT name FROM sqlite_master")}
        (version,) = self._file.execute("PRAGMA user_version").fetchone()
        newest = len(self._STEPS)
        if tables and "room_file" not in tables:
            raise sqlite3.DatabaseError("it is another program's")
        if version > newest:
            words = f"it is of version {version}, and this program knows 1 to {newest}"
            raise sqlite3.DatabaseError(words)
        return int(version)

    def close(self) -> None:
        self._file.close()
        self._lock.close()

    def bounds(self, key: bytes) -> tuple[int, int]:
        """(the oldest number kept, the next number) of a log."""
        rows = self._query("SELECT oldest, next FROM logs WHERE log = ?", key)
        return rows[0] if rows else (0, 0)

    def read(self, key: bytes, first: int, count: int) -> list[bytes]:
        query = "SELECT line FROM lines WHERE log = ? AND number >= ? ORDER BY number LIMIT ?"
        return [line for (line,) in self._query(query, key, first, count)]

    def log(self, key: bytes) -> StoredLog:
        """The log with that key; the same one for everybody who has it at the moment."""
        found = self._logs.get(key)
        if found is None:
            found = self._logs[key] = StoredLog(
                self, key, ROOM_TAIL if key == ROOM_KEY else INBOX_TAIL
            )
        return found

    def member(self, key: bytes) -> Member | None:
        """The instance with that key, if it is still remembered; as this turn has changed it."""
        return self.changed_members.get(key) or next(self._members("key = ?", key), None)

    def lost_guest(self, name: str) -> Member | None:
        """The last to have had that name, if it is a guest who was written out."""
        latest = (
            "SELECT key FROM instances WHERE name = ? COLLATE NOCASE ORDER BY since DESC LIMIT 1"
        )
        lost = (m for m in self.changed_members.values() if m.state is State.WRITTEN_OUT)
        changed = [member for member in lost if fold(member.name) == fold(name)]
        member = changed[-1] if changed else next(self._members(f"key = ({latest})", name), None)
        is_lost = member and member.state is State.WRITTEN_OUT and not member.account
        return member if is_lost else None

    def present(self) -> list[Member]:
        return list(self._members("state = ?", State.PRESENT.value))

    def _members(self, condition: str, value: bytes | str) -> Iterator[Member]:
        columns = "key, name, account, lines, state, since, session, host, port, first"
        query = f"SELECT {columns} FROM instances WHERE {condition}"
        for key, name, account, lines, state, *rest in self._query(query, value):
            inbox = self.log(account or key)
            yield Member(key, name, account, inbox, lines, State(state), *rest)

    def account(self, name: str) -> Account:
        """The account of that name in any letter case, or GUEST."""
        changed = self.changed_accounts.get(fold(name))
        return changed or next(self._accounts("folded = ?", fold(name)), GUEST)

    def accounts(self) -> list[Account]:
        return list(self._accounts("folded >= ? ORDER BY folded", ""))

    def count_accounts(self) -> int:
        ((count,),) = self._query("SELECT count(*) FROM accounts")
        return int(count) + len(self.changed_accounts)

    def _count_unread(self) -> int:
        query = "SELECT total(next - oldest) FROM logs WHERE log != ?"
        ((count,),) = self._query(query, ROOM_KEY)
        return int(count)

    def _accounts(self, condition: str, value: str) -> Iterator[Account]:
        columns = "id, name, salt, iterations, verifier, created, latest"
        query = f"SELECT {columns} FROM accounts WHERE {condition}"
        return (Account(*row) for row in self._query(query, value))

    def nobody(self, name: str) -> Account:
        """What looks like the account of a name that has none: the same at each call, and with a
        verifier that no known password has (RFC 5054 §2.5.1.3)."""
        seed = hashlib.blake2b(fold(name).encode(), key=self._secret).digest()
        verifier = int.from_bytes(hashlib.shake_256(seed).digest(256), "big") % GROUP.prime
        salt = seed[: protocol.SALT_LENGTH]
        return Account(b"nobody", name, salt, protocol.ITERATIONS, GROUP.pad(verifier))

    def foreign_changes(self) -> dict[str, bytes] | None:
        """The ids of all accounts by folded name, at first and when another process has written;
        else None."""
        ((version,),) = self._query("PRAGMA data_version")
        if version == self._data_version:
            return None
        ids = dict(self._query("SELECT folded, id FROM accounts"))
        self._data_version = version
        return ids

    def _query(self, query: str, *values: bytes | str | int) -> list[Any]:
        try:
            return self._file.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"the room file cannot be read: {error}") from error

    def commit(self) -> list[Member]:
        """Writes what has changed, in one transaction, and publishes it; returns the members."""
        logs, members = list(self.changed_logs.values()), list(self.changed_members.values())
        if not (logs or members or self.changed_accounts):
            return []
        with self._transaction():
            for each in logs:
                self._write_log(each)
            self._file.executemany(
                "INSERT OR REPLACE INTO instances VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [_row(member) for member in members],
            )
            for account in self.changed_accounts.values():
                self._write_account(account)
            holders = [m for m in members if m.account and m.state is State.PRESENT]
            self._file.executemany(  # by the table's key, and only if another one had the place
                "UPDATE accounts SET latest = ? WHERE folded = ? AND id = ? AND latest != ?",
                [(m.key, fold(m.name), m.account, m.key) for m in holders],
            )
        for each in logs:
            each.publish()
        for changed in (self.changed_logs, self.changed_members, self.changed_accounts):
            changed.clear()
        return members

    def _write_log(self, each: StoredLog) -> None:
        self._file.executemany(
            "INSERT INTO lines VALUES (?, ?, ?)",
            [(each.key, number, line) for number, line in enumerate(each.staged, each.end)],
        )
        self._file.execute(
            "INSERT OR REPLACE INTO logs VALUES (?, ?, ?)",
            (each.key, each.oldest, each.next),
        )
        self._file.execute(
            "DELETE FROM lines WHERE log = ? AND number < ?", (each.key, each.oldest)
        )

    def _write_account(self, account: Account) -> int:
        """Keeps what another account of that name has; returns how many rows changed."""
        return self._file.execute(
            """
            INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (folded) DO UPDATE SET salt = excluded.salt,
                iterations = excluded.iterations, verifier = excluded.verifier
                WHERE id = excluded.id
            """,
            (fold(account.name), *astuple(account)),
        ).rowcount

    def add(self, account: Account) -> bool:
        """Makes a new account; False if the name has one."""
        with self._transaction():
            return self._write_account(account) > 0

    def remove(self, name: str) -> bool:
        """Drops an account and what was kept for it; False if the name has none."""
        with self._transaction():
            inbox = "SELECT id FROM accounts WHERE folded = ?"
            for table in ("lines", "logs"):
                deletion = f"DELETE FROM {table} WHERE log IN ({inbox})"
                self._file.execute(deletion, (fold(name),))
            deletion = "DELETE FROM accounts WHERE folded = ?"
            return self._file.execute(deletion, (fold(name),)).rowcount > 0

    def forget(self, before: int) -> bool:
        """Drops the instances that have not been present since ``before`` (Unix seconds), and the
        oldest if there are too many, first of those who have left and of guests; then some of the
        logs that nobody owns any more. Whether there are more of these."""
        owners = "SELECT key FROM instances UNION SELECT id FROM accounts UNION SELECT ?"
        orphans = f"SELECT log FROM logs WHERE log NOT IN ({owners}) LIMIT {ORPHANS_AT_ONCE}"
        newest = "SELECT key FROM instances ORDER BY state = ?, account = ?, since DESC LIMIT ?"
        deletion = "DELETE FROM instances WHERE state != ? AND "
        present, order = State.PRESENT.value, (State.LEFT.value, GUEST.id, INSTANCES)
        with self._transaction():
            self._file.execute(f"{deletion} since < ?", (present, before))
            ((count,),) = self._file.execute("SELECT count(*) FROM instances").fetchall()
            if count > INSTANCES:
                self._file.execute(f"{deletion} key NOT IN ({newest})", (present, *order))
            logs = [key for (key,) in self._file.execute(orphans, (ROOM_KEY,))]
            theirs = f"log IN ({', '.join('?' * len(logs))})"
            lines = f"SELECT log, number FROM lines WHERE {theirs} LIMIT {ORPHANED_AT_ONCE}"
            deletion = f"DELETE FROM lines WHERE (log, number) IN ({lines})"
            dropped = self._file.execute(deletion, logs).rowcount
            if dropped < ORPHANED_AT_ONCE:
                self._file.execute(f"DELETE FROM logs WHERE {theirs}", logs)
        if not self.changed_logs:  # or what they change would count twice
            self.unread = self._count_unread()
        return dropped == ORPHANED_AT_ONCE or len(logs) == ORPHANS_AT_ONCE

    def hold(self) -> None:
        """Lets nobody else write until ``commit`` or its failure: what is read is still so then."""
        with self._translated():
            if not self._file.in_transaction:
                self._file.execute("BEGIN IMMEDIATE")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.hold()
        with self._translated():
            yield
            self._file.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """What goes wrong is undone, and a StoreError."""
        try:
            yield
        except sqlite3.Error as error:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            raise StoreError(f"the room file cannot be written: {error}") from error


def _row(m: Member) -> tuple[object, ...]:
    state = m.state.value
    return m.key, m.name, m.lines, state, m.since, m.session, m.host, m.port, m.account, m.first


# ---------------------------------------------------------------------------------------- room


class Room:
    """Who is here, and what a line brings about. Its changes wait for the store's ``commit``."""

    def __init__(self, store: Store, history: int) -> None:
        self.unix = 0  # the time that the lines of this turn show
        self.is_talking = False  # whether somebody has said something in this turn
        self.log = store.log(ROOM_KEY)
        self.members = {fold(member.name): member for member in store.present()}
        self._store = store
        self._roster: list[bytes] = []  # as it was last told, until somebody comes or goes
        # The numbers of the newest public lines, which a newcomer is shown.
        self._public = deque(_public_lines(store, self.log, history), maxlen=history)

    def handle(self, member: Member, number: int, raw: bytes) -> list[bytes]:
        """Takes line ``number`` from a member; returns what goes to its notices."""
        member.lines = number + 1
        self._store.changed_members[member.key] = member
        try:
            return self._act(member, number, protocol.parse_line_untrusted(raw))
        except (protocol.BadMessage, StoreError) as error:
            self._answer(member, protocol.Declined(number, str(error)))
            return []

    def _act(self, member: Member, number: int, message: protocol.Message) -> list[bytes]:
        match message:
            case protocol.Public():
                self.is_talking = True
                self._public.append(self._announce(member, message))
            case protocol.Direct():
                self._direct(member, number, message)
            case protocol.Register():
                self._register(member, number, message)
            case protocol.Exit():
                self.leave(member, State.LEFT, "")
            case protocol.Who():
                return self.roster()
            case _:
                assert_never(message)
        return []

    def line(self, sender: str, event: protocol.Event) -> bytes:
        return protocol.format_relayed(protocol.Relayed(self.unix, sender, event))

    def _announce(self, member: Member, event: protocol.Event) -> int:
        return self.log.stage(self.line(member.name, event))

    def _answer(self, member: Member, event: protocol.Event) -> None:
        member.inbox.stage(self.line(protocol.SERVER, event))

    def _direct(self, member: Member, number: int, message: protocol.Direct) -> None:
        """To a member; or into the inbox of an account, or of a lost guest, who may come back."""
        recipient = self.members.get(fold(message.to))
        inbox, name = self._inbox_of(message.to)
        if inbox.is_full:
            raise protocol.BadMessage(f"{name} has too many unread messages")
        line = self.line(member.name, protocol.Direct(name, message.text))
        inbox.stage(line)
        if recipient is None:
            words = f"{name} is away: kept until they are back"
            self._answer(member, protocol.Accepted(number, words))
        else:
            self._store.changed_members[recipient.key] = recipient  # it has something to read
            if recipient is not member:  # one line for a note to oneself
                member.inbox.stage(line)

    def _inbox_of(self, name: str) -> tuple[StoredLog, str]:
        """Of whoever has that name, and how they spell it; BadMessage if nobody has."""
        if member := self.members.get(fold(name)):
            return member.inbox, member.name
        account = self._store.account(name)
        if not account.is_guest:
            return self._store.log(account.id), account.name
        if member := self._store.lost_guest(name):
            return member.inbox, member.name
        raise protocol.BadMessage(f"nobody here is called {name}")

    def _register(self, member: Member, number: int, message: protocol.Register) -> None:
        """Makes a guest's name an account, or changes the password of an account's owner."""
        self._store.hold()  # or the operator might give the name to somebody else meanwhile
        account = self._store.account(member.name)
        if account.id != member.account:
            raise protocol.BadMessage(f"the name {member.name} has another owner by now")
        words = f"the password of {member.name} is changed"
        if account.is_guest:
            if self._store.count_accounts() >= MAX_ACCOUNTS:
                raise protocol.BadMessage("this room has no place for more accounts")
            member.account, words = member.key, f"registered {member.name}"
            account = replace(GUEST, id=member.key, name=member.name, created=self.unix)
        salt, iterations, verifier = message.salt, message.iterations, message.verifier
        account = replace(account, salt=salt, iterations=iterations, verifier=verifier)
        self._store.changed_accounts[fold(account.name)] = account
        self._answer(member, protocol.Accepted(number, words))
        log.info("%s", words)

    def enter(self, member: Member) -> None:
        """A new member, or one who comes back after having been written out. The account whose
        place a later instance takes has not been away: nothing is announced."""
        holder = self.members.get(fold(member.name))
        self.members[fold(member.name)] = member
        self._roster = []
        if holder:
            self._set_state(holder, State.LEFT)
            self._set_state(member, State.PRESENT)
            log.info("%s logged in from %s port %d too", member.name, member.host, member.port)
        else:
            self._set_state(member, State.PRESENT)
            self._announce(member, protocol.Joined())
            log.info("%s joined from %s port %d", member.name, member.host, member.port)

    def leave(self, member: Member, state: State, reason: str) -> None:
        del self.members[fold(member.name)]
        self._roster = []
        self._set_state(member, state)
        self._announce(member, protocol.Exit(reason))
        log.info("%s left%s", member.name, f" ({reason})" if reason else "")

    def _set_state(self, member: Member, state: State) -> None:
        member.state, member.since = state, self.unix
        self._store.changed_members[member.key] = member

    def roster(self) -> list[bytes]:
        """Who is here, in as many lines as it takes; all who ask get the same ones."""
        if not self._roster:
            names = " ".join(sorted((member.name for member in self.members.values()), key=fold))
            groups = textwrap.wrap(names, ROSTER_BYTES, break_on_hyphens=False)
            self._roster = [
                self.line(protocol.SERVER, protocol.Roster(more, tuple(group.split())))
                for more, group in zip(range(len(groups) - 1, -1, -1), groups)
            ]
        return self._roster

    def history_start(self) -> int:
        """Where a newcomer begins to read: the newest public lines, unless too many have come and
        gone between them."""
        first = self._public[0] if self._public else self.log.next
        return max(first, self.log.next - HISTORY_LINES)

    def prune(self, before: int) -> bool:
        """Forgets some lines from before that Unix time, and some of too many; whether there may be
        more of them."""
        oldest = self.log.oldest
        lines = self._store.read(self.log.key, oldest, PRUNED_AT_ONCE)
        # A clock that was wrong for a while makes lines that seem younger than later ones.
        is_old = (int(line.split(b" ", 1)[0]) < before for line in lines)
        old = max((count for count, each in enumerate(is_old, 1) if each), default=0)
        excess = min(self.log.next - oldest - ROOM_LINES, EXCESS_AT_ONCE)
        self.log.forget(oldest + max(old, excess))
        return old == PRUNED_AT_ONCE or excess == EXCESS_AT_ONCE


def _public_lines(store: Store, room: StoredLog, count: int) -> list[int]:
    """The numbers of the newest ``count`` public lines, however many joins lie between them."""
    numbers: list[int] = []
    end = room.end
    while end > room.oldest and len(numbers) < count:
        start = max(room.oldest, end - ROOM_TAIL)
        lines = enumerate(store.read(room.key, start, end - start), start)
        numbers = [number for number, line in lines if line.split(b" ", 3)[2] == b"PM"] + numbers
        end = start
    return numbers[-count:] if count else []


# ---------------------------------------------------------------------------------------- door


@dataclass(frozen=True, slots=True)
class Knock:
    """A JOIN that was answered with a challenge."""

    address: Address
    network: str
    join: protocol.Join
    account: Account
    session: bytes
    challenge: bytes
    b: int
    b_public: int
    expires: float


class Door:
    """The handshake up to the proof. A HELLO leaves nothing behind here; a JOIN, whose address is
    known to be real, leaves a challenge for ``cookie_life``."""

    def __init__(self, timing: Timing, random_bytes: RandomBytes) -> None:
        self._life = timing.cookie_life
        self._random_bytes = random_bytes
        self._secret = random_bytes(32)
        self._knocks: dict[tuple[Address, bytes], Knock] = {}  # by nonce too; the oldest first
        self._counts: Counter[str] = Counter()  # of them, by network

    def cookie(self, hello: protocol.Hello, address: Address, now: float) -> protocol.Cookie:
        """The answer to a HELLO, and to a JOIN whose cookie is not good."""
        return protocol.Cookie(hello.nonce, self._cookie(hello, address, self._period(now)))

    def has_good_cookie(self, join: protocol.Join, address: Address, now: float) -> bool:
        """Whether it was made in this half of ``cookie_life`` or in the one before."""
        period = self._period(now)
        good = (self._cookie(join, address, each) for each in (period, period - 1))
        return any(hmac.compare_digest(join.cookie, each) for each in good)

    def _period(self, now: float) -> int:
        return int(now / (self._life / 2))

    def _cookie(self, hello: protocol.Hello, address: Address, period: int) -> bytes:
        what = f"{period} {address} ".encode() + hello.identity
        return hashlib.blake2b(what, key=self._secret, digest_size=16).digest()

    def repeated(self, join: protocol.Join, address: Address, now: float) -> bytes | None:
        """The challenge that this JOIN, perhaps with another cookie, was answered with."""
        knock = self._knocks.get((address, join.nonce))
        is_its = knock and knock.join.identity == join.identity and knock.expires > now
        return knock.challenge if knock and is_its else None

    def challenge(
        self, join: protocol.Join, account: Account, address: Address, now: float
    ) -> bytes:
        """The answer to a JOIN with a good cookie, for the account of its name."""
        b = int.from_bytes(self._random_bytes(32), "big")
        b_public = protocol.server_public(b, int.from_bytes(account.verifier, "big"))
        session = self._random_bytes(8)
        reply = protocol.format_handshake(
            protocol.Challenge(
                join.nonce, session, GROUP.pad(b_public), account.salt, account.iterations
            )
        )
        network = network_of(address[0])
        if earlier := self._knocks.get((address, join.nonce)):  # under another name
            self.use_up(earlier)
        self._make_place(network, now)
        self._knocks[address, join.nonce] = Knock(
            address, network, join, account, session, reply, b, b_public, now + self._life
        )
        self._counts[network] += 1
        return reply

    def _make_place(self, network: str, now: float) -> None:
        """Nobody can push out all that wait elsewhere."""
        if self._counts[network] >= NETWORK_CHALLENGES:
            self.use_up(next(k for k in self._knocks.values() if k.network == network))
        while self._knocks:
            oldest = next(iter(self._knocks.values()))
            if oldest.expires > now and len(self._knocks) < PENDING_CHALLENGES:
                return
            self.use_up(oldest)

    def knock(self, prove: protocol.Prove, address: Address, now: float) -> Knock | None:
        """The knock that a PROVE from there may belong to."""
        knock = self._knocks.get((address, prove.nonce))
        is_good = knock and knock.session == prove.session and knock.expires > now
        return knock if is_good else None

    def use_up(self, knock: Knock) -> None:
        del self._knocks[knock.address, knock.join.nonce]
        self._counts[knock.network] -= 1
        if not self._counts[knock.network]:
            del self._counts[knock.network]


@dataclass(frozen=True, slots=True)
class Proof:
    """A PROVE that fits its knock."""

    knock: Knock
    prove: protocol.Prove
    prove_bytes: bytes
    keys: protocol.SessionKeys
    resume: protocol.Resume


def open_prove_untrusted(knock: Knock, prove: protocol.Prove, data: bytes) -> Proof:
    """What PROVE, in ``data``, proves and says, or BadSeal or BadHandshake."""
    a_public = int.from_bytes(knock.join.public, "big")
    verifier = int.from_bytes(knock.account.verifier, "big")
    secret = protocol.server_secret_untrusted(a_public, knock.b, knock.b_public, verifier)
    keys = protocol.derive_keys(secret, knock.join.identity, knock.challenge)
    resume = protocol.open_record_untrusted(
        protocol.Resume, keys.prove, keys.transcript, prove.proof, prove.sealed
    )
    return Proof(knock, prove, data, keys, resume)


# --------------------------------------------------------------------------------------- brake


@dataclass(slots=True)
class Failures:
    """Wrong passwords for one name, or from one network, or both."""

    times: list[float] = field(default_factory=list)  # of the latest
    wait: float = 0.0  # that the latest has brought
    until: float = -inf


class Brake:
    """How long who has guessed passwords has to wait for the next try.

    A guesser must be slowed down, and must not be able to keep the owner of a name out with that.
    So what counts is a name and a network (an IPv4 address, an IPv6 /64) together: five wrong
    passwords within a minute bring a wait of 15 s, and each further one twice the wait before, up
    to 5 minutes, until there has been peace for so long. Nobody who knows the password waits
    because of what others do elsewhere. A network from which twenty are wrong, for whatever names,
    waits as a whole in the same way. A guesser with many networks meets the third count: while a
    name has had a hundred wrong passwords in a minute, the first one from a network brings the
    wait that otherwise the fifth does. Who shares the guesser's network shares its wait, but a
    member who is in can always come back: its own socket address counts as a network of its own.
    A refusal to try counts for nothing, since no password was tried.
    """

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._failures: OrderedDict[tuple[str, str], Failures] = OrderedDict()

    def wait(self, name: str, network: str, now: float) -> float:
        """Seconds until this name may be tried from this network; 0: at once."""
        found = (self._failures.get(key) for key in ((name, network), ("", network)))
        return max([0.0, *(failures.until - now for failures in found if failures)])

    def fail(self, name: str, network: str, now: float) -> None:
        """A wrong password was tried."""
        hunted = self._count((name, ""), FAILURES_OF_NAME, now)
        is_hunted = len(hunted.times) >= FAILURES_OF_NAME
        self._punish((name, network), 1 if is_hunted else FAILURES_OF_BOTH, now)
        self._punish(("", network), FAILURES_OF_NETWORK, now)

    def succeed(self, name: str, network: str) -> None:
        """The right password was."""
        self._failures.pop((name, network), None)

    def _punish(self, key: tuple[str, str], limit: int, now: float) -> None:
        failures = self._count(key, limit, now)
        if now >= failures.until + self._timing.max_login_wait:
            failures.wait = 0.0
        if failures.wait or len(failures.times) >= limit:
            wait = 2 * failures.wait or self._timing.login_wait
            failures.wait = min(wait, self._timing.max_login_wait)
            failures.until = now + failures.wait

    def _count(self, key: tuple[str, str], limit: int, now: float) -> Failures:
        """With one more, of which no more than ``limit`` matter."""
        failures = self._failures.setdefault(key, Failures())
        self._failures.move_to_end(key)
        if len(self._failures) > BRAKES:
            self._failures.popitem(last=False)
        recent = [t for t in failures.times if t > now - self._timing.login_window]
        failures.times = [*recent, now][-limit:]
        return failures


@dataclass(frozen=True, slots=True)
class Arrived:
    """A handshake packet, its datagram, and whence that came."""

    record: protocol.Join | protocol.Prove
    data: bytes
    address: Address


class Waiting:
    """Handshake packets that wait for their turn, all of them from addresses that are known to be
    real. Networks take turns, and if too many wait, it is whoever sends most that loses some: a
    flood from one network delays that one only."""

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[Arrived]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, arrived: Arrived) -> None:
        self._queues.setdefault(network_of(arrived.address[0]), deque()).append(arrived)
        self._count += 1
        if self._count > WAITING_HANDSHAKES:  # of several that have most, the latest
            most = max(reversed(self._queues), key=lambda network: len(self._queues[network]))
            self._drop(most, self._queues[most].pop)

    def take(self) -> Arrived:
        network = next(iter(self._queues))
        self._queues.move_to_end(network)
        return self._drop(network, self._queues[network].popleft)

    def _drop(self, network: str, end: Callable[[], Arrived]) -> Arrived:
        self._count -= 1
        dropped = end()
        if not self._queues[network]:
            del self._queues[network]
        return dropped


def network_of(host: str) -> str:
    """What belongs to one person: an IPv4 address, an IPv6 /64, a link-local address."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host)
    if address.ipv4_mapped:  # as a socket for both kinds has it
        return str(address.ipv4_mapped)
    if address.is_link_local:
        return host
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


# -------------------------------------------------------------------------------------- server


class Undecided(Exception):
    """Whether a name is still in use shows once its holder has had time to answer."""


@dataclass(frozen=True, slots=True)
class Path:
    """An address from which a member's newest packet came, and the numbers of the packets that were
    sent there: who echoes one of them from there is there."""

    address: Address
    numbers: tuple[int, ...]
    expires: float  # when another one may be sent


@dataclass(slots=True, eq=False)
class Session:
    """One proven connection of one member."""

    id: bytes
    address: Address
    own: protocol.Keys  # of what the server sends
    theirs: protocol.Keys
    member: Member
    channel: protocol.Channel
    prove: bytes  # the hash of the datagram that opened it, which is answered again with this
    welcome: bytes
    logs: dict[LogId, Log]  # that its member reads
    ends_at: float = inf  # set once the member has left
    wake_at: float = inf  # when to look after it whatever its channel has to do
    probed_at: float = inf  # since when it is asked for a sign of life, its name being wanted
    path: Path | None = None  # to where it seems to have moved
    tick: int = -1  # of its alarm

    @property
    def has_lines(self) -> bool:
        """Whether the member has written something that is still to be taken."""
        member = self.member
        return (
            self.channel.readers[LogId.LINES].is_ready
            and member.state is State.PRESENT
            and not member.inbox.is_full
            and len(self.logs[LogId.NOTICES].lines) < UNREAD_NOTICES
        )


class Alarms:
    """Which session wants to be looked at when, on a coarse tick."""

    def __init__(self) -> None:
        self._sessions: dict[int, dict[bytes, Session]] = {}
        self._ticks: list[int] = []  # a heap

    def at_latest(self, session: Session, when: float) -> None:
        """An earlier alarm stays: the session, once looked at, sets its next one."""
        tick = floor(when / TICK) + 1  # the first after it
        if 0 <= session.tick <= tick:
            return
        self.clear(session)
        session.tick = tick
        if tick not in self._sessions:
            self._sessions[tick] = {}
            heapq.heappush(self._ticks, tick)
        self._sessions[tick][session.id] = session

    def clear(self, session: Session) -> None:
        if session.tick >= 0:
            del self._sessions[session.tick][session.id]
            session.tick = -1

    def next(self) -> float:
        return self._ticks[0] * TICK if self._ticks else inf

    def due(self, now: float) -> list[Session]:
        """The sessions whose alarm goes off."""
        sessions: list[Session] = []
        while self.next() <= now:
            sessions += self._sessions.pop(heapq.heappop(self._ticks)).values()
        for session in sessions:
            session.tick = -1
        return sessions


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator chooses."""

    history: int
    rate: int
    max_users: int
    members_only: bool = False
    keep_days: int = 0  # for ever


class Server:
    """Everything between the socket and the store. One turn is

    ``receive_untrusted`` for each datagram, ``handle``, ``commit`` (until it succeeds), and
    ``datagrams``, which are to be sent; ``deadline`` says when the next turn is due anyway.
    """

    def __init__(
        self, store: Store, options: Options, timing: Timing, random_bytes: RandomBytes, now: float
    ) -> None:
        self._store = store
        self._options = options
        self._timing = timing
        self._random_bytes = random_bytes
        self._room = Room(store, options.history)
        self._door = Door(timing, random_bytes)
        self._brake = Brake(timing)
        self._comings: OrderedDict[str, protocol.Bucket] = OrderedDict()  # by network
        self._room_key = random_bytes(32)
        self._blocks = protocol.RoomBlocks(self._room_key)
        self._sessions: dict[bytes, Session] = {}
        self._active: dict[bytes, Session] = {}  # those that this turn has to look at
        self._lingering: dict[bytes, Session] = {}  # the oldest first
        self._alarms = Alarms()
        self._handshakes = Waiting()
        self._work = 0.0  # that they may still do in this turn
        self._replies: list[tuple[bytes, Address]] = []
        self._forget_at = self._check_at = now
        self._prune_at = now
        self._listening_since = now  # nobody could be heard before
        self._due_at = now  # when the next turn should be
        self._told_at = -inf  # when everybody was last told what is new in the room ...
        self._tell_at = inf  # ... and will be
        # Members from before a restart are awaited, and told now and then that their sessions are
        # gone, since they may not have noticed.
        self._remind_at = now if self._room.members else inf
        self._remind_pause = timing.first_timeout

    # -- the turn

    def receive_untrusted(self, data: bytes, address: Address, now: float) -> None:
        """Takes in one datagram; what is wrong with it concerns nobody else."""
        try:
            if data[:1] == b"{":
                self._handshake_untrusted(data, address, now)
            else:
                self._packet_untrusted(data, address, now)
        except ProtocolError as error:
            self._reject(data, address, error)

    def _reject(self, data: bytes, address: Address, why: ProtocolError) -> None:
        """What is wrong with a datagram is told to the operator, and perhaps to its sender."""
        if not isinstance(why, protocol.Objection):
            log.info("dropped %d bytes from %s port %d: %s", len(data), *address[:2], why)
            return
        if why.code is not Refusal.LOGIN:  # of which more has been told
            log.info("refused %s port %d: %s", *address[:2], why)
        self._answer(protocol.Refused(why.nonce, why.code.value, str(why)), address, len(data))

    def _handshake_untrusted(self, data: bytes, address: Address, now: float) -> None:
        """Answers what costs no arithmetic, and so leaves nothing behind, at once. What does has to
        wait, and comes from an address that has returned a cookie."""
        record = protocol.parse_handshake_untrusted(data)
        match record:
            case protocol.Join() if challenge := self._door.repeated(record, address, now):
                self._replies.append((challenge, address))
            case protocol.Join() if self._door.has_good_cookie(record, address, now):
                self._handshakes.put(Arrived(record, data, address))
            case protocol.Hello():  # or a JOIN
                self._answer(self._door.cookie(record, address, now), address, len(data))
            case protocol.Prove() if welcome := self._repeated(record, data, address):
                self._replies.append((welcome, address))
            case protocol.Prove() if self._door.knock(record, address, now):
                self._handshakes.put(Arrived(record, data, address))
            case protocol.Prove():
                self._answer(protocol.Gone(record.session), address, len(data))
            case _:
                raise protocol.BadPacket("a handshake packet that only a server sends")

    def _repeated(self, prove: protocol.Prove, data: bytes, address: Address) -> bytes | None:
        """The welcome that this very PROVE was answered with."""
        session = self._sessions.get(prove.session)
        if session and (session.prove, session.address) == (_hash(data), address):
            return session.welcome
        return None

    def _packet_untrusted(self, data: bytes, address: Address, now: float) -> None:
        session_id = protocol.session_of_untrusted(data)
        session = self._sessions.get(session_id)
        if session is None:
            self._answer(protocol.Gone(session_id), address, len(data))
            return
        packet = protocol.open_packet_untrusted(data, session.theirs, self._blocks)
        is_newest = session.channel.receive(packet, now)
        if is_newest and address != session.address:
            self._follow(session, packet.echo, address, now)
        writers, member = session.channel.writers, session.member
        if session.logs[LogId.INBOX] is member.inbox:
            member.inbox.forget(writers[LogId.INBOX].cursor)
        session.logs[LogId.NOTICES].drop(writers[LogId.NOTICES].cursor)
        self._active[session.id] = session

    def _follow(self, session: Session, echo: int, address: Address, now: float) -> None:
        """A member's newest packet has come from a new address. The member has moved if it answers
        from there: anybody on the way can send its packet from anywhere, and a member can pretend
        to be where somebody else is (RFC 9000 §9.3)."""
        path = session.path if session.path and session.path.address == address else None
        if path and echo in path.numbers:
            session.path, session.address = None, address
            session.channel.migrate()
            member = session.member
            member.host, member.port = address[:2]
            self._store.changed_members[member.key] = member
            log.debug("%s is at %s port %d now", member.name, *address[:2])
        elif session.channel.number < protocol.MAX_NUMBER and (
            session.path is None or now >= session.path.expires
        ):
            gaps = (int.from_bytes(self._random_bytes(GAP_BYTES), "big") for _ in range(2))
            packet = session.channel.challenge(now, *gaps)
            numbers = (*(path.numbers if path else ()), packet.number)[-CHALLENGES_AT_ONCE:]
            expires = now + session.channel.round_trip.timeout(0)
            session.path = Path(address, numbers, expires)
            # Not longer than the packet that it answers: it has no parts.
            self._replies.append((self._sealed(packet, session), address))

    def _sealed(self, packet: protocol.Packet, session: Session) -> bytes:
        return protocol.seal_packet(packet, session.id, session.own, self._blocks)

    def _answer(self, record: protocol.Handshake, address: Address, limit: int) -> None:
        """Answers an address that may be forged: never with more bytes than came from it."""
        reply = protocol.format_handshake(record)
        if len(reply) <= limit:
            self._replies.append((reply, address))

    def handle(self, now: float, unix: int) -> None:
        """Does what the datagrams and the time ask for; ``unix`` is the time that lines show."""
        self._room.unix, self._room.is_talking = unix, False
        if now > self._due_at + LATE:  # stopped, or waiting for the room file
            self._listening_since = now
        if now >= self._forget_at:
            before = unix - INSTANCE_MEMORY
            self._forget_at = now + self._forget(self._store.forget, before, FORGET_EVERY)
        if now >= self._prune_at:
            keep_days = self._options.keep_days
            before = unix - keep_days * DAY if keep_days else 0
            self._prune_at = now + self._forget(self._room.prune, before, PRUNE_EVERY)
            self._end_overtaken()
        for session in self._alarms.due(now):
            self._look_after(session, now)
        has_lines = any(session.has_lines for session in self._active.values())
        if has_lines or self._handshakes or now >= self._check_at:
            self._check_accounts(now)
        self._work = HANDSHAKES_PER_TURN
        while self._handshakes and self._work > 0:
            self._work -= PACKET_COST
            self._shake_hands_untrusted(self._handshakes.take(), now)
        self._take_lines(now)
        if now >= self._remind_at:
            self._remind(now)

    def _take_lines(self, now: float) -> None:
        """One line of each member in turn, as far as its rate allows."""
        queue = deque(self._active.values())
        taken = 0
        while queue and taken < LINES_PER_TURN:
            session = queue.popleft()
            if not session.has_lines:
                continue
            bucket = session.member.bucket
            assert bucket  # since the session was opened
            if (ready_at := bucket.ready_at()) > now:
                self._wake(session, ready_at)
                continue
            bucket.take(now)
            number, raw = session.channel.readers[LogId.LINES].take()
            for notice in self._room.handle(session.member, number, raw):
                session.logs[LogId.NOTICES].append(notice)
            if session.member.state is not State.PRESENT:
                self._linger(session, now)
            queue.append(session)
            taken += 1
        for session in queue:  # theirs is the next turn
            if session.has_lines:
                self._wake(session, now)

    def _linger(self, session: Session, now: float) -> None:
        """Its member has left, and may ask for a while whether that is known."""
        session.ends_at = now + self._timing.linger
        session.channel.readers[LogId.LINES] = protocol.Reader(session.member.lines, 0)
        self._wake(session, session.ends_at)
        self._lingering[session.id] = session
        if len(self._lingering) > LINGERING:
            self._end(next(iter(self._lingering.values())))

    def _silent_at(self, session: Session) -> float:
        """When it counts as gone if it is not heard before."""
        heard_at = max(session.channel.heard_at, self._listening_since)
        return heard_at + self._timing.server_silence

    def _look_after(self, session: Session, now: float) -> None:
        """Its alarm has gone off."""
        due_at = min(session.channel.deadline(), session.wake_at)
        if due_at > now:  # most were set for an answer that has come meanwhile
            self._alarms.at_latest(session, due_at)
            return
        silent_at = self._silent_at(session)
        is_silent = now >= silent_at
        if is_silent and session.member.state is State.PRESENT:
            self._room.leave(session.member, State.WRITTEN_OUT, "timed out")
        if is_silent or now >= session.ends_at:
            self._end(session)
            return
        self._active[session.id] = session
        session.wake_at = inf
        self._wake(session, min(silent_at, session.ends_at))

    def _wake(self, session: Session, when: float) -> None:
        """Looks after it then, whatever its channel has to do."""
        session.wake_at = min(session.wake_at, when)
        self._alarms.at_latest(session, when)

    def _check_accounts(self, now: float) -> None:
        """Nobody joins or says a word while somebody else is in under a name that the operator has
        given away meanwhile. (The operator's program writes into the same file.)"""
        self._check_at = now + CHECK_PAUSE
        try:
            ids = self._store.foreign_changes()
        except StoreError as error:
            log.error("%s: changes of accounts have to wait", error)
            return
        if ids is None:
            return
        for name, member in list(self._room.members.items()):
            if ids.get(name, b"") != member.account:
                is_removed = name not in ids
                reason = "the account was removed" if is_removed else "the name was registered"
                self._room.leave(member, State.LEFT, reason)
                if session := self._sessions.get(member.session):
                    self._put_out(session, reason, now)

    def _put_out(self, session: Session, words: str, now: float) -> None:
        """Its member may hear why, and nothing more."""
        for each in (LogId.ROOM, LogId.INBOX):
            session.logs[each] = session.channel.cut(each)
        if words:
            notice = self._room.line(protocol.SERVER, protocol.Expelled(words))
            session.logs[LogId.NOTICES].append(notice)
        self._linger(session, now)
        self._active[session.id] = session

    def _end(self, session: Session) -> None:
        del self._sessions[session.id]
        self._active.pop(session.id, None)
        self._lingering.pop(session.id, None)
        self._alarms.clear(session)

    def _remind(self, now: float) -> None:
        """Tells the members from before the restart who are not back; writes them out at last."""
        over_at = self._listening_since + self._timing.server_silence
        absent = [m for m in self._room.members.values() if m.session not in self._sessions]
        for member in absent:
            if now >= over_at:
                self._room.leave(member, State.WRITTEN_OUT, "timed out")
            else:
                gone = protocol.format_handshake(protocol.Gone(member.session))
                self._replies.append((gone, (member.host, member.port)))
        is_over = now >= over_at or not absent
        self._remind_at = inf if is_over else min(now + self._remind_pause, over_at)
        self._remind_pause *= 2

    def _forget(self, forget: Callable[[int], bool], before: int, every: float) -> float:
        """Some of what is from before that Unix time; returns in how many seconds to go on."""
        try:
            return PRUNE_PAUSE if forget(before) else every
        except StoreError as error:
            log.warning("%s: what is old stays in it for now", error)
            return every

    def _end_overtaken(self) -> None:
        """Who has not read what was pruned can only come back to what there still is."""
        for session in list(self._sessions.values()):
            if session.channel.writers[LogId.ROOM].cursor < self._room.log.oldest:
                if session.member.state is State.PRESENT:
                    self._room.leave(session.member, State.WRITTEN_OUT, "fell behind")
                self._end(session)

    def commit(self) -> None:
        """Makes the turn last, then visible. StoreError: nothing is, and it is to be repeated."""
        has_news = bool(self._room.log.staged)
        members = self._store.commit()
        if has_news:
            pause = -inf if self._room.is_talking else TELL_PAUSE
            self._tell_at = min(self._tell_at, self._told_at + pause)
        for member in members:
            if session := self._sessions.get(member.session):
                self._active[session.id] = session

    def datagrams(self, now: float) -> Iterator[tuple[bytes, Address]]:
        """What is to be sent now: replies of the handshake, then what sessions have to say. It has
        to be taken to its end."""
        out, self._replies = self._replies, []
        if self._tell_at <= now:
            self._active.update(self._sessions)
            self._told_at, self._tell_at = now, inf
        for session in self._active.values():
            if len(out) >= AT_A_TIME:
                yield from out
                out.clear()
            try:
                packets = session.channel.packets(now, session.logs)
            except StoreError as error:  # it lags behind what is in memory
                log.error("%s: %s has to wait until it can be", error, session.member.name)
                self._wake(session, now + self._timing.store_pause)
                continue
            for packet in packets:
                out.append((self._sealed(packet, session), session.address))
            if (due_at := session.channel.deadline()) < inf:
                self._alarms.at_latest(session, max(now, due_at))
        yield from out
        self._active.clear()
        self._due_at = self._next_timer()

    def deadline(self) -> float:
        """When the next turn is due if nothing comes in."""
        if self._handshakes or self._replies:
            return -inf
        return self._next_timer()

    def _next_timer(self) -> float:
        timers = self._tell_at, self._remind_at, self._forget_at, self._prune_at
        return min(self._alarms.next(), *timers)

    def close(self) -> None:
        """Tells every member that the server is shutting down."""
        for session in self._sessions.values():
            notice = self._room.line(protocol.SERVER, protocol.Closing())
            session.logs[LogId.NOTICES].append(notice)
            self._active[session.id] = session

    def has_told_all(self) -> bool:
        """Whether every member has read its notices."""
        sessions = self._sessions.values()
        notices = LogId.NOTICES
        return all(s.channel.writers[notices].cursor == s.logs[notices].end for s in sessions)

    # -- joining

    def _shake_hands_untrusted(self, arrived: Arrived, now: float) -> None:
        data, address = arrived.data, arrived.address
        try:
            match arrived.record:
                case protocol.Join() as join:
                    self._join(join, address, now)
                case protocol.Prove() as prove:
                    self._prove_untrusted(prove, data, address, now)
                case _:
                    assert_never(arrived.record)
        except ProtocolError as error:
            self._reject(data, address, error)
        except StoreError as error:
            log.error("%s: nobody can join until it can be", error)

    def _join(self, join: protocol.Join, address: Address, now: float) -> None:
        if challenge := self._door.repeated(join, address, now):  # the one before it was the same
            self._replies.append((challenge, address))
            return
        account = self._account(join.username)
        self._check_brake(join, account, address, now)
        self._work -= POWER_COST
        challenge = self._door.challenge(join, account, address, now)
        self._replies.append((challenge, address))

    def _is_holders(self, name: str, address: Address) -> bool:
        """Whether that is where the member of that name is."""
        holder = self._room.members.get(fold(name))
        return holder is not None and (holder.host, holder.port) == address[:2]

    def _may_come(self, name: str, address: Address, now: float) -> bool:
        """Whether somebody who is not in may come in from there: who comes and goes all the time
        fills everybody's screen, and the file."""
        return fold(name) in self._room.members or self._coming(address).ready_at() <= now

    def _coming(self, address: Address) -> protocol.Bucket:
        network, fresh = network_of(address[0]), protocol.Bucket(self._options.rate, COMINGS)
        bucket = self._comings.setdefault(network, fresh)
        self._comings.move_to_end(network)
        if len(self._comings) > NETWORKS:
            self._comings.popitem(last=False)
        return bucket

    def _account(self, name: str) -> Account:
        """Whom somebody of that name has to be."""
        account = self._store.account(name)
        is_unknown = account.is_guest and self._options.members_only
        return self._store.nobody(name) if is_unknown else account

    def _check_brake(
        self, join: protocol.Join, account: Account, address: Address, now: float
    ) -> None:
        if account.is_guest:
            return
        if wait := self._brake.wait(*self._brake_key(join.username, address), now):
            words = f"too many attempts, wait {ceil(wait)} s"
            raise protocol.Objection(join.nonce, Refusal.WAIT, words)

    def _brake_key(self, name: str, address: Address) -> tuple[str, str]:
        """What the brake counts by: the name and the network."""
        host, port = address[:2]
        is_holders = self._is_holders(name, address)
        return fold(name), f"{host} port {port}" if is_holders else network_of(host)

    def _prove_untrusted(
        self, prove: protocol.Prove, data: bytes, address: Address, now: float
    ) -> None:
        if welcome := self._repeated(prove, data, address):  # the one before it was the same
            self._replies.append((welcome, address))
            return
        knock = self._door.knock(prove, address, now)
        account = self._account(knock.join.username) if knock else GUEST
        if knock is None or knock.account != account:
            self._answer(protocol.Gone(prove.session), address, len(data))
            return
        if not self._may_come(knock.join.username, address, now):
            return  # the client repeats its PROVE
        knock = replace(knock, account=account)  # its latest instance may be another one by now
        try:
            self._check_brake(knock.join, account, address, now)
            proof = self._open_prove_untrusted(knock, prove, data, now)
            member, farewell = self._admit(proof, now)
        except Undecided:
            return  # the client repeats its PROVE
        except ProtocolError:
            self._door.use_up(knock)
            raise
        self._door.use_up(knock)
        session = self._open_session(member, proof, now)
        if farewell is None:
            self._settle_in(session, now)
        else:
            self._put_out(session, farewell, now)

    def _open_prove_untrusted(
        self, knock: Knock, prove: protocol.Prove, data: bytes, now: float
    ) -> Proof:
        """Does the arithmetic, and keeps count of wrong passwords."""
        is_guest = knock.account.is_guest
        key = self._brake_key(knock.join.username, knock.address)
        self._work -= POWER_COST * (1 if is_guest else 2)
        try:
            proof = open_prove_untrusted(knock, prove, data)
        except ProtocolError:
            if is_guest:
                raise
            self._brake.fail(*key, now)
            name, (host, port) = knock.join.username, knock.address[:2]
            log.info("wrong password for %s from %s port %d", name, host, port)
            words = "wrong username or password"
            raise protocol.Objection(prove.nonce, Refusal.LOGIN, words) from None
        if not is_guest:
            self._brake.succeed(*key)
        return proof

    def _admit(self, proof: Proof, now: float) -> tuple[Member, str | None]:
        """The member that this instance is or becomes; and, if it has no place in the room any
        more, why not. Raises Objection or Undecided."""
        knock, resume = proof.knock, proof.resume
        nonce, name, account = knock.join.nonce, knock.join.username, knock.account
        key = _hash(resume.instance)
        holder = self._room.members.get(fold(name))
        if holder and holder.key == key:
            return holder, None
        known = self._store.member(key)
        if known and fold(known.name) != fold(name):
            raise protocol.Objection(nonce, Refusal.USERNAME, f"this client is {known.name}'s")
        if known and known.account != account.id:  # the name was given to somebody since
            known = None
        inbox = self._store.log(account.id or key)
        member = known or Member(key, account.name or name, account.id, inbox)
        # One that is forgotten has been here too; but not so in an older copy of the file.
        is_of_this_file = resume.log_id == self._store.log_id and resume.room <= self._room.log.next
        if known or is_of_this_file:
            has_successor = account.latest not in (b"", key) or bool(holder)
            if not account.is_guest and has_successor:
                member.state = State.LEFT
                return member, ELSEWHERE
        if member.state is State.LEFT:
            return member, "this client has left the room"
        if account.is_guest and holder and not self._is_deserted(holder, knock.address, now):
            raise protocol.Objection(nonce, Refusal.IN_USE, f"the name {holder.name} is in use")
        if not holder and len(self._room.members) >= self._places(account):
            words = f"the room is full ({self._options.max_users} members)"
            raise protocol.Objection(nonce, Refusal.FULL, words)
        if account.is_guest and holder:
            self._room.leave(holder, State.WRITTEN_OUT, "replaced")
        return member, None

    def _places(self, account: Account) -> int:
        """Guests cannot fill the room for those who have an account."""
        places, has_more = self._options.max_users, not self._options.members_only
        return places + ceil(places / 10) if has_more and not account.is_guest else places

    def _is_deserted(self, holder: Member, address: Address, now: float) -> bool:
        """Whether the holder of a name that somebody at ``address`` wants is gone: if that was its
        own socket address, its program has ended, unless it still answers. So a client that
        crashed can come back under its name. Raises Undecided until that is known."""
        if not self._is_holders(holder.name, address):
            return False
        if self._coming(address).ready_at() > now:  # who goes and comes again has to wait, too
            raise Undecided
        session = self._sessions.get(holder.session)
        if session is None:
            return True
        if session.probed_at == inf:
            session.probed_at = now
            session.channel.ask(now)
            self._active[session.id] = session
        if session.channel.heard_at >= session.probed_at:
            session.probed_at = inf
            return False
        if now < session.probed_at + self._timing.probe:
            raise Undecided
        self._end(session)
        return True

    def _open_session(self, member: Member, proof: Proof, now: float) -> Session:
        # Also one that was put out, of an account that is not there any more.
        for old in [each for each in self._sessions.values() if each.member.key == member.key]:
            self._end(old)
        if not member.session:  # it has never been here
            member.first = self._room.history_start()
        knock, keys = proof.knock, proof.keys
        terms = self._terms(member, proof.resume)
        reply, sealed = protocol.seal_record(keys.welcome, proof.prove.proof, terms)
        welcome = protocol.format_handshake(
            protocol.Welcome(knock.join.nonce, knock.session, reply, sealed)
        )
        writes = {LogId.ROOM: terms.room, LogId.INBOX: terms.inbox, LogId.NOTICES: 0}
        channel = protocol.Channel(self._timing, now, {LogId.LINES: terms.lines}, writes)
        burst = terms.rate * protocol.BURST_SECONDS * BURST_MARGIN
        # Or who joins again, or takes over, could begin with a new burst.
        holder = self._room.members.get(fold(member.name), member)
        fresh = protocol.Bucket(terms.rate * RATE_MARGIN, burst)
        member.bucket = member.bucket or holder.bucket or fresh
        logs = {LogId.ROOM: self._room.log, LogId.INBOX: member.inbox, LogId.NOTICES: Log()}
        session = Session(
            *(knock.session, knock.address, keys.server, keys.client, member, channel),
            *(_hash(proof.prove_bytes), welcome, logs),
        )
        member.session, (member.host, member.port) = session.id, knock.address[:2]
        self._store.changed_members[member.key] = member
        self._sessions[session.id] = session
        self._active[session.id] = session
        self._wake(session, self._silent_at(session))
        self._replies.append((welcome, knock.address))
        return session

    def _settle_in(self, session: Session, now: float) -> None:
        """The member enters, or comes back. If it has an account, nobody else reads the inbox of
        that from now on."""
        member = session.member
        if member.account:
            for other in list(self._sessions.values()):  # one may have to make way
                if other is not session and other.logs[LogId.INBOX] is member.inbox:
                    is_in = other.member.state is State.PRESENT
                    self._put_out(other, ELSEWHERE if is_in else "", now)
        if member.state is not State.PRESENT:
            if fold(member.name) not in self._room.members:
                self._coming(session.address).take(now)
            self._room.enter(member)

    def _terms(self, member: Member, resume: protocol.Resume) -> protocol.Terms:
        """Where the session starts. Cursors of another log, or beyond this one's end (an older
        copy of the file), are void: their owner begins like a newcomer."""
        room, inbox = self._room.log, member.inbox
        is_known = bool(member.session)  # it has been here before
        is_valid = is_known and resume.log_id == self._store.log_id
        is_valid = is_valid and resume.room <= room.next and resume.inbox <= inbox.next
        return protocol.Terms(
            log_id=self._store.log_id,
            known=is_known,
            lines=member.lines,
            room=max(
                resume.room if is_valid else self._room.history_start(), member.first, room.oldest
            ),
            inbox=max(resume.inbox if is_valid else 0, inbox.oldest),
            history_end=room.next,
            kept_end=inbox.next,
            room_key=self._room_key,
            rate=self._options.rate,
        )


# ------------------------------------------------------------------------------------ the loop


class Sparing(logging.Filter):
    """Lets ``LOG_BURST`` lines of each kind through, and then one in ``LOG_PAUSE`` seconds, which
    says how many were left out before it: what costs a stranger next to nothing must not fill the
    operator's disk, nor hide the rest. A kind is what is the same in all its lines."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._buckets: dict[str, protocol.Bucket] = {}
        self._left_out: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = record.msg, self._clock()
        bucket = self._buckets.setdefault(kind, protocol.Bucket(1 / LOG_PAUSE, LOG_BURST))
        if bucket.ready_at() > now:
            self._left_out[kind] += 1
            return False
        bucket.take(now)
        if count := self._left_out.pop(kind, 0):
            record.msg = f"{kind} ({count} more like this were left out)"
        return True


class Signals:
    """Ctrl-C and SIGTERM as something that ``select`` can wait for."""

    def __init__(self) -> None:
        self.caught = False
        self.socket, self._alarm = socket.socketpair()
        self.socket.setblocking(False)
        self._alarm.setblocking(False)
        signal.set_wakeup_fd(self._alarm.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._catch)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = True

    def wait(self, seconds: float, *others: socket.socket) -> bool:
        """Until a signal comes, one of the other sockets is readable, or the time is over; whether
        one of the others is."""
        timeout = None if seconds == inf else max(0.0, seconds)
        readable, _, _ = select.select([self.socket, *others], [], [], timeout)
        if self.socket in readable:
            self.socket.recv(4096)
            readable.remove(self.socket)
        return bool(readable)


def serve(server: Server, udp: socket.socket, signals: Signals, timing: Timing) -> None:
    """Turn after turn, until a signal comes; then a little longer, to tell the members."""
    ends_at = inf
    while True:
        now, is_readable = time.monotonic(), False
        if signals.caught and ends_at == inf:
            ends_at = now + timing.shutdown
            server.close()
        elif now >= ends_at or (signals.caught and server.has_told_all()):
            return
        else:
            is_readable = signals.wait(min(server.deadline(), ends_at) - now, udp)
        now = time.monotonic()
        for data, address in _received(udp) if is_readable else ():
            server.receive_untrusted(data, address, now)
        server.handle(now, int(time.time()))
        if not _commit(server, signals, timing):
            return
        for data, address in server.datagrams(time.monotonic()):
            _send(udp, data, address)


def _received(udp: socket.socket) -> Iterator[tuple[bytes, Address]]:
    for _ in range(DATAGRAMS_PER_TURN):
        try:
            # One byte more than is allowed, so that a longer datagram does not pass for one cut.
            yield udp.recvfrom(protocol.MAX_DATAGRAM + 1)
        except BlockingIOError:
            return
        except OSError:  # Windows reports that a member's port is closed, or the datagram's size
            continue


def _send(udp: socket.socket, data: bytes, address: Address) -> None:
    try:
        udp.sendto(data, address)
    except OSError as error:  # a full queue or no route: the same as a lost datagram
        log.debug("could not send to %s: %s", address, error)


def _commit(server: Server, signals: Signals, timing: Timing) -> bool:
    """Tries until the turn is on disk; False if a signal came first."""
    is_waiting = False
    while True:
        try:
            server.commit()
        except StoreError as error:
            if not is_waiting:
                log.error("%s: the room waits until it can be", error)
            is_waiting = True
            signals.wait(timing.store_pause)
            if signals.caught:
                log.error("ended without that: what was not acknowledged is still with its sender")
                return False
        else:
            if is_waiting:
                log.info("the room file can be written again")
            return True


def open_socket(host: str | None, port: int) -> socket.socket:
    """A UDP socket on ``host``, or on all addresses; OSError if that cannot be had."""
    if host is None and socket.has_ipv6:
        try:
            return _bind(socket.AF_INET6, ("::", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
    if host is None:
        return _bind(socket.AF_INET, ("0.0.0.0", port))
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    # Of a name with both kinds of address the client, too, takes the IPv4 one.
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return _bind(family, address)


def _bind(family: int, address: Any) -> socket.socket:
    udp = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:  # IPv4 members too, where the system has both
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        udp.setblocking(False)
        udp.bind(address)
    except OSError:
        udp.close()
        raise
    return udp


# ------------------------------------------------------------------------------------ the program


EXAMPLES: Final = """examples:
  python chatserver.py
  python chatserver.py 4242 --db lab.db --history 50 --keep-days 7
  python chatserver.py --members-only
  python chatserver.py --add-user alice
"""


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help shows how it is used)\n")


def _username(text: str) -> str:
    try:
        return protocol.check_username(text)
    except protocol.BadMessage as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _file_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the name of the room file is empty")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="chatserver.py",
        description="The server of a chat room over UDP.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument

    def number(name: str, low: int, high: int, default: int, words: str, **more: Any) -> None:
        def convert(text: str) -> int:
            if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
                raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
            return int(text)

        add(name, type=convert, default=default, help=words, **more)

    words = "the UDP port to listen on (default: %(default)s; 0: any free one)"
    number("port", 0, 65535, protocol.DEFAULT_PORT, words, metavar="PORT", nargs="?")
    add("--host", help="the address to listen on (default: all, IPv6 and IPv4)")
    words = "the room file (default: %(default)s)"
    add("--db", metavar="FILE", type=_file_name, default="chat.db", help=words)
    words = "public lines that a newcomer is shown (default: %(default)s)"
    number("--history", 0, 1000, 20, words, metavar="N")
    words = "lines per second and member (default: %(default)s; 0: no limit)"
    number("--rate", 0, 1_000_000, 10, words, metavar="N")
    words = "days for which public lines are kept (default: %(default)s; 0: for ever)"
    number("--keep-days", 0, 36_500, 30, words, metavar="N")
    words = "members at the same time (default: %(default)s)"
    number("--max-users", 1, 100_000, 1000, words, metavar="N")
    words = "let in only who has an account, and let nobody register"
    add("--members-only", action="store_true", help=words)
    words = f"log everything, and not only one in {LOG_PAUSE:.0f} s of what happens all the time"
    add("-v", "--verbose", action="store_true", help=words)
    add("--version", action="version", version=f"%(prog)s {protocol.__version__}")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--add-user", metavar="NAME", type=_username, help="add an account to the room file")
    add("--remove-user", metavar="NAME", type=_username, help="remove one, and what is kept for it")
    add("--list-users", action="store_true", help="show the accounts and when they were made")
    return parser


def _why_not(error: OSError | UnicodeError, host: str | None, port: int) -> str:
    where = f"UDP port {port} on {'all addresses' if host is None else host or repr(host)}"
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return (
            f"{where} is already in use: is another chatserver.py running? "
            "Choose another port and another room file, for example: "
            f"python chatserver.py {port % 65535 + 1} --db other.db"
        )
    return f"cannot listen on {where}: {getattr(error, 'strerror', None) or error}"


def manage_accounts(args: argparse.Namespace) -> list[str]:
    """Does what the operator wants with the accounts, beside a running server or without one;
    returns what to print. Raises StoreError or BadMessage, having changed nothing."""
    if args.add_user:
        return [_add_user(args.db, args.add_user, _new_password(args.add_user))]
    if not os.path.exists(args.db):
        raise StoreError(f"there is no room file {args.db}: --db names another one")
    with closing(Store(args.db, alone=False)) as store:
        if args.remove_user:
            if not store.remove(args.remove_user):
                raise StoreError(f"nobody is registered as {args.remove_user}")
            return [f"removed {args.remove_user}"]
        return [f"{a.name:{protocol.MAX_NAME}} {_date(a.created)}" for a in store.accounts()]


def _date(unix: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix))


def _add_user(path: str, name: str, password: bytes) -> str:
    it = protocol.registration(password, os.urandom(protocol.SALT_LENGTH))
    account = Account(
        os.urandom(16), name, it.salt, it.iterations, it.verifier, created=int(time.time())
    )
    with closing(Store(path, alone=False)) as store:
        if not store.add(account):
            raise StoreError(f"{name} is registered already: --remove-user first")
    return f"added {name}"


def _new_password(name: str) -> bytes:
    """From CHAT_PASSWORD, or asked for twice. Raises BadMessage."""
    typed = os.environ.get("CHAT_PASSWORD")
    if typed is None:
        if sys.stdin is None or not sys.stdin.isatty():
            raise protocol.BadMessage("put the password into CHAT_PASSWORD: there is no terminal")
        try:
            typed = getpass.getpass(f"New password for {name}: ")
            again = getpass.getpass("Once more: ")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            raise protocol.BadMessage("no password was given: nothing was changed") from None
        except UnicodeDecodeError:
            raise protocol.BadMessage("that is not UTF-8: nothing was changed") from None
        if typed != again:
            raise protocol.BadMessage("that was not the same twice: nothing was changed")
    return protocol.prepare_password(typed)


def main(argv: list[str] | None = None, timing: Timing = TIMING) -> int:
    """Runs the server, or manages accounts; returns the exit status."""
    args = _parser().parse_args(argv)
    if args.add_user or args.remove_user or args.list_users:
        try:
            print("".join(f"{line}\n" for line in manage_accounts(args)), end="", flush=True)
        except (StoreError, protocol.BadMessage) as error:
            print(f"chatserver.py: {error}", file=sys.stderr)
            return 1
        except OSError:  # nobody reads it, or a full disk
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return 0
    level = logging.DEBUG if args.verbose else logging.INFO
    logging.basicConfig(format="%(asctime)s %(message)s", level=level)
    if not args.verbose:
        log.addFilter(Sparing())
    options = Options(args.history, args.rate, args.max_users, args.members_only, args.keep_days)
    signals = Signals()
    try:
        udp = open_socket(args.host, args.port)
    except (OSError, UnicodeError) as error:
        print(f"chatserver.py: {_why_not(error, args.host, args.port)}", file=sys.stderr)
        return 1
    with udp:
        try:
            store = Store(args.db)
            server = Server(store, options, timing, os.urandom, time.monotonic())
            with suppress(OSError):  # whoever started it may not want to know
                print("Listening on UDP {} port {}".format(*udp.getsockname()), flush=True)
            serve(server, udp, signals, timing)
            store.close()
        except StoreError as error:
            print(f"chatserver.py: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
