"""The runs on this machine: one directory each, written atomically, driven by one process.

HOME/runs/NAME/  run.json        the TrainingRun with its status
                 lock            held by the process that drives the run
                 events.jsonl    what happened, newest last
                 history.jsonl   losses by step, for the sparkline and the summary
                 logs/A-N.log    output of attempt A, node N
                 workers/A-N/    lock, exit status and termination message of a worker
                 attempts/A.json ports of attempt A
                 data/           checkpoints/, models/, loss.png
HOME/volumes/CLAIM/NAME/         the data instead, where storage.claimName is set

No pydantic here: `trainyard get` reads run.json as plain JSON, so that it answers immediately.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard_local import lock
from trainyard_storage.files import write_text_atomic

if TYPE_CHECKING:
    from trainyard_api.run import TrainingRun

HOME_ENV = "TRAINYARD_HOME"
# Annotations of a local run: what its relative paths are relative to, and the user's manifest.
WORKING_DIRECTORY = "trainyard.dev/working-directory"
MANIFEST = "trainyard.dev/manifest"


class UserError(Exception):
    """Something the user can fix; the message is one line that says what to change."""


class RunBusyError(UserError):
    """Another process drives the run."""

    def __init__(self, message: str, pid: int) -> None:
        super().__init__(message)
        self.pid = pid


def home() -> Path:
    """The directory of everything that `trainyard` keeps on this machine."""
    return Path(os.environ.get(HOME_ENV) or Path.home() / ".trainyard").absolute()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a .jsonl file; a last line truncated by a crash is skipped."""
    entries = []
    with _missing_ok(), path.open() as file:
        for line in file:
            if line.endswith("\n"):
                entries.append(json.loads(line))
    return entries


def append_json_line(path: Path, entry: dict[str, Any]) -> None:
    """Append one entry; a last line truncated by a crash is removed first."""
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(entry).encode() + b"\n")


class RunDir:
    """The directory of one run, in `root` (default: HOME)."""

    def __init__(self, name: str, root: Path | None = None) -> None:
        self.name = name
        self._root = root or home()
        self.path = self._root / "runs" / name
        self.run_file = self.path / "run.json"
        self.lock_file = self.path / "lock"
        self.events_file = self.path / "events.jsonl"
        self.history_file = self.path / "history.jsonl"
        self.logs = self.path / "logs"
        self.workers = self.path / "workers"
        self.attempts = self.path / "attempts"

    def exists(self) -> bool:
        return self.run_file.is_file()

    def read(self) -> dict[str, Any]:
        """The TrainingRun as plain JSON. Raises UserError if the file is corrupt."""
        try:
            run: dict[str, Any] = json.loads(self.run_file.read_text())
        except ValueError as error:
            raise UserError(
                f"{self.run_file} is corrupt ({error}): move run.json, workers and attempts out of"
                f" {self.path} and start the run again; it resumes from its newest checkpoint"
            ) from None
        return run

    def write(self, run: dict[str, Any]) -> None:
        write_text_atomic(self.run_file, json.dumps(run, indent=1) + "\n")

    def data(self, run: dict[str, Any]) -> Path:
        """The run's directory on its volume: what the trainer writes and serving reads."""
        claim = (run["spec"].get("storage") or {}).get("claimName")
        return self._root / "volumes" / claim / self.name if claim else self.path / "data"

    def start_dir(self, run: "TrainingRun") -> str | None:
        """The directory of spec.startFrom, of which the other run itself may be deleted."""
        start = run.spec.start_from
        if start is None:
            return None
        if start.run is None:
            return start.path
        other = RunDir(start.run, self._root)
        if start.claim_name is None and other.exists():
            return str(other.data(other.read()))
        return str(other.data({"spec": {"storage": {"claimName": start.claim_name}}}))

    def keeps_data(self, run: dict[str, Any]) -> bool:
        """Whether the data outlives the run, as a volume claim would."""
        storage = run["spec"].get("storage") or {}
        return bool(storage.get("claimName")) or storage.get("whenDeleted") == "Retain"

    def log_file(self, attempt: int, node: int) -> Path:
        return self.logs / f"{attempt}-{node}.log"

    def events(self) -> list[dict[str, Any]]:
        return read_json_lines(self.events_file)

    def history(self) -> list[dict[str, Any]]:
        return read_json_lines(self.history_file)

    def holder(self) -> int | None:
        """Id of the process that drives the run; None if there is none."""
        content = lock.holder(self.lock_file)
        return None if content is None else int(content or 0)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that drives this run. Raises RunBusyError at once."""
        deadline = time.monotonic() + 0.2  # a probe by `holder` is shorter than this
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(lock.held_by_this_process(self.lock_file))
                    break
                except lock.LockHeldError as error:
                    if time.monotonic() > deadline:
                        pid = int(error.content or 0)
                        raise RunBusyError(
                            f"{self.name} is already being run by process {pid};"
                            f" watch it with: trainyard logs -f {self.name}",
                            pid,
                        ) from None
                time.sleep(0.02)
            try:
                yield
            finally:
                self._remove_if_empty()

    def remove(self, run: dict[str, Any], *, keep_data: bool = False) -> tuple[int, Path | None]:
        """Delete everything; returns (bytes freed, data kept). Call it only with the lock held.

        keep_data: keep the data also where the run's storage doesn't say so.
        """
        before = _size(self.path)
        keeps = keep_data or self.keeps_data(run)
        keep = self.data(run) if keeps and self.data(run).exists() else None
        # run.json is deleted last: after a crash half-way the run can be deleted again.
        for entry in sorted(self.path.iterdir(), key=lambda path: path == self.run_file):
            if entry not in (self.lock_file, keep):
                _remove(entry)
        return before - _size(self.path), keep

    def _remove_if_empty(self) -> None:
        """Leave no directory behind for a run that does not exist."""
        if not self.exists():
            self.lock_file.unlink(missing_ok=True)
            with suppress(OSError):  # it holds data that is kept
                self.path.rmdir()


def list_runs() -> list[RunDir]:
    """Every run on this machine, sorted by name."""
    with _missing_ok():
        runs = [RunDir(path.name) for path in (home() / "runs").iterdir()]
        return sorted((run for run in runs if run.exists()), key=lambda run: run.name)
    return []


def find_run(name: str) -> RunDir:
    """The run of that name. Raises UserError with the names of those that exist."""
    run = RunDir(name)
    if "/" not in name and run.exists():
        return run
    known = ", ".join(other.name for other in list_runs()) or "none yet"
    raise UserError(f"no run named {name!r} on this machine (known: {known})")


@contextmanager
def _missing_ok() -> Iterator[None]:
    with suppress(FileNotFoundError, NotADirectoryError):
        yield


def _remove(path: Path) -> None:
    """Delete a file or a tree; a worker that is still exiting may add a file to it meanwhile."""
    deadline = time.monotonic() + 5
    while True:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def _size(path: Path) -> int:
    total = 0
    for directory, _, files in os.walk(path):
        for name in files:
            with _missing_ok():
                total += os.lstat(os.path.join(directory, name)).st_size
    return total
