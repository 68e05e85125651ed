"""The chat room's protocol: everything that both ends must agree on, and no I/O.

The one idea: everything is a log, and every reader has a cursor.

    log        written by  read by       numbered                    kept
    0 lines    one client  the server    per client instance         in the client until read
    1 room     the server  every member  for good                    on the server's disk
    2 inbox    the server  one member    per account, or per guest   on the server's disk
    3 notices  the server  one session   per session                 in memory

A cursor is the number of the next line that its owner wants; numbers start at 0. Every packet
carries its sender's cursors and perhaps some lines. A reader takes a line only when its number is
the cursor, so once and in order, and holds a bounded number of early ones back; a writer sends
again from the reader's cursor on. Numbers outlive sessions and server processes, and so this one
mechanism acknowledges, retransmits, orders, removes duplicates, resumes and replays history.

    recvfrom -> open_packet_untrusted -> Channel.receive -> parse_message -> the logs grow
    sendto   <- seal_packet           <- Channel.packets <- - - - - - - - - - - - - - - +

Nothing here has a socket, a clock, a thread or hidden randomness: ``now`` is an argument, in
monotonic seconds, and so are random bytes. A function whose name ends in ``_untrusted`` is given
bytes from the network; it raises ``ProtocolError``'s subclasses and nothing else.


Lines (UTF-8, 1 to 1,137 bytes)
===============================
A client writes into *lines*; the first word counts without regard to case:

    PM text          to everyone            DM username text    to one member
    EX               leaves                 WHO                 asks for the roster
    REGISTER salt iterations verifier       makes the name an account, or changes its password
    anything else    to everyone; but send the explicit PM, or a text like "EX" is a command

EX takes no words and ends the instance: once the server's cursor, or Terms' lines, has passed it,
the client has left. Nothing more is taken from it, the session answers for up to 10 s more, and
who wants to come back needs a new instance.

The server relays ``<unix seconds> <sender> <line>``, the seconds in 1 to 10 digits. In *room*: ``PM
text``, ``HI`` (the sender joined), ``EX [reason]`` (the sender left; the reason is the server's).
In *inbox*: ``DM username text``, received or, where the reader is the sender, the copy of one sent.
The server's own lines have the sender ``*``:

    OK number words...       inbox     line ``number`` was taken, and with what effect
    NO number words...       inbox     line ``number`` of this client was refused, and why
    HERE more name name...   notices   answers WHO; ``more`` roster lines follow this one. Its
                                       time may be that of an earlier answer that still holds
    BYE                      notices   the server is shutting down: wait, and join again
    OUT words...             notices   this client has lost its place, and why: do not come back

Every line that a client has written comes back to it in one of these forms: PM and EX in the room,
DM, OK or NO in its inbox, HERE for WHO (if the session lasts: or else ask again). OK answers
REGISTER, and a DM to an account that is away, or to a guest whose connection was lost: it is kept,
and OK comes instead of a copy. OK and NO name the line; the others come in the order in which they
were written, trimmed, and with the recipient's own spelling of the name. What the server's cursor
has passed is on disk. Who has registered goes on in the same session, but should join again, with
the same instance, and prove the password.

A username is 1 to 32 ASCII letters, digits, ``_ - .``, begins with a letter or digit, and is the
same in any letter case. A text has 1 to 1,000 bytes; the sender of a longer one splits it. It has
no characters of the Unicode categories Cc, Cs, Zl, Zp and Cf, but for U+200C, U+200D and the tags
U+E0020 to U+E007F; a line with others, or a text that begins or ends with a space, is refused or
trimmed, so clean what people type. Clean what you receive, too, before a terminal sees it.


Handshake packets (JSON objects, first byte ``{``)
==================================================
Keys are as below and ``type``, which is the packet's name; byte strings are in lower-case
hexadecimal, and numbers are at most 2**31. The numbers below are lengths in bytes; no datagram has
more than 1,200.

    C -> S  HELLO      version=3, username, nonce 16, public 256    public is A
    S -> C  COOKIE     nonce, cookie 16        no state is kept; repeat it within 15 s
    C -> S  JOIN       as HELLO, and cookie    the address is known to be real
    S -> C  CHALLENGE  nonce, session 8, public 256, salt, iterations    public is B
    C -> S  PROVE      nonce, session, proof 32, sealed
    S -> C  WELCOME    nonce, session, proof 32, sealed
    S -> C  REFUSED    nonce, code, text       in place of any reply, for people; code is "version",
                                               "username", "in-use", "full", "login" or "wait"
    S -> C  GONE       session                 no such session: only a hint to join again

The server never answers an address that has not returned a cookie with more bytes than it sent.
The client repeats what is unanswered, byte for byte, and believes only answers with its own nonce;
a new try needs a new nonce and A. It repeats after a third of the time that it has had no answer,
1 s at least and 10 s at most, less up to a quarter at random, so that not all come back at once. A
COOKIE also answers a JOIN whose cookie is not good any more: send JOIN with the new one. A GONE for
CHALLENGE's session answers a PROVE that is too late, or from another address: begin a new try.

Nobody has proved that REFUSED and GONE are the server's: a REFUSED ends a first try to join, but
neither ends a session. Who has one tries again after such a pause, after a "login" not before 60 s,
and after another one 700 s. Because of a GONE it asks in the session, once a second at most, and
joins again only if nothing has answered within a timeout, in which it asks twice: or else a forged
GONE would be enough to make it deal with whoever forges the rest. That is done beside the session.
From PROVE on, which tells the cursors, and until the try is given up, nothing is sent or taken in
the session; before that, an answer in it ends the try; and WELCOME ends the session. If a REFUSED
or a GONE has ended the try after PROVE, a WELCOME to it still counts, until something is taken in
the session. What comes in a session after BYE is no sign of life.

The key exchange is SRP-6a (RFC 5054 §2.5, §2.6) in the 2048-bit group with SHA-256: PAD is to 256
bytes, k = H(N | PAD(g)), u = H(PAD(A) | PAD(B)), B = k*v + g^b, and both sides find
S = (B - k*g^x)^(a + u*x) = (A * v^u)^b, modulo N; a and b have 256 random bits, all numbers are
big-endian, and B mod N = 0 or u = 0 is refused. For an account x is the 32 bytes of
PBKDF2-HMAC-SHA256 (RFC 8018 §5.2) of the password and CHALLENGE's salt (16 bytes) and iterations,
and the server knows v = g^x, the verifier, only. The password is UTF-8 as OpaqueString wants it
(RFC 8265 §4.2: NFC, every kind of space a SPACE, no controls, not empty). Register with 600,000
iterations; refuse fewer than 100,000 or more than 10,000,000. A guest has x = 0, hence v = 1, an
empty salt and 0 iterations: plain Diffie-Hellman by the same path. So who has a password and gets
a CHALLENGE without a salt must not go on: it would be a guest among guests. In REGISTER, salt and
verifier (256 bytes) are in lower-case hexadecimal, and 1 < v < N - 1. "login" answers a wrong
proof, and "wait" whoever has been wrong too often.

With H for SHA-256 and MAC(key, data, length) for BLAKE2b with that key ("": none) and that digest
length, where | joins:

    transcript  H(nonce | PAD(A) | username, as in JOIN) | H(CHALLENGE's bytes)
    key(label)  MAC(H(PAD(S)), label | transcript, 32)    the labels, in ASCII: "prove seal",
                "prove tag", "welcome seal", "welcome tag", "client seal", "client tag" (for
                what the client sends), "server seal", "server tag" (for what it receives)
    sealed      the JSON object XOR SHAKE-256(seal key | nonce); in the handshake no nonce
    proof       PROVE: MAC(tag key, transcript | sealed, 32)
                WELCOME: MAC(tag key, PROVE's proof | sealed, 32)

Inside PROVE, ``Resume``, and inside WELCOME, ``Terms``, both JSON as above but without a type.
Resume: log_id (empty at first), instance (a secret of 16 bytes, new for each start of the client,
the same whenever it joins again), and its cursors room and inbox. Terms: log_id, known (false: this
instance is new here, and lines sent earlier may or may not have arrived: tell the person, and do
not send them again), and the cursors lines, room and inbox from which this session starts. Whoever
is known, by the log_id that it knows and with no cursor below its own, goes on (from higher cursors
than its own: older lines were pruned). Everybody else is a newcomer, whose old cursors are void,
and for whom lines of the room below history_end are history, and lines of the inbox below kept_end
are older than this instance: DMs that were kept for it, and what earlier ones were told about lines
of theirs. room_key (32) is that of this server process, and rate is how many lines per second a
client may write, after a burst of 3 seconds' worth (0: no limit; what comes faster waits). Only the
latest instance of an account has a place in the room: an older one that joins again, or one that
has left, is let in to hear OUT, and what of its lines had arrived.


Session packets (big-endian)
============================
    type 1 (=1) | session 8 | number 8 | echo 8 | held 2 | flags 1 | cursors 3 x 4 | tag 16 | parts
    part:  log 1 | first line's number 4 | length 2 | sealed lines, joined by newline

There is one part of a log at most, with no more lines than its window (see below) has.
``number`` counts a sender's packets from 1 in each session; some may be left out, and none is used
twice. ``echo`` is the highest number it has received (0: none), and ``held`` says for how many
milliseconds it has known it (65,535: longer than it can say), so that the other side can measure
the network alone (RFC 9002 §5.3). Cursors: from the client room, inbox, notices; from the server
lines, 0, 0. Flag 1 asks for an answer at once. A packet without parts is a mere acknowledgement and
is not answered unless it asks. One whose echo or cursors are beyond what was sent is dropped.

A session outlives its client's address. When the newest packet of a client comes from a new one,
the server sends there, and nowhere else, a packet that asks and has a number that nobody can guess,
since up to 2**40 are left out before it, and again after it; as soon as a packet from there echoes
that very number, the session has moved (RFC 9000 §8.2). So a client only has to answer at once what
asks, before it takes in anything more, and from wherever it is by now.

    sealed      lines XOR SHAKE-256(seal key | nonce), where the nonce is number 8 | log 1 |
                first 4; in the room log the key is the room key and the nonce is first 4 alone,
                so that a block of the room is sealed once and not once for each member. A block
                that starts at a line has the same bytes from there on, however long it is, so no
                (key, nonce) covers two texts of which neither begins with the other
    tag         MAC(tag key, the header before the tag | MAC("", part with its header, 32) of each
                part, 16)

A reader acknowledges 0.2 s after the last packet with parts; but at once one that has not the next
number, or brings nothing new, or leaves something missing in a log, and when 8 packets or a quarter
of the log's window wait; each packet that it sends acknowledges. What the network doubled, an old
number with nothing new, is ignored. (A writer that lets fewer than 8 packets be on their way asks
with the last of them.) A writer keeps at most 64 lines (of the room 512) beyond the reader's cursor
on their way, and a reader holds no more. What wants an answer is a packet with parts, until its
number or a higher one has been echoed or the cursors have passed all that was sent, and one that
asks, until its number or a higher one has been echoed; it is repeated like a late one. A lost
packet's lines are sent again from the cursor on, as a new packet: when a number higher by three has
been echoed and the cursor has not moved, or after a timeout. That is 0.7 s at first and then RFC
6298's SRTT + 4 RTTVAR (these 10 ms at least), and 0.3 s more unless a higher number has been
echoed; it is doubled each time in vain, until a new number is echoed, and 8 s at most. It runs from
when the packet was sent, from the cursors' last move, or, while the packet still wants an answer,
from when the last packet that does was sent (the eighth, if more than eight do): whichever is
latest. A client that has heard nothing for 20 to 25 s asks, and one that has had no answer for 10 s
joins again, beside the session, until one of the two works; a server that has heard nothing for 75
s writes the member out. A server that starts sends GONEs to those who were in, for 75 s or until
they are back.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import json
import re
import struct
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any, Final, TypeAlias, TypeVar

# -------------------------------------------------------------------------------------- limits

__version__: Final = "1.3.0"  # of the programs
VERSION: Final = 3
DEFAULT_PORT: Final = 9999

# No path that IP allows for today fragments this: RFC 8085 §3.2, RFC 9000 §14.
MAX_DATAGRAM: Final = 1200
# Texts leave room for time, sender, command, recipient and the packet's own fields.
MAX_TEXT: Final = 1000
MAX_NAME: Final = 32

# What it costs to try a password against a stolen verifier: OWASP's Password Storage Cheat Sheet.
ITERATIONS: Final = 600_000
# What a client does for a server that asks for it: not so few that the password is in danger, not
# so many that the client hangs.
ITERATIONS_ALLOWED: Final = range(100_000, 10_000_001)
SALT_LENGTH: Final = 16  # RFC 8018 §4.1 wants 8 at least

# A window of INITIAL_WINDOW packets must not wait for a delayed acknowledgement.
ACK_PACKETS: Final = 8

PACKET_THRESHOLD: Final = 3  # RFC 9002 §6.1.1
INITIAL_WINDOW: Final = 10  # datagrams: RFC 9002 §7.2
# RFC 9002 §7.2 has 2, but then a loss shows by its timeout only (RFC 5827 §1): it takes three later
# packets to tell sooner.
MINIMUM_WINDOW: Final = PACKET_THRESHOLD + 1
MAXIMUM_WINDOW: Final = 256  # a fifth of a megabyte on its way to one member is plenty
# Packets that leave at once, or one acknowledgement could cost as much as a whole window, and one
# member the time of all the others (RFC 9002 §7.7).
AT_ONCE: Final = 32

_UNANSWERED: Final = 4 * MAXIMUM_WINDOW  # packets: of a peer that never echoes, the latest

BURST_SECONDS: Final = 3  # a paste of 30 lines at 10 lines/s goes through at once


@dataclass(frozen=True, slots=True)
class Timing:
    """Every duration of the protocol and the two programs, in seconds; tests shorten them."""

    first_timeout: float = 1.0  # RFC 6298 §2.1
    max_timeout: float = 8.0  # of a retransmission, backed off
    pacing: float = 0.005  # between two times that AT_ONCE packets leave, at least
    ack_delay: float = 0.2  # how long an acknowledgement waits for one more packet
    ack_allowance: float = 0.3  # what a timeout adds for the other side's ack_delay
    granularity: float = 0.01  # RFC 6298 §2: of the clock by which timeouts are noticed
    keepalive: float = 20.0  # RFC 8085 §3.5: not more often than every 15 s
    keepalive_jitter: float = 5.0  # so that a thousand members do not ask together
    server_silence: float = 75.0  # three keepalives lost: the member is written out
    answer_patience: float = 10.0  # an answer that takes longer: the client joins again
    cookie_life: float = 30.0  # at most: a cookie is good for half of it at least
    hint_pause: float = 1.0  # a GONE, which can be forged on the way, counts not more often
    linger: float = 10.0  # a session that has left acknowledges for this long
    probe: float = 2.0  # how long a silent holder of a name may take to answer
    max_pause: float = 10.0  # between two tries to reconnect
    closed_patience: float = 3.0  # a port that stays closed at the first joining
    join_patience: float = 60.0  # no answer at all at the first joining
    deliver_patience: float = 60.0  # end of input: nothing gets through any more
    route: float = 5.0  # a client looks this often whether it is in another network by now
    trouble: float = 2.0  # a reconnection that takes longer is worth mentioning
    late: float = 3.0  # a line that has not come back by then is not delivered yet
    leave_patience: float = 2.0  # a person leaves: nothing gets through any more
    shutdown: float = 0.5  # a server that ends tells its members for this long
    store_pause: float = 1.0  # between two tries to write the room file
    login_window: float = 60.0  # in which wrong passwords are counted
    login_wait: float = 15.0  # after too many of them, and doubled from then on ...
    max_login_wait: float = 300.0  # ... up to this
    # Until a client that was in tries a refused password again: first soon, since a refusal can be
    # forged, and then in more than twice max_login_wait, or it would keep a wait alive.
    first_login_pause: float = 60.0
    login_pause: float = 700.0


TIMING: Final = Timing()


# -------------------------------------------------------------------------------------- errors


class ProtocolError(Exception):
    """What strangers' bytes, or a person's typing, can raise here; its text is for people."""


class BadMessage(ProtocolError):
    """A username, a text or a line that breaks the rules for them."""


class BadPacket(ProtocolError):
    """A datagram of the wrong shape, or one whose cursors are impossible."""


class BadSeal(ProtocolError):
    """A tag or a proof that does not fit: forged, damaged, or from another session."""


class BadHandshake(ProtocolError):
    """A public value with which SRP would be unsafe."""


class Refusal(enum.Enum):
    """The codes of REFUSED."""

    VERSION = "version"
    USERNAME = "username"
    IN_USE = "in-use"
    FULL = "full"
    LOGIN = "login"
    WAIT = "wait"


class Objection(ProtocolError):
    """Why somebody cannot come in: what REFUSED says in answer to the packet with ``nonce``."""

    def __init__(self, nonce: bytes, code: Refusal, words: str) -> None:
        super().__init__(words)
        self.nonce = nonce
        self.code = code


# ------------------------------------------------------------------------- names, texts, lines

# ASCII because of look-alikes: a name is what people trust.
_USERNAME: Final = rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{MAX_NAME - 1}}}"
_FORBIDDEN = frozenset(("Cc", "Cs", "Zl", "Zp", "Cf"))
# Scripts and emoji need these format characters: ZWNJ, ZWJ and the tags of flags.
_WELCOME_FORMATS = frozenset((0x200C, 0x200D, *range(0xE0020, 0xE0080)))


def check_username(name: str) -> str:
    """The name itself, or BadMessage."""
    if not re.fullmatch(_USERNAME, name):
        raise BadMessage(
            f"{clean_text(name)[:40]!r} is not a username: 1 to {MAX_NAME} ASCII letters, digits, "
            "'_', '-' or '.', beginning with a letter or digit"
        )
    return name


def fold(name: str) -> str:
    """What two spellings of one username have in common."""
    return name.lower()


def _is_allowed(character: str) -> bool:
    return unicodedata.category(character) not in _FORBIDDEN or ord(character) in _WELCOME_FORMATS


def clean_text(text: str) -> str:
    """``text`` without what could move a terminal's cursor, or hide or reorder other text."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(filter(_is_allowed, text.replace("\t", " ")))


def split_text(text: str) -> list[str]:
    """Pieces of at most MAX_TEXT bytes of UTF-8, cut between characters and then stripped."""
    pieces, raw = [], text.encode()
    while raw:
        piece = raw[:MAX_TEXT].decode(errors="ignore")  # without a character that was cut
        raw = raw[len(piece.encode()) :]
        pieces.append(piece.strip())
    return [piece for piece in pieces if piece]


def _check_text(text: str) -> None:
    if not text:
        raise BadMessage("the text is missing")
    if clean_text(text) != text:
        raise BadMessage("the text has control or format characters in it")
    if len(text.encode()) > MAX_TEXT:
        raise BadMessage(f"the text is longer than {MAX_TEXT} bytes")


@dataclass(frozen=True, slots=True)
class Public:
    """An empty text is one still to be asked for."""

    text: str


@dataclass(frozen=True, slots=True)
class Direct:
    """Empty fields are still to be asked for."""

    to: str
    text: str


@dataclass(frozen=True, slots=True)
class Exit:
    reason: str = ""  # where the server relays it


@dataclass(frozen=True, slots=True)
class Who:
    pass


@dataclass(frozen=True, slots=True)
class Register:
    """What a server has to know of a password."""

    salt: bytes
    iterations: int
    verifier: bytes


@dataclass(frozen=True, slots=True)
class Joined:
    pass


@dataclass(frozen=True, slots=True)
class Accepted:
    number: int
    words: str


@dataclass(frozen=True, slots=True)
class Declined:
    number: int
    words: str


@dataclass(frozen=True, slots=True)
class Roster:
    more: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Closing:
    pass


@dataclass(frozen=True, slots=True)
class Expelled:
    words: str


Message: TypeAlias = Public | Direct | Exit | Who | Register
Event: TypeAlias = (
    Public | Direct | Exit | Joined | Accepted | Declined | Roster | Closing | Expelled
)


@dataclass(frozen=True, slots=True)
class Relayed:
    """One line as the server relays it: when (Unix seconds), who, what."""

    unix: int
    sender: str
    event: Event


SERVER: Final = "*"  # the sender of the server's own lines: no username

# The grammar of lines, for both directions: a word, and the fields that follow it.
_FORMS: Final[dict[type[Message | Event], tuple[str, str]]] = {
    Public: ("PM", r"(.+)"),
    Direct: ("DM", rf"({_USERNAME}) (.+)"),
    Exit: ("EX", r"(.*)"),
    Who: ("WHO", r""),
    Register: ("REGISTER", rf"([0-9a-f]{{{2 * SALT_LENGTH}}}) (\d{{1,9}}) ([0-9a-f]{{512}})"),
    Joined: ("HI", r""),
    Accepted: ("OK", r"(\d{1,10}) (.+)"),
    Declined: ("NO", r"(\d{1,10}) (.+)"),
    Roster: ("HERE", rf"(\d{{1,6}})((?: {_USERNAME})*)"),
    Closing: ("BYE", r""),
    Expelled: ("OUT", r"(.+)"),
}
_OF_MEMBERS: Final = (Public, Direct, Exit, Joined)
_OF_THE_SERVER: Final = (Accepted, Declined, Roster, Closing, Expelled)
_FIELDS: Final[dict[str, Callable[[str], Any]]] = {  # what a field's annotation makes of a text
    "str": str,
    "int": int,
    "bytes": bytes.fromhex,
    "tuple[str, ...]": lambda text: tuple(text.split()),
}


def parse_message(line: str) -> Message:
    """What a person typed, or what a client sent but for REGISTER: one grammar for both.

    Fields may come out empty, for the prompts to ask. Raises BadMessage for a bad username.
    """
    line = line.strip()
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    match word.upper():
        case "PM":
            return Public(rest)
        case "DM":
            name, _, text = rest.partition(" ")
            return Direct(check_username(name) if name else "", text.strip())
        case "EX" if not rest:
            return Exit()
        case "WHO" if not rest:
            return Who()
        case _:
            return Public(line)


def format_message(message: Message | Event) -> str:
    """The explicit form; what a client may send is read back by ``parse_line_untrusted``."""
    word, _ = _FORMS[type(message)]
    texts = [word]
    for name in message.__match_args__:
        match getattr(message, name):
            case bytes(value):
                texts.append(value.hex())
            case tuple(value):
                texts += value
            case value:
                texts.append(str(value))
    return " ".join(filter(None, texts))


def _parse_form(line: str, kinds: Iterable[type[Any]]) -> Any:
    """The message of one of these kinds that has exactly this form, or BadMessage."""
    word, _, rest = line.partition(" ")
    for kind in kinds:
        its_word, form = _FORMS[kind]
        if word == its_word and (found := re.fullmatch(form, rest, re.ASCII)):
            return kind(*(_FIELDS[str(f.type)](g) for f, g in zip(fields(kind), found.groups())))
    raise BadMessage("a line of an unknown form")


def parse_line_untrusted(raw: bytes) -> Message:
    """A client's line: complete, clean and of legal length, or BadMessage."""
    line = _decode_untrusted(raw).lstrip()
    word = line.split(None, 1)[0] if line else ""
    if word.upper() == "REGISTER":  # never a text, however broken: it is nobody's business
        return _check_registration(_parse_form(word.upper() + line[len(word) :], (Register,)))
    message = parse_message(line)
    if isinstance(message, Public | Direct):
        _check_text(message.text)
    return message


def _check_registration(register: Register) -> Register:
    if register.iterations not in ITERATIONS_ALLOWED:
        raise BadMessage(f"{register.iterations} iterations are too few or too many")
    if not 1 < int.from_bytes(register.verifier, "big") < GROUP.prime - 1:
        raise BadMessage("the verifier is none")
    return register


def format_relayed(relayed: Relayed) -> bytes:
    """``<unix seconds> <sender> <line>``."""
    return f"{relayed.unix} {relayed.sender} {format_message(relayed.event)}".encode()


def parse_relayed_untrusted(raw: bytes) -> Relayed:
    """A line of the room, an inbox or the notices; its texts are safe to show."""
    line = clean_text(_decode_untrusted(raw))
    # Ten digits end in the year 2286; Windows' calendar does in 3000.
    if not (found := re.fullmatch(r"(\d{1,10}) (\S+) (.*)", line, re.ASCII)):
        raise BadMessage("not a relayed line")
    unix, sender, event = found.groups()
    kinds = _OF_THE_SERVER if sender == SERVER else _OF_MEMBERS
    if sender != SERVER:
        check_username(sender)
    return Relayed(int(unix), sender, _parse_form(event, kinds))


def _decode_untrusted(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadMessage("the line is not UTF-8") from None


# ---------------------------------------------------------------------------- handshake records


@dataclass(frozen=True, slots=True)
class Hello:
    version: int
    username: str
    nonce: bytes
    public: bytes

    @property
    def identity(self) -> bytes:
        """What keys are bound to: not the cookie, which anybody on the way could have made up."""
        return self.nonce + self.public + self.username.encode()


@dataclass(frozen=True, slots=True)
class Cookie:
    nonce: bytes
    cookie: bytes


@dataclass(frozen=True, slots=True)
class Join(Hello):
    cookie: bytes


@dataclass(frozen=True, slots=True)
class Challenge:
    nonce: bytes
    session: bytes
    public: bytes
    salt: bytes
    iterations: int


@dataclass(frozen=True, slots=True)
class Prove:
    nonce: bytes
    session: bytes
    proof: bytes
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Welcome:
    nonce: bytes
    session: bytes
    proof: bytes
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    nonce: bytes
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Gone:
    session: bytes


@dataclass(frozen=True, slots=True)
class Resume:
    """Inside PROVE: which instance this is, and its cursors."""

    log_id: bytes
    instance: bytes
    room: int
    inbox: int


@dataclass(frozen=True, slots=True)
class Terms:
    """Inside WELCOME: where everything starts."""

    log_id: bytes
    known: bool
    lines: int
    room: int
    inbox: int
    history_end: int
    kept_end: int
    room_key: bytes
    rate: int


Handshake: TypeAlias = Hello | Cookie | Join | Challenge | Prove | Welcome | Refused | Gone
Record = TypeVar("Record", bound=Handshake | Resume | Terms)

_TYPES: Final[dict[str, type[Handshake]]] = {
    kind.__name__.upper(): kind
    for kind in (Hello, Cookie, Join, Challenge, Prove, Welcome, Refused, Gone)
}
_LENGTHS: Final = {
    "room_key": 32,
    "nonce": 16,
    "cookie": 16,  # or a forged one could make a JOIN that fits into no datagram
    "public": 256,
    "session": 8,
    "proof": 32,
    "instance": 16,
}
# Half of what a cursor can count: no session lasts for the other half.
_MAX_CURSOR: Final = 2**31


def format_handshake(record: Handshake) -> bytes:
    """The datagram for one handshake packet."""
    return _format_record(record, type=type(record).__name__.upper())


def parse_handshake_untrusted(data: bytes) -> Handshake:
    """One handshake packet, its fields of the right type and length. Raises BadPacket, or
    Objection for a HELLO or JOIN of another version or with a bad username."""
    value = _parse_json_untrusted(data)
    name = value.get("type")
    if not isinstance(name, str) or name not in _TYPES:
        raise BadPacket("an unknown type of handshake packet")
    if name in ("HELLO", "JOIN") and value.get("version") != VERSION:
        nonce = _field_untrusted("nonce", "bytes", value)
        words = f"this server speaks version {VERSION} of the protocol"
        raise Objection(nonce, Refusal.VERSION, words)
    record = _record_untrusted(_TYPES[name], value)
    if isinstance(record, Hello):
        try:
            check_username(record.username)
        except BadMessage as error:
            raise Objection(record.nonce, Refusal.USERNAME, str(error)) from None
    return record


def _format_record(record: Handshake | Resume | Terms, **more: str) -> bytes:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    as_json = {k: v.hex() if isinstance(v, bytes) else v for k, v in values.items()}
    return json.dumps(more | as_json, separators=(",", ":")).encode()


def _parse_json_untrusted(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # a deep nest of brackets exhausts the parser's stack
        raise BadPacket("not JSON") from None
    if not isinstance(value, dict):
        raise BadPacket("not a JSON object")
    return value


def _record_untrusted(kind: type[Record], value: Mapping[str, Any]) -> Record:
    return kind(**{f.name: _field_untrusted(f.name, str(f.type), value) for f in fields(kind)})


def _field_untrusted(name: str, kind: str, value: Mapping[str, Any]) -> Any:
    """The field of a record as its annotation ``kind`` wants it."""
    match kind, value.get(name):
        case "bool", bool(field):
            return field
        case "int", int(field) if type(field) is int and 0 <= field <= _MAX_CURSOR:
            return field
        case "str", str(field):
            return field
        case "bytes", str(field):
            try:
                raw = bytes.fromhex(field)
            except ValueError:
                raise BadPacket(f"{name} is not hexadecimal") from None
            if raw.hex() == field and len(raw) == _LENGTHS.get(name, len(raw)):
                return raw
    raise BadPacket(f"{name} is missing or of the wrong kind")


# ------------------------------------------------------------------------------------ SRP-6a


@dataclass(frozen=True, slots=True)
class Group:
    """A safe prime, its generator and the hash to use with them (RFC 5054 §2.6 and appendix A)."""

    prime: int
    generator: int
    hash: str

    def pad(self, number: int) -> bytes:
        """PAD: as many bytes as the prime has."""
        return number.to_bytes((self.prime.bit_length() + 7) // 8, "big")

    def digest(self, first: int, second: int) -> int:
        """H(PAD(first) | PAD(second)) as a number: k of (N, g), u of (A, B)."""
        data = self.pad(first) + self.pad(second)
        return int.from_bytes(hashlib.new(self.hash, data).digest(), "big")

    def power(self, exponent: int) -> int:
        return pow(self.generator, exponent, self.prime)


GROUP: Final = Group(  # RFC 5054 appendix A, 2048 bits
    int(
        "AC6BDB41324A9A9BF166DE5E1389582FAF72B6651987EE07FC3192943DB56050A37329CBB4A099ED"
        "8193E0757767A13DD52312AB4B03310DCD7F48A9DA04FD50E8083969EDB767B0CF6095179A163AB3"
        "661A05FBD5FAAAE82918A9962F0B93B855F97993EC975EEAA80D740ADBF4FF747359D041D5C33EA7"
        "1D281E446B14773BCA97B43A23FB801676BD207A436C6481F1D2B9078717461A5B9D32E688F87748"
        "544523B524B0D57D5EA77A2775D2ECFA032CFBDBF52FB3786160279004E57AE6AF874E7303CE5329"
        "9CCC041C7BC308D82A5698F3A8D0C38271AE35F8E9DBFBB694B5C803D89F7AE435DE236D525F5475"
        "9B65E372FCD68EF20FA7111F9E4AFF73",
        16,
    ),
    2,
    "sha256",
)

GUEST_SECRET: Final = 0  # x
GUEST_VERIFIER: Final = 1  # v = g^x


def prepare_password(typed: str) -> bytes:
    """What counts of a password (RFC 8265 §4.2.2: OpaqueString), or BadMessage."""
    spaced = "".join(" " if unicodedata.category(c) == "Zs" else c for c in typed)
    password = unicodedata.normalize("NFC", spaced)
    if not password:
        raise BadMessage("the password is empty")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in password):
        raise BadMessage("the password has control characters in it, or is not UTF-8")
    return password.encode()


def password_secret_untrusted(password: bytes, salt: bytes, iterations: int) -> int:
    """x from a server's salt and iterations, in some 0.25 s; BadHandshake if these are unsafe."""
    if len(salt) != SALT_LENGTH or iterations not in ITERATIONS_ALLOWED:
        raise BadHandshake(f"a salt of {len(salt)} bytes and {iterations} iterations are not safe")
    return int.from_bytes(hashlib.pbkdf2_hmac("sha256", password, salt, iterations), "big")


def registration(password: bytes, salt: bytes) -> Register:
    """What a server has to know of a new password; ``salt`` is random."""
    x = password_secret_untrusted(password, salt, ITERATIONS)
    return Register(salt, ITERATIONS, GROUP.pad(GROUP.power(x)))


def server_public(b: int, verifier: int, group: Group = GROUP) -> int:
    """B = k*v + g^b; ``b`` is secret, of 256 random bits."""
    k = group.digest(group.prime, group.generator)
    return (k * verifier + group.power(b)) % group.prime


def server_secret_untrusted(
    a_public: int, b: int, b_public: int, verifier: int, group: Group = GROUP
) -> int:
    """S = (A * v^u)^b from the client's A; BadHandshake if A would fix S (RFC 5054 §2.5.4)."""
    if not 1 < a_public < group.prime - 1:
        raise BadHandshake("A is not a public value")
    u = group.digest(a_public, b_public)
    if u == 0:
        raise BadHandshake("u is 0")
    return pow(a_public * pow(verifier, u, group.prime), b, group.prime)


def client_secret_untrusted(
    a: int, a_public: int, b_public: int, x: int, group: Group = GROUP
) -> int:
    """S = (B - k*g^x)^(a + u*x) from the server's B; BadHandshake if B would fix S (§2.5.3)."""
    u = group.digest(a_public, b_public) if b_public < group.prime else 0
    if b_public % group.prime == 0 or u == 0:
        raise BadHandshake("B is not a public value")
    k = group.digest(group.prime, group.generator)
    base = (b_public - k * group.power(x)) % group.prime
    if base in (0, 1, group.prime - 1):
        raise BadHandshake("B is of small order")
    return pow(base, a + u * x, group.prime)


# ------------------------------------------------------------------------------------- sealing


@dataclass(frozen=True, slots=True)
class Keys:
    """What seals one direction, or one handshake packet."""

    seal: bytes
    tag: bytes


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """All that the two ends of one session derive from its secret."""

    transcript: bytes
    prove: Keys
    welcome: Keys
    client: Keys
    server: Keys


def derive_keys(
    secret: int, identity: bytes, challenge: bytes, group: Group = GROUP
) -> SessionKeys:
    """Keys for one session from S, JOIN's identity and the bytes of CHALLENGE."""
    root = hashlib.sha256(group.pad(secret)).digest()
    transcript = hashlib.sha256(identity).digest() + hashlib.sha256(challenge).digest()

    def pair(use: bytes) -> Keys:
        return Keys(
            _mac(root, use + b" seal" + transcript, 32), _mac(root, use + b" tag" + transcript, 32)
        )

    return SessionKeys(
        transcript, pair(b"prove"), pair(b"welcome"), pair(b"client"), pair(b"server")
    )


def seal_record(keys: Keys, context: bytes, record: Resume | Terms) -> tuple[bytes, bytes]:
    """(proof, sealed) of a handshake packet; ``context`` is what the proof covers besides."""
    sealed = _xor_keystream(_format_record(record), keys.seal, b"")
    return _mac(keys.tag, context + sealed, 32), sealed


def open_record_untrusted(
    kind: type[Record], keys: Keys, context: bytes, proof: bytes, sealed: bytes
) -> Record:
    """The record in a handshake packet; BadSeal if the proof does not fit."""
    if not hmac.compare_digest(proof, _mac(keys.tag, context + sealed, 32)):
        raise BadSeal("the proof does not fit")
    return _record_untrusted(kind, _parse_json_untrusted(_xor_keystream(sealed, keys.seal, b"")))


def _mac(key: bytes, data: bytes, length: int) -> bytes:
    return hashlib.blake2b(data, key=key, digest_size=length).digest()


def _xor_keystream(data: bytes, key: bytes, nonce: bytes) -> bytes:
    stream = hashlib.shake_256(key + nonce).digest(len(data))
    mixed = int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")
    return mixed.to_bytes(len(data), "big")


# ------------------------------------------------------------------------------------- packets


class LogId(enum.IntEnum):
    """The four logs."""

    LINES = 0
    ROOM = 1
    INBOX = 2
    NOTICES = 3


# How far a writer may run ahead of the reader's cursor, so how many lines it can make the reader
# hold. A client holds the room for itself alone; a server holds lines for every member.
WINDOW_LINES: Final = {LogId.LINES: 64, LogId.ROOM: 512, LogId.INBOX: 64, LogId.NOTICES: 64}

# type 1 | session 8 | number 8 | echo 8 | held 2 | flags 1 | cursors 3 x 4
_HEADER: Final = struct.Struct(">B8sQQHB3I")
MAX_NUMBER: Final = 2**63  # half of what a packet can count
_MAX_END: Final = 2**32 - 1
_MAX_HELD: Final = 65535
_TAG_LENGTH: Final = 16
# log 1 | first line's number 4 | length 2
_PART_HEADER: Final = struct.Struct(">BIH")
_NONCE: Final = struct.Struct(">QBI")  # number 8 | log 1 | first 4
_ROOM_NONCE: Final = struct.Struct(">I")

SESSION_PACKET: Final = 1
_PLEASE_ANSWER: Final = 1
_OVERHEAD: Final = _HEADER.size + _TAG_LENGTH
_PARTS_SPACE: Final = MAX_DATAGRAM - _OVERHEAD
MAX_LINE: Final = _PARTS_SPACE - _PART_HEADER.size


@dataclass(frozen=True, slots=True)
class Part:
    """Some lines of one log, in the clear."""

    log: LogId
    first: int
    lines: tuple[bytes, ...]

    @property
    def end(self) -> int:
        return self.first + len(self.lines)

    @property
    def size(self) -> int:
        """Bytes in a packet."""
        return _PART_HEADER.size + sum(map(len, self.lines)) + len(self.lines) - 1


@dataclass(slots=True)  # not frozen: that would cost each datagram as much as its tag
class Packet:
    """A session packet, opened."""

    number: int
    echo: int
    held: int  # milliseconds
    asks: bool
    cursors: tuple[int, ...]  # three
    parts: tuple[Part, ...]


class RoomBlocks:
    """The room key, and the blocks of the room log that were sealed with it lately.

    A block goes to every member with the same bytes: it is sealed, and digested, once.
    """

    _LIMIT: Final = 256  # blocks: a quarter of a megabyte

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._sealed: dict[tuple[int, int], tuple[bytes, bytes]] = {}

    def seal(self, part: Part) -> tuple[bytes, bytes]:
        """(the part's bytes in a packet, their digest)."""
        block = (part.first, part.end)
        if block not in self._sealed:
            if len(self._sealed) >= self._LIMIT:
                self._sealed.clear()
            self._sealed[block] = _seal_part(part, self._key, _ROOM_NONCE.pack(part.first))
        return self._sealed[block]

    def open(self, first: int, sealed: bytes) -> bytes:
        return _xor_keystream(sealed, self._key, _ROOM_NONCE.pack(first))


def seal_packet(packet: Packet, session: bytes, keys: Keys, room: RoomBlocks) -> bytes:
    """The datagram for a packet of one's own."""
    header = _HEADER.pack(
        SESSION_PACKET,
        session,
        packet.number,
        packet.echo,
        packet.held,
        packet.asks,
        *packet.cursors,
    )
    body, digests = b"", header
    for part in packet.parts:
        if part.log is LogId.ROOM:
            data, digest = room.seal(part)
        else:
            nonce = _NONCE.pack(packet.number, part.log, part.first)
            data, digest = _seal_part(part, keys.seal, nonce)
        body += data
        digests += digest
    return header + _mac(keys.tag, digests, _TAG_LENGTH) + body


def _seal_part(part: Part, key: bytes, nonce: bytes) -> tuple[bytes, bytes]:
    text = b"\n".join(part.lines)
    data = _PART_HEADER.pack(part.log, part.first, len(text)) + _xor_keystream(text, key, nonce)
    return data, _digest(data)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


def session_of_untrusted(data: bytes) -> bytes:
    """The session id that a session packet claims, or BadPacket."""
    if not _OVERHEAD <= len(data) <= MAX_DATAGRAM or data[0] != SESSION_PACKET:
        raise BadPacket("not a session packet")
    return data[1:9]


def open_packet_untrusted(data: bytes, keys: Keys, room: RoomBlocks) -> Packet:
    """The packet in a datagram of the session that ``keys`` belong to.

    Raises BadPacket for a wrong shape, BadSeal for a wrong tag.
    """
    session_of_untrusted(data)
    covered, tag = data[: _HEADER.size], data[_HEADER.size : _OVERHEAD]
    sealed = _split_parts_untrusted(data[_OVERHEAD:])
    for _, _, part in sealed:
        covered += _digest(part)
    if not hmac.compare_digest(tag, _mac(keys.tag, covered, _TAG_LENGTH)):
        raise BadSeal("the tag does not fit")
    _, _, number, echo, held, flags, *cursors = _HEADER.unpack_from(data)
    if number == 0 or flags > _PLEASE_ANSWER:
        raise BadPacket("a number or flag that does not exist")
    parts = []
    for log, first, part in sealed:
        text = part[_PART_HEADER.size :]
        if log is LogId.ROOM:
            text = room.open(first, text)
        else:
            text = _xor_keystream(text, keys.seal, _NONCE.pack(number, log, first))
        count = text.count(b"\n") + 1
        if count > WINDOW_LINES[log] or first + count > _MAX_END:
            raise BadPacket("more lines than a window has, or than a cursor can count")
        parts.append(Part(log, first, tuple(text.split(b"\n"))))
    return Packet(number, echo, held, flags == _PLEASE_ANSWER, tuple(cursors), tuple(parts))


def _split_parts_untrusted(body: bytes) -> list[tuple[LogId, int, bytes]]:
    """(log, first line's number, the part with its header) of each part."""
    parts: list[tuple[LogId, int, bytes]] = []
    while body:
        if len(body) < _PART_HEADER.size:
            raise BadPacket("a part without a header")
        log, first, length = _PART_HEADER.unpack_from(body)
        end = _PART_HEADER.size + length
        if log not in WINDOW_LINES or not 0 < length <= len(body) - _PART_HEADER.size:
            raise BadPacket("a part of an unknown log or of a wrong length")
        if parts and log in [each for each, _, _ in parts]:  # a hundred would cost too much
            raise BadPacket("two parts of one log")
        parts.append((LogId(log), first, body[:end]))
        body = body[end:]
    return parts


# ------------------------------------------------------------------------------------ the logs


_PARTS_KEPT: Final = 256  # of a log, in memory


class Log:
    """Lines that are numbered for good: a list that knows the number of its first element.

    Members who are equally far in the room read the same ``part``, made once for all of them.
    """

    __slots__ = ("_parts", "end", "lines", "start")

    def __init__(self, start: int = 0, lines: Iterable[bytes] = ()) -> None:
        self.start = start
        self.lines = list(lines)
        self.end = start + len(self.lines)  # the number that the next line will have
        self._parts: dict[tuple[int, int, int], Part | None] = {}

    def append(self, line: bytes) -> int:
        """The number that ``line`` has from now on."""
        if not 0 < len(line) <= MAX_LINE:
            raise ValueError(f"a line of {len(line)} bytes")
        self.lines.append(line)
        self.end += 1
        return self.end - 1

    def drop(self, before: int) -> None:
        """Forgets the lines below ``before``."""
        if before > self.start:
            del self.lines[: before - self.start]
            self.start = before
            self._parts.clear()

    def line(self, number: int) -> bytes:
        """The line of that number, from ``start`` on and before ``end``."""
        if number < self.start:
            raise IndexError(number)
        return self.lines[number - self.start]

    def part(self, log: LogId, first: int, end: int, space: int) -> Part | None:
        """As many lines from ``first``, up to ``end``, as fit into ``space`` bytes of a packet."""
        wanted = (first, min(end, self.end), space)
        if log is not LogId.ROOM:  # it has one reader only
            return self._part(log, *wanted)
        if wanted not in self._parts:
            if len(self._parts) >= _PARTS_KEPT:
                self._parts.clear()
            self._parts[wanted] = self._part(log, *wanted)
        return self._parts[wanted]

    def _part(self, log: LogId, first: int, end: int, space: int) -> Part | None:
        size, lines = _PART_HEADER.size - 1, []
        for number in range(first, end):
            line = self.line(number)
            size += 1 + len(line)
            if size > space:
                break
            lines.append(line)
        return Part(log, first, tuple(lines)) if lines else None


class Reader:
    """The reading end of a log: what came early waits for what is missing."""

    __slots__ = ("cursor", "early", "received", "window")

    def __init__(self, cursor: int, window: int) -> None:
        self.cursor = cursor  # the next line to take
        self.window = window
        self.received = cursor  # the first line that has not come yet
        self.early: dict[int, bytes] = {}

    def hold(self, part: Part) -> int:
        """Keeps what is new and within the window; returns how many lines that were."""
        before = len(self.early)
        for number, line in enumerate(part.lines, part.first):
            if self.received <= number < self.cursor + self.window:
                self.early[number] = line
        while self.received in self.early:
            self.received += 1
        return len(self.early) - before

    @property
    def has_gap(self) -> bool:
        """Whether a line is missing before one that has come."""
        return len(self.early) > self.received - self.cursor

    @property
    def is_ready(self) -> bool:
        return self.cursor < self.received

    def take(self) -> tuple[int, bytes]:
        """The line at the cursor, and its number; the cursor moves on."""
        number = self.cursor
        line = self.early.pop(number)
        self.cursor += 1
        return number, line


@dataclass(slots=True)
class Flight:
    """Lines on their way in one packet."""

    end: int
    number: int
    sent_at: float


class Writer:
    """The writing end of a log: where the reader is, and what is on its way to it."""

    __slots__ = ("cursor", "flights", "next", "window")

    def __init__(self, cursor: int, window: int) -> None:
        self.cursor = cursor  # the reader's
        self.window = window
        self.next = cursor  # the first line that was never sent
        self.flights: list[Flight] = []  # in the order of their lines; mostly very few

    def acknowledge(self, cursor: int) -> int:
        """Takes the reader's cursor, which has risen; returns how many flights it has passed."""
        passed = 0
        while passed < len(self.flights) and self.flights[passed].end <= cursor:
            passed += 1
        del self.flights[:passed]
        self.cursor = cursor
        return passed

    def departed(self, first: int, flight: Flight) -> None:
        """Notes lines from ``first`` that have left: new ones, or the oldest ones again."""
        if first == self.next:
            self.flights.append(flight)
            self.next = flight.end
            return
        while self.flights and self.flights[0].end <= flight.end:
            del self.flights[0]  # a repeated packet also carries what else fits
        self.flights.insert(0, flight)
        self.next = max(self.next, flight.end)


# ----------------------------------------------------------------------------- the one channel


class RoundTrip:
    """The smoothed round-trip time and the timeout that follows from it (RFC 6298 §2)."""

    __slots__ = ("_base", "_timing", "smoothed", "variation")

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._base = timing.first_timeout - timing.ack_allowance
        self.smoothed: float | None = None
        self.variation = 0.0

    def sample(self, seconds: float) -> None:
        if self.smoothed is None:
            self.smoothed, self.variation = seconds, seconds / 2
        else:
            self.variation += (abs(self.smoothed - seconds) - self.variation) / 4
            self.smoothed += (seconds - self.smoothed) / 8
        self._base = self.smoothed + max(self._timing.granularity, 4 * self.variation)

    def timeout(self, backoff: int, is_prompt: bool = False) -> float:
        """Seconds until an answer is late, doubled ``backoff`` times (RFC 6298 §5.5); a prompt one
        is sent at once."""
        base = self._base if is_prompt else self._base + self._timing.ack_allowance
        return min(base * (1 << min(backoff, 16)), self._timing.max_timeout)


class Window:
    """How many flights may be on their way (RFC 5681 §3.1, in datagrams)."""

    __slots__ = ("_episode_end", "size", "threshold")

    def __init__(self, first: int = 0) -> None:
        """``first`` is the number of the first packet whose loss counts."""
        self.size: float = INITIAL_WINDOW
        self.threshold: float = MAXIMUM_WINDOW
        self._episode_end = first

    def acknowledge(self, count: int, in_flight: int) -> None:
        """``count`` of ``in_flight`` arrived. A window that was not full is not put to the test,
        and does not grow (RFC 9002 §7.8)."""
        if in_flight < int(self.size):
            return
        for _ in range(count):
            self.size += 1 if self.size < self.threshold else 1 / self.size
        self.size = min(self.size, MAXIMUM_WINDOW)

    def lose(self, number: int, next_number: int) -> None:
        """Packet ``number`` is lost: halves, once for all packets sent before this was known
        (RFC 9002 §7.3.2)."""
        if number >= self._episode_end:
            self._episode_end = next_number
            self.size = self.threshold = max(self.size / 2, MINIMUM_WINDOW)


class Channel:
    """One end of a session: all its logs, both ways.

    ``reads`` and ``writes`` give the cursors to start from, and their order is that of the
    cursors in a packet. ``keepalive`` is the idle time after which this end asks (never: inf).
    """

    def __init__(
        self,
        timing: Timing,
        now: float,
        reads: Mapping[LogId, int],
        writes: Mapping[LogId, int],
        keepalive: float = inf,
    ) -> None:
        self._timing = timing
        self._keepalive = keepalive
        self.readers = {log: Reader(at, WINDOW_LINES[log]) for log, at in reads.items()}
        self.writers = {log: Writer(at, WINDOW_LINES[log]) for log, at in writes.items()}
        self._flights = [writer.flights for writer in self.writers.values()]
        self.round_trip = RoundTrip(timing)
        self.window = Window()
        self.heard_at = now
        self.number = 1  # of the next packet to send
        self._highest = 0  # number received, at ``heard_at``
        self._echo = 0  # the highest of ours that has arrived, as far as we know
        self._unanswered: list[tuple[int, float]] = []  # (number, sent at); mostly very few
        self._backoff = 0
        self._progress_at = now
        self._late_at = inf  # the oldest packet on its way
        self._lost_echo = inf  # the echo that tells that it is lost
        self._probe_at = now + keepalive
        self._ack_at = inf
        self._go_on_at = inf  # with a burst that has not ended
        self._unacknowledged = dict.fromkeys(self.readers, 0)  # lines
        self._unacknowledged_packets = 0

    # -- receiving

    def receive(self, packet: Packet, now: float) -> bool:
        """Takes in a packet of the other end; whether it is the newest so far, and so a sign of
        life. Lines wait in ``readers`` to be taken. Raises BadPacket, having changed nothing."""
        self._check(packet)
        ahead = packet.number - self._highest
        is_newest = ahead > 0
        if is_newest:
            self._highest = packet.number
            self.heard_at = now
        if self._acknowledged(packet, now):
            self._watch_oldest()
        if is_newest and not self._unanswered:
            self._probe_at = now + self._keepalive
        if packet.parts:
            self._hold(packet, ahead, now)
        if packet.asks and is_newest:
            self._ack_at = now
        return is_newest

    def _check(self, packet: Packet) -> None:
        if packet.echo >= self.number:
            raise BadPacket("the echo of a packet that was never sent")
        for writer, cursor in zip(self.writers.values(), packet.cursors):
            if cursor > writer.next:
                raise BadPacket("a cursor beyond what was sent")
        for part in packet.parts:
            if part.log not in self.readers:
                raise BadPacket("a part of a log that this end writes")

    def _acknowledged(self, packet: Packet, now: float) -> bool:
        """Whether it tells anything new of what was sent."""
        is_new = packet.echo > self._echo
        if is_new:
            self._echo = packet.echo
            self._backoff = 0
            answered = 0
            for number, sent_at in self._unanswered:
                if number > packet.echo:
                    break
                answered += 1
                if number == packet.echo and packet.held < _MAX_HELD:
                    self.round_trip.sample(max(0.0, now - sent_at - packet.held / 1000))
            del self._unanswered[:answered]
        in_flight = self._in_flight()
        passed = 0
        for writer, cursor in zip(self.writers.values(), packet.cursors):
            if cursor > writer.cursor:
                is_new = True
                self._progress_at = now
                passed += writer.acknowledge(cursor)
        if passed:
            self.window.acknowledge(passed, in_flight)
            if passed == in_flight:  # a repetition that is still on its way is moot
                self._unanswered.clear()
        return is_new

    def _hold(self, packet: Packet, ahead: int, now: float) -> None:
        """Its number is that far ``ahead`` of the highest before it."""
        had_gap = self._has_gap()
        fresh = 0
        for part in packet.parts:
            lines = self.readers[part.log].hold(part)
            self._unacknowledged[part.log] += lines
            fresh += lines
        if not fresh and ahead <= 0:
            return  # a datagram that the network doubled
        self._unacknowledged_packets += 1
        is_orderly = ahead == 1 and fresh and not (had_gap or self._has_gap())
        if not is_orderly or self._is_ack_overdue():  # RFC 9000 §13.2.1
            self._ack_at = now
        elif self._ack_at > now:
            self._ack_at = now + self._timing.ack_delay

    def _has_gap(self) -> bool:
        return any(reader.has_gap for reader in self.readers.values())

    def _is_ack_overdue(self) -> bool:
        return self._unacknowledged_packets >= ACK_PACKETS or any(
            lines >= WINDOW_LINES[log] // 4 for log, lines in self._unacknowledged.items()
        )

    # -- sending

    @property
    def unanswered_since(self) -> float:
        """When the oldest packet was sent that wants an answer and has none; inf: there is none."""
        return self._unanswered[0][1] if self._unanswered else inf

    def ask(self, now: float) -> None:
        """Wants a sign of life."""
        self._probe_at = now

    def acknowledge(self, now: float) -> None:
        """Does not let an acknowledgement wait any longer."""
        self._ack_at = now

    def challenge(self, now: float, before: int, after: int) -> Packet:
        """A packet for a new address of the other end, to see whether it is there: it asks for an
        answer, and only who gets it can echo its number (RFC 9000 §8.2, with the number for the
        data), since random numbers of others are left out before it and after it."""
        self.number += before
        packet = self._packet(now, (), asks=True)
        self._watch_oldest()
        self.number += after  # or the next packet, to the old address, would betray it
        return packet

    def migrate(self) -> None:
        """The other end is there. What was learnt of the old path says nothing of the new one, nor
        does the loss of what was sent to the old address (RFC 9000 §9.4)."""
        self.round_trip = RoundTrip(self._timing)
        self.window = Window(self.number)
        self._watch_oldest()

    def cut(self, log: LogId) -> Log:
        """Sends nothing more of a log, nor again; returns an empty one that goes on from there."""
        writer = self.writers[log]
        writer.acknowledge(writer.next)
        self._watch_oldest()
        return Log(writer.next)

    def packets(self, now: float, logs: Mapping[LogId, Log]) -> list[Packet]:
        """What is due now; ``logs`` are those that this end writes. What they raise goes through,
        and this can be called again."""
        is_late = self._late_at <= now
        is_lost = is_late or self._lost_echo <= self._echo
        packets: list[Packet] = []
        if is_late or not now < self._go_on_at < inf:
            packets = self._burst(now, logs, self._lost(now) if is_lost else set())
        if is_late and packets:
            if self._backoff:  # one more loss would double the wait again: RFC 9002 §6.2.4
                packets.append(self._packet(now, packets[0].parts))
            self._backoff += 1
        if self._probe_at <= now:
            packets.append(self._packet(now, (), asks=True))
            self._probe_at = now + self.round_trip.timeout(self._backoff)
            self._backoff += 1
        elif self._ack_at <= now and not packets:
            packets.append(self._packet(now, ()))
        if is_lost or packets:
            self._watch_oldest()
        if packets:  # each of which acknowledges
            self._ack_at = inf
            if self._unacknowledged_packets:
                self._unacknowledged = dict.fromkeys(self.readers, 0)
                self._unacknowledged_packets = 0
        return packets

    def _burst(self, now: float, logs: Mapping[LogId, Log], lost: set[LogId]) -> list[Packet]:
        """What was lost, and what is new, as far as it may leave at once."""
        waiting = [
            log
            for log, writer in self.writers.items()
            if writer.next < logs[log].end or log in lost
        ]
        packets: list[Packet] = []
        self._go_on_at = inf
        try:
            while waiting and (parts := self._pack(now, logs, waiting, lost)):
                packets.append(self._packet(now, parts, self._is_narrow_and_full()))
                if waiting and len(packets) == AT_ONCE:
                    self._go_on_at = now + self._timing.pacing
                    break
        except BaseException:  # a log that cannot be read now: earlier packets are as good as lost
            self._watch_oldest()
            raise
        return packets

    def deadline(self) -> float:
        """When ``packets`` will next have something, if nothing is received or written before."""
        return min(self._ack_at, self._probe_at, self._late_at, self._go_on_at)

    def _watch_oldest(self) -> None:
        """When the oldest packet on its way is late, and which echo tells that it is lost
        (RFC 9002 §6.1)."""
        self._late_at = self._lost_echo = inf
        for flights in self._flights:
            if flights:
                self._late_at = min(self._late_at, self._is_late_at(flights[0]))
                self._lost_echo = min(self._lost_echo, flights[0].number + PACKET_THRESHOLD)

    def _is_late_at(self, flight: Flight) -> float:
        """When a packet is late that is the oldest of its log. The other end does not answer it as
        long as more follow, up to the eighth (RFC 9002 §6.2.1: each restarts the timeout); but at
        once if it is missing and a later one has come."""
        since = max(flight.sent_at, self._progress_at)  # RFC 6298 §5.3
        if flight.number > self._echo:
            _, awaited_since = self._unanswered[:ACK_PACKETS][-1]
            since = max(since, awaited_since)
        return since + self.round_trip.timeout(self._backoff, flight.number < self._echo)

    def _lost(self, now: float) -> set[LogId]:
        """The logs whose oldest packet on its way is lost or late."""
        lost = set()
        for log, writer in self.writers.items():
            if writer.flights:
                number = writer.flights[0].number
                is_late = self._is_late_at(writer.flights[0]) <= now
                if is_late or number + PACKET_THRESHOLD <= self._echo:
                    lost.add(log)
                    self.window.lose(number, self.number)
        return lost

    def _pack(
        self, now: float, logs: Mapping[LogId, Log], waiting: list[LogId], lost: set[LogId]
    ) -> tuple[Part, ...]:
        """The parts of one packet: of the logs that have something ``waiting``, what was lost, then
        what is new, as the window allows. What is done with leaves both collections."""
        found: list[tuple[LogId, int, Part]] = []
        is_open = self._in_flight() < int(self.window.size)
        for log in waiting:
            if is_open or log in lost:
                writer = self.writers[log]
                first = writer.cursor if log in lost else writer.next
                space = _PARTS_SPACE - sum([part.size for _, _, part in found])
                part = logs[log].part(log, first, writer.cursor + writer.window, space)
                if part is not None:
                    found.append((log, first, part))
        for log, first, part in found:  # now that all of them could be read
            writer = self.writers[log]
            writer.departed(first, Flight(part.end, self.number, now))
            lost.discard(log)
            if writer.next == logs[log].end:
                waiting.remove(log)
        return tuple([part for _, _, part in found])

    def _packet(self, now: float, parts: tuple[Part, ...], asks: bool = False) -> Packet:
        cursors = [reader.cursor for reader in self.readers.values()]
        held = min(int((now - self.heard_at) * 1000), _MAX_HELD)
        packet = Packet(self.number, self._highest, held, asks, (*cursors, 0, 0)[:3], parts)
        if parts or asks:
            if len(self._unanswered) == _UNANSWERED:
                del self._unanswered[0]
            self._unanswered.append((self.number, now))
        self.number += 1
        return packet

    def _is_narrow_and_full(self) -> bool:
        """Whether the window would wait for an acknowledgement that is delayed."""
        size = int(self.window.size)
        return size < ACK_PACKETS and self._in_flight() >= size

    def _in_flight(self) -> int:
        return sum(map(len, self._flights))


class Bucket:
    """A rate with a burst: the virtual scheduling algorithm of ITU-T I.371. 0 is no limit."""

    __slots__ = ("_interval", "_next", "_slack")

    def __init__(self, rate: float, burst: float) -> None:
        self._interval = 1 / rate if rate else 0.0
        self._slack = self._interval * (burst - 1)
        self._next = -inf

    def ready_at(self) -> float:
        """When ``take`` may be called again, in its clock's seconds."""
        return self._next - self._slack

    def take(self, now: float) -> None:
        self._next = max(self._next, now) + self._interval
