"""The shim of one worker: starts torchrun, forwards signals, records its exit, and cleans up.

It outlives `trainyard run`, so killing that process loses nothing. The shim holds the lock of its
worker's directory until it exits. The lock, not a process id, determines whether a worker is alive,
so a reused id or a reboot cannot be mistaken for it. It is started as
`python -I -S shim.py DIR LOCK_FD ARGV...` and uses only the standard library, so that it starts in
milliseconds; therefore it reads /proc itself instead of using psutil.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

# Set in the environment of every process of a worker; its value is the worker's directory.
TOKEN_ENV = "TRAINYARD_WORKER_DIR"
EXIT_FILE = "exit.json"
# torchrun stops its ranks within 25 s of SIGTERM; processes left after this are killed.
GRACE_SECONDS = 30
COMMAND_NOT_FOUND = 127
_PR_SET_CHILD_SUBREAPER = 36


def boot_id() -> str:
    """The id of this boot of the machine; empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def write_exit(directory: Path, code: int) -> None:
    """Publish the exit status (128 + number for a signal), atomically and durably."""
    entry = {"exitCode": code, "finishedAt": datetime.now(UTC).isoformat()}
    temporary = directory / f".{EXIT_FILE}.tmp"
    with temporary.open("w") as file:
        json.dump(entry, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / EXIT_FILE)


def processes(directory: Path) -> list[int]:
    """Ids of the processes of the worker in `directory` (Linux only; empty elsewhere)."""
    mark = f"{TOKEN_ENV}={directory}".encode()
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has exited, or belongs to another user
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                pids.append(int(entry.name))
    return pids


def kill_processes(directory: Path) -> None:
    """Send SIGKILL to the worker's processes except the caller, until none is left (up to 5 s)."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        others = [pid for pid in processes(directory) if pid != os.getpid()]
        if not others:
            return
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def main(arguments: list[str]) -> int:
    directory, lock, command = Path(arguments[0]), int(arguments[1]), arguments[2:]
    os.set_inheritable(lock, False)
    os.pwrite(lock, json.dumps({"pid": os.getpid(), "boot": boot_id()}).encode(), 0)
    _adopt_orphans()
    child: subprocess.Popen[bytes] | None = None
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        signal.alarm(GRACE_SECONDS)
        if child is not None:
            child.terminate()

    def kill(_signal: int, _frame: FrameType | None) -> None:
        kill_processes(directory)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, kill)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        # The child must not inherit an ignored SIGINT: torchrun and scripts handle it themselves.
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_default_signals)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        write_exit(directory, COMMAND_NOT_FOUND)
        return 0
    if stopping:  # the signal came before the child existed
        child.terminate()
    code = child.wait()
    kill_processes(directory)
    _reap_orphans()
    signal.alarm(0)
    write_exit(directory, code if code >= 0 else 128 - code)
    return 0


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _adopt_orphans() -> None:
    """Ranks whose agent was killed become children of the shim (Linux), as in a container."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap_orphans() -> None:
    """Kill and reap the processes that torchrun left behind, until none is left."""
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _children() -> list[int]:
    """Ids of the direct children (Linux only; empty elsewhere)."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state ppid ...: the name may contain spaces and parentheses.
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                pids.append(int(entry.parent.name))
    return pids


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
