"""The state of other processes on this machine, from /proc (Linux only)."""

import contextlib
import functools
import os
import signal
from pathlib import Path
from typing import Literal

State = Literal["stopped", "alive", "gone", "unknown"]


@functools.cache
def pid_namespace() -> str:
    """An id of this process's PID namespace; a pid is valid only in the same one. "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def state_of_pid(pid: int, namespace: str) -> State:
    """The state of process `pid` in a PID namespace; unknown in another one than this process's."""
    if not namespace or namespace != pid_namespace():
        return "unknown"
    state, _ = _stat(pid)
    return {"": "gone", "Z": "gone", "X": "gone", "T": "stopped"}.get(state, "alive")  # type: ignore[return-value]


def kill_stopped_sibling(pid: int, namespace: str) -> None:
    """SIGKILL a stopped process of the same launcher.

    It can't act on SIGTERM, and torchrun would wait half a minute before SIGKILL.
    """
    if namespace and namespace == pid_namespace() and _stat(pid) == ("T", os.getppid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> tuple[str, int]:
    """A process's state and its parent's id; ("", 0) if there is none."""
    try:
        # pid (name) state ppid ...: the name may contain spaces and parentheses.
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "", 0
    return state, int(parent)
