"""Runs the cells of a bench, one process group after another, exactly as `trainyard run` does."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from trainyard_api.bench_report import CellFailure, Measurement
from trainyard_api.progress import ProgressReport
from trainyard_api.run import TrainingRun
from trainyard_operator.bench.cells import Cell
from trainyard_operator.bench.results import measurement
from trainyard_operator.local import preflight
from trainyard_operator.local.backend import LocalBackend
from trainyard_operator.local.display import Display
from trainyard_operator.local.run import Stop, create, drive
from trainyard_operator.local.store import RunDir, UserError

THREADS_ENV = "OMP_NUM_THREADS"
LOGS = "logs"


class Runner:
    """Measures cells in run directories of their own below `out`, which it removes again."""

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self._root = self.out / "work"

    def measure(
        self, cell: Cell, repeat: int, display: Display, stop: Stop
    ) -> Measurement | CellFailure | None:
        """Run the cell once; None when it was stopped."""
        run_dir = RunDir(f"{cell.run.name}-{repeat}", self._root)
        with run_dir.locked():
            backend = LocalBackend(run_dir)
            metadata = cell.run.metadata.model_copy(update={"name": run_dir.name})
            run = create(backend, cell.run.model_copy(update={"metadata": metadata}))
            try:
                began = time.monotonic()
                run = drive(backend, run, display, stop)
                return self._outcome(backend, run, cell, repeat, time.monotonic() - began)
            finally:
                backend.workers.kill_all()
                run_dir.remove(run.to_wire())

    def tidy(self) -> None:
        """Remove what the runs were kept in."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _outcome(
        self, backend: LocalBackend, run: TrainingRun, cell: Cell, repeat: int, seconds: float
    ) -> Measurement | CellFailure | None:
        status = run.status
        if status.phase == "Suspended":
            return None
        if status.phase == "Failed":
            log = self._keep_log(backend, run, cell, repeat)
            # The worker's name is the bench's own affair.
            worker = status.attempts[-1].pod if status.attempts else ""
            reason, message = status.reason, status.message.removeprefix(f"{worker}: ")
            return CellFailure(repeat=repeat, reason=reason, message=message, log=log)
        report = _final_report(backend, run)
        found = measurement(report, repeat, seconds) if report else None
        if found is None:
            log = self._keep_log(backend, run, cell, repeat)
            text = "the run succeeded but left no report of its step times"
            return CellFailure(repeat=repeat, reason="NoReport", message=text, log=log)
        return found

    def _keep_log(
        self, backend: LocalBackend, run: TrainingRun, cell: Cell, repeat: int
    ) -> str | None:
        """Save the log that says why; its path relative to the report's directory."""
        attempt = run.status.attempts[-1] if run.status.attempts else None
        node = int(attempt.pod.rpartition("-")[2]) if attempt and attempt.pod else 0
        log = backend.dir.log_file(run.status.attempt, node)
        if not log.is_file():
            return None
        kept = self.out / LOGS / f"cell-{cell.number}-{repeat}.log"
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(log, kept)
        return str(kept.relative_to(self.out))


def refuse_if_none_can_start(cells: Sequence[Cell]) -> None:
    """Raises UserError when no cell can start on this machine; a few that can't are reported."""
    found = [preflight.problem(cell.run, os.getcwd()) for cell in cells]
    if found[0] and all(found):
        raise UserError(found[0])


@contextmanager
def same_threads(cells: Sequence[Cell]) -> Iterator[str]:
    """Give every process of every cell the same number of threads; yields it.

    Else torchrun gives a lone process all cores and each of several just one, and 1 process could
    not be compared with 2. As everywhere, OMP_NUM_THREADS wins where it is set; otherwise the
    machine's cores are shared by as many processes as the largest cell has.
    """
    former = os.environ.get(THREADS_ENV)
    if former is None:
        most = max(cell.processes for cell in cells)
        os.environ[THREADS_ENV] = str(max(1, (os.cpu_count() or 1) // most))
    try:
        yield os.environ[THREADS_ENV]
    finally:
        if former is None:
            del os.environ[THREADS_ENV]


def _final_report(backend: LocalBackend, run: TrainingRun) -> ProgressReport | None:
    """Rank 0's last words."""
    for worker in backend.workers.observe():
        if (worker.attempt, worker.node) == (run.status.attempt, 0):
            try:
                return ProgressReport.model_validate_json(worker.last_words)
            except ValidationError:
                return None
    return None
