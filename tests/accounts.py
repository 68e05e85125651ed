"""Accounts in virtual time: credentials, the operator's doings, and attempts to log in."""

from __future__ import annotations

import hashlib
import unittest
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

import protocol
from chatclient import Credentials
from chatserver import Account, Store
from tests import views
from tests.observed import challenges_to
from tests.room import EPOCH, ClientEnd, World, quick_passwords

PASSWORD: Final = b"correct horse"
WRONG_PASSWORD: Final = "wrong username or password (the server)"
LET_IN: Final = ""


def knows(password: bytes = PASSWORD) -> Credentials:
    """Return the credentials of somebody who logs in with a password."""
    return Credentials(password)


def registers(new: bytes = PASSWORD, old: bytes | None = None) -> Credentials:
    """Return credentials that register a name, or change its password from ``old`` to ``new``."""
    with quick_passwords():
        return Credentials(old, new, hashlib.sha256(new).digest()[: protocol.SALT_LENGTH])


def account(name: str, password: bytes = PASSWORD) -> Account:
    """Return an account as the operator would add it; the same for the same arguments."""
    it = protocol.registration(password, b"s" * protocol.SALT_LENGTH)
    key = hashlib.sha256(name.encode() + password).digest()[:16]
    return Account(key, name, it.salt, it.iterations, it.verifier, EPOCH)


def add_accounts(w: World, *names: str) -> None:
    """Add accounts to a server's room file, as if they had been there before."""
    for name in names:
        assert w.server.store.add(account(name))


@contextmanager
def operator(w: World) -> Iterator[Store]:
    """Open the room file beside the server, as the operator's program does."""
    with closing(Store(str(w.server.path), alone=False)) as store:
        yield store


def is_logged_in(w: World, end: ClientEnd) -> bool:
    """Return True if an end has a session that was opened with a password."""
    session = views.find_session(end.client)
    return session is not None and any(
        each.salt and each.session == session.id for each in challenges_to(w, end)
    )


def try_login(w: World, host: str, password: bytes = b"wrong", name: str = "alice") -> str:
    """Log in from a host with a password; return LET_IN, or the refusal in the words shown."""
    end = w.client(name, host, knows(password))
    w.network.run(w.network.now + 30, lambda: end.client.has_joined or end.client.is_over)
    assert end.client.has_joined or end.client.failure
    return end.client.failure or LET_IN


class AccountTestCase(unittest.TestCase):
    """Assertions about a client that a person looks at."""

    def assert_said_once(self, end: ClientEnd, words: str) -> None:
        self.assertEqual(end.texts().count(words), 1, end.texts())

    def assert_goes_on(self, end: ClientEnd) -> None:
        self.assertTrue(end.client.has_joined)
        self.assertIsNone(end.client.failure)
        self.assertFalse(end.client.has_left)
