"""One worker's keeper: starts torchrun, passes signals on, records how it ended, leaves nothing.

It outlives `trainyard run`, so killing that loses nothing. As long as it lives it holds the lock
of its worker's directory: the lock, not a process id, tells whether a worker is alive, so neither a
reused id nor a reboot can be mistaken for it. Started by `python -I -S shim.py DIR LOCK_FD ARGV...`
with the standard library only, so that it costs milliseconds.
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

# Every process of a worker carries this variable: its value is the worker's directory.
TOKEN_ENV = "TRAINYARD_WORKER_DIR"
EXIT_FILE = "exit.json"
# torchrun ends its ranks within 25 s of a SIGTERM; what is left after this is killed.
GRACE_SECONDS = 30
COMMAND_NOT_FOUND = 127
_PR_SET_CHILD_SUBREAPER = 36


def boot_id() -> str:
    """Names this boot of the machine; empty where the system doesn't tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def write_exit(directory: Path, code: int) -> None:
    """Publish the exit status (128 + signal for signals), atomically and for good."""
    entry = {"exitCode": code, "finishedAt": datetime.now(UTC).isoformat()}
    temporary = directory / f".{EXIT_FILE}.tmp"
    with temporary.open("w") as file:
        json.dump(entry, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / EXIT_FILE)


def family(directory: Path) -> list[int]:
    """Ids of the processes that belong to the worker of `directory` (Linux; elsewhere none)."""
    mark = f"{TOKEN_ENV}={directory}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def kill_family(directory: Path) -> None:
    """SIGKILL every process of the worker but the caller, until none is left (5 s at most)."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        others = [pid for pid in family(directory) if pid != os.getpid()]
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
    asked = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.alarm(GRACE_SECONDS)
        if child is not None:
            child.terminate()

    def kill(_signal: int, _frame: FrameType | None) -> None:
        kill_family(directory)

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
    if asked:  # the signal came before there was a child to pass it on to
        child.terminate()
    code = child.wait()
    kill_family(directory)
    _reap_orphans()
    signal.alarm(0)
    write_exit(directory, code if code >= 0 else 128 - code)
    return 0


def _default_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _adopt_orphans() -> None:
    """Ranks whose agent was killed become children of ours (Linux), as in a container."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap_orphans() -> None:
    """Kill and collect what torchrun left behind, until nothing is left."""
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
    """Ids of the direct children (Linux; elsewhere none)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state ppid ...: the name may hold spaces and parentheses itself.
            fields = entry.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                found.append(int(entry.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
