"""One command at a time on this machine: the second waits, and says so."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive(state: Path) -> Iterator[None]:
    """Hold the machine's cluster lock.

    The lock is on the folder above the state folder, so that no lock file is left behind.
    """
    state.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(state.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another cluster command is running on this machine; waiting for it", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
