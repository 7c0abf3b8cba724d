"""The local executor of studies: one run after another, exactly as `trainyard run` does."""

import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime

from trainyard_api.run import TrainingRun
from trainyard_api.status import FINISHED
from trainyard_api.study import ScalingStudy
from trainyard_api.study_status import CellFailure, Measurement, ScalingStudyStatus
from trainyard_local import preflight
from trainyard_local.backend import LocalBackend
from trainyard_local.display import Display
from trainyard_local.driver import Stop, create, drive
from trainyard_local.store import RunDir, UserError
from trainyard_local.study_store import StudyDir
from trainyard_study.cells import Cell
from trainyard_study.plan import StudyObserved, StudyPlan
from trainyard_study.reconcile import reconcile_study
from trainyard_study.results import progress, run_key
from trainyard_study.threads import THREADS_ENV

INTERRUPTED = "stopped by a signal; the same command goes on with it"


class StudyDisplay(Display):
    """Also hears of the study's runs, one after another; the base shows nothing."""

    def begin(self, what: str, number: int, total: int) -> None:
        """The study's run `number` of `total` begins: `what` is its cell and repeat."""

    def end(self, what: str, outcome: Measurement | CellFailure) -> None:
        """It has ended, with figures or without."""


class Runner:
    """Measures one study. Use it only while holding the study's lock."""

    def __init__(self, directory: StudyDir, study: ScalingStudy, threads: int) -> None:
        self.study = study
        self._dir = directory
        self._threads = threads

    def measure(self, display: StudyDisplay, stop: Stop) -> None:
        """Run what is not measured yet, until the study is over, suspended or stopped."""
        self._discard_unfinished()
        while True:
            plan = self.look(display)
            if plan.status.phase in (*FINISHED, "Suspended"):
                shutil.rmtree(self._dir.work, ignore_errors=True)
                return
            if stop.requests:
                self._interrupted()
                return
            self._run(plan.create[0], display, stop)

    def look(self, display: StudyDisplay | None = None) -> StudyPlan:
        """Decide once, and carry out all of it but the runs to create."""
        runs = self._runs()
        now = datetime.now(UTC)
        observed = StudyObserved(self.study, now, tuple(runs), self._threads)
        plan = reconcile_study(observed)
        self._keep_logs(plan.status, runs)
        before, self.study = self.study, self.study.model_copy(update={"status": plan.status})
        self._dir.save(self.study)
        if display is not None:
            self._tell(display, before.status)
        for run in runs:
            if run.name in plan.delete or run.status.phase == "Failed":
                self._run_dir(run.name).remove(run.to_wire())
        return plan

    def _run(self, wanted: TrainingRun, display: StudyDisplay, stop: Stop) -> None:
        """One run, to its end."""
        key = run_key(wanted)
        assert key is not None
        done, total = progress(self.study.status.cells, self.study.spec.repeats)
        cell = self.study.status.cells[key[0] - 1]
        display.begin(f"{cell.label}; repeat {key[1]}", done + 1, total)
        run_dir = self._run_dir(wanted.name)
        with run_dir.locked():
            backend = LocalBackend(run_dir)
            try:
                run = drive(backend, create(backend, wanted), display, stop)
            finally:
                backend.workers.kill_all()
            if run.status.phase not in FINISHED:
                run_dir.remove(run.to_wire())

    def _discard_unfinished(self) -> None:
        """What an earlier process was killed in the middle of is measured again, undisturbed."""
        for run in self._runs():
            if run.status.phase not in FINISHED:
                run_dir = self._run_dir(run.name)
                LocalBackend(run_dir).workers.kill_all()
                run_dir.remove(run.to_wire())

    def _runs(self) -> list[TrainingRun]:
        directories = sorted((self._dir.work / "runs").glob("*"))
        found = [self._run_dir(path.name) for path in directories]
        return [LocalBackend(run_dir).load() for run_dir in found if run_dir.exists()]

    def _run_dir(self, name: str) -> RunDir:
        return RunDir(name, self._dir.work)

    def _interrupted(self) -> None:
        status = self.study.status
        status.phase, status.reason, status.message = "Suspended", "Interrupted", INTERRUPTED
        self._dir.save(self.study)
        shutil.rmtree(self._dir.work, ignore_errors=True)

    def _keep_logs(self, status: ScalingStudyStatus, runs: Sequence[TrainingRun]) -> None:
        """Save the log that says why a run failed; nothing else of the run is kept."""
        by_name = {run.name: run for run in runs}
        for cell in status.cells:
            failure = cell.failure
            run = by_name.get(failure.run) if failure else None
            if failure is None or run is None:
                continue
            failure.run = ""
            attempt = run.status.attempts[-1] if run.status.attempts else None
            node = int(attempt.pod.rpartition("-")[2]) if attempt and attempt.pod else 0
            log = self._run_dir(run.name).log_file(run.status.attempt, node)
            if log.is_file():
                kept = self._dir.logs / f"cell-{cell.number}-{failure.repeat}.log"
                kept.parent.mkdir(exist_ok=True)
                shutil.copyfile(log, kept)
                failure.log = str(kept.relative_to(self._dir.path))

    def _tell(self, display: StudyDisplay, before: ScalingStudyStatus) -> None:
        """What is new in the table."""
        known = {
            (cell.number, found.repeat) for cell in before.cells for found in cell.measurements
        }
        failed = {cell.number for cell in before.cells if cell.failure}
        for cell in self.study.status.cells:
            for found in cell.measurements:
                if (cell.number, found.repeat) not in known:
                    display.end(f"{cell.label}; repeat {found.repeat}", found)
            if cell.failure and cell.number not in failed:
                display.end(f"{cell.label}; repeat {cell.failure.repeat}", cell.failure)


def refuse_if_none_can_start(cells: Sequence[Cell]) -> None:
    """Raises UserError when no cell can start on this machine; a few that can't are reported."""
    found = [preflight.problem(cell.run, os.getcwd()) for cell in cells]
    if found[0] and all(found):
        raise UserError(found[0])


def threads_here(cells: Sequence[Cell]) -> int:
    """Of each process: OMP_NUM_THREADS, else the cores shared by the largest cell's processes."""
    given = os.environ.get(THREADS_ENV, "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return max(1, (os.cpu_count() or 1) // max(cell.processes for cell in cells))
