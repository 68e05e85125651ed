"""Changes of the programs' private state, where no public way brings about what a test needs."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from unittest import mock

import chatclient
import protocol
from chatclient import Client
from chatserver import Server, State, Store
from protocol import Bucket, Channel, LogId
from tests.room import ClientEnd, World, session_of

# ---------------------------------------------------------------------------------- a server


def time_out(w: World, name: str) -> None:
    """Write a member out as silent for too long, before the server's next turn."""
    server, session = w.server.server, session_of(w, name)
    server._room.leave(session.member, State.WRITTEN_OUT, "timed out")
    server._end(session)


def end_session(w: World, name: str) -> None:
    """End the session of a member, who does not hear of it."""
    w.server.server._end(session_of(w, name))


def expel(w: World, name: str, words: str) -> None:
    """Expel a member, as if its name had been given away."""
    w.server.server._put_out(session_of(w, name), words, w.network.now)


def look_at_session(w: World, name: str) -> None:
    """Make the server look at the session of a member in this turn."""
    session = session_of(w, name)
    w.server.server._active[session.id] = session


@contextmanager
def leaving_lines(server: Server) -> Iterator[None]:
    """Let a server receive lines meanwhile, in one turn, and not take them yet."""
    with mock.patch.object(server, "_take_lines", side_effect=(None,)):
        yield


def handle_line(server: Server, name: str, message: protocol.Message) -> None:
    """Let the room act on a member's next line, outside a turn."""
    member = server._room.members[name]
    server._room.handle(member, member.lines, protocol.format_message(message).encode())


def check_accounts(server: Server, now: float) -> None:
    """Make a server look for changed accounts now."""
    server._check_accounts(now)


def postpone_account_check(server: Server) -> None:
    """Make a server believe that it has only just looked for changed accounts."""
    server._check_at = inf


def purge_in_next_turn(server: Server, now: float) -> None:
    """Make the purge of old instances due now."""
    server._forget_at = now


def note_failed_login(server: Server, name: str, network: str, now: float) -> None:
    """Let a server note a wrong password for a name from a network."""
    server._brake.fail(name, network, now)


# ------------------------------------------------------------------------------- a room file


@contextmanager
def unreadable_file(store: Store) -> Iterator[None]:
    """Let every statement on a room file fail meanwhile."""
    store._file.set_progress_handler(lambda: 1, 1)  # interrupts each
    try:
        yield
    finally:
        store._file.set_progress_handler(None, 1)


@contextmanager
def full_disk(store: Store) -> Iterator[None]:
    """Let a room file not grow meanwhile."""
    (pages,) = store._file.execute("PRAGMA page_count").fetchone()
    store._file.execute(f"PRAGMA max_page_count = {pages}")
    try:
        yield
    finally:
        store._file.execute("PRAGMA max_page_count = 1000000")


def wait_for_no_lock(store: Store) -> None:
    """Let a store fail at once where another process is writing."""
    store._file.execute("PRAGMA busy_timeout = 0")


# ---------------------------------------------------------------------------------- a client


def start_handshake(client: Client, now: float) -> None:
    """Make a client join again beside the session that it has, as if it suspected that."""
    client._join_again(now)


def rejoin(end: ClientEnd) -> None:
    """Start another handshake of a client in virtual time."""
    now = end.network.now
    end.network.at(now, end.host, partial(start_handshake, end.client, now))


def supersede_handshake(client: Client) -> None:
    """Make a client remember its handshake as one that it gave up after its proof."""
    client._former = client._attempt


def give_instance(client: Client, instance: bytes) -> None:
    """Give a client the instance of another one."""
    client._instance = instance


def stop_pacing(client: Client) -> None:
    """Make a client send as fast as it can, whatever rate it was told."""
    client._delivery.bucket = Bucket(0, 0)


def drop_outbox(client: Client) -> None:
    """Drop the lines of a client, as if all were acknowledged."""
    outbox = client._delivery.outbox
    outbox.drop(outbox.end)


def take_line(client: Client, relayed: protocol.Relayed, now: float) -> None:
    """Let a client take a line of the room that no server has sent."""
    client._take(relayed, now)


@contextmanager
def credulous_clients() -> Iterator[None]:
    """Let clients meanwhile believe whoever says that their session is over."""

    def believe(client: Client, now: float) -> None:
        client._session = None

    with mock.patch.object(Client, "_doubt", believe):
        yield


def give_socket(loop: chatclient.Network, udp: socket.socket) -> None:
    """Let a client's loop go on with another socket, as if it had opened that."""
    loop._udp.close()
    loop._udp = udp


def press_ctrl_c(loop: chatclient.Network) -> None:
    """Do what a client's loop does on SIGINT."""
    loop._interrupt()


def close_loop(loop: chatclient.Network) -> None:
    """Close the sockets of a client's loop, whose process does not end with it."""
    for each in (loop._udp, loop._wakeup, loop._alarm):
        each.close()


# -------------------------------------------------------------------------------- the protocol


def set_timeout(channel: Channel, when: float) -> None:
    """Set the time at which a channel holds its oldest packet for late."""
    channel._late_at = when


@contextmanager
def replaced_keystream(xor: Callable[[bytes, bytes, bytes], bytes]) -> Iterator[None]:
    """Let the protocol meanwhile encrypt with a function of data, key and nonce."""
    with mock.patch.object(protocol, "_xor_keystream", xor):
        yield


@contextmanager
def constant_room_nonce() -> Iterator[None]:
    """Let all blocks of the room meanwhile be sealed with one nonce, which must never happen."""
    constant = mock.Mock(**{"pack.return_value": bytes(4)})
    with mock.patch.object(protocol, "_ROOM_NONCE", constant):
        yield


@contextmanager
def careless_splitting() -> Iterator[None]:
    """Let the protocol meanwhile raise struct.error for a packet whose parts are broken."""
    split = protocol._split_parts_untrusted

    def careless(body: bytes) -> list[tuple[LogId, int, bytes]]:
        try:
            return split(body)
        except protocol.ProtocolError:
            raise struct.error("unpack requires more") from None

    with mock.patch.object(protocol, "_split_parts_untrusted", careless):
        yield
