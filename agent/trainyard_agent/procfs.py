"""Reads /proc: a worker's processes, and how one of them ended. Linux only; empty elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

# Set in the environment of every process of a worker; its value is the worker's directory.
TOKEN_ENV = "TRAINYARD_WORKER_DIR"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def boot_id() -> str:
    """The id of this boot of the machine; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def environment(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty if it has exited."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.partition("=")[::2] for entry in text.split("\0") if "=" in entry)


def worker_processes(directory: Path) -> list[int]:
    """Ids of the processes of the worker in `directory`."""
    mark = f"{TOKEN_ENV}={directory}".encode()
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has exited, or belongs to another user
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                pids.append(int(entry.name))
    return pids


def kill_worker(directory: Path) -> None:
    """Send SIGKILL to the worker's processes except the caller, until none is left (up to 5 s)."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        others = [pid for pid in worker_processes(directory) if pid != os.getpid()]
        if not others:
            return
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Ids of the direct children of a process."""
    listed: list[int] = []
    try:
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            listed += map(int, file.read_text().split())
    except OSError:  # it has exited
        return []
    return listed or _children_by_parent(pid)


def _children_by_parent(pid: int) -> list[int]:
    """For kernels that list no children (CONFIG_PROC_CHILDREN): from every process's parent."""
    if Path(f"/proc/{pid}/task/{pid}/children").exists():
        return []
    return [other for other in map(_pid, Path("/proc").glob("[0-9]*")) if parent(other) == pid]


def _pid(entry: Path) -> int:
    return int(entry.name)


def parent(pid: int) -> int:
    """The id of its parent; 0 if it has exited."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def exit_status(pid: int) -> int | None:
    """The wait status of a zombie, as from `os.waitpid`; else None."""
    fields = _stat(pid)
    return int(fields[49]) if fields and fields[0] == "Z" else None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third, the state, on."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    # pid (name) state ppid ...: the name may contain spaces and parentheses.
    return text.rpartition(")")[2].split()


def tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    listed = [pid]
    for each in listed:  # grows while it is read
        listed += children(each)
    return listed


def state(pid: int) -> str:
    """The state's letter in /proc, such as T for stopped; empty if it has exited."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def cpu_seconds(pid: int) -> float | None:
    """CPU time of a process, and of its children that it has waited for; None if it has exited."""
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) / _TICKS if fields else None


def memory(pid: int) -> int:
    """Resident memory in bytes; 0 if it has exited."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def programs(pid: int) -> list[int]:
    """The process, and while it has exactly one child, as a shell around a program has, that."""
    chain = [pid]
    while len(chain) < 4 and len(below := children(chain[-1])) == 1:
        chain += below
    return chain


def main_thread_calls(pid: int) -> int:
    """How often the main thread has read or written; 0 where that can't be read."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        lines = Path(f"/proc/{pid}/task/{pid}/io").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines[2:4])  # syscr, syscw
    return 0


def transferred(pid: int) -> int:
    """Bytes that a process has read and written by system calls; 0 where that can't be read."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines[:2])  # rchar, wchar
    return 0
