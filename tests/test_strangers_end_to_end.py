"""Strangers and forgers against the real programs, on real sockets: one smoke test of each kind.

``tests/test_strangers.py`` has the attacks themselves, in virtual time.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
import unittest
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from sqlite3 import connect
from typing import Any, Final

import protocol
from protocol import (
    Challenge,
    Cookie,
    Gone,
    Hello,
    Refused,
    format_handshake,
    parse_handshake_untrusted,
)
from tests.account_programs import AccountProgramsTest, is_handshake
from tests.attacks import (
    NO_SESSION,
    dump,
    handshakes_of_all_lengths,
    hello,
    in_many_orders,
    join,
    mutated,
    naming,
    refused_names,
    session_packets_of_all_lengths,
)
from tests.crowd import Member
from tests.programs import (
    LOCALHOST,
    PATIENCE,
    POLL,
    Program,
    arrived,
    lasting_port,
    udp_socket,
    wait_until,
)
from tests.relay import Relay
from tests.transcripts import conversation, direct, passages, public

AT_ONCE: Final = 32  # datagrams to a real socket, whose queue has its end


@dataclass(frozen=True, slots=True)
class Passed:
    """A datagram of a client, or for it."""

    client: Any  # its address
    is_to_server: bool
    data: bytes


class Wire(Relay):
    """A good network with somebody on it who records everything, and speaks in anybody's place."""

    def __init__(self, server_port: int) -> None:
        super().__init__(server_port, seed=1, drop=0.0, double=0.0, delays=(0.0, 0.0))
        self.record: list[Passed] = []
        self.refuses: tuple[bytes, str] | None = None  # such a request, with that code
        self.is_broken = False  # what the server says in sessions is lost

    def _carry(self, data: bytes, out: socket.socket, target: Any) -> None:
        is_to_server = target is None
        client = target or next(c for c, each in self._upstream.items() if each is out)
        self.record.append(Passed(client, is_to_server, data))
        if is_to_server and self.refuses and self.refuses[0] in data:
            nonce, code = bytes.fromhex(json.loads(data)["nonce"]), self.refuses[1]
            self.to_client(client, format_handshake(Refused(nonce, code, f"forged {code}")))
        elif is_to_server or is_handshake(data) or not self.is_broken:
            super()._carry(data, out, target)

    def to_server(self, client: Any, data: bytes) -> None:
        """As if it were the client's."""
        self._upstream[client].send(data)

    def to_client(self, client: Any, data: bytes) -> None:
        """As if it were the server's."""
        self._front.sendto(data, client)

    @property
    def clients(self) -> list[Any]:
        """The addresses of all who have ever been."""
        return list(self._upstream)

    def client(self, name: str) -> Any:
        """The address of whoever wanted to join under that name last."""
        mark = f'"username":"{name}"'.encode()
        return next(each.client for each in reversed(list(self.record)) if mark in each.data)

    def last_packet(self, name: str) -> bytes:
        """The last session packet that this member has sent."""
        client = self.client(name)
        sent = (each for each in reversed(list(self.record)) if each.is_to_server)
        packets = (each for each in sent if not is_handshake(each.data))
        return next(each.data for each in packets if each.client == client)

    def session(self, name: str) -> bytes:
        return protocol.session_of_untrusted(self.last_packet(name))

    def handshakes_to(self, *clients: Any) -> list[bytes]:
        """Those that the server has sent there."""
        sent = (each for each in list(self.record) if not each.is_to_server)
        return [each.data for each in sent if each.client in clients and is_handshake(each.data)]


class Outsider:
    """A real address, from which anything is sent."""

    def __init__(self, server_port: int) -> None:
        self.udp = udp_socket(LOCALHOST, server_port)
        self.udp.settimeout(PATIENCE)

    def tell(self, *datagrams: bytes) -> list[bytes]:
        """Send these, and return all that comes back.

        The server has then seen to them, and to all that came from this host before: each answer to
        a HELLO shows that one of its turns has passed. Arithmetic may take it several turns, but
        when nothing comes back in two of them, there is none left.
        """
        for data in datagrams:
            self.udp.send(data)
        replies: list[bytes] = []
        quiet = 0
        while quiet < 2:
            last, before = hello(nonce=os.urandom(16)), len(replies)
            self.udp.send(format_handshake(last))
            while last.nonce.hex().encode() not in (reply := self.udp.recv(2048)):
                replies.append(reply)
            quiet = quiet + 1 if len(replies) == before else 0
        return replies

    def ask(self, record: protocol.Handshake) -> protocol.Handshake:
        (reply,) = self.tell(format_handshake(record))
        return parse_handshake_untrusted(reply)


def batches(datagrams: Iterable[bytes]) -> Iterator[list[bytes]]:
    it = iter(datagrams)
    while batch := list(islice(it, AT_ONCE)):
        yield batch


def drive(member: Member, is_enough: Callable[[list[bytes]], bool]) -> None:
    """Lets a member of this process do what it has to, until it has heard enough of the room."""
    heard: list[bytes] = []
    deadline = time.monotonic() + PATIENCE
    while not is_enough(heard):
        if time.monotonic() > deadline:
            raise AssertionError(f"in vain for {member.name}, who has heard {heard}")
        for data in member.datagrams(time.monotonic()):
            member.udp.send(data)
        select.select([member.udp], [], [], POLL)
        for data in arrived(member.udp):
            heard += member.receive(data, time.monotonic())


class StrangersTest(AccountProgramsTest):
    """A server, a wire to it, and somebody else."""

    def setUp(self) -> None:
        super().setUp()
        self.have("dora")
        self.server = self.start_server(port=lasting_port(), linger=0.1)
        self.wire = self.enterContext(Wire(self.server.port))
        self.stranger = self.outsider()
        self._count = count()

    def outsider(self) -> Outsider:
        outsider = Outsider(self.server.port)
        self.addCleanup(outsider.udp.close)
        return outsider

    def restart_server(self) -> None:
        self.kill(self.server)
        self.server = self.start_server(port=self.server.port)

    def member(self, name: str) -> Member:
        """One in this process, whose keys are known and who says what it likes."""
        member = Member(name, self.server.port, 0)
        self.addCleanup(member.udp.close)
        drive(member, lambda heard: member.has_joined and bool(heard))
        return member

    def exchange(self, clients: Mapping[str, Program]) -> dict[str, list[str]]:
        """Each says something that the others are waited for to show; all that each was shown."""
        shown: dict[str, list[str]] = {name: [] for name in clients}
        for name, client in clients.items():
            text = f"still here {next(self._count)}"
            client.type(text)
            for other in clients.keys() - {name}:
                clients[other].wait_for(*public(name, text))
                shown[other] += public(name, text)
        return shown


class RealReplayTest(StrangersTest):
    def everything_said(self) -> dict[str, Program]:
        """Some join, say everything that can be said, and one of them leaves."""
        names = ("alice", "bob", "carol")
        clients = dict(zip(names, self.join(self.wire.port, *names)))
        clients["dora"] = self.log_in("dora", self.wire.port)
        alice, bob, carol, dora = clients.values()
        alice.type("one", "DM bob psst", "DM dora psst", "WHO", "DM nobody psst")
        bob.wait_for(*public("alice", "one"), *direct("alice", "psst"))
        dora.wait_for(*public("alice", "one"), *direct("alice", "psst"))
        alice.wait_for("* here: alice, bob, carol, dora")
        self.exchange(clients)
        carol.type("EX")
        self.end(clients.pop("carol"))
        for client in clients.values():
            client.wait_for("[HH:MM] * carol left")
        last = self.wire.last_packet("carol")
        wait_until(lambda: bool(self.stranger.tell(last)), "her session's end")
        return clients

    def recorded(self) -> list[bytes]:
        return [passed.data for passed in list(self.wire.record)]

    def replay(self, record: list[bytes]) -> None:
        """Everything, to everybody, in everybody's place."""
        for datagrams in in_many_orders(record):
            for batch in batches(datagrams):
                replies = self.stranger.tell(*batch)
                self.assertLessEqual(len(b"".join(replies)), len(b"".join(batch)))
                types = {type(parse_handshake_untrusted(reply)) for reply in replies}
                self.assertLessEqual(types, {Cookie, Gone})
                for client in self.wire.clients:
                    for data in batch:
                        self.wire.to_server(client, data)
                        self.wire.to_client(client, data)
        self.stranger.tell()

    def assert_no_effect(self, clients: Mapping[str, Program], record: list[bytes]) -> None:
        self.stranger.tell()
        stored, welcomes = dump(self.db), self.welcomes()
        shown = {name: client.shown for name, client in clients.items()}
        self.replay(record)
        self.assertEqual(dump(self.db), stored)
        for name, lines in self.exchange(clients).items():
            self.assertEqual(clients[name].shown, shown[name] + lines, name)
        self.assertEqual(self.welcomes(), welcomes)

    def welcomes(self) -> set[bytes]:
        return {d for d in self.wire.handshakes_to(*self.wire.clients) if b'"WELCOME"' in d}

    def test_to_a_server_that_was_restarted(self) -> None:
        clients = self.everything_said()
        record = self.recorded()
        shown = {name: client.shown for name, client in clients.items()}
        self.restart_server()
        self.replay(record)  # while they come back
        for name, lines in self.exchange(clients).items():
            new = clients[name].shown[len(shown[name]) :]
            self.assertEqual([line for line in new if not line.startswith("* ")], lines)
        self.assert_no_effect(clients, record)


class RealForgeryTest(StrangersTest):
    def test_neither_hints_nor_refusals_of_the_very_request_end_a_session(self) -> None:
        alice = self.start_client("alice", self.wire.port, hint_pause=0.0)
        alice.wait_for("* here: alice")
        (bob,) = self.join(self.wire.port, "bob")
        self.exchange({"alice": alice, "bob": bob})
        client, session = self.wire.client("alice"), self.wire.session("alice")
        before = len(self.wire.handshakes_to(client))
        for number in range(5):
            self.wire.to_client(client, format_handshake(Gone(session)))
            bob.type(f"hint {number}")
            alice.wait_for(*public("bob", f"hint {number}"))
        self.assertEqual(len(self.wire.handshakes_to(client)), before)  # she has asked for none
        for kind, code in ((b'"HELLO"', "in-use"), (b'"JOIN"', "full"), (b'"PROVE"', "login")):
            self.wire.refuses, self.wire.is_broken = (kind, code), True
            hint = partial(self.wire.to_client, client, format_handshake(Gone(session)))
            wait_until(partial(self.is_refused, alice, code, hint), "the refusal")
            self.wire.is_broken = False
            for one, name, other in ((bob, "bob", alice), (alice, "alice", bob)):
                one.type(f"after {code}")
                other.wait_for(*public(name, f"after {code}"))
            self.assertEqual(self.wire.session("alice"), session)
        self.wire.refuses = None
        self.leave(alice)
        bob.wait_for("[HH:MM] * alice left")
        self.assertEqual(passages(bob.shown), ["[HH:MM] * alice left"])

    def is_refused(self, client: Program, code: str, hint: Callable[[], None]) -> bool:
        hint()
        return f"* not let in again (forged {code}): still trying" in client.shown


class RealContentTest(StrangersTest):
    # Lines that no client may send. A newline is not among them: it would end the line.
    BAD: Final = (
        *(b"PM bell \x07", b"PM \x1b[2J", b"PM \x00", b"PM a\rb", b"PM \xc2\x9b2J", b"PM \xc2\x85"),
        *(b"PM \xe2\x80\xae", b"PM \xe2\x81\xa6", b"PM \xe2\x80\xa8", b"PM \xef\xbb\xbf"),
        *(
            b"PM \xff",
            b"PM \xc0\xaf",
            b"PM \xe0\x80\xaf",
            b"PM \xed\xa0\x80",
            b"PM \xf4\x90\x80\x80",
        ),
        *(b"PM", b"PM " + b"x" * (protocol.MAX_TEXT + 1), b"DM bob", b"DM bob \x1b[2J", b"DM * x"),
        *(b"DM bob\x00 x", b"DM b\xc3\xb6b x", b"REGISTER", b"register x y z"),
    )

    def test_lines_that_no_client_may_send_are_shown_to_nobody(self) -> None:
        (bob,) = self.join(self.wire.port, "bob")
        mallory = self.member("mallory")
        for raw in self.BAD:
            mallory.outbox.append(raw)
        mallory.say("the end")
        drive(mallory, lambda heard: any(b"the end" in line for line in heard))
        bob.wait_for(*public("mallory", "the end"))
        self.assertEqual(conversation(self.leave(bob)), public("mallory", "the end"))
        with closing(connect(self.db)) as file:
            rows = file.execute("SELECT line FROM lines ORDER BY log, number").fetchall()
        refused = [line for (line,) in rows if b" * NO " in line]
        numbers = [int(line.split(b" ")[3]) for line in refused]
        self.assertEqual(numbers, list(range(len(self.BAD))))
        self.assertFalse([line for line in refused if not protocol.clean_text(line.decode())])

    def test_nobody_is_called_like_the_server_or_like_somebody_else(self) -> None:
        for number, name in enumerate(
            ("*", "", "a b", "\u0430lice", "alice\x00", "\ud800", "x" * 33)
        ):
            it = Hello(protocol.VERSION, "", bytes([number]) * 16, protocol.GROUP.pad(5))
            data = format_handshake(it).replace(
                b'"username":""', f'"username":{json.dumps(name)}'.encode()
            )
            (reply,) = self.stranger.tell(data)
            refused = parse_handshake_untrusted(reply)
            assert isinstance(refused, Refused)
            self.assertEqual(refused.code, "username")


class RealHandshakeTest(StrangersTest):
    def setUp(self) -> None:
        super().setUp()
        self.other = self.outsider()

    def cookie(self, it: Hello) -> bytes:
        reply = self.stranger.ask(it)
        assert isinstance(reply, Cookie)
        return reply.cookie

    def test_repeated_requests_get_the_same_answers_and_elsewhere_nothing_of_use(self) -> None:
        good = join(self.cookie(hello()))
        request = format_handshake(good)
        challenge = self.stranger.tell(request)
        self.assertIsInstance(parse_handshake_untrusted(challenge[0]), Challenge)
        self.assertIsInstance(self.stranger.ask(replace(good, username="other")), Cookie)
        self.assertEqual(self.stranger.tell(request, request), challenge * 2)
        (alice,) = self.join(self.wire.port, "alice")
        client, stored = self.wire.client("alice"), dump(self.db)
        (prove,) = {each.data for each in self.wire.record if b'"PROVE"' in each.data}
        welcome = [d for d in self.wire.handshakes_to(client) if b'"WELCOME"' in d]
        for data, kind in ((request, Cookie), (prove, Gone)):
            (reply,) = self.other.tell(data)
            self.assertIsInstance(parse_handshake_untrusted(reply), kind)
            self.assertLessEqual(len(reply), len(data))
        before = len(self.wire.handshakes_to(client))
        self.wire.to_server(client, prove)
        wait_until(lambda: len(self.wire.handshakes_to(client)) > before, "the answer")
        self.assertEqual(self.wire.handshakes_to(client)[before:], welcome)
        self.assertEqual(dump(self.db), stored)
        self.assertEqual(alice.shown, ["* here: alice"])


class RealAmplificationTest(StrangersTest):
    def test_a_stranger_gets_no_more_than_it_sends_and_nobody_else_anything(self) -> None:
        victim = self.outsider()
        clients = dict(zip(("alice", "bob"), self.join(self.wire.port, "alice", "bob")))
        self.exchange(clients)
        everybody = self.wire.clients
        before = self.wire.handshakes_to(*everybody)
        record = [each.data for each in self.wire.record]
        for corpus in (
            record,
            mutated(record, 1000),
            handshakes_of_all_lengths(more=2 * AT_ONCE),
            session_packets_of_all_lengths(NO_SESSION),
            session_packets_of_all_lengths(self.wire.session("alice")),
            refused_names(),
            naming(*victim.udp.getsockname()),
            *(naming(*address) for address in everybody),
        ):
            for batch in batches(corpus):
                replies = self.stranger.tell(*batch)
                self.assertLessEqual(len(b"".join(replies)), len(b"".join(batch)), replies)
        self.assertEqual(victim.tell(), [])
        self.exchange(clients)
        self.assertEqual(self.wire.handshakes_to(*everybody), before)


if __name__ == "__main__":
    unittest.main()
