"""A small cluster in which a study is measured: its runs, their pods, and all that befalls them.

Studies and runs are reconciled by the real functions; a trainer is a counter of steps.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

from tests.support.lifecycle import crashing
from tests.support.lifecycle.builders import T0
from tests.support.lifecycle.crashing import ConflictError, Turn
from tests.support.study.builders import key_of
from trainyard_api.progress import ProgressReport
from trainyard_api.run import TrainingRun
from trainyard_api.status import FINISHED, StepSeconds, TrainingRunStatus
from trainyard_api.study import ScalingStudy
from trainyard_api.study_status import CellResult, Measurement, ScalingStudyStatus
from trainyard_lifecycle.plan import Observed, Worker, worker_name
from trainyard_lifecycle.reconcile import reconcile
from trainyard_study.plan import StudyObserved
from trainyard_study.reconcile import reconcile_study
from trainyard_study.results import MAX_UNREPORTED

Key = tuple[int, int]  # cell, repeat

STEPS, WARMUP = 4, 1  # of every run; a trainer takes one a second
TOTAL = STEPS + WARMUP
SUSPENDED_SECONDS = 3
FAULTS = (
    "pod deleted",  # with its grace period: the step is saved
    "node lost",  # without
    "pod turned away",  # by the node, although the scheduler found room there
    "run deleted",
    "run being deleted",  # for a second
    "report lost",  # the last one of the next run that ends
    "suspend",
)


@dataclass(frozen=True)
class Pod:
    """A pod of a run, and the trainer in it.

    Attributes:
        run: uid of the run.
        resumed: the step that it resumed from; None: from scratch.
        step: steps done.
    """

    run: str
    key: Key
    worker: Worker
    resumed: int | None = None
    step: int = 0


def rate_of(key: Key) -> float:
    """Samples per second of a run, different for each."""
    return 100.0 * key[0] + key[1]


class StudyWorld(crashing.World):
    """Runs start, train, save at the end, and succeed unless they are fated to fail.

    Attributes:
        trained: how often a run of the key has trained all steps in one go.
        most_at_once: active runs.
    """

    def __init__(
        self,
        study: ScalingStudy,
        fated: set[Key],
        faults: Mapping[int, str],
        pauses: Mapping[int, int],
    ) -> None:
        """
        fated: runs that fail by their own fault.
        faults: what happens in which second.
        pauses: an operator that stops for so many seconds between deciding and acting, while
            another takes over.
        """
        super().__init__()
        self.study = study
        self.fated = fated
        self.faults = faults
        self.pauses = pauses
        self.paused: dict[int, Turn] = {}  # by the second in which they continue
        self.runs: dict[str, TrainingRun] = {}
        self.pods: dict[str, Pod] = {}
        self.saved: dict[str, int] = {}  # step of a run's newest checkpoint, by the run's uid
        self.trained: dict[Key, int] = {}
        self.most_at_once = 0
        self.second = 0
        self._uids = 0
        self._turn_away = 0
        self._lose_reports = 0
        self._reports_to_lose = MAX_UNREPORTED
        self._suspended_until: int | None = None

    # What the operator does.

    def turns(self) -> Iterator[Turn]:
        if paused := self.paused.pop(self.second, None):
            yield paused
        yield self._study_turn()
        for name in sorted(self.runs):
            if name in self.runs:
                yield self._run_turn(name)

    def over(self) -> bool:
        return self.study.status.phase in FINISHED

    def _study_turn(self) -> Turn:
        observed = StudyObserved(self.study, self.now, tuple(self.runs.values()))
        return Turn(reconcile_study(observed), partial(self._apply_study, observed))

    def _apply_study(self, observed: StudyObserved, kind: str, value: Any) -> None:
        if kind == "status":
            stored = ScalingStudyStatus.model_validate(value.to_wire())
            if stored == observed.study.status:
                return  # nothing to write
            if self.study is not observed.study:
                raise ConflictError
            self._check_nothing_lost(stored)
            self.study = self.study.model_copy(update={"status": stored})
        elif kind == "delete":
            seen = next(run for run in observed.runs if run.name == value)
            self._delete_run(seen)
        elif value.name not in self.runs:
            self._uids += 1
            metadata = value.metadata.model_copy(
                update={"uid": f"uid-{self._uids}", "generation": 1}
            )
            self.runs[value.name] = value.model_copy(update={"metadata": metadata})
            active = [run for run in self.runs.values() if run.status.phase not in FINISHED]
            self.most_at_once = max(self.most_at_once, len(active))

    def _delete_run(self, seen: TrainingRun) -> None:
        run = self.runs.get(seen.name)
        under_way = seen.status.phase not in FINISHED
        if run is None or run.metadata.uid != seen.metadata.uid or (under_way and run is not seen):
            if under_way:
                raise ConflictError
            return
        if _is_whole(run.status):
            number, repeat = key_of(run)
            counted = self.study.status.cells[number - 1].measurements
            assert repeat in [m.repeat for m in counted], (
                f"{run.name} was deleted, its figures lost"
            )
        self._remove(run)

    def _run_turn(self, name: str) -> Turn:
        run = self.runs[name]
        own = [pod for pod in self.pods.values() if pod.run == run.metadata.uid]
        report = next((_report(pod, run) for pod in own if pod.worker.phase == "Running"), None)
        observed = Observed(run, self.now, tuple(pod.worker for pod in own), report)
        return Turn(reconcile(observed), self._apply_run(run), f"{run.metadata.uid}/")

    def _apply_run(self, run: TrainingRun) -> Callable[[str, Any], None]:
        def apply(kind: str, value: Any) -> None:
            if kind == "status":
                stored = TrainingRunStatus.model_validate(value.to_wire())
                if stored == run.status:
                    return
                if self.runs.get(run.name) is not run:
                    raise ConflictError
                self.runs[run.name] = run.model_copy(update={"status": stored})
            elif kind == "delete":
                self._end_pod(value, saves=True)
            else:
                name = worker_name(run.name, value.attempt, value.node)
                worker = Worker(name, value.attempt, value.node, "Pending", host="h")
                if self._turn_away:
                    self._turn_away -= 1
                    worker = replace(worker, phase="Failed", exit_reason="OutOfcpu")
                uid = run.metadata.uid or ""
                self.pods.setdefault(name, Pod(uid, key_of(run), worker))

        return apply

    def _check_nothing_lost(self, new: ScalingStudyStatus) -> None:
        for old, cell in zip(self.study.status.cells, new.cells, strict=False):
            lost = [found for found in old.measurements if found not in cell.measurements]
            assert not lost, f"cell {cell.number} was measured, and is not any more: {lost}"

    # What happens meanwhile.

    def tick(self, second: int) -> None:
        """Trainers take a step; what is to happen in this second happens."""
        self.now += timedelta(seconds=1)
        self.second = second + 1
        for run in list(self.runs.values()):
            if run.metadata.deletion_timestamp is not None:
                self._remove(run)
        if self._suspended_until == second:
            self._set_suspend(False)
        if fault := self.faults.get(second):
            self._disturb(fault, second)
        for name, pod in list(self.pods.items()):
            self.pods[name] = self._advance(pod)
        if seconds := self.pauses.get(second):
            self.paused[self.second + seconds] = self._study_turn()

    def _advance(self, pod: Pod) -> Pod:
        worker = pod.worker
        if worker.phase == "Pending":
            step = self.saved.get(pod.run)
            return replace(
                pod, worker=replace(worker, phase="Running"), resumed=step, step=step or 0
            )
        if worker.phase != "Running":
            return pod
        if pod.key in self.fated:
            log = "Traceback (most recent call last):\n  x\nValueError: no\n"
            failed = replace(worker, phase="Failed", exit_code=1, log_tail=log)
            return replace(pod, worker=failed)
        if pod.step < TOTAL:
            if pod.step + 1 == TOTAL:
                self.saved[pod.run] = TOTAL
            return replace(pod, step=pod.step + 1)
        text = _report(pod, self._run_of(pod)).model_dump_json(by_alias=True)
        if self._lose_reports:
            self._lose_reports -= 1
            text = ""
        if pod.resumed is None:
            self.trained[pod.key] = self.trained.get(pod.key, 0) + 1
        ended = replace(worker, phase="Succeeded", exit_code=0, termination_message=text)
        return replace(pod, worker=ended)

    def _disturb(self, fault: str, second: int) -> None:
        busy = [run for run in self.runs.values() if run.status.phase not in FINISHED]
        uids = [run.metadata.uid for run in busy]
        pods = [name for name, pod in self.pods.items() if pod.run in uids]
        if fault == "suspend":
            self._set_suspend(True)
            self._suspended_until = second + SUSPENDED_SECONDS
        elif fault == "report lost" and self._reports_to_lose:
            self._reports_to_lose -= 1
            self._lose_reports += 1
        elif fault == "pod turned away":
            self._turn_away += 1
        elif fault in ("pod deleted", "node lost") and pods:
            self._end_pod(pods[0], saves=fault == "pod deleted")
        elif fault == "run deleted" and busy:
            self._remove(busy[0])
        elif fault == "run being deleted" and busy:
            metadata = busy[0].metadata.model_copy(update={"deletion_timestamp": self.now})
            self.runs[busy[0].name] = busy[0].model_copy(update={"metadata": metadata})

    def _set_suspend(self, value: bool) -> None:
        metadata = self.study.metadata
        generation = (metadata.generation or 0) + 1
        self.study = self.study.model_copy(
            update={
                "spec": self.study.spec.model_copy(update={"suspend": value}),
                "metadata": metadata.model_copy(update={"generation": generation}),
            }
        )

    def _end_pod(self, name: str, *, saves: bool) -> None:
        pod = self.pods.pop(name, None)
        if pod and pod.worker.phase == "Running" and pod.step and saves:
            self.saved[pod.run] = pod.step

    def _remove(self, run: TrainingRun) -> None:
        """The run is deleted, with its pods and its volume."""
        del self.runs[run.name]
        uid = run.metadata.uid or ""
        self.saved.pop(uid, None)
        self.pods = {name: pod for name, pod in self.pods.items() if pod.run != uid}

    def _run_of(self, pod: Pod) -> TrainingRun:
        return next(run for run in self.runs.values() if run.metadata.uid == pod.run)


def is_true(found: Measurement, cell: CellResult) -> bool:
    """Whether the figures are those of the very run, over all its steps."""
    rate = rate_of((cell.number, found.repeat))
    return found.step_seconds.p50 == STEPS and abs(found.samples_per_second - rate) < 1e-6


def _is_whole(status: TrainingRunStatus) -> bool:
    """Whether a run has trained all its steps in one go, and reported them."""
    steps, attempts = status.step_seconds, status.attempts
    resumed = attempts[-1].resumed_from_step is not None if attempts else False
    return status.phase == "Succeeded" and steps is not None and steps.p50 == STEPS and not resumed


def _report(pod: Pod, run: TrainingRun) -> ProgressReport:
    """What rank 0 says; as p50 it says how many steps were measured."""
    measured = pod.step - (pod.resumed or 0) - WARMUP
    mean = 10 / rate_of(pod.key)
    return ProgressReport(
        run=run.name,
        attempt=pod.worker.attempt,
        phase="training",
        ranks_joined=run.nproc,
        world_size=run.nproc,
        step=pod.step,
        total_steps=TOTAL,
        batch_size=10,
        loss=1.5,
        step_seconds=StepSeconds(mean=mean, p50=measured, p99=2 * mean) if measured > 0 else None,
        resumed_from_step=pod.resumed,
        time=T0,
    )
