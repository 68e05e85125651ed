"""Observations of a world: the texts that members were shown, and the datagrams that were sent."""

from __future__ import annotations

from protocol import Challenge, parse_handshake_untrusted
from tests.network import Datagram
from tests.room import ClientEnd, World

# ---------------------------------------------------------------------- what members were shown


def marked(end: ClientEnd, marker: str = "#") -> list[str]:
    """Return the texts with a marker that an end was shown, in order; status lines are included."""
    return [text for text in end.texts() if marker in text]


def messages(end: ClientEnd) -> list[str]:
    """Return the messages that an end was shown as they were said: no kept ones, no status line."""
    return [text for text in end.texts() if not text.startswith("* ")]


def kept_for(end: ClientEnd) -> list[str]:
    """Return the messages that were kept for an end, as it was shown them, without their times."""
    return [text.partition("] ")[2] for text in end.texts() if text.startswith("* kept: [")]


def presence(end: ClientEnd, name: str) -> list[str]:
    """Return the lines in which an end was shown that somebody joined or left."""
    starts = (f"* {name} joined", f"* {name} left")
    return [text for text in end.texts() if text.startswith(starts)]


# ---------------------------------------------------------------------------- what was sent


def was_sent(w: World, word: bytes, start: int = 0) -> bool:
    """Return True if a datagram with that word was sent, from number ``start`` on."""
    return any(word in datagram.data for datagram in w.network.sent[start:])


def sent_to(w: World, host: str) -> list[Datagram]:
    """Return the datagrams that were sent to an end."""
    return [datagram for datagram in w.network.sent if datagram.target == host]


def handshake_packets(w: World, of: ClientEnd | str, *types: bytes) -> list[Datagram]:
    """Return the handshake packets of these types (none: any) that an end has sent or been sent."""
    host = of if isinstance(of, str) else of.host
    return [
        datagram
        for datagram in w.network.sent
        if host in (datagram.source, datagram.target)
        and datagram.data[:1] == b"{"
        and (not types or any(each in datagram.data for each in types))
    ]


def handshakes_begun(w: World, *ends: ClientEnd) -> set[bytes]:
    """Return the different HELLOs of these ends (none: any): one for each handshake begun."""
    hosts = [end.host for end in ends] or w.network.ends
    sent = (datagram for datagram in w.network.sent if datagram.source in hosts)
    return {datagram.data for datagram in sent if b'"HELLO"' in datagram.data}


def challenges_to(w: World, of: ClientEnd | str) -> list[Challenge]:
    """Return the challenges that an end has been sent."""
    packets = handshake_packets(w, of, b'"CHALLENGE"')
    records = [parse_handshake_untrusted(datagram.data) for datagram in packets]
    return [record for record in records if isinstance(record, Challenge)]


def is_challenged(w: World, of: ClientEnd | str) -> bool:
    """Return True if an end has been sent a challenge."""
    return bool(challenges_to(w, of))
