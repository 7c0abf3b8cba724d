"""Runs and studies of this machine, as `trainyard run` and `trainyard study` keep them.

HOME/runs/NAME/run.json            the TrainingRun with its status
HOME/runs/NAME/lock                held by the process that drives the run
HOME/runs/NAME/data/metrics.jsonl  what it logged (HOME/volumes/CLAIM/NAME/ with a claim)
HOME/studies/NAME/study.json       the ScalingStudy with its status
"""

import fcntl
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import ValidationError

from trainyard_api.base import validation_message
from trainyard_api.status import FINISHED
from trainyard_api.study import ScalingStudy
from trainyard_dashboard.history import HistoryFile
from trainyard_dashboard.model import RunHistory, RunRow, SourceError, run_row

MAX_RUNS = 1000  # the newest; more are counted, not read
MAX_STUDIES = 100
MAX_FILE = 16 << 20  # bytes of a run.json or study.json
HISTORIES = 200  # kept in memory; the least recently drawn is forgotten


class LocalSource:
    """What lies under TRAINYARD_HOME."""

    def __init__(self, home: Path) -> None:
        own = home.is_relative_to(Path.home())
        shown = f"~/{home.relative_to(Path.home())}" if own else str(home)
        self.where = f"this machine ({shown})"
        self._home = home
        self._lock = Lock()
        self._histories: OrderedDict[Path, HistoryFile] = OrderedDict()
        self._read: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}

    def runs(self) -> tuple[list[RunRow], list[str]]:
        files, problems = self._newest("runs", "run.json", MAX_RUNS)
        with self._lock:
            self._read = {path: seen for path, seen in self._read.items() if path in set(files)}
        rows = []
        for path in files:
            try:
                row = run_row(self._run(path), "local", path.parent.name)
            except FileNotFoundError:
                continue  # deleted just now
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                problems.append(f"{path} can't be read: {_why(error)}")
                continue
            rows.append(self._as_it_is(path.parent, row))
        return rows, problems

    def history(self, run: RunRow, metrics: Sequence[str]) -> RunHistory:
        file = self._home / "runs" / run.name / "run.json"
        try:
            claim = ((self._run(file).get("spec") or {}).get("storage") or {}).get("claimName")
            data = file.parent / "data"
            if claim:
                data = self._home / "volumes" / Path(str(claim)).name / run.name
            found = self._history(data / "metrics.jsonl").read(run.id)
        except (OSError, ValueError, AttributeError) as error:
            raise SourceError(f"the history of {run.name} can't be read: {_why(error)}") from None
        found.curves = [curve for curve in found.curves if curve.metric in metrics]
        return found

    def studies(self) -> tuple[list[tuple[str, ScalingStudy]], list[str]]:
        files, problems = self._newest("studies", "study.json", MAX_STUDIES)
        found = []
        for path in files:
            try:
                study = ScalingStudy.model_validate_json(_bounded(path))
            except FileNotFoundError:
                continue
            except ValidationError as error:
                problems.append(f"{path} is no ScalingStudy: {validation_message(error)[:300]}")
            except (OSError, ValueError) as error:
                problems.append(f"{path} can't be read: {_why(error)}")
            else:
                # A study measured anew leaves the old one beside it, in a directory with a date.
                found.append((f"local/{study.namespace}/{path.parent.name}", study))
        return found, problems

    def _newest(self, folder: str, name: str, limit: int) -> tuple[list[Path], list[str]]:
        """The newest files, and a line where there are more. Raises SourceError."""
        dated = []
        try:
            for directory in (self._home / folder).iterdir():
                try:
                    dated.append(((directory / name).stat().st_mtime, directory / name))
                except (FileNotFoundError, NotADirectoryError):
                    continue  # a lock alone, or nothing of ours
        except FileNotFoundError:
            return [], []
        except OSError as error:
            raise SourceError(f"{self._home / folder} can't be read: {_why(error)}") from None
        dated.sort(reverse=True)
        more = len(dated) - limit
        problems = [f"{folder}: the newest {limit} are shown, {more} are not"] if more > 0 else []
        return [path for _, path in dated[:limit]], problems

    def _run(self, path: Path) -> dict[str, Any]:
        """A run.json, read again only when it was replaced."""
        status = path.stat()
        version = (status.st_ino, status.st_mtime_ns)
        with self._lock:
            seen = self._read.get(path)
        if seen is None or seen[0] != version:
            seen = version, json.loads(_bounded(path))
            with self._lock:
                self._read[path] = seen
        return seen[1]

    def _history(self, path: Path) -> HistoryFile:
        with self._lock:
            history = self._histories.pop(path, None) or HistoryFile(path)
            self._histories[path] = history
            if len(self._histories) > HISTORIES:
                self._histories.popitem(last=False)
        return history

    def _as_it_is(self, directory: Path, row: RunRow) -> RunRow:
        """The row; of a run that nobody drives any more the status is only what was last seen."""
        if row.phase in (*FINISHED, "Suspended") or _is_held(directory / "lock"):
            return row
        note = "nothing watches it now; `trainyard run` goes on with it"
        return row.model_copy(
            update={"phase": "Stopped", "eta_seconds": None, "message": f"{row.phase}: {note}"}
        )


def _is_held(lock: Path) -> bool:
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _bounded(path: Path) -> bytes:
    """A whole file. Raises OSError, and ValueError for one that is too large."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"it is larger than {MAX_FILE >> 20} MiB")
    return data


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, ValidationError):
        return validation_message(error)[:300]
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error)[:300]
