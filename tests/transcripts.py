"""Lines that a client prints in a pipe: as the tests expect them, and parts of them.

Programs give their lines with ``[HH:MM]`` in place of every time (``tests/programs.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable


def public(name: str, *texts: str) -> list[str]:
    """Return what others are shown when ``name`` says these."""
    return [f"[HH:MM] {name}: {text}" for text in texts]


def direct(name: str, *texts: str) -> list[str]:
    """Return what the recipient is shown when ``name`` writes these."""
    return [f"[HH:MM] {name} -> you: {text}" for text in texts]


def conversation(shown: Iterable[str]) -> list[str]:
    """Return what was shown except rosters, joins and leaves."""
    presence = re.compile(r"\* here: .*|\[HH:MM\] \* \w+ (joined|left)")
    return [line for line in shown if not presence.fullmatch(line)]


def passages(shown: Iterable[str]) -> list[str]:
    """Return the joins and leaves among these lines."""
    return [line for line in shown if re.search(r" (joined|left)\b", line)]


def of_sender(name: str, lines: Iterable[str]) -> list[str]:
    """Return the public lines of that sender."""
    return [line for line in lines if line.startswith(f"[HH:MM] {name}: ")]


def kept_messages(shown: Iterable[str]) -> list[str]:
    """Return the kept messages among these lines, without their times."""
    stamp = re.compile(r"\* kept: \[[^]]*\] ")
    return [stamp.sub("", line) for line in shown if stamp.match(line)]
