"""Which processes of a worker are ranks, and how each ended, in the order in which they ended.

A rank is a child of torchrun, so the agent can't wait for it. A pidfd says when it ends; its status
is in /proc until torchrun has waited for it, and with Linux 6.15 and newer in the pidfd after that.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import struct
import threading
from typing import Any, NamedTuple

from trainyard_agent import procfs

# Between two scans for ranks. A rank that ends sooner is only in torchrun's table.
SCAN_SECONDS = 0.25
# Once all ranks of this node were found: new ones come only if torchrun itself restarts them.
LATER_SCAN_SECONDS = 1.0
_SYS_PIDFD_OPEN = 434  # of every architecture
# struct pidfd_info of linux/pidfd.h in its first version: mask, cgroup, 11 ids, exit status.
_PIDFD_INFO = struct.Struct("QQ11Ii")
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3


class RankExit(NamedTuple):
    """A rank that has ended. `code` is negative for a signal; None: it could not be read."""

    rank: int
    local_rank: int
    code: int | None

    def to_wire(self) -> dict[str, Any]:
        return {"rank": self.rank, "localRank": self.local_rank, "exitCode": self.code}


class Rank(NamedTuple):
    pid: int
    pidfd: int
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int


class RankWatch:
    """Follows the ranks below one process, in a thread of its own."""

    def __init__(self, root: int) -> None:
        """`root`: the process that was started, usually torchrun."""
        self._root = root
        self._poll = select.poll()
        self._ranks: dict[int, Rank] = {}  # by pidfd
        self._exits: list[RankExit] = []
        self._world_size = 0
        self._local_world_size = 0
        self._complete = False  # whether all ranks of this node run
        self._wake, self._woken = os.pipe()
        self._poll.register(self._wake, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)
        self._thread.start()

    @property
    def world_size(self) -> int:
        """Ranks of the whole gang; 0 while none has started here."""
        return self._world_size

    def ranks(self) -> list[Rank]:
        """Those that run."""
        return list(self._ranks.values())

    def exits(self) -> list[RankExit]:
        """Those that have ended so far."""
        return list(self._exits)

    def end(self) -> list[RankExit]:
        """The ends of the ranks that have ended, in their order."""
        os.write(self._woken, b".")
        self._thread.join()
        self._collect(0)
        for rank in self._ranks.values():
            os.close(rank.pidfd)
        return self._exits

    def _run(self) -> None:
        while not self._collect(LATER_SCAN_SECONDS if self._complete else SCAN_SECONDS):
            self._find()

    def _find(self) -> None:
        """Find the ranks started since the last scan."""
        known = {rank.pid for rank in self._ranks.values()}
        pids = [self._root]
        while pids:
            pid = pids.pop()
            if pid in known:
                continue  # what a rank starts has its variables, too
            rank = _rank(pid)
            if rank is None:
                pids += procfs.children(pid)
            else:
                self._world_size = rank.world_size
                self._local_world_size = rank.local_world_size
                self._ranks[rank.pidfd] = rank
                self._poll.register(rank.pidfd, select.POLLIN)
        self._complete = 0 < self._local_world_size <= len(self._ranks)

    def _collect(self, seconds: float) -> bool:
        """Record the ranks that end within `seconds`; returns whether `end` was called."""
        ended = [fd for fd, _ in self._poll.poll(seconds * 1000)]
        found = [self._ranks.pop(fd) for fd in ended if fd in self._ranks]
        exits = []
        for rank in found:
            exits.append(RankExit(rank.rank, rank.local_rank, _exit_code(rank)))
            self._poll.unregister(rank.pidfd)
            os.close(rank.pidfd)
        # Of those found at once, torchrun sends SIGTERM only after the first failure.
        self._exits += sorted(exits, key=lambda each: (each.code == -signal.SIGTERM, each.rank))
        return self._wake in ended


def _rank(pid: int) -> Rank | None:
    """The process as a rank; None if it isn't one or has exited."""
    variables = procfs.environment(pid)
    try:
        numbers = [int(variables[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")]
        # Of other launchers than torchrun it may be unknown.
        numbers.append(int(variables.get("LOCAL_WORLD_SIZE", "0")))
        pidfd = _open_pidfd(pid)
    except (KeyError, ValueError, OSError):
        return None
    return Rank(pid, pidfd, *numbers)


def _open_pidfd(pid: int) -> int:
    """A file descriptor that becomes readable when the process ends."""
    if hasattr(os, "pidfd_open"):  # Python 3.9
        return os.pidfd_open(pid)
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = int(libc.syscall(_SYS_PIDFD_OPEN, pid, 0))
    if pidfd < 0:
        raise OSError(ctypes.get_errno(), "pidfd_open")
    os.set_inheritable(pidfd, False)
    return pidfd


def _exit_code(rank: Rank) -> int | None:
    status = procfs.exit_status(rank.pid)
    if status is None:
        status = _kept_status(rank.pidfd)
    if status is None:
        return None
    return -(status & 0x7F) if status & 0x7F else status >> 8


def _kept_status(pidfd: int) -> int | None:
    """The exit status that Linux 6.15 and newer keep after the process was waited for."""
    asked = bytearray(_PIDFD_INFO.size)
    struct.pack_into("Q", asked, 0, _PIDFD_INFO_EXIT)
    with contextlib.suppress(OSError):  # an older kernel
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, asked)
        mask, *_, status = _PIDFD_INFO.unpack(asked)
        if mask & _PIDFD_INFO_EXIT:
            return int(status)
    return None
