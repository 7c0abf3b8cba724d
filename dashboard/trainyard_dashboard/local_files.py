"""Data source: runs and studies of this machine, below TRAINYARD_HOME.

HOME/runs/NAME/run.json            the TrainingRun with its status
HOME/runs/NAME/lock                held by the process that drives the run
HOME/runs/NAME/attempts/N.json     the port of its agents, each on the address of its node
HOME/runs/NAME/data/metrics.jsonl  its metrics (HOME/volumes/CLAIM/NAME/ with a claim)
HOME/runs/NAME/events.jsonl, logs/ and what else local_run.py reads, for the run's page
HOME/studies/NAME/study.json       the ScalingStudy with its status
"""

import fcntl
import json
import shlex
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from pydantic import ValidationError

from trainyard_api.base import validation_message
from trainyard_api.checkpoint import CHECKPOINTS, MODELS
from trainyard_api.status import FINISHED
from trainyard_api.study import ScalingStudy
from trainyard_dashboard.agents import Agents
from trainyard_dashboard.catalog import DataSourceError, RunSummary, parse_study
from trainyard_dashboard.history import Known, RunHistory
from trainyard_dashboard.local_run import (
    find_traces,
    log_names,
    read_events,
    read_log,
    read_scores,
    read_stored,
)
from trainyard_dashboard.metrics_log import MetricsLog
from trainyard_dashboard.run_details import LogTail, Part, RunDetails, add_from_status
from trainyard_dashboard.usage import RunUsage, fold

MAX_RUNS = 1000  # the newest
MAX_STUDIES = 100
MAX_FILE_BYTES = 16 << 20  # of a run.json or study.json
MAX_NODES = 254  # of a run on one machine
MAX_LOGS = 200  # kept in memory; the least recently used is dropped

T = TypeVar("T")


class LocalFiles:
    """What `trainyard run` and `trainyard study` have stored below TRAINYARD_HOME. Thread-safe."""

    def __init__(self, home: Path) -> None:
        in_user_home = home.is_relative_to(Path.home())
        shown = f"~/{home.relative_to(Path.home())}" if in_user_home else str(home)
        self.label = f"this machine ({shown})"
        self._home = home
        self._lock = Lock()
        self._agents = Agents()
        self._logs: OrderedDict[Path, MetricsLog] = OrderedDict()
        self._run_cache: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}

    def runs(self) -> tuple[list[RunSummary], list[str]]:
        paths, problems = self._newest("runs", "run.json", MAX_RUNS)
        current = set(paths)
        with self._lock:
            self._run_cache = {
                path: entry for path, entry in self._run_cache.items() if path in current
            }
        runs = []
        for path in paths:
            try:
                run = RunSummary.from_wire(self._load_run(path), "local", path.parent.name)
            except FileNotFoundError:
                continue  # deleted in the meantime
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                problems.append(f"{path} can't be read: {_cause(error)}")
                continue
            runs.append(_with_actual_phase(path.parent, run))
        return runs, problems

    def history(
        self, run: RunSummary, metrics: Sequence[str], known: Known | None = None
    ) -> RunHistory:
        try:
            return self._log(self._data(run) / "metrics.jsonl").read(run.id, metrics, known)
        except (OSError, ValueError, AttributeError) as error:
            message = f"the history of {run.name} can't be read: {_cause(error)}"
            raise DataSourceError(message) from None

    def usage(self, run: RunSummary) -> RunUsage | None:
        directory = self._home / "runs" / run.name
        if run.phase != "Running":
            return None
        try:
            status = self._load_run(directory / "run.json").get("status") or {}
            attempt = int(status.get("attempt") or 0)
            ports = json.loads(_read_bounded(directory / "attempts" / f"{attempt}.json"))
            nodes = range(min(int(status.get("nodes") or 0), MAX_NODES))
            addresses = [(f"127.0.0.{node + 1}", int(ports["report"])) for node in nodes]
        except FileNotFoundError:
            return None  # no attempt has started
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            message = f"the ranks of {run.name} can't be read: {_cause(error)}"
            raise DataSourceError(message) from None
        return fold(self._agents.usage(run.name, attempt, addresses))

    def trace(self, run: RunSummary) -> Path | None:
        try:
            path = self._data(run) / str(run.profile)
        except (OSError, ValueError, AttributeError) as error:
            message = f"the trace of {run.name} can't be read: {_cause(error)}"
            raise DataSourceError(message) from None
        return path if path.is_file() else None

    def details(self, run: RunSummary) -> RunDetails:
        directory = self._home / "runs" / run.name
        try:
            details = RunDetails.of(run, self._load_run(directory / "run.json"))
            data = self._data(run)
            history = self._log(data / "metrics.jsonl").read(run.id, ())
        except (OSError, ValueError, AttributeError, TypeError) as error:
            message = f"the run {run.name} can't be read: {_cause(error)}"
            raise DataSourceError(message) from None
        details.events = _read_part(lambda: read_events(directory / "events.jsonl"))
        details.logs = _read_part(lambda: log_names(directory / "logs"))
        details.checkpoints = _read_part(lambda: read_stored(data, CHECKPOINTS))
        details.models = _read_part(lambda: read_stored(data, MODELS))
        details.scores = _read_part(lambda: read_scores(data))
        details.traces = _read_part(lambda: find_traces(data))
        details.evaluations.items = history.evaluations[::-1]
        details.samples.items = history.samples[::-1]
        details.warnings += history.problems
        add_from_status(details)
        if any(not model.problem for model in details.models.items):
            details.serve = f"trainyard serve {shlex.quote(run.name)}"
        return details

    def log(self, run: RunSummary, name: str) -> LogTail:
        try:
            return read_log(self._home / "runs" / run.name / "logs", name)
        except OSError as error:
            message = f"log {name} of {run.name} can't be read: {_cause(error)}"
            raise DataSourceError(message) from None

    def studies(self) -> tuple[list[tuple[str, ScalingStudy]], list[str]]:
        paths, problems = self._newest("studies", "study.json", MAX_STUDIES)
        studies = []
        for path in paths:
            try:
                study = parse_study(_read_bounded(path))
            except FileNotFoundError:
                continue
            except ValidationError as error:
                message = validation_message(error)[:300]
                problems.append(f"{path} is not a valid ScalingStudy: {message}")
            except (OSError, ValueError) as error:
                problems.append(f"{path} can't be read: {_cause(error)}")
            else:
                # The directory's name, because a repeated study keeps the previous one beside it,
                # in a directory with a date.
                studies.append((f"local/{study.namespace}/{path.parent.name}", study))
        return studies, problems

    def _newest(self, folder: str, name: str, limit: int) -> tuple[list[Path], list[str]]:
        """The newest files, and a message if there are more. Raises DataSourceError."""
        dated = []
        try:
            for directory in (self._home / folder).iterdir():
                try:
                    dated.append(((directory / name).stat().st_mtime, directory / name))
                except (FileNotFoundError, NotADirectoryError):
                    continue  # only a lock, or an unrelated file
        except FileNotFoundError:
            return [], []
        except OSError as error:
            message = f"{self._home / folder} can't be read: {_cause(error)}"
            raise DataSourceError(message) from None
        dated.sort(reverse=True)
        more = len(dated) - limit
        problems = [f"{folder}: the newest {limit} are shown, {more} are not"] if more > 0 else []
        return [path for _, path in dated[:limit]], problems

    def _data(self, run: RunSummary) -> Path:
        """The run's directory on its volume. Raises OSError, ValueError, AttributeError."""
        file = self._home / "runs" / run.name / "run.json"
        storage = (self._load_run(file).get("spec") or {}).get("storage") or {}
        if claim := storage.get("claimName"):
            return self._home / "volumes" / Path(str(claim)).name / run.name
        return file.parent / "data"

    def _load_run(self, path: Path) -> dict[str, Any]:
        """A run.json, read again only after it was replaced."""
        status = path.stat()
        version = (status.st_ino, status.st_mtime_ns)
        with self._lock:
            entry = self._run_cache.get(path)
        if entry is None or entry[0] != version:
            entry = version, json.loads(_read_bounded(path))
            with self._lock:
                self._run_cache[path] = entry
        return entry[1]

    def _log(self, path: Path) -> MetricsLog:
        with self._lock:
            log = self._logs.pop(path, None) or MetricsLog(path)
            self._logs[path] = log
            if len(self._logs) > MAX_LOGS:
                self._logs.popitem(last=False)
        return log


def _read_part(read: Callable[[], Part[T]]) -> Part[T]:
    """A part of a run's details; where it can't be read, only why."""
    try:
        return read()
    except OSError as error:
        return Part(note=f"Unknown: {error.filename} can't be read: {_cause(error)}.")


def _with_actual_phase(directory: Path, run: RunSummary) -> RunSummary:
    """Phase Stopped if no process drives the run: its status is then only the last known one."""
    if run.phase in (*FINISHED, "Suspended") or _is_locked(directory / "lock"):
        return run
    message = f"{run.phase}: its process is gone; resume it with `trainyard run`"
    return run.model_copy(update={"phase": "Stopped", "eta_seconds": None, "message": message})


def _is_locked(lock: Path) -> bool:
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _read_bounded(path: Path) -> bytes:
    """A whole file. Raises OSError, or ValueError if it is too large."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def _cause(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, ValidationError):
        return validation_message(error)[:300]
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error)[:300]
