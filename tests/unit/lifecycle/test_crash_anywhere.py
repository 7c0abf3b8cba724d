"""Property: whatever the faults, an operator killed between any two actions ends where an
undisturbed one does, and nothing is created, counted or emitted twice.

The user takes part: a run that has failed is retried, fixed or left alone. So does the release:
the operator may be replaced by a newer or an older one between any two actions.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.lifecycle import crashing
from tests.support.lifecycle.builders import T0, make_run
from tests.support.lifecycle.crashing import Turn
from trainyard_api.base import parse_known
from trainyard_api.labels import RETRY
from trainyard_api.progress import ProgressReport
from trainyard_api.run import TrainingRun
from trainyard_api.status import CheckpointRef, TrainingRunStatus
from trainyard_lifecycle.plan import Observed, Worker, worker_name
from trainyard_lifecycle.policy import request_to_continue
from trainyard_lifecycle.reconcile import reconcile
from trainyard_lifecycle.status import set_condition

# Of each part of a start: longer than crashes alone can delay it.
DEADLINE = 40
ACTIVE_SECONDS = 400  # longer than all attempts take together that are not stuck


@dataclass(frozen=True)
class Fate:
    """How an attempt goes.

    Attributes:
        what: what happens to it.
        node: the node that it happens to.
        gain: checkpoints that it saves first.
    """

    what: str
    node: int
    gain: int


FATES = st.builds(
    Fate,
    st.sampled_from(
        [
            *("killed", "oom", "exception", "node lost", "deleted", "preempted", "stuck"),
            *("gated", "unschedulable", "no image", "not joined", "quota"),
        ]
    ),
    st.integers(min_value=0, max_value=2),
    st.integers(min_value=0, max_value=1),
)
GRACE_SECONDS = 3  # of a worker that is deleted while it runs
# What the user does each time the run has failed; at the end of the list it is left alone.
ACTIONS = ["retry", "fix", "raise maxRestarts", "raise maxDisruptions", "touch"]
USER = st.lists(st.sampled_from(ACTIONS), max_size=3)
# What a worker can't start for, by the fate of its attempt.
WAITS: dict[str, dict[str, Any]] = {
    "gated": {"gated": True, "host": ""},
    "unschedulable": {"host": "", "unschedulable": "0/3 nodes are available"},
    "no image": {"waiting_reason": "ImagePullBackOff", "waiting_message": "own:1"},
}


class World(crashing.World):
    """A small cluster: workers start, run, and meet the fate that their attempt has.

    edits: the value that the user gives to storage.whenDeleted, by second.
    unsupported: seconds in which the spec has a value that this version doesn't know.
    """

    def __init__(
        self,
        run: TrainingRun,
        fates: list[Fate],
        user: list[str],
        versions: set[int],
        edits: dict[int, str],
        unsupported: range = range(0),
    ) -> None:
        super().__init__()
        self.run = run
        self.fates = fates
        self.user = list(user)
        self.versions = versions  # the status is written by another version at these writes
        self.writes = 0
        self.checkpoint = 0
        self.acted = 0  # the attempt after whose failure the user did something
        self.edits = dict(edits)
        self.unsupported = unsupported
        self.claim: str | None = None  # what becomes of it with the run; None: not there yet
        self.workers: dict[str, Worker] = {}
        # Each with whether its pod mounts the claim of startFrom.
        self.created: list[tuple[str, bool]] = []

    def turns(self) -> Iterator[Turn]:
        if (self.now - T0).seconds in self.unsupported:  # as the operator refuses it
            status = self.run.status.model_copy(deep=True)
            set_condition(status, "Unsupported", True, "Unsupported", "spec.newer", self.now)
            self.run = self.run.model_copy(update={"status": status})
            return
        workers = tuple(self.workers.values())
        plan = reconcile(Observed(self.run, self.now, workers, self.report()))
        yield Turn(plan, self.apply)

    def report(self) -> ProgressReport | None:
        """Rank 0's, while all workers of the newest attempt run."""
        attempt = self.run.status.attempt
        gang = [worker for worker in self.workers.values() if worker.attempt == attempt]
        if not gang or not self._all_run(gang):
            return None
        step = self.checkpoint + self.fate_of(attempt).gain
        saved = CheckpointRef(step=step, digest=f"sha256:{step}", time=T0) if step else None
        return ProgressReport(
            run="r",
            attempt=attempt,
            phase="training",
            ranks_joined=0 if self.fate_of(attempt).what == "not joined" else len(gang),
            world_size=len(gang),
            step=step,
            last_checkpoint=saved,
            time=T0,
        )

    def _all_run(self, gang: list[Worker]) -> bool:
        complete = len(gang) == self.run.status.nodes
        return complete and all(w.phase == "Running" and not w.deleting for w in gang)

    def fate_of(self, attempt: int) -> Fate:
        return self.fates[attempt - 1] if attempt <= len(self.fates) else Fate("succeeds", 0, 0)

    def over(self) -> bool:
        failed = self.run.status.phase == "Failed"
        asked = failed and request_to_continue(self.run, self.run.status)
        unsupported = (self.now - T0).seconds < self.unsupported.stop
        waits = (failed and self.user) or asked or self.edits or unsupported
        return self.run.status.completion_time is not None and not waits

    def apply(self, kind: str, value: Any) -> None:
        if kind == "status":
            self.writes += 1
            if self.writes in self.versions:
                value = through_another_version(value)
            self.run = self.run.model_copy(update={"status": value})
        elif kind == "claim":
            self.claim = self.claim and value
        elif kind == "delete":
            worker = self.workers.get(value)
            if worker and worker.host == "gone":
                self.workers[value] = replace(worker, deleting=True)  # its end can't be confirmed
            elif worker and worker.phase == "Running":  # it saves its step meanwhile
                gone_by = worker.gone_by or self.now + timedelta(seconds=GRACE_SECONDS)
                self.workers[value] = replace(worker, deleting=True, gone_by=gone_by)
            else:
                self.workers.pop(value, None)
        else:
            name = worker_name(self.run.name, value.attempt, value.node)
            fate = self.fate_of(value.attempt).what
            if fate == "quota" and value.node > 0:
                status = self.run.status.model_copy(deep=True)
                status.phase, status.reason, status.message = "Pending", "Rejected", "quota"
                self.run = self.run.model_copy(update={"status": status})
                raise crashing.ConflictError  # the rest of the plan is dropped
            self.claim = self.claim or self.run.when_deleted
            if name not in self.workers:
                saving = [w for w in self.workers.values() if w.attempt != value.attempt]
                saving = [w for w in saving if w.phase == "Running" and w.host != "gone"]
                assert saving == [], f"{name} was created while the last attempt saves"
                assert name not in dict(self.created), f"{name} was created a second time"
                self.created.append((name, self.run.status.last_checkpoint is None))
                waits = {"host": "h"} | WAITS.get(fate, {})
                self.workers[name] = Worker(name, value.attempt, value.node, "Pending", **waits)

    def tick(self, second: int) -> None:
        """A second passes: pending workers run, a whole gang meets its fate, the user acts."""
        self.now += timedelta(seconds=1)
        for worker in list(self.workers.values()):
            if worker.gone_by is not None and worker.gone_by <= self.now:
                del self.workers[worker.name]
        status = self.run.status
        if status.phase == "Failed" and self.user and self.acted != status.attempt:
            self._user_acts(self.user.pop(0))
            if request_to_continue(self.run, status):  # else the user does something else
                self.acted = status.attempt
        if second in self.edits:
            self._edit(self.edits.pop(second))
        attempts = {w.attempt for w in self.workers.values() if not w.finished and not w.deleting}
        for attempt in attempts:
            gang = [w for w in self.workers.values() if w.attempt == attempt]
            if any(worker.phase == "Pending" for worker in gang):
                for worker in gang:
                    if self.fate_of(attempt).what not in WAITS:
                        self.workers[worker.name] = replace(worker, phase="Running")
            elif attempt == self.run.status.attempt and self._all_run(gang):
                self._meet_fate(attempt, gang)

    def _user_acts(self, action: str) -> None:
        metadata, spec = self.run.metadata.model_copy(deep=True), self.run.spec
        if action == "retry":
            metadata.annotations[RETRY] = str(len(self.user))
        else:
            metadata.generation = (metadata.generation or 0) + 1
            changes: dict[str, dict[str, Any]] = {
                "fix": {"active_deadline_seconds": None, "config": {"seen": len(self.user)}},
                "raise maxRestarts": {"max_restarts": spec.max_restarts + 1},
                "raise maxDisruptions": {"max_disruptions": (spec.max_disruptions or 0) + 1},
                "touch": {},  # a controller applies the same object again
            }
            spec = spec.model_copy(update=changes[action])
        self.run = self.run.model_copy(update={"metadata": metadata, "spec": spec})

    def _edit(self, when_deleted: str) -> None:
        """`kubectl patch`, between two looks of the operator."""
        wire = self.run.to_wire()
        wire["spec"]["storage"] = {"whenDeleted": when_deleted}
        wire["metadata"]["generation"] += 1
        self.run = TrainingRun.model_validate(wire)

    def _meet_fate(self, attempt: int, gang: list[Worker]) -> None:
        # Only what the operator has seen: a pod deleted before that is created again, and a
        # checkpoint that no report named is not known.
        if not self.run.status.created or self.run.status.phase != "Running":
            return
        fate = self.fate_of(attempt)
        victim = gang[fate.node % len(gang)]
        if fate.what == "stuck" and self.run.spec.active_deadline_seconds is not None:
            return
        self.checkpoint += fate.gain
        if fate.what in ("succeeds", "stuck", "quota"):
            for worker in gang:
                self.workers[worker.name] = replace(worker, phase="Succeeded")
        elif fate.what == "deleted":
            del self.workers[victim.name]
        else:
            self.workers[victim.name] = HAPPENS[fate.what](victim)


HAPPENS: dict[str, Callable[[Worker], Worker]] = {
    "killed": lambda worker: replace(worker, phase="Failed", exit_code=137),
    "oom": lambda worker: replace(worker, phase="Failed", exit_code=137, exit_reason="OOMKilled"),
    "exception": lambda worker: replace(
        worker,
        phase="Failed",
        exit_code=1,
        log_tail="Traceback (most recent call last):\n  x\nValueError: no\n",
    ),
    "node lost": lambda worker: replace(
        worker, deleting=True, disruption="DeletionByTaintManager", host="gone"
    ),
    "preempted": lambda worker: replace(
        worker, phase="Failed", exit_code=143, disruption="PreemptionByScheduler"
    ),
}


def through_another_version(status: TrainingRunStatus) -> TrainingRunStatus:
    """As read back from one that a newer version wrote: with keys that this one doesn't know."""
    wire = status.to_wire() | {"newerField": {"a": 1}}
    for attempt in wire["attempts"]:
        attempt["newerField"] = 1
    for condition in wire["conditions"]:
        condition["newerField"] = 1
    wire["conditions"].append({"type": "Newer", "status": "True", "reason": "", "message": ""})
    known = parse_known(TrainingRunStatus, json.loads(json.dumps(wire)))
    assert known is not None
    return known


def play(
    run: TrainingRun,
    fates: list[Fate],
    user: list[str],
    crashes: list[int],
    edits: dict[int, str],
    versions: list[int] = [],  # noqa: B006 never changed
    unsupported: range = range(0),
) -> World:
    world = World(run, fates, user, set(versions), edits, unsupported)
    world.play(crashes)
    return world


def outcome(world: World) -> tuple[Any, ...]:
    status = world.run.status
    history = [
        (a.number, a.outcome, a.reason, a.message, a.counted, a.step, a.checkpoint_step)
        for a in status.attempts
    ]
    counts = (status.restarts, status.failures, status.disruptions, status.attempt)
    why = status.message if status.phase == "Failed" else ""  # else it has the duration
    return status.phase, status.reason, why, counts, history


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(
    nodes=st.integers(min_value=1, max_value=3),
    restarts=st.integers(min_value=0, max_value=4),
    disruptions=st.none() | st.integers(min_value=0, max_value=2),
    fates=st.lists(FATES, max_size=6),
    user=USER,
    crashes=st.lists(st.integers(min_value=1, max_value=80), max_size=25, unique=True),
    versions=st.lists(st.integers(min_value=1, max_value=40), max_size=6, unique=True),
    edits=st.dictionaries(
        st.integers(min_value=0, max_value=40), st.sampled_from(["Delete", "Retain"]), max_size=6
    ),
    unsupported=st.builds(
        lambda start, seconds: range(start, start + seconds),
        st.integers(min_value=1, max_value=60),
        st.integers(min_value=0, max_value=5),
    ),
)
def test_crash_anywhere(
    nodes: int,
    restarts: int,
    disruptions: int | None,
    fates: list[Fate],
    user: list[str],
    crashes: list[int],
    versions: list[int],
    edits: dict[int, str],
    unsupported: range,
) -> None:
    spec: dict[str, Any] = {
        "numNodes": nodes,
        "maxRestarts": restarts,
        "deadlines": dict.fromkeys(
            ("queueSeconds", "scheduleSeconds", "startSeconds", "joinSeconds"), DEADLINE
        ),
        "activeDeadlineSeconds": ACTIVE_SECONDS,
        "startFrom": {"run": "other"},
        # A gang that finds no place is tried again after this.
        "backoff": {"initialSeconds": 1, "maxSeconds": 2},
    }
    if disruptions is not None:
        spec["maxDisruptions"] = disruptions
    run = make_run(**spec)
    calm = play(run, fates, user, [], edits, unsupported=unsupported)
    stormy = play(run, fates, user, crashes, edits, versions, unsupported)
    assert outcome(stormy) == outcome(calm)
    assert sorted(stormy.created) == sorted(calm.created)
    assert {*stormy.events} >= {key for key in calm.events if "end" in key or key == "failed"}
    for world in (calm, stormy):
        active = [w for w in world.workers.values() if not w.finished and not w.deleting]
        assert active == [], "workers were left behind"
        assert world.claim == world.run.status.when_deleted == world.run.when_deleted


def test_a_crash_beside_any_change_of_when_deleted() -> None:
    """Above all between the claim and the status, with the change taken back before the restart."""
    values = (None, "Delete", "Retain")
    for changes in itertools.product(values, repeat=3):
        edits = {second: value for second, value in enumerate(changes) if value}
        for crash in range(1, 16):
            world = play(make_run(numNodes=1, command=["train.py"]), [], [], [crash], edits)
            assert world.claim == world.run.status.when_deleted == world.run.when_deleted
