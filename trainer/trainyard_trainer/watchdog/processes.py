"""What this machine tells about another process on it (Linux; elsewhere nothing)."""

import contextlib
import functools
import os
import signal
from pathlib import Path
from typing import Literal

State = Literal["stopped", "alive", "gone", "unknown"]


@functools.cache
def place() -> str:
    """Names the set of process ids this process sees: equal only within one container or host."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def state_of(pid: int, where: str) -> State:
    """What the process `pid` of `place()` `where` does; unknown where that can't be seen."""
    if not where or where != place():
        return "unknown"
    state, _ = _stat(pid)
    return {"": "gone", "Z": "gone", "X": "gone", "T": "stopped"}.get(state, "alive")  # type: ignore[return-value]


def kill_stopped_sibling(pid: int, where: str) -> None:
    """SIGKILL a stopped process of this one's launcher.

    It can't act on SIGTERM any more: torchrun would wait half a minute before it insists.
    """
    if where and where == place() and _stat(pid) == ("T", os.getppid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> tuple[str, int]:
    """A process's state and its parent's id; ("", 0) if there is none."""
    try:
        # pid (name) state ppid ...: the name may hold spaces and parentheses itself.
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "", 0
    return state, int(parent)
