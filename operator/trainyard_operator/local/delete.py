"""`trainyard delete`: ends a run's processes and removes what it left on this machine."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from trainyard_operator.local.store import RunDir, UserError

DRIVER_SECONDS = 60


def delete(run_dir: RunDir) -> str:
    """Delete the run; returns what to tell the user."""
    from trainyard_operator.local.workers import Workers  # pydantic, only needed here

    if (pid := run_dir.holder()) is not None:
        end_driver(run_dir, pid, at_once=True)
    with run_dir.locked():
        Workers(run_dir).kill_all()
        freed, kept = run_dir.remove(run_dir.read())
    return f"deleted {run_dir.name}: {_size_text(freed)} freed{_kept_text(kept)}"


def end_driver(run_dir: RunDir, pid: int, *, at_once: bool = False) -> None:
    """Have the process that drives the run stop it, as Ctrl-C does, and wait for that.

    at_once: as a second Ctrl-C does: the workers get no time to save.
    """
    deadline = time.monotonic() + DRIVER_SECONDS
    asked = 0
    while run_dir.holder() == pid:
        if asked == 0 or (at_once and asked == 1):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            asked += 1
        if time.monotonic() > deadline:
            raise UserError(
                f"process {pid} still drives {run_dir.name} after {DRIVER_SECONDS} s: end it first"
            )
        time.sleep(0.05)


def _size_text(size: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size //= 1024
    return f"{size} GiB"


def _kept_text(kept: Path | None) -> str:
    return f"; its data stays in {kept}" if kept else ""
