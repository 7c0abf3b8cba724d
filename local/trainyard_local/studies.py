"""Scaling studies on this machine: one directory each, and the executor that measures them.

HOME/studies/NAME/  study.json   the ScalingStudy with its status, after every run
                    study.md     the table
                    study.png    the chart
                    logs/        of failed cells
                    work/        the run that is being measured
                    lock         held by the process that measures

Runs are measured one after another, each exactly as `trainyard run` would run it.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from trainyard_api.base import is_unknown
from trainyard_api.run import TrainingRun
from trainyard_api.status import FINISHED
from trainyard_api.study import ScalingStudy
from trainyard_api.study_status import ScalingStudyStatus
from trainyard_local import lock, preflight
from trainyard_local.backend import LocalBackend, unreadable
from trainyard_local.display import StudyDisplay
from trainyard_local.driver import Stop, create, drive
from trainyard_local.store import RunDir, UserError, home
from trainyard_storage.files import write_text_atomic
from trainyard_study.cells import THREADS_ENV, Cell
from trainyard_study.plan import StudyObserved, StudyPlan
from trainyard_study.reconcile import RUN_AGAIN, reconcile_study
from trainyard_study.results import progress, run_key

AGAIN = "use --again to re-measure; previous results are moved aside"
INTERRUPTED = "stopped by a signal; repeat the command to resume"


class StudyDir:
    """One study's directory."""

    def __init__(self, name: str, out: Path | None = None) -> None:
        self.path = (out or home() / "studies" / name).absolute()
        self.file = self.path / "study.json"
        self.table = self.path / "study.md"
        self.chart = self.path / "study.png"
        self.logs = self.path / "logs"
        self.work = self.path / "work"

    def load(self) -> ScalingStudy | None:
        """The study as last written; None if there is none. Raises UserError."""
        try:
            return ScalingStudy.model_validate_json(self.file.read_text())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            hint = "" if is_unknown(error) else f"; {AGAIN}"
            raise UserError(f"{unreadable(self.file, error)}{hint}") from None

    def save(self, study: ScalingStudy) -> None:
        write_text_atomic(self.file, json.dumps(study.to_wire(), indent=1) + "\n")

    def move_aside(self, started: datetime | None) -> Path:
        """Move previous results aside, to re-measure; returns their new directory."""
        stamp = (started or datetime.now()).astimezone().strftime("%Y%m%d-%H%M%S")
        old = self.path.with_name(f"{self.path.name}-{stamp}")
        number = 1
        while old.exists():
            number += 1
            old = self.path.with_name(f"{self.path.name}-{stamp}-{number}")
        old.mkdir()
        shutil.rmtree(self.work, ignore_errors=True)
        for entry in self.path.iterdir():
            if entry.name != "lock":
                entry.rename(old / entry.name)
        return old

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that measures this study. Raises UserError at once."""
        with ExitStack() as stack:
            try:
                stack.enter_context(lock.held_by_this_process(self.path / "lock"))
            except lock.LockHeldError as error:
                pid = error.content or "unknown"
                text = f"{self.path.name} is already being measured by process {pid}"
                raise UserError(text) from None
            yield


class StudyRunner:
    """Measures one study. Use it only with the study's lock held."""

    def __init__(self, directory: StudyDir, study: ScalingStudy, threads: int) -> None:
        self.study = study
        self._dir = directory
        self._threads = threads

    def measure(self, display: StudyDisplay, stop: Stop) -> None:
        """Run what is not measured yet, until the study is finished, suspended or stopped."""
        self._discard_unfinished()
        while True:
            plan = self.reconcile(display)
            if plan.status.phase in (*FINISHED, "Suspended"):
                shutil.rmtree(self._dir.work, ignore_errors=True)
                return
            if stop.requests:
                self._save_interrupted()
                return
            if plan.create:  # else one was deleted just now, and is created next
                self._run(plan.create[0], display, stop)

    def reconcile(self, display: StudyDisplay | None = None) -> StudyPlan:
        """Decide once, and carry out the plan except for the runs to create."""
        runs = self._runs()
        now = datetime.now(UTC)
        observed = StudyObserved(self.study, now, tuple(runs), self._threads)
        plan = reconcile_study(observed)
        self._keep_logs(plan.status, runs)
        before, self.study = self.study, self.study.model_copy(update={"status": plan.status})
        self._dir.save(self.study)
        if display is not None:
            self._report_finished(display, before.status)
            for event in plan.events:
                if event.reason == RUN_AGAIN:
                    display.say(event.message)
        for run in runs:
            if run.name in plan.delete or run.status.phase == "Failed":
                self._run_dir(run.name).remove(run.to_wire())
        return plan

    def _run(self, wanted: TrainingRun, display: StudyDisplay, stop: Stop) -> None:
        """Drive one run until it finishes."""
        key = run_key(wanted)
        assert key is not None
        done, total = progress(self.study.status.cells, self.study.spec.repeats)
        cell = self.study.status.cells[key[0] - 1]
        display.run_started(f"{cell.label}; repeat {key[1]}", done + 1, total)
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
        """Discard a run whose driver was killed: it is measured again, without interruption."""
        for run in self._runs():
            if run.status.phase not in FINISHED:
                run_dir = self._run_dir(run.name)
                LocalBackend(run_dir).workers.kill_all()
                run_dir.remove(run.to_wire())

    def _runs(self) -> list[TrainingRun]:
        directories = sorted((self._dir.work / "runs").glob("*"))
        run_dirs = [self._run_dir(path.name) for path in directories]
        return [LocalBackend(run_dir).load() for run_dir in run_dirs if run_dir.exists()]

    def _run_dir(self, name: str) -> RunDir:
        return RunDir(name, self._dir.work)

    def _save_interrupted(self) -> None:
        status = self.study.status
        status.phase, status.reason, status.message = "Suspended", "Interrupted", INTERRUPTED
        self._dir.save(self.study)
        shutil.rmtree(self._dir.work, ignore_errors=True)

    def _keep_logs(self, status: ScalingStudyStatus, runs: Sequence[TrainingRun]) -> None:
        """Keep the log of a failed run; nothing else of the run is kept."""
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

    def _report_finished(self, display: StudyDisplay, before: ScalingStudyStatus) -> None:
        """Report the measurements and failures that are new since `before`."""
        known = {(cell.number, run.repeat) for cell in before.cells for run in cell.measurements}
        failed = {cell.number for cell in before.cells if cell.failure}
        for cell in self.study.status.cells:
            for run in cell.measurements:
                if (cell.number, run.repeat) not in known:
                    display.run_finished(f"{cell.label}; repeat {run.repeat}", run)
            if cell.failure and cell.number not in failed:
                display.run_finished(f"{cell.label}; repeat {cell.failure.repeat}", cell.failure)


def refuse_if_none_can_start(cells: Sequence[Cell]) -> None:
    """Raises UserError if no cell can start on this machine; if only some can't, they just fail."""
    problems = [preflight.problem(cell.run, os.getcwd()) for cell in cells]
    if problems[0] and all(problems):
        raise UserError(problems[0])


def threads_per_process(cells: Sequence[Cell]) -> int:
    """OMP_NUM_THREADS if set, else the cores divided by the processes of the largest cell."""
    configured = os.environ.get(THREADS_ENV, "")
    if configured.isdecimal() and int(configured) > 0:
        return int(configured)
    return max(1, (os.cpu_count() or 1) // max(cell.processes for cell in cells))
