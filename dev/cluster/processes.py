"""The cluster's own processes: started once, found again by pid and start time, ended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from trainyard_agent.procfs import boot_id

from .commands import UserError, direct_env, until
from .settings import Settings


@dataclass(frozen=True)
class Identity:
    """A process that can't be mistaken for a later one with the same pid."""

    pid: int
    started: int  # clock ticks after the machine's start, so a changed clock does not matter

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The process that has this pid now, unless it has ended."""
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                    return None
                seconds = process.create_time() - psutil.boot_time()
                return cls(pid, round(seconds * os.sysconf("SC_CLK_TCK")))
        except psutil.NoSuchProcess:
            return None

    def alive(self) -> bool:
        return Identity.of(self.pid) == self

    def send(self, number: signal.Signals) -> None:
        """Signal this very process: the pidfd is opened first, then the identity is checked."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive():
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)


class Processes:
    """Long-running processes, each with a record, a log and a name."""

    def __init__(self, settings: Settings) -> None:
        self._records = settings.state / "run"
        self._logs = settings.state / "logs"

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def log_tail(self, name: str) -> str:
        """The end of the log, for an error message."""
        try:
            lines = self.log(name).read_text(errors="replace").strip().splitlines()
        except OSError:
            return "no log"
        return lines[-1][-300:] if lines else "nothing in its log"

    def names(self) -> list[str]:
        """Every process on record, dead or alive."""
        return sorted(path.stem for path in self._records.glob("*.json"))

    def identity(self, name: str) -> Identity | None:
        """The live process of that name, if we started it."""
        record = self._read(name)
        if record is None or record.get("boot") != boot_id():
            return None
        found = Identity(int(str(record["pid"])), int(str(record["started"])))
        return found if found.alive() else None

    def alive(self, name: str) -> bool:
        return self.identity(name) is not None

    def must_live(self, *names: str) -> None:
        """Raise UserError with the last log line of one that has ended."""
        for name in names:
            if not self.alive(name):
                raise UserError(f"{name} ended: {self.log_tail(name)}")

    def current(self, name: str, command: Sequence[str | Path], stamp: str = "") -> bool:
        """Whether it runs with this command line and configuration."""
        record = self._read(name)
        return (
            self.alive(name)
            and record is not None
            and record.get("stamp") == _stamp(command, stamp)
        )

    def ensure(self, name: str, command: Sequence[str | Path], stamp: str = "") -> bool:
        """Start the process unless it runs already as asked; True when it was started."""
        if self.current(name, command, stamp):
            return False
        self.stop([name])
        self._records.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        words = [str(word) for word in command]
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=direct_env(),
                start_new_session=True,
            )
        identity = Identity.of(child.pid)
        if identity is None:
            raise UserError(f"{name} ended at once: {self.log_tail(name)}")
        record = {
            "pid": identity.pid,
            "started": identity.started,
            "boot": boot_id(),
            "stamp": _stamp(command, stamp),
            "command": words,
        }
        temporary = self._records / f".{name}.new"
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        temporary.rename(self._records / f"{name}.json")
        return True

    def stop(self, names: Iterable[str], grace: float = 20) -> None:
        """End these processes, all at once: SIGTERM, then SIGKILL."""
        wanted = list(names)
        end(
            [found for found in (self.identity(name) for name in wanted) if found is not None],
            grace,
        )
        for name in wanted:
            (self._records / f"{name}.json").unlink(missing_ok=True)

    def kill(self, names: Iterable[str]) -> None:
        """End these processes as a power cut would; their records stay."""
        end(
            [found for found in (self.identity(name) for name in names) if found is not None],
            grace=0,
        )

    def _read(self, name: str) -> dict[str, object] | None:
        try:
            record = json.loads((self._records / f"{name}.json").read_text())
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None


def end(found: Sequence[Identity], grace: float = 20) -> None:
    """SIGTERM, and SIGKILL for what is left after the grace period (0: SIGKILL at once)."""

    def gone() -> bool:
        for one in found:
            _reap(one.pid)
        return not any(one.alive() for one in found)

    if grace > 0:
        for one in found:
            one.send(signal.SIGTERM)
        try:
            until(gone, "still running", seconds=grace)
            return
        except UserError:
            pass
    for one in found:
        one.send(signal.SIGKILL)
    until(gone, lambda: f"process {[o.pid for o in found if o.alive()]} can't be killed")


def _reap(pid: int) -> None:
    """Collect the process if it is our own child, so that it does not stay a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _stamp(command: Sequence[str | Path], extra: str) -> str:
    text = "\0".join(str(word) for word in command) + "\0" + extra
    return hashlib.sha256(text.encode()).hexdigest()
