"""The chat room's terminal client: two threads around one protocol object.

    reading thread   stdin -> parse_message -> Client.say
    main thread      recv -> Client.receive_untrusted -> Said, Note -> the screen
                     send <- Client.datagrams <- - - - - timers, lines

    Credentials    what the person can prove
    Attempt        one handshake, from HELLO to WELCOME
    Delivery       what was said, until it has come back
    Client         what this end knows: its cursors, what it has yet to deliver, how it is
                   connected; no socket, no clock, no thread
    Screen         a pipe: where lines appear, one by one, and are read
    PlainTerminal  one with a prompt
    Terminal       one above whose prompt lines appear, and what is still waiting
    Network        the socket and the signals; one lock guards the Client, and is never held while
                   waiting, sending or printing

In a pipe every input line is delivered before the program ends. Exit status: 0 left with everything
delivered, 1 could not join or deliver or was put out, 2 usage.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import getpass
import importlib
import io
import itertools
import math
import os
import re
import select
import signal
import socket
import sys
import threading
import time
import unicodedata
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from types import ModuleType
from typing import Any, Final, NoReturn, TypeAlias, TypeVar, assert_never

import protocol
from protocol import TIMING, VERSION, LogId, ProtocolError, Refusal, Timing, fold


def _optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# Windows has none of them; its console edits lines by itself.
readline, curses, termios = map(_optional, ("readline", "curses", "termios"))

IS_LIBEDIT: Final = "libedit" in ((readline and readline.__doc__) or "")

RandomBytes: TypeAlias = Callable[[int], bytes]
T = TypeVar("T")

HELP: Final = (  # narrow enough for a small screen
    "text          to everyone (or PM text)",
    "DM name text  to one member only",
    "PM, DM        alone, they ask",
    "WHO           who is here",
    "EX            leave (Ctrl-D too)",
    "Tab, Up       complete, repeat",
)
COMMANDS: Final = ("DM ", "PM ", "WHO", "HELP", "EX")
# What ends the client properly.
_LEAVING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
LEAVING: Final = {getattr(signal, name) for name in _LEAVING if hasattr(signal, name)}
STOPPING: Final = {signal.SIGTSTP} if hasattr(signal, "SIGTSTP") else set()
PASSWORD_TRIES: Final = 3
SALTS: Final = 8  # at once, with each of which a server can ask for a second's work or two
SALTS_RATE: Final = 1 / 60  # and how many a second
MAX_BACKLOG: Final = 1000  # undelivered lines: an endless pipe must not fill the memory
BACKLOG_PAUSE: Final = 0.05  # seconds
CLOSING_PATIENCE: Final = 1.0  # seconds until who reads lets go of its terminal, if ever
MAX_NAMES: Final = 10_000  # that are remembered, whatever a server says
SHOWN_PENDING: Final = 10  # lines: who pipes thousands need not read each one again
YOUNG: Final = 1.0  # seconds: what was shown since somebody pressed Enter is younger
ENTERED_PAUSE: Final = 0.001  # seconds between two looks whether readline has let go of it
RECENT_ROWS: Final = 200  # more than any screen has
BRACKETS_PASTES: Final = "\033[?2004h"  # from now on a terminal marks where they begin and end
# What a terminal has to understand: go up, delete and insert rows, clear the row, save and restore
# the cursor (terminfo(5)'s names).
CAPABILITIES: Final = ("cuu1", "dl1", "il1", "el", "sc", "rc")
EXAMPLE: Final = "for example: python chatclient.py 127.0.0.1 7890 alice"
EXAMPLES: Final = """examples:
  python chatclient.py 127.0.0.1 7890 alice
  python chatclient.py 192.168.1.5 0 bob --server-port 4242
  python chatclient.py 127.0.0.1 7890 alice --register
  make 2>&1 | python chatclient.py 127.0.0.1 0 buildbot
"""

# -------------------------------------------------------------------------------------- joining


class Failed(Exception):
    """The room cannot be joined; the text is for the person. The code is REFUSED's, if the right
    password would mend it."""

    def __init__(self, words: str, code: str = "") -> None:
        super().__init__(words)
        self.code = code


class Credentials:
    """What the person can prove: nothing (a guest), a password, a new one that is to be
    registered, or both."""

    def __init__(
        self, password: bytes | None = None, new: bytes | None = None, salt: bytes = b""
    ) -> None:
        self.password = password
        self.registration = None if new is None else protocol.registration(new, salt)
        self._new = new
        # They take a while, and joining again must not. The one that was used last is the last.
        self._secrets: dict[tuple[bytes, bytes, int], int] = {}
        self._work = protocol.Bucket(SALTS_RATE, SALTS)

    def secret_untrusted(self, salt: bytes, iterations: int, now: float) -> int:
        """x for a CHALLENGE; Failed if it makes a guest of who has a password, or wants a
        password of who has none."""
        password = self.password
        if self.registration and self.registration.salt == salt:
            password = self._new  # it has arrived, though we have not heard of that
        if not salt and not iterations:
            if password is not None:
                raise Failed(
                    "this server does not know the name: to join as a guest, give no password"
                )
            return protocol.GUEST_SECRET
        if password is None:
            raise Failed("this name needs its password", Refusal.LOGIN.value)
        what = (password, salt, iterations)
        is_new = what not in self._secrets
        if is_new and self._work.ready_at() > now:
            raise Failed("this server asks for more and more work")
        try:
            secret = self._secrets.pop(what, 0) or protocol.password_secret_untrusted(*what)
        except ProtocolError as error:
            raise Failed(f"this server asks for something dangerous: {error}") from None
        if is_new:
            self._work.take(now)
        self._secrets[what] = secret
        if len(self._secrets) > SALTS:
            del self._secrets[next(iter(self._secrets))]
        return secret

    def adopt(self, password: bytes) -> None:
        """The one that somebody has just typed, and is worth new work."""
        self.password, self._work = password, protocol.Bucket(SALTS_RATE, SALTS)

    def adopt_new(self) -> None:
        """The new password is the one that counts."""
        self.password, self.registration = self._new, None


class Attempt:
    """One handshake: a request that is repeated, byte for byte, until its answer comes."""

    def __init__(
        self, username: str, credentials: Credentials, random_bytes: RandomBytes, start: float
    ) -> None:
        self.nonce = random_bytes(16)
        self._credentials = credentials
        self._a = int.from_bytes(random_bytes(32), "big")
        self._a_public = protocol.GROUP.power(self._a)
        public = protocol.GROUP.pad(self._a_public)
        self._hello = protocol.Hello(VERSION, username, self.nonce, public)
        self.is_login = False  # and not a guest's
        # Once the server has been told our cursors, they must not move any more.
        self.proven: tuple[protocol.Prove, protocol.SessionKeys] | None = None
        self.request = protocol.format_handshake(self._hello)
        self.since = start  # of this request's first sending
        self.send_at = start

    def _ask(self, request: protocol.Handshake, now: float) -> None:
        self.request = protocol.format_handshake(request)
        self.since = self.send_at = now

    def is_for(self, session: bytes) -> bool:
        return self.proven is not None and self.proven[0].session == session

    def receive_untrusted(
        self, record: protocol.Handshake, data: bytes, resume: protocol.Resume, now: float
    ) -> protocol.Terms | None:
        """Takes the answer to its request; the terms if it was the last. Raises Failed if that
        asks for what the person cannot prove, ProtocolError if it makes no sense."""
        match record:
            case protocol.Cookie(self.nonce, cookie) if not self.proven:
                hello = self._hello
                join = protocol.Join(VERSION, hello.username, hello.nonce, hello.public, cookie)
                self._ask(join, now)
            case protocol.Challenge(self.nonce) if not self.proven:
                self._answer_untrusted(record, data, resume, now)
            case protocol.Welcome(self.nonce, session, proof, sealed) if self.proven:
                mine, keys = self.proven
                if session == mine.session:
                    return protocol.open_record_untrusted(
                        protocol.Terms, keys.welcome, mine.proof, proof, sealed
                    )
        return None

    def _answer_untrusted(
        self, challenge: protocol.Challenge, data: bytes, resume: protocol.Resume, now: float
    ) -> None:
        x = self._credentials.secret_untrusted(challenge.salt, challenge.iterations, now)
        self.is_login = x != protocol.GUEST_SECRET
        b_public = int.from_bytes(challenge.public, "big")
        secret = protocol.client_secret_untrusted(self._a, self._a_public, b_public, x)
        keys = protocol.derive_keys(secret, self._hello.identity, data)
        proof, sealed = protocol.seal_record(keys.prove, keys.transcript, resume)
        prove = protocol.Prove(self.nonce, challenge.session, proof, sealed)
        self.proven = prove, keys
        self._ask(prove, now)


# ------------------------------------------------------------------------------- what is shown


@dataclass(frozen=True, slots=True)
class Said:
    """A text, said to everyone or to one member."""

    unix: int | None  # seconds; None: it has not come back yet
    sender: str
    to: str  # "": everyone
    text: str
    is_own: bool = False  # this client has sent it
    label: str = ""  # "earlier", "kept"; of one that has not come back: "not delivered yet"


@dataclass(frozen=True, slots=True)
class Note:
    """Words of the server and the client, or what became of a member."""

    words: str
    unix: int | None = None
    is_of_waiting: bool = False  # for a screen that does not show what is waiting


Shown: TypeAlias = Said | Note

# ------------------------------------------------------------------------------------ the client


@dataclass(frozen=True, slots=True)
class Session:
    """A proven connection."""

    id: bytes
    is_login: bool  # and not a guest's
    keys: protocol.SessionKeys
    blocks: protocol.RoomBlocks
    channel: protocol.Channel

    @property
    def delivered(self) -> int:
        """Below which of our lines all are on the server's disk."""
        return self.channel.writers[LogId.LINES].cursor


class Delivery:
    """What was said, until it has come back.

    queue -> (at the agreed rate) outbox -> the server's cursor -> shown to everybody
    """

    def __init__(self, first: Iterable[protocol.Message], now: float) -> None:
        self.queue = deque(first)
        self.outbox = protocol.Log()
        self.pending: dict[int, protocol.Message] = {}  # numbered, and not seen come back
        self._forms: dict[int, str] = {}  # the same, as they will come back
        self.bucket = protocol.Bucket(0, 0)
        self.exit: int | None = None  # the number of our EX
        self.progress_at = now  # when something was last delivered, or began to wait
        self.is_late = False

    def progress(self, now: float) -> None:
        self.progress_at, self.is_late = now, False

    def waiting(self) -> Iterator[tuple[float, protocol.Message]]:
        """In order, and with their numbers; inf: none yet. Nobody waits for WHO."""
        lines: list[tuple[float, protocol.Message]] = [*self.pending.items()]
        lines += [(inf, message) for message in self.queue]
        return ((n, message) for n, message in lines if not isinstance(message, protocol.Who))

    def say(self, message: protocol.Message, now: float) -> None:
        if not self.queue and not self.pending:
            self.progress(now)
        self.queue.append(message)

    def number(self, now: float) -> None:
        """Writes as much as the rate allows into the outbox."""
        while self.queue and self.bucket.ready_at() <= now:
            self.bucket.take(now)
            message = self.queue.popleft()
            number = self._write(message)
            self.pending[number], self._forms[number] = message, _form(message)

    def forget(self, number: int) -> protocol.Message | None:
        """Waits for that one no longer."""
        self._forms.pop(number, None)
        return self.pending.pop(number, None)

    def write_exit(self) -> None:
        """The last line of all, once all others have come back."""
        if self.exit is None and not self.queue and not self.pending:
            self.exit = self._write(protocol.Exit())

    def _write(self, message: protocol.Message) -> int:
        return self.outbox.append(protocol.format_message(message).encode())

    def settle(self, message: protocol.Message, delivered: int, now: float) -> bool:
        """Whether this is a line of ours that has come back: it is where everybody sees it. The
        name alone would not tell, since while we were away it may have had another owner."""
        form = _form(message)
        found = (n for n, pending in self._forms.items() if pending == form and n < delivered)
        return self.answered(next(found, -1), now) is not None

    def answered(self, number: int, now: float) -> protocol.Message | None:
        """Line ``number``, of which the server has told what became of it."""
        message = self.forget(number)
        if message:
            self.progress(now)
        return message

    def asked(self) -> list[int]:
        """The numbers of the WHOs that have no answer yet."""
        return [n for n, message in self.pending.items() if isinstance(message, protocol.Who)]

    def ask_again(self, delivered: int) -> None:
        """The answers to WHO that were on their way have gone with their session."""
        for number in reversed(self.asked()):
            if number < delivered:
                self.queue.appendleft(self.pending[number])
                self.forget(number)

    def renumber(self, start: int) -> list[protocol.Message]:
        """The server does not know this instance: to send again might say things twice. Returns
        what may not have arrived."""
        lost: list[protocol.Message] = []
        for message in self.pending.values():
            if isinstance(message, protocol.Who | protocol.Register):  # can be asked twice
                self.queue.appendleft(message)
            else:
                lost.append(message)
        self.pending.clear()
        self._forms.clear()
        self.outbox = protocol.Log(start)
        self.exit = None
        return lost


class Client:
    """One member, from the first HELLO to the acknowledged EX.

    ``receive_untrusted`` and ``port_closed`` say what came from the socket; ``datagrams`` is what
    is due now, and ``deadline`` when next; ``shown`` collects the lines for the screen, and
    ``waiting`` is what has been said and has not come back yet.
    """

    def __init__(
        self,
        username: str,
        credentials: Credentials,
        server: str,
        timing: Timing,
        random_bytes: RandomBytes,
        now: float,
    ) -> None:
        self.username = username
        self.shown: list[Shown] = []
        self.failure: str | None = None  # why the program has to end with status 1
        self.wants_password = False  # and that this could mend it: see log_in
        self.has_left = False
        self._credentials = credentials
        self._server = server  # in words
        self._timing = timing
        self._random_bytes = random_bytes
        self._instance = random_bytes(16)
        self._log_id = b""
        self._session: Session | None = None
        self._old_ends: dict[LogId, int] = {}  # lines below are older than this instance
        self._roster: list[str] = []  # as much of the answer to WHO as has come
        self._present: dict[str, str] = {}  # as spelled, by folded name; who spoke last is last

        registration, who = credentials.registration, protocol.Who()
        self._delivery = Delivery([registration, who] if registration else [who], now)
        self._complaint: str | None = None  # what went wrong, though we can leave properly
        self.patience = inf  # how long to wait for progress while leaving

        # Joining, and joining again
        self._attempt: Attempt | None = self._new_attempt(now)
        self._former: Attempt | None = None  # given up after its proof: its WELCOME still counts
        self._trying_since = now
        self._is_in_doubt = False  # whether the session still lives
        self._closed_since = self._ask_again_at = inf
        self._hint_at = -inf
        self._ended: Session | None = None  # the one of which the server has said so
        self._has_said_trouble = False
        self._refusals: set[str] = set()  # codes of those that were told; "": of an unknown one

    # -- what the person does

    def log_in(self, password: bytes, now: float) -> None:
        """Tries to join with this password, after it was wanted."""
        self._credentials.adopt(password)
        self.failure, self.wants_password = None, False
        self._join_again(now)

    @property
    def has_joined(self) -> bool:
        return self._session is not None

    def say(self, message: protocol.Message, now: float) -> None:
        """Will be delivered, and in this order, unless we have said goodbye already."""
        if self.is_over or self._delivery.exit is not None:
            self._complaint = self._say_lost([], [message])
            return
        self._delivery.say(message, now)
        is_short = len(self._delivery.queue) <= 2 * SHOWN_PENDING  # to count them all takes a while
        if self._has_said_trouble and is_short and len(self.undelivered()) <= SHOWN_PENDING:
            self._tell_late(_in_words(message))

    def leave(self, patience: float, now: float) -> None:
        """Delivers what there is, then EX; gives up after ``patience`` seconds without any
        progress. Who has begun to leave says nothing more, and can only lose patience."""
        self.patience = min(self.patience, patience)
        self._delivery.progress_at = now
        if not self.has_joined:
            self.has_left = True

    @property
    def is_leaving(self) -> bool:
        return self.patience < inf

    def ask(self, now: float) -> None:
        """Wants a sign of life, from wherever we are by now."""
        if self._session:
            self._session.channel.ask(now)

    @property
    def is_over(self) -> bool:
        return self.has_left or self.failure is not None

    # -- what comes in

    def receive_untrusted(self, data: bytes, now: float) -> None:
        """Takes in one datagram; what makes no sense is ignored."""
        self._closed_since = inf
        try:
            if data[:1] == b"{":
                self._handshake_untrusted(data, now)
            else:
                self._packet_untrusted(data, now)
        except ProtocolError:
            pass
        except Failed as error:
            self._refused(error.code, str(error), now)

    def port_closed(self, now: float) -> None:
        """The server's host says that nobody listens. Before the first joining that is believed
        after a while; later the server may be starting again."""
        self._closed_since = min(self._closed_since, now)
        if self.has_joined and self._attempt is None:
            self._doubt(now)

    def _packet_untrusted(self, data: bytes, now: float) -> None:
        session = self._session
        if session is None or protocol.session_of_untrusted(data) != session.id:
            return
        if self._attempt and self._attempt.proven:
            return  # the cursors that it has told the server must not move
        packet = protocol.open_packet_untrusted(data, session.keys.server, session.blocks)
        delivered = session.delivered
        if session.channel.receive(packet, now) and self._is_alive(session, now):
            self._end_trouble()
            if session.is_login or self._credentials.password is None:
                self._attempt = None  # no reason to join again
        if session.delivered > delivered:
            self._delivery.progress(now)
            self._delivery.outbox.drop(session.delivered)
        for log, reader in session.channel.readers.items():
            while reader.is_ready:
                self._former = None  # it has told another cursor
                number, raw = reader.take()
                with contextlib.suppress(protocol.BadMessage):
                    self._read_untrusted(log, number, raw, now)

    def _handshake_untrusted(self, data: bytes, now: float) -> None:
        record = protocol.parse_handshake_untrusted(data)
        match record:
            case protocol.Gone(session):
                is_ours = self._session is not None and self._session.id == session
                if is_ours or (self._attempt and self._attempt.is_for(session)):
                    self._doubt(now)
            case protocol.Refused(nonce, code, text):
                if self._attempt and self._attempt.nonce == nonce:
                    self._refused(code, protocol.clean_text(text), now)
            case _:
                for attempt in filter(None, (self._attempt, self._former)):
                    if terms := attempt.receive_untrusted(record, data, self._resume(), now):
                        self._welcomed(terms, attempt, now)
                        return

    def _read_untrusted(self, log: LogId, number: int, raw: bytes, now: float) -> None:
        """Takes a line; what of it concerns the person is shown."""
        relayed = protocol.parse_relayed_untrusted(raw)
        if number < self._old_ends.get(log, 0):
            self._show_old(relayed)
        else:
            self._take(relayed, now)

    def _show_old(self, relayed: protocol.Relayed) -> None:
        """History, and what was kept; answers are to lines of an earlier instance."""
        unix, sender = relayed.unix, relayed.sender
        match relayed.event:
            case protocol.Public(text):
                self._note_name(sender)
                self.shown.append(Said(unix, sender, "", text, label="earlier"))
            case protocol.Direct(to, text) if fold(to) == fold(self.username):
                self.shown.append(Said(unix, sender, to, text, label="kept"))

    def _take(self, relayed: protocol.Relayed, now: float) -> None:
        unix, sender = relayed.unix, relayed.sender
        has_our_name = fold(sender) == fold(self.username)
        match relayed.event:
            case protocol.Public(text) as message:
                is_own = has_our_name and self._settle(message, now)
                self._note_name(sender)
                self.shown.append(Said(unix, sender, "", text, is_own))
            case protocol.Direct(to, text) as message:
                if has_our_name:
                    self._settle(message, now)
                is_own = fold(to) != fold(self.username)
                self._note_name(to if is_own else sender)
                self.shown.append(Said(unix, sender, to, text, is_own))
            case protocol.Accepted(accepted, words):
                self._accepted(self._answered(accepted, now), words, unix, now)
            case protocol.Declined(refused, words):
                self._declined(self._answered(refused, now), words, now)
            case protocol.Roster(more, names):
                self._roster = [*self._roster, *names][:MAX_NAMES]
                if not more:
                    self._show_roster()
            case protocol.Closing():
                self._await_return(now)
            case protocol.Expelled(words):
                self._expelled(words)
            case protocol.Joined() | protocol.Exit() if has_our_name:
                pass
            case protocol.Joined():
                self._note_name(sender)
                self.shown.append(Note(f"{sender} joined", unix))
            case protocol.Exit(reason):
                self._present.pop(fold(sender), None)
                words = f"{sender} left" + (f" ({reason})" if reason else "")
                self.shown.append(Note(words, unix))
            case _:
                assert_never(relayed.event)

    def _settle(self, message: protocol.Message, now: float) -> bool:
        return self._delivery.settle(message, self._delivered, now)

    def _answered(self, number: int, now: float) -> protocol.Message | None:
        return self._delivery.answered(number, now) if number < self._delivered else None

    @property
    def _delivered(self) -> int:
        return self._session.delivered if self._session else 0

    def _note_name(self, name: str) -> None:
        self._present.pop(fold(name), None)
        self._present[fold(name)] = name
        if len(self._present) > MAX_NAMES:
            del self._present[next(iter(self._present))]

    @property
    def others(self) -> list[str]:
        """Who else is here; whom we have talked with last comes first."""
        return [name for key, name in reversed(self._present.items()) if key != fold(self.username)]

    def _expelled(self, words: str) -> None:
        """What the server has not taken by now, it never will."""
        taken, unknown, unsent = self._fates()
        lost = self._say_lost(taken, unknown + unsent)
        self.failure = f"{words}, and {lost}" if lost else words

    def _accepted(
        self, message: protocol.Message | None, words: str, unix: int, now: float
    ) -> None:
        match message:
            case protocol.Register():
                self._credentials.adopt_new()
                self._join_again(now)  # from now on as the name's owner
            case protocol.Direct(to, text):
                self.shown.append(Said(unix, self.username, to, text, is_own=True))
        self._tell(words)

    def _declined(self, message: protocol.Message | None, words: str, now: float) -> None:
        if isinstance(message, protocol.Register):  # nobody becomes a guest without a word
            self._complaint = f"not registered: {words}"
            self.leave(self._timing.leave_patience, now)
            return
        hint = ""
        if isinstance(message, protocol.Direct):
            hint = f". To say it to everyone: PM {protocol.format_message(message)}"
        self._tell(f"not delivered: {words}{hint}")

    def _show_roster(self) -> None:
        self._tell(f"here: {', '.join(self._roster)}")
        names = {fold(name): name for name in self._roster}
        spoken = {key: names.pop(key) for key in self._present if key in names}
        self._present = names | spoken
        self._roster = []
        self._delivery.forget(min(self._delivery.asked(), default=-1))

    # -- joining and joining again

    def _resume(self) -> protocol.Resume:
        room = inbox = 0
        if self._session:
            readers = self._session.channel.readers
            room, inbox = readers[LogId.ROOM].cursor, readers[LogId.INBOX].cursor
        return protocol.Resume(self._log_id, self._instance, room, inbox)

    def _is_alive(self, session: Session, now: float) -> bool:
        """Whether a packet just heard is a sign of life: not if ours do not get through, nor if the
        server has said that it ends."""
        is_heard = now < session.channel.unanswered_since + self._timing.answer_patience
        return is_heard and session is not self._ended

    def _join_again(self, now: float, pause: float = 0.0) -> None:
        self._attempt = self._new_attempt(now + pause)
        self._trying_since = now

    def _new_attempt(self, start: float) -> Attempt:
        return Attempt(self.username, self._credentials, self._random_bytes, start)

    def _doubt(self, now: float) -> None:
        """The session may be gone, or the server with which a handshake had got so far: asks in the
        session, and handshakes anew beside it if nothing answers. For hints can be forged: so they
        count only now and then, and not for who has been told to wait."""
        attempt = self._attempt
        if now < self._hint_at + self._timing.hint_pause or (attempt and now < attempt.since):
            return
        self._hint_at = now
        self._is_in_doubt = True
        if self._session and attempt is None:
            self._session.channel.ask(now)
            timeout = self._session.channel.round_trip.timeout(0)
            self._ask_again_at = now + timeout / 2  # one question or its answer may be lost
            self._join_again(now, timeout)
        elif attempt and attempt.proven:
            self._try_again(attempt, now)
        elif attempt:
            attempt.send_at = now

    def _try_again(self, attempt: Attempt, start: float) -> None:
        self._former = attempt if attempt.proven else None
        self._attempt = self._new_attempt(start)

    def _await_return(self, now: float) -> None:
        """The server is shutting down; what it still says in this session is no sign of life."""
        if self._ended is self._session:
            return
        self._say_trouble("the server is shutting down: waiting for it to return")
        self._ended = self._session
        self._is_in_doubt = True
        self._join_again(now, self._pause(0.0))

    def _refused(self, code: str, words: str, now: float) -> None:
        """Turned away. That ends the first joining; later it may pass, since nobody has proved
        that it was the server who said so."""
        attempt, wants_password = self._attempt, code == Refusal.LOGIN.value
        assert attempt  # or nothing would have been refused
        if not self.has_joined:
            self.failure, self.wants_password = f"{words} ({self._server})", wants_password
            return
        kind = code if code in {each.value for each in Refusal} else ""
        is_known = kind in self._refusals
        if not is_known:
            self._refusals.add(kind)
            told = f"not let in again ({words}): still trying"
            if self._is_in_doubt and not self._has_said_trouble:
                self._say_trouble(told)
            else:
                self._tell(told)
        pause = self._pause(now - self._trying_since)
        if wants_password and attempt.is_login:  # it has tried one
            timing = self._timing
            pause = timing.login_pause if is_known else timing.first_login_pause
        self._try_again(attempt, now + pause)

    def _pause(self, trouble: float) -> float:
        """Seconds until a request is repeated: a third of the ``trouble`` so far, so that the end
        of a short one is noticed soon and a long one costs little, less up to a quarter at random,
        so that members do not come back all at once."""
        pause = min(max(self._timing.first_timeout, trouble / 3), self._timing.max_pause)
        return pause * (1 - self._random_bytes(1)[0] / 1024)

    def _welcomed(self, terms: protocol.Terms, attempt: Attempt, now: float) -> None:
        resume = self._resume()
        is_resumed = terms.known and terms.log_id == self._log_id and terms.room >= resume.room
        outbox = self._delivery.outbox
        if not is_resumed or not outbox.start <= terms.lines <= outbox.end:
            # The server knows nothing of what we have read and written, or had another file.
            self._old_ends = {LogId.ROOM: terms.history_end, LogId.INBOX: terms.kept_end}
            for message in self._delivery.renumber(terms.lines):
                self._tell(f"may not have arrived: {_in_words(message)}")
        if terms.log_id == self._log_id and terms.room > resume.room:
            self._tell(f"{_lines(terms.room - resume.room, 'is', 'are')} missing here")
        self._delivery.outbox.drop(terms.lines)
        self._delivery.ask_again(terms.lines)
        self._delivery.bucket = protocol.Bucket(terms.rate, terms.rate * protocol.BURST_SECONDS)
        self._log_id = terms.log_id
        self._roster = []
        if not self.has_joined and attempt.is_login:
            self._tell(f"logged in as {self.username}")
        self._session = self._open_session(terms, attempt, now)
        self._attempt = self._former = None
        self._refusals.clear()
        self._end_trouble()

    def _open_session(self, terms: protocol.Terms, attempt: Attempt, now: float) -> Session:
        jitter = self._random_bytes(1)[0] / 256
        channel = protocol.Channel(
            self._timing,
            now,
            reads={LogId.ROOM: terms.room, LogId.INBOX: terms.inbox, LogId.NOTICES: 0},
            writes={LogId.LINES: terms.lines},
            keepalive=self._timing.keepalive + jitter * self._timing.keepalive_jitter,
        )
        blocks = protocol.RoomBlocks(terms.room_key)
        assert attempt.proven  # or there would be no WELCOME
        prove, keys = attempt.proven
        return Session(prove.session, attempt.is_login, keys, blocks, channel)

    def _say_trouble(self, words: str) -> None:
        """Says it once, and what is pending; what is typed from now on waits for its end."""
        if self._has_said_trouble:
            return
        self._has_said_trouble = True
        self._tell(words)
        late = self.undelivered()
        for message in late[:SHOWN_PENDING]:
            self._tell_late(_in_words(message))
        if more := len(late[SHOWN_PENDING:]):
            self._tell_late(f"{more} more")

    def _end_trouble(self) -> None:
        self._is_in_doubt = False
        if self._has_said_trouble:
            self._tell("connected")
            self._has_said_trouble = False

    def _tell(self, words: str) -> None:
        self.shown.append(Note(words))

    def _tell_late(self, words: str) -> None:
        self.shown.append(Note(f"not delivered yet: {words}", is_of_waiting=True))

    # -- what is due

    def datagrams(self, now: float) -> list[bytes]:
        """What is to be sent now."""
        if self._session and not self.is_over:
            self._write(self._session, now)
        for when, bring_about in list(self._timers()):
            if when <= now and not self.is_over:
                bring_about(now)
        out = []
        if self._attempt and self._attempt.send_at <= now:
            out.append(self._attempt.request)
            self._attempt.send_at = now + self._pause(now - self._attempt.since)
        if self._session and not (self._attempt and self._attempt.proven):
            session = self._session
            if self.is_over:  # the last packet: what we have read must not be sent again
                session.channel.acknowledge(now)
            for packet in session.channel.packets(now, {LogId.LINES: self._delivery.outbox}):
                out.append(
                    protocol.seal_packet(packet, session.id, session.keys.client, session.blocks)
                )
        return out

    def _timers(self) -> Iterator[tuple[float, Callable[[float], None]]]:
        """What time alone brings about, and when."""
        timing = self._timing
        if self._session is None:
            yield self._closed_since + timing.closed_patience, self._fail_closed
            yield self._trying_since + timing.join_patience, self._fail_silent
        elif self._ask_again_at < inf:
            yield self._ask_again_at, self._ask_again
        elif not self._is_in_doubt:
            asked_at = self._session.channel.unanswered_since
            if self._attempt and self._attempt.proven:  # nothing is asked in the session now
                asked_at = self._attempt.since
            yield asked_at + timing.answer_patience, self._lose_session
        is_unexplained = self._is_in_doubt or (not self.has_joined and self._closed_since == inf)
        if is_unexplained and not self._has_said_trouble:
            yield self._trying_since + timing.trouble, self._mention_trouble
        delivery = self._delivery
        if not delivery.is_late and (delivery.queue or delivery.pending):
            yield delivery.progress_at + timing.late, self._grow_late
        yield delivery.progress_at + self.patience, self._give_up
        if self._is_in_doubt and delivery.exit is not None:  # only the goodbye is not acknowledged
            yield self._trying_since + timing.leave_patience, self._give_up

    def _ask_again(self, now: float) -> None:
        self._ask_again_at = inf
        self.ask(now)

    def _fail_closed(self, now: float) -> None:
        self.failure = f"nobody is listening on {self._server}: is chatserver.py running there?"

    def _fail_silent(self, now: float) -> None:
        self.failure = (
            f"no answer from {self._server}: is the address right, and does every firewall on "
            "the way let UDP through?"
        )

    def _grow_late(self, now: float) -> None:
        self._delivery.is_late = True

    def _lose_session(self, now: float) -> None:
        self._is_in_doubt = True
        self._join_again(now)
        self._say_trouble("no answer from the server: reconnecting")

    def _mention_trouble(self, now: float) -> None:
        words = "the connection is lost: reconnecting"
        if self._session is None:
            words = f"no answer from {self._server} yet: still trying"
        self._say_trouble(words)

    def _write(self, session: Session, now: float) -> None:
        """What is typed in trouble waits for its end, so that its fate is known."""
        if not self._has_said_trouble:
            self._delivery.number(now)
        if self.is_leaving:
            self._delivery.write_exit()
        if self._delivery.exit is not None and session.delivered > self._delivery.exit:
            self.has_left, self.failure = True, self._complaint

    @property
    def backlog(self) -> int:
        """How many lines wait to be sent, acknowledged or shown."""
        return len(self._delivery.queue) + len(self._delivery.pending) + len(self.shown)

    def waiting(self) -> list[Said]:
        """What was said and has not come back, in order."""
        is_late = self._delivery.is_late or self._has_said_trouble
        label = "not delivered yet" if is_late else ""
        waiting = []
        for _, message in self._delivery.waiting() if not self.is_over else ():
            match message:
                case protocol.Public(text):
                    waiting.append(Said(None, self.username, "", text, True, label))
                case protocol.Direct(to, text):
                    waiting.append(Said(None, self.username, to, text, True, label))
        return waiting

    def undelivered(self) -> list[protocol.Message]:
        """What was said and is not known to be on the server's disk, in order."""
        _, unknown, unsent = self._fates()
        return unknown + unsent

    def _fates(self) -> tuple[list[protocol.Message], ...]:
        """What was said and has not come back: what has been taken, but may have been refused; what
        has been sent, and so may have arrived; and what has not even been sent."""
        taken = sent = 0
        if self._session:
            writer = self._session.channel.writers[LogId.LINES]
            taken, sent = writer.cursor, writer.next
        lines = list(self._delivery.waiting())
        return (
            [m for number, m in lines if number < taken and not isinstance(m, protocol.Public)],
            [m for number, m in lines if taken <= number < sent],
            [m for number, m in lines if sent <= number],
        )

    def _give_up(self, now: float) -> None:
        self.failure = self._say_all_lost() or self._complaint
        self.has_left = not self.failure  # only the goodbye is not acknowledged

    def abandon(self) -> None:
        """Does not wait for the server any longer, if it is in."""
        if self.has_joined and not self.is_over:
            lost = self._say_all_lost()
            words = "ended before the server knew that you have left"
            self.failure = f"{words}, and {lost}" if lost else words

    def _say_all_lost(self) -> str:
        taken, unknown, unsent = self._fates()
        return self._say_lost(taken + unknown, unsent)

    def _say_lost(self, unknown: list[protocol.Message], lost: list[protocol.Message]) -> str:
        """Names what may be lost and what is; returns how much that is, in words."""
        for message in unknown:
            self._tell(f"may not have arrived: {_in_words(message)}")
        for message in lost:
            self._tell(f"failed: {_in_words(message)}")
        counts = []
        if unknown:
            counts.append(_lines(len(unknown), "may not have arrived", "may not have arrived"))
        if lost:
            counts.append(_lines(len(lost), "was not delivered", "were not delivered"))
        return ", and ".join(counts)

    def deadline(self) -> float:
        """When ``datagrams`` is to be called again if nothing happens before."""
        times = [when for when, _ in self._timers()]
        if self._attempt:
            times.append(self._attempt.send_at)
        if self._session and not (self._attempt and self._attempt.proven):
            times.append(self._session.channel.deadline())
        if self._session and self._delivery.queue and not self._has_said_trouble:
            times.append(self._delivery.bucket.ready_at())
        return min(times)


def _form(message: protocol.Message) -> str:
    """What a line and its coming back have in common."""
    return fold(protocol.format_message(message))


def _lines(count: int, one: str, many: str) -> str:
    return f"1 line {one}" if count == 1 else f"{count} lines {many}"


def _in_words(message: protocol.Message) -> str:
    is_registration = isinstance(message, protocol.Register)
    return "the registration" if is_registration else protocol.format_message(message)


# ------------------------------------------------------------------------------ lines in words


# How a part of a line looks on a terminal (ECMA-48 §8.3.117, SGR).
PLAIN: Final = ""
FAINT: Final = "2"  # times, comings and goings, and what is no news
ASIDE: Final = "1;35"  # for one member only
MENTION: Final = "1;7"  # reversed
NOTE: Final = "33"
LATE: Final = "1;33"
NAME_COLOURS: Final = (31, 32, 33, 34, 35, 36, 91, 92, 93, 94, 95, 96)  # not black, not white
Span: TypeAlias = tuple[str, str]  # a part, and its look
INDENT: Final = "  "  # of a line's further rows


def plain(lines: Iterable[Shown], me: str, now: float) -> list[str]:
    """The lines as a pipe has them, at ``now`` in Unix seconds: it does not repeat one's own."""
    others = (line for line in lines if not (isinstance(line, Said) and line.is_own))
    return ["".join(text for text, _ in spans_of(line, me, now)) for line in others]


def spans_of(line: Shown, me: str, now: float) -> list[Span]:
    """The parts of a line as it is shown to ``me``."""
    match line:
        case Note(words, unix):
            if unix is None:
                return [(f"* {words}", NOTE)]
            return [(f"{_clock(unix, now)} * {words}", FAINT)]
        case Said(unix, label=label):
            talk = _talk(line, me)
    if unix is None:
        words = "".join(text for text, _ in talk)
        return [(f"[{label or '.....'}] {words}", LATE if label else FAINT)]
    clock = f"{_clock(unix, now)} "
    if not label:
        return [(clock, FAINT), *talk]
    if not line.to:
        talk = [(text, FAINT) for text, _ in talk]
    return [(f"* {label}: {clock}", FAINT), *talk]


def _talk(said: Said, me: str) -> list[Span]:
    """Who says what to whom."""
    talk = [_name(said.sender)]
    if said.to and said.is_own:
        talk = [("you -> ", ASIDE), _name(said.to)]
    elif said.to:
        talk.append((" -> you", ASIDE))
    talk.append((": ", PLAIN))
    looks = itertools.cycle((PLAIN, PLAIN if said.is_own else MENTION))
    return talk + list(zip(_around(me).split(said.text), looks))


@functools.cache
def _around(name: str) -> re.Pattern[str]:
    """Where a text mentions the name: as a word of its own, in any letter case."""
    return re.compile(rf"(?<![\w-])({re.escape(name)})(?![\w-]|\.\w)", re.IGNORECASE)


def is_calling(line: Shown, me: str) -> bool:
    """Whether the person should look up: at a message for them alone, or one with their name."""
    if not isinstance(line, Said) or line.is_own or line.label:
        return False
    return bool(line.to or _around(me).search(line.text))


def _clock(unix: int, now: float) -> str:
    """The time of the day, with the date if that is not today's."""
    then, today = time.localtime(unix), time.localtime(now)
    is_today = then[:3] == today[:3]
    return time.strftime("[%H:%M]" if is_today else "[%Y-%m-%d %H:%M]", then)


def _name(name: str) -> Span:
    """Bold, and in a colour of its own."""
    colour = NAME_COLOURS[zlib.crc32(fold(name).encode()) % len(NAME_COLOURS)]
    return name, f"1;{colour}"


def rows_of(spans: list[Span], columns: int) -> Iterator[str]:
    """A line in pieces that each fit a row, cut between words where that is possible."""
    letters = [(letter, look) for text, look in spans for letter in text]
    first, start = 0, ""
    while (end := _fitting(letters, first, columns - len(start))) < len(letters):
        rest = end
        for at in range(end, (first + end) // 2 - 1, -1):
            if letters[at][0] == " ":
                end, rest = at, at + 1
                break
        yield start + _row(letters[first:end])
        first, start = rest, INDENT
    yield start + _row(letters[first:])


def _fitting(letters: list[Span], first: int, columns: int) -> int:
    """The end of those from ``first`` on that fit; one does at least."""
    for at in range(first, len(letters)):
        columns -= _columns_of(letters[at][0])
        if columns < 0:
            return max(first + 1, at)
    return len(letters)


def _columns_of(letter: str) -> int:
    if letter == "\ufe0f":  # makes a wide picture of the letter before it
        return 1
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _row(letters: list[Span]) -> str:
    parts = []
    for look, group in itertools.groupby(letters, key=lambda each: each[1]):
        text = "".join(letter for letter, _ in group)
        parts.append(f"\033[{look}m{text}\033[m" if look else text)
    return "".join(parts)


# ---------------------------------------------------------------------------------- the screens

Candidates: TypeAlias = Callable[[str], list[str]]  # what Tab can make of a line up to the cursor


class Screen:
    """Where lines appear and are typed: this one is a pipe, plain lines without prompts."""

    is_terminal = False
    is_live = False  # whether it shows what is waiting

    def __init__(self, me: str) -> None:
        self.is_closed = False  # nobody reads what we write
        self._me = me
        for stream in (sys.stdin, sys.stdout):
            if isinstance(stream, io.TextIOWrapper):
                encoding = None if self.is_terminal else "utf-8"
                stream.reconfigure(encoding=encoding, errors="replace")
        # Not sys.stdin's own buffer: the interpreter's end wants that, and who reads waits in it.
        self._input = io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False))

    def show(self, lines: Sequence[Shown], waiting: Sequence[Said]) -> None:
        """Shows lines, and what is waiting."""
        self._write(self._plain(lines))

    def _plain(self, lines: Sequence[Shown]) -> str:
        """The lines; on a terminal in rows, since what it wrapped by itself could begin a row like
        somebody else's line."""
        rows: Iterable[str] = plain(lines, self._me, time.time())
        if sys.stdout.isatty():
            columns = _size().columns - 1  # some go on in the next row at once
            rows = (piece for row in rows for piece in rows_of([(row, PLAIN)], columns))
        return "".join(f"{row}\n" for row in rows)

    def ask(self, prompt: str, candidates: Candidates, remembers: bool = False) -> str | None:
        """What is typed next, clean; several lines if they were pasted. None at the end of input.
        On a terminal ``candidates`` says what Tab does."""
        try:
            raw = self._input.readline()
        except OSError:  # as nohup leaves it: open, but not for reading
            return None
        return protocol.clean_text(raw.decode(errors="replace")) if raw else None

    def suspend(self) -> None:
        """Stops, as Ctrl-Z wants it, until somebody lets the program go on."""

    def close(self) -> None:
        """Leaves it as it was, though the other thread may still be reading."""

    def _write(self, text: str) -> None:
        if not text:  # an unbuffered stream would ask a full disk, which has no room for nothing
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except OSError:  # its reader is gone, or its disk is full
            self.give_up()

    def give_up(self) -> None:
        """Nobody reads what we write: it goes nowhere, with what is buffered, or being written when
        a signal brings this about; nor will anybody complain of it at the end."""
        self.is_closed = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class PlainTerminal(Screen):
    """A terminal of which nothing is known: lines appear below the one that is being typed, which
    is then shown again if it can be known. What one has said stays where it was typed."""

    is_terminal = True

    def __init__(self, me: str) -> None:
        super().__init__(me)
        self._prompt = ""  # the one that is to be seen at the moment
        self._lock = threading.Lock()  # for who draws, and who reads before it asks
        self._attributes = termios.tcgetattr(sys.stdin.fileno()) if termios else None
        if readline:
            readline.parse_and_bind("bind ^I rl_complete" if IS_LIBEDIT else "tab: complete")
            readline.set_auto_history(False)
            readline.set_completer_delims("")  # a completion has the whole line

    def show(self, lines: Sequence[Shown], waiting: Sequence[Said]) -> None:
        text = self._plain(lines)
        if text and self._prompt:
            text = f"\n{text}{self._prompt}{self._typed()}"
        self._write(text)

    def ask(self, prompt: str, candidates: Candidates, remembers: bool = False) -> str | None:
        if readline:
            readline.set_completer(Completer(candidates))
        with self._lock:
            if readline and not IS_LIBEDIT:  # it says when the prompt is there
                readline.set_startup_hook(functools.partial(self._begin, prompt))
            else:
                self._begin(prompt)
        try:
            typed = self._read(prompt)
        except (EOFError, OSError):
            self._end_row("")
            return None
        finally:
            self._prompt = ""
        typed = "\n".join(map(protocol.clean_text, typed.replace("\r", "\n").split("\n")))
        if readline and remembers and typed.strip():
            readline.add_history(typed)
        return typed

    def _begin(self, prompt: str) -> None:
        self._prompt = prompt

    def _read(self, prompt: str) -> str:
        return input(prompt)

    def _end_row(self, typed: str) -> None:
        self._write("\n")

    def suspend(self) -> None:
        if termios:
            attributes = termios.tcgetattr(sys.stdin.fileno())
            self._restore()
            os.kill(os.getpid(), signal.SIGSTOP)
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, attributes)
            self._write(self._cut(self._prompt + self._typed()))

    def _cut(self, row: str) -> str:
        return row

    def close(self) -> None:
        # Never released: who reads would ask again, and readline make the terminal its own.
        self._lock.acquire(timeout=CLOSING_PATIENCE)
        self._restore()

    def _restore(self) -> None:
        if self._prompt:
            self._end_row(self._typed())
        if termios:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, self._attributes)

    def _typed(self) -> str:
        """What is in the row of the prompt, if that can be known."""
        typed = readline.get_line_buffer() if readline and self._prompt else ""
        return "" if typed.endswith("\n") else typed  # until the first key, libedit's last line


class Completer:
    """Each Tab puts the next candidate in place of what was typed up to the cursor."""

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates
        self._ring: deque[str] = deque()  # begins with what the last Tab has put there

    def __call__(self, typed: str, state: int) -> str | None:
        if state:  # there is never a second one, which would be listed
            return None
        if self._ring and self._ring[0] == typed:
            self._ring.rotate(-1)
        else:
            self._ring = deque(self._candidates(typed))
        return self._ring[0] if self._ring and self._ring[0] != typed else None


class Terminal(PlainTerminal):
    """A terminal on which rows can be put above the cursor's own:

        what has been said, in the room's order
        [.....] alice: what is waiting      the footer: as many rows as ``_footer`` has
        > half a li                         the cursor's row, which is readline's own affair

    Whatever is written here begins and ends in the cursor's row and column, so it does not matter
    what of the line being typed is there. Readline keeps that in one row, and it is taken away
    when it is entered, since it appears among what is waiting.
    """

    is_live = True

    def __init__(self, me: str, has_colours: bool, has_bell: bool) -> None:
        super().__init__(me)
        assert readline
        readline.parse_and_bind("set horizontal-scroll-mode on")
        # A paste is one input. But readline, set to ask for that itself, adds an empty row to each
        # line that is entered after an end of input.
        readline.parse_and_bind("set enable-bracketed-paste off")
        readline.parse_and_bind(r'"\e[200~": bracketed-paste-begin')
        # Clearing the screen would take the footer with it, unknown to us.
        for keys in (r"\C-l", r"\e\C-l"):
            readline.parse_and_bind(f'"{keys}": redraw-current-line')
        self._has_colours = has_colours
        self._has_bell = has_bell
        self._size = _size()
        self._footer: list[str] = []
        self._recent: deque[tuple[float, str]] = deque(maxlen=RECENT_ROWS)

    def show(self, lines: Sequence[Shown], waiting: Sequence[Said]) -> None:
        news = [line for line in lines if not (isinstance(line, Note) and line.is_of_waiting)]
        self._follow_size()
        rows = [row for line in news for row in self._rows(line)]
        footer = self._footer_of(waiting)
        self._await_taking_away()
        with self._lock:
            self._put(rows, footer)
        if self._has_bell and any(is_calling(line, self._me) for line in news):
            self._write("\a")

    def _rows(self, line: Shown) -> Iterator[str]:
        spans = spans_of(line, self._me, time.time())
        if not self._has_colours:
            spans = [(text, PLAIN) for text, _ in spans]
        return rows_of(spans, self._size.columns)

    def _footer_of(self, waiting: Sequence[Said]) -> list[str]:
        """A row for each of the first that wait, and one that counts the others."""
        room = max(1, self._size.lines // 4)
        count = len(waiting) if len(waiting) <= room else room - 1
        rows = [next(self._rows(line)) for line in waiting[:count]]
        if more := len(waiting) - count:
            rows += [next(rows_of([(f"[.....] {more} more lines", PLAIN)], self._size.columns))]
        return rows

    def _follow_size(self) -> None:
        """In a window that has become narrower some terminals wrap the rows of the footer: what is
        more of them by now stays."""
        with self._lock:
            size = _size()
            if size != self._size:
                self._recent.clear()  # some may be gone
            if len(self._footer) + 2 > size.lines:
                self._footer = []
            self._size = size

    def _put(self, rows: list[str], footer: list[str]) -> None:
        """Puts rows below all others, and another footer below them, a screenful at a time."""
        if not rows and footer == self._footer:
            return
        now, screenful = time.monotonic(), self._size.lines - 1
        self._recent.extend((now, row) for row in rows)
        rows = rows + footer
        out = [_spliced(len(self._footer), rows[:screenful])]
        for start in range(screenful, len(rows), screenful):
            out.append(_spliced(0, rows[start : start + screenful]))
        self._footer = footer
        self._write("".join(out))

    def _begin(self, prompt: str) -> None:
        self._write(BRACKETS_PASTES)
        super()._begin(prompt)

    def _read(self, prompt: str) -> str:
        with self._lock:
            self._recent.clear()  # below them may be what somebody else has written since
        typed = super()._read(prompt)
        self._take_away_typed()
        return typed

    def _await_taking_away(self) -> None:
        """When Enter was pressed, readline has let go of the terminal, and the row that was typed
        is above the cursor: it has to go first."""
        assert termios
        until = time.monotonic() + YOUNG / 2  # or what is above would not be young any more
        while self._prompt and time.monotonic() < until:
            if not termios.tcgetattr(sys.stdin.fileno())[3] & termios.ICANON:
                return
            time.sleep(ENTERED_PAUSE)

    def _take_away_typed(self) -> None:
        """Takes away the row that was just entered. In the instant until readline has let go of the
        terminal rows may have been put below it, and not above: so takes away all that are young,
        and puts them back."""
        self._follow_size()
        with self._lock:
            self._prompt = ""
            now, room = time.monotonic(), max(1, self._size.lines - 2 - len(self._footer))
            young = [row for when, row in self._recent if now - when < YOUNG][-room:]
            rows = young + self._footer
            self._write(_spliced(len(rows) + 1, rows))

    def _cut(self, row: str) -> str:
        return next(rows_of([(row, PLAIN)], self._size.columns - 1))

    def _end_row(self, typed: str) -> None:
        """What was half typed stays to be seen."""
        self._write("\r\n" if typed else "\r\033[K")

    def suspend(self) -> None:
        super().suspend()
        self._write(BRACKETS_PASTES)
        with self._lock:  # somebody else has written since
            self._footer = []
            self._recent.clear()

    def _restore(self) -> None:
        super()._restore()
        self._write(f"{BRACKETS_PASTES[:-1]}l")


def _size() -> os.terminal_size:
    with contextlib.suppress(OSError):
        size = os.get_terminal_size(sys.stdout.fileno())
        if size.columns > len(INDENT) and size.lines > 2:
            return size
    return os.terminal_size((80, 24))


def _spliced(removed: int, rows: list[str]) -> str:
    """Takes away rows above the cursor's own and puts others there, fewer than the screen has:
    saves the cursor, goes up, deletes; makes room below (which scrolls at the bottom), goes up,
    inserts and fills; goes back to the column, and to where its row is by now."""
    count = len(rows)
    out = "\0337"
    if removed:
        out += f"\033[{removed}A\r\033[{removed}M"
    if count:
        out += "\n" * count + f"\033[{count}A\r\033[{count}L"
        # A terminal may take a letter for wider than we do, but must not wrap the row.
        out += "\033[?7l" + "".join(f"{row}\n" for row in rows) + "\033[?7h"
    out += "\0338"
    if count != removed:
        out += f"\033[{count - removed}B" if count > removed else f"\033[{removed - count}A"
    return out


def open_screen(me: str, has_bell: bool) -> Screen:
    """The best that standard input and output allow."""
    for name, mode in (("stdin", "r"), ("stdout", "w")):
        if getattr(sys, name) is None:  # whoever started us has closed it
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return Screen(me)
    if not readline or IS_LIBEDIT or not curses:
        return PlainTerminal(me)
    try:
        curses.setupterm()
    except curses.error:  # an unknown kind of terminal
        return PlainTerminal(me)
    if not all(map(curses.tigetstr, CAPABILITIES)):
        return PlainTerminal(me)
    has_colours = curses.tigetnum("colors") >= 8 and not os.environ.get("NO_COLOR")
    return Terminal(me, has_colours, has_bell)


# ----------------------------------------------------------------------------------- the threads


class Network:
    """Owns the socket, and goes on in the main thread, since that is where signals arrive. The lock
    is held for the client's own steps only."""

    def __init__(self, client: Client, udp: socket.socket, screen: Screen, timing: Timing) -> None:
        self._client = client
        self._udp = udp
        self._screen = screen
        self._timing = timing
        self._lock = threading.Lock()
        self._wakeup, self._alarm = socket.socketpair()
        self._alarm.setblocking(False)
        self._route_at = -inf  # when to look again whether the way to the server is another one
        self._interrupts = 0  # how often Ctrl-C was pressed

    # -- for the thread that reads

    def say(self, messages: Iterable[protocol.Message]) -> bool:
        """They will be delivered, all of them if one is; False once nothing more is. A person has
        entered them, perhaps just before Ctrl-C; what is still in a pipe then was not said."""
        self._hold_back()
        with self._lock:
            is_over = self._client.is_leaving or self._client.is_over
            if self._screen.is_terminal or not is_over:
                for message in messages:
                    self._client.say(message, time.monotonic())
        self._wake()
        return not is_over

    def tell(self, *words: str) -> None:
        """Will be shown: by the main thread, which must never wait for this one to write."""
        self._hold_back()
        with self._lock:
            self._client.shown += map(Note, words)
        self._wake()

    def _hold_back(self) -> None:
        """Waits while more is piped than can be delivered and shown."""
        client = self._client
        while not (self._screen.is_terminal or client.is_over or client.backlog < MAX_BACKLOG):
            time.sleep(BACKLOG_PAUSE)

    def others(self) -> list[str]:
        """Who else is here; whom we have talked with last comes first."""
        with self._lock:
            return self._client.others

    def leave(self) -> None:
        """Whoever sits at a terminal does not like to wait."""
        timing = self._timing
        is_terminal = self._screen.is_terminal
        with self._lock:
            patience = timing.leave_patience if is_terminal else timing.deliver_patience
            self._client.leave(patience, time.monotonic())
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is being woken already
            self._alarm.send(b"\0")

    # -- for the main thread

    def enter(self) -> None:
        """Goes on until the room is joined, or cannot be."""
        self.run(lambda: self._client.has_joined)

    def run(self, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Goes on until all is over."""
        self.heed()
        while not self._turn() and not is_enough():
            pass

    def heed(self) -> None:
        """From now on signals are only noted, and wake this thread: an exception might come between
        any two steps."""
        signal.set_wakeup_fd(self._alarm.fileno(), warn_on_full_buffer=False)
        heed(self._interrupt, (lambda *_: None) if self._screen.is_terminal else signal.SIG_DFL)
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, self._give_up)

    def _interrupt(self, *_: object) -> None:
        self._interrupts += 1
        if self._interrupts == 1:  # a later one must not put the end off
            self._limit_turn()

    def _give_up(self, *_: object) -> None:
        """Nobody has read for so long: what we show goes nowhere. What is written at the very end,
        by us or the C library, may wait for that terminal too: the next alarm ends us."""
        self._screen.give_up()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self._limit_turn()

    def _limit_turn(self) -> None:
        """Once we leave, a turn that does not end is waiting for somebody to read what it shows."""
        if hasattr(signal, "alarm"):
            signal.alarm(math.ceil(self._timing.leave_patience) + 1)

    def _turn(self) -> bool:
        """Sends, shows and waits once; whether all is over."""
        now = time.monotonic()
        if now >= self._route_at:
            self._follow_route(now)
        if self._interrupts:
            self._limit_turn()
        with self._lock:
            is_unwanted = self._interrupts or self._screen.is_closed
            if is_unwanted and self._client.patience > self._timing.leave_patience:
                self._client.leave(self._timing.leave_patience, now)
            if self._interrupts > 1:
                self._client.abandon()
            out = self._client.datagrams(now)
            shown, self._client.shown = self._client.shown, []
            waiting = self._client.waiting() if self._screen.is_live else []
            is_over = self._client.is_over
            deadline = self._client.deadline()
        self._screen.show(shown, waiting)  # before it is acknowledged
        for data in out:
            self._try(functools.partial(self._udp.send, data))
        if is_over:
            return True
        timeout = max(0.0, min(deadline, self._route_at) - time.monotonic())
        readable, _, _ = select.select([self._udp, self._wakeup], [], [], timeout)
        if self._wakeup in readable and STOPPING & set(self._wakeup.recv(4096)):
            self._screen.suspend()
        if self._udp in readable:
            self._receive()
        return False

    def _receive(self) -> None:
        if data := self._try(lambda: self._udp.recv(protocol.MAX_DATAGRAM + 1)):
            with self._lock:
                self._client.receive_untrusted(data, time.monotonic())

    def _try(self, step: Callable[[], T]) -> T | None:
        """A step that the network may prevent: the same as a lost datagram."""
        try:
            return step()
        except ConnectionError:  # the server's host says that its port is closed
            with self._lock:
                self._client.port_closed(time.monotonic())
        except OSError:
            self._route_at = -inf
        return None

    def _follow_route(self, now: float) -> None:
        """A connected socket keeps the address of ours that it began with, though this computer
        may be in another network by now. The session goes on from the new address."""
        self._route_at = now + self._timing.route
        with contextlib.suppress(OSError):  # there is no way at the moment
            family, server = self._udp.family, self._udp.getpeername()
            address, port = self._udp.getsockname()[:2]
            with _connected(family, ("", 0), server) as probe:
                present = probe.getsockname()[0]
            if present != address:
                moved = _connected(family, (present, port), server)
                self._udp.close()
                self._udp = moved
                with self._lock:
                    self._client.ask(now)


def heed(leaving: Any, stopping: Any = signal.SIG_DFL) -> None:
    """From now on Ctrl-C and its like do this, and Ctrl-Z that, unless whoever has started us
    wants them ignored."""
    for numbers, handler in ((LEAVING, leaving), (STOPPING, stopping)):
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


def read(screen: Screen, network: Network) -> None:
    """The other thread: reads what is typed, until the person leaves."""
    try:
        converse(screen, network)
    except KeyboardInterrupt:  # Windows tells it to who reads
        pass
    finally:  # even a bug here must not leave a client that nobody can end
        network.leave()


def converse(screen: Screen, network: Network) -> None:
    """Says what is typed."""

    def candidates(typed: str) -> list[str]:
        return completions(typed, network.others())

    while (typed := screen.ask("> ", candidates, remembers=True)) is not None:
        typed = typed.strip()
        if typed.upper() == "HELP":
            network.tell(*HELP)
        elif typed:
            try:
                messages = _messages(typed, screen, network)
            except protocol.BadMessage as error:
                can_be_said = " " in typed and "\n" not in typed
                hint = f". To say it to everyone: PM {typed}" if can_be_said else ""
                network.tell(f"not sent: {error}{hint}")
                continue
            if protocol.Exit() in messages or not network.say(messages):
                return


def completions(typed: str, names: list[str]) -> list[str]:
    """What Tab can make of a line up to the cursor, the likeliest first."""
    start, space, word = typed.rpartition(" ")
    found = [name for name in names if fold(name).startswith(fold(word))]
    found.sort(key=lambda name: fold(name) != fold(word))  # who has just this name comes first
    if start.strip():
        is_open = word or start.strip().upper() == "DM"
        return [f"{start}{space}{name} " for name in found if is_open]
    commands = [command for command in COMMANDS if command.startswith(word.upper())]
    # "DM: " would be a public message.
    return [f"{name}: " for name in found if f"{name.upper()} " not in COMMANDS] + commands


def _messages(typed: str, screen: Screen, network: Network) -> list[protocol.Message]:
    """What was typed, in as many messages as its lines and their lengths need."""
    if "\n" in typed:
        return [piece for message in _pasted(typed) for piece in _pieces(message)]
    return _pieces(_complete(protocol.parse_message(typed), screen, network))


def _pasted(typed: str) -> list[protocol.Message]:
    """The lines of a paste. Only PM and DM with their text are commands in it; where a line without
    one goes is where the line before it went, so that no second line of a DM is for everybody."""
    messages: list[protocol.Public | protocol.Direct] = []
    for line in filter(None, map(str.strip, typed.split("\n"))):
        message = protocol.parse_message(line)
        match message:
            case protocol.Public("") | protocol.Direct(_, ""):
                raise protocol.BadMessage(f"in a paste {line} needs its text in the same line")
            case protocol.Direct():
                messages.append(message)
            case protocol.Public(text) if text != line:
                messages.append(message)
            case _:
                last = messages[-1] if messages else protocol.Public("")
                messages.append(replace(last, text=line))
    return [*messages]


def _complete(
    message: protocol.Message, screen: Screen, network: Network
) -> protocol.Message | None:
    """Asks for what a lone PM or DM leaves open. What is typed at a prompt is no command; an
    empty answer, or the end of input, cancels: None."""
    match message:
        case protocol.Public(""):
            text = _ask(screen, "Message: ")
            return protocol.Public(text) if text else None
        case protocol.Direct(to, ""):
            if not (to := to or _ask(screen, "Username: ", network.others)):
                return None
            text = _ask(screen, f"Message for {protocol.check_username(to)}: ")
            return protocol.Direct(to, text) if text else None
    return message


def _ask(screen: Screen, prompt: str, names: Callable[[], list[str]] = list) -> str:
    def candidates(typed: str) -> list[str]:
        return [name for name in names() if fold(name).startswith(fold(typed))]

    return (screen.ask(prompt, candidates) or "").strip()


def _pieces(message: protocol.Message | None) -> list[protocol.Message]:
    """The message in as many as its lines and its length need."""
    match message:
        case None:
            return []
        case protocol.Public(text) | protocol.Direct(_, text):
            lines = text.split("\n")
            pieces = (piece for line in lines for piece in protocol.split_text(line))
            return [replace(message, text=piece) for piece in pieces]
    return [message]


# ------------------------------------------------------------------------------------ the program


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong, and what to type instead, in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {EXAMPLE}\n")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a port number (1 to 65535, or 0 for any)"
        )
    return int(text)


def _username(text: str) -> str:
    try:
        return protocol.check_username(text)
    except protocol.BadMessage as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="chatclient.py",
        description="Joins a chat room over UDP.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("ip", metavar="IP", help="the server's address: IPv4, IPv6 or a host name")
    add("port", metavar="PORT", type=_port, help="this client's own UDP port (0: any free one)")
    add("username", metavar="USERNAME", type=_username, help="the name to be known by")
    add(
        "--server-port",
        metavar="N",
        type=_port,
        default=protocol.DEFAULT_PORT,
        help="the server's UDP port (default: %(default)s)",
    )
    add(
        "--register",
        action="store_true",
        help="make the name an account of yours, or change its password",
    )
    add(
        "--no-bell",
        action="store_true",
        help="no bell for a direct message or a line that mentions you",
    )
    add("--version", action="version", version=f"%(prog)s {protocol.__version__}")
    args = parser.parse_args(argv)
    if not args.server_port:
        parser.error("--server-port needs the number of the server's port, 1 to 65535")
    if args.port == args.server_port:
        parser.error(f"{args.port} is the server's own port: choose another for this client")
    return args


def open_socket(host: str, server_port: int, port: int) -> socket.socket:
    """A UDP socket on the local ``port``, connected to the server: the kernel keeps strangers
    away, and tells when the server's port is closed. Failed says why there is none."""
    try:
        found = socket.getaddrinfo(host, server_port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        raise Failed(f"there is no host called {protocol.clean_text(host)}") from None
    # A name with both kinds of address: a server may well listen on IPv4 alone.
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    try:
        return _connected(family, ("", port), address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Failed(
                f"the local UDP port {port} is already in use: choose another PORT, or 0 for any"
            ) from None
        raise Failed(f"cannot use UDP port {port} to reach {host}: {error.strerror}") from None


def _connected(family: int, local: tuple[str, int], server: Any) -> socket.socket:
    udp = socket.socket(family, socket.SOCK_DGRAM)
    try:
        udp.bind(local)
        udp.connect(server)
        udp.setblocking(False)
    except OSError:
        udp.close()
        raise
    return udp


def _credentials(name: str, is_registering: bool, is_terminal: bool) -> Credentials:
    """From the environment; a new password is asked for on a terminal. Failed if there is none
    where one is needed."""
    password, new = os.environ.get("CHAT_PASSWORD"), os.environ.get("CHAT_NEW_PASSWORD")
    if not is_registering:
        return Credentials(None if password is None else _prepared(password))
    salt = os.urandom(protocol.SALT_LENGTH)
    if is_terminal:
        return Credentials(None, _new_password(name), salt)
    if password is None:
        raise Failed("--register without a terminal needs the password in CHAT_PASSWORD")
    if new is None:
        return Credentials(None, _prepared(password), salt)
    return Credentials(_prepared(password), _prepared(new), salt)


def _new_password(name: str) -> bytes:
    """Asked for twice. Failed if they differ."""
    new = _typed_password(f"New password for {name}: ")
    if _typed_password("Once more: ") != new:
        raise Failed("that was not the same twice: nothing was registered")
    return new


def _typed_password(prompt: str) -> bytes:
    try:
        return _prepared(getpass.getpass(prompt))
    except (EOFError, KeyboardInterrupt):
        print()  # ends the row of the prompt
        raise Failed("no password was given") from None
    except UnicodeDecodeError:
        raise Failed("the password is not UTF-8") from None


def _prepared(typed: str) -> bytes:
    try:
        return protocol.prepare_password(typed)
    except protocol.BadMessage as error:
        raise Failed(str(error)) from None


def _enter(client: Client, credentials: Credentials, network: Network, screen: Screen) -> bool:
    """Joins the room, and asks for the password where it needs one; whether it is joined."""
    network.enter()
    tries = PASSWORD_TRIES if screen.is_terminal else 0
    while client.wants_password and tries:
        tries -= 1
        screen.show([Note(client.failure or "")], [])
        heed(signal.default_int_handler)
        client.log_in(_typed_password(f"Password for {client.username}: "), time.monotonic())
        network.enter()
    if client.wants_password and credentials.password is None:
        where = "put it into CHAT_PASSWORD"
        if credentials.registration:
            where = "it goes into CHAT_PASSWORD, and the new one into CHAT_NEW_PASSWORD"
        client.failure = f"{client.failure}: without a terminal, {where}"
    return client.has_joined


def _run(
    client: Client, credentials: Credentials, udp: socket.socket, screen: Screen, timing: Timing
) -> None:
    network = Network(client, udp, screen, timing)
    try:
        if _enter(client, credentials, network, screen):
            # A daemon, since nothing can end its wait for input.
            threading.Thread(target=read, args=(screen, network), daemon=True).start()
            if hasattr(signal, "SIGWINCH"):  # is for the thread that has the prompt
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGWINCH})
            network.run()
    finally:
        network.heed()  # no longer may a password's prompt be what a signal ends
        screen.close()


def main(argv: list[str] | None = None, timing: Timing = TIMING) -> int:
    """Runs the client; returns the exit status."""
    args = _parse_arguments(argv)
    server = f"{args.ip} port {args.server_port}"
    try:
        heed(signal.default_int_handler)  # also while a password is typed, which nobody sees
        screen = open_screen(args.username, not args.no_bell)
        credentials = _credentials(args.username, args.register, screen.is_terminal)
        udp = open_socket(args.ip, args.server_port, args.port)
        client = Client(args.username, credentials, server, timing, os.urandom, time.monotonic())
        _run(client, credentials, udp, screen, timing)
        if client.failure:
            raise Failed(client.failure)
    except Failed as error:
        print(f"chatclient.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # in the instants before the conversation
        pass
    finally:
        heed(signal.SIG_IGN)  # the interpreter's own end is short
    return 0


if __name__ == "__main__":
    sys.exit(main())
