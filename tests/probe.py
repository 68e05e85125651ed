"""A program that tells what it has got from whoever started it (``tests/test_forkserver.py``)."""

from __future__ import annotations

import ctypes
import json
import locale
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Final

import chatclient
from protocol import Timing

STATUS: Final = 7


def main(timing: Timing) -> int:
    """Print what this process finds, as JSON in one line; return a status to be known by."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    found = {
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "umask": os.umask(0),
        "signals": {int(n): repr(signal.getsignal(n)) for n in sorted(signal.valid_signals())},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "streams": [(s.encoding, s.errors, s.line_buffering, s.isatty()) for s in streams],
        "descriptors": len(os.listdir("/proc/self/fd")),
        "has terminal": has_controlling_terminal(),
        "leads session": os.getsid(0) == os.getpid(),
        "linger": timing.linger,
        "buffer": size_of_buffer(),
        "hour of the epoch": time.localtime(0).tm_hour,
        "locale": locale.setlocale(locale.LC_CTYPE),
        # In pipes a forked program has none.
        "has readline": sys.stdin.isatty() and chatclient.readline is not None,
    }
    print(json.dumps(found))
    return STATUS


def size_of_buffer() -> int:
    """Return how many bytes the C library buffers for standard output: readline writes there."""
    libc = ctypes.CDLL(None)
    size: int = libc.__fbufsize(ctypes.c_void_p.in_dll(libc, "stdout"))
    return size


def has_controlling_terminal() -> bool:
    """Return True if a terminal's Ctrl-C reaches this process."""
    with suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDWR))
        return True
    return False
