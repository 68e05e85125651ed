"""Read-only views of what the programs keep private, so that one module knows its names.

Nothing here changes what a program does; tests/actions.py has changes that no public way brings
about.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

import chatclient
import protocol
from chatclient import Attempt, Client
from chatserver import Address, Brake, Failures, Member, Server, Session, Store, StoredLog, Waiting
from protocol import Channel, Hello, Log, RoomBlocks

# ---------------------------------------------------------------------------------- a server


def members(server: Server) -> Mapping[str, Member]:
    """Return the members that are present, by folded name."""
    return MappingProxyType(server._room.members)


def room_log(server: Server) -> StoredLog:
    """Return the log of the room, which every member reads."""
    return server._room.log


def roster(server: Server) -> list[bytes]:
    """Return the lines that answer WHO."""
    return server._room.roster()


def sessions(server: Server) -> Mapping[bytes, Session]:
    """Return all sessions by their id, draining ones too."""
    return MappingProxyType(server._sessions)


def draining_sessions(server: Server) -> Mapping[bytes, Session]:
    """Return the sessions that have ended and are still answered, the oldest first."""
    return MappingProxyType(server._lingering)


def room_blocks(server: Server) -> RoomBlocks:
    """Return what seals the lines of the room, with the key that every member has."""
    return server._blocks


def replies_due(server: Server) -> Sequence[tuple[bytes, Address]]:
    """Return the handshake packets that the server sends at the end of the turn."""
    return tuple(server._replies)


def queued_handshakes(server: Server) -> int:
    """Return how many handshake packets are queued for a turn with time for them."""
    return len(server._handshakes)


def cookie_for(server: Server, hello: Hello, address: Address, now: float) -> bytes:
    """Return the cookie that the server sends in answer to a HELLO."""
    return server._door.cookie(hello, address, now).cookie


def challenged_hosts(server: Server) -> list[str]:
    """Return the host of each challenge that is pending, the oldest first."""
    return [address[0] for address, _ in server._door._knocks]


def challenges_by_network(server: Server) -> Mapping[str, int]:
    """Return how many challenges are pending in each network, as the server counts them."""
    return MappingProxyType(server._door._counts)


def limited_networks(server: Server) -> list[str]:
    """Return the networks whose rate of joining is remembered, the longest quiet first."""
    return list(server._comings)


def bounded_tables(server: Server) -> Mapping[str, Sized]:
    """Return what grows with the work of a server, by what there is in it."""
    return {
        "draining sessions": server._lingering,
        "networks": server._comings,
        "sealed blocks": server._blocks._sealed,
        "shared parts": server._room.log._parts,
        "queued handshakes": server._handshakes,
        "pending challenges": server._door._knocks,
        "failed logins": server._brake._failures,
        "lines of the room": server._room.log.lines,
    }


def failed_logins(brake: Brake) -> Mapping[tuple[str, str], Failures]:
    """Return what is remembered of wrong passwords, by name and network."""
    return MappingProxyType(brake._failures)


def queueing_networks(queue: Waiting) -> list[str]:
    """Return the networks of which handshake packets are queued; the next one is first."""
    return list(queue._queues)


# ------------------------------------------------------------------------------- a room file

MIGRATION_STEPS: Final = tuple(Store._STEPS)


def query(store: Store, words: str, *values: bytes | str | int) -> list[Any]:
    """Return the rows that a query finds in the connection of a store."""
    return store._query(words, *values)


def secret(store: Store) -> bytes:
    """Return the secret of which decoy accounts are made."""
    found: bytes = store._secret
    return found


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """Yield a list of the statements that a store executes meanwhile."""
    executed: list[str] = []
    store._file.set_trace_callback(executed.append)
    try:
        yield executed
    finally:
        store._file.set_trace_callback(None)


# ---------------------------------------------------------------------------------- a client


def find_session(client: Client) -> chatclient.Session | None:
    """Return the session of a client, or None before it has one."""
    return client._session


def session(client: Client) -> chatclient.Session:
    """Return the session of a client that has one."""
    assert client._session
    return client._session


def find_handshake(client: Client) -> Attempt | None:
    """Return the handshake that a client has not finished, or None."""
    return client._attempt


def handshake(client: Client) -> Attempt:
    """Return the unfinished handshake of a client that has one."""
    assert client._attempt
    return client._attempt


def superseded_handshake(client: Client) -> Attempt | None:
    """Return the handshake that a client gave up after its proof, if its WELCOME still counts."""
    return client._former


def first_request(attempt: Attempt) -> Hello:
    """Return the HELLO with which a handshake began."""
    return attempt._hello


def member_key(client: Client) -> bytes:
    """Return the key under which a server stores a client's instance."""
    return hashlib.sha256(client._instance).digest()


def pending_lines(client: Client) -> Mapping[int, protocol.Message]:
    """Return the numbered lines whose fate a client does not know yet."""
    return MappingProxyType(client._delivery.pending)


def partial_roster(client: Client) -> Sequence[str]:
    """Return the names of an answer to WHO that has not come whole yet."""
    return tuple(client._roster)


def loop_socket(loop: chatclient.Network) -> socket.socket:
    """Return the socket through which a client's loop sends now."""
    return loop._udp


def next_route_check(loop: chatclient.Network) -> float:
    """Return when a client's loop looks again for the route to its server."""
    return loop._route_at


# -------------------------------------------------------------------------------- the protocol

PACKET_OVERHEAD: Final = protocol._OVERHEAD
PART_HEADER: Final = protocol._PART_HEADER
RECORD_TYPES: Final = MappingProxyType(protocol._TYPES)
SEALED_BLOCKS: Final = RoomBlocks._LIMIT
UNANSWERED_PACKETS: Final = protocol._UNANSWERED
SHARED_PARTS: Final = protocol._PARTS_KEPT

# The functions from which packets are made, for packets that no program would make.
digest: Final = protocol._digest
format_record: Final = protocol._format_record
mac: Final = protocol._mac
xor_keystream: Final = protocol._xor_keystream


def highest_received(channel: Channel) -> int:
    """Return the highest number of the packets that a channel has received."""
    return channel._highest


def unanswered_packets(channel: Channel) -> Sequence[tuple[int, float]]:
    """Return number and time of the packets whose echo a channel awaits."""
    return tuple(channel._unanswered)


def shared_parts(log: Log) -> Mapping[tuple[int, int, int], protocol.Part | None]:
    """Return the parts that a log keeps for further readers."""
    return MappingProxyType(log._parts)


def sealed_blocks(blocks: RoomBlocks) -> Sized:
    """Return the blocks that are kept because other members will need them sealed alike."""
    return blocks._sealed
