"""Property: whatever the faults, an operator killed between any two actions ends where an
undisturbed one does, and nothing is created, counted or emitted twice."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.lifecycle import crashing
from tests.support.lifecycle.builders import make_run
from trainyard_api.run import TrainingRun
from trainyard_lifecycle.plan import Observed, Plan, Worker, worker_name
from trainyard_lifecycle.reconcile import reconcile

# How an attempt goes: (what happens, to which node).
FATES = st.tuples(
    st.sampled_from(["killed", "oom", "node lost", "deleted", "exception"]),
    st.integers(min_value=0, max_value=2),
)


class World(crashing.World):
    """A small cluster: workers start, run, and meet the fate that their attempt has."""

    def __init__(self, run: TrainingRun, fates: list[tuple[str, int]]) -> None:
        super().__init__()
        self.run = run
        self.fates = fates
        self.workers: dict[str, Worker] = {}
        self.created: list[str] = []

    def decide(self) -> Plan:
        return reconcile(Observed(self.run, self.now, tuple(self.workers.values())))

    def over(self) -> bool:
        return self.run.status.completion_time is not None

    def apply(self, kind: str, value: Any) -> None:
        if kind == "status":
            self.run = self.run.model_copy(update={"status": value})
        elif kind == "delete":
            worker = self.workers.get(value)
            if worker and worker.host == "gone":
                self.workers[value] = replace(worker, deleting=True)  # nobody can confirm it
            else:
                self.workers.pop(value, None)
        else:
            name = worker_name(self.run.name, value.attempt, value.node)
            if name not in self.workers:
                assert name not in self.created, f"{name} was created a second time"
                self.created.append(name)
                self.workers[name] = Worker(name, value.attempt, value.node, "Pending", host="h")

    def tick(self, second: int) -> None:
        """A second passes: pending workers run; a whole gang meets its fate."""
        self.now += timedelta(seconds=1)
        attempts = {w.attempt for w in self.workers.values() if not w.finished and not w.deleting}
        for attempt in attempts:
            gang = [w for w in self.workers.values() if w.attempt == attempt]
            if any(worker.phase == "Pending" for worker in gang):
                for worker in gang:
                    self.workers[worker.name] = replace(worker, phase="Running")
            elif attempt == self.run.status.attempt and len(gang) == self.run.status.nodes:
                self._meet_fate(attempt, gang)

    def _meet_fate(self, attempt: int, gang: list[Worker]) -> None:
        if not self.run.status.created:
            return  # a pod deleted before the operator saw it all there is created again
        if attempt > len(self.fates):
            for worker in gang:
                self.workers[worker.name] = replace(worker, phase="Succeeded")
            return
        fate, node = self.fates[attempt - 1]
        victim = gang[node % len(gang)]
        changes: dict[str, dict[str, Any]] = {
            "killed": {"phase": "Failed", "exit_code": 137},
            "oom": {"phase": "Failed", "exit_code": 137, "exit_reason": "OOMKilled"},
            "exception": {
                "phase": "Failed",
                "exit_code": 1,
                "log_tail": "Traceback (most recent call last):\n  x\nValueError: no\n",
            },
            "node lost": {
                "deleting": True,
                "disruption": "DeletionByTaintManager",
                "host": "gone",
            },
        }
        if fate == "deleted":
            del self.workers[victim.name]
        else:
            self.workers[victim.name] = replace(victim, **changes[fate])


def play(run: TrainingRun, fates: list[tuple[str, int]], crashes: list[int]) -> World:
    world = World(run, fates)
    world.play(crashes)
    return world


def outcome(world: World) -> tuple[Any, ...]:
    status = world.run.status
    history = [(a.number, a.outcome, a.reason, a.message) for a in status.attempts]
    return status.phase, status.reason, status.restarts, status.attempt, history


@settings(max_examples=400, deadline=None)
@given(
    nodes=st.integers(min_value=1, max_value=3),
    restarts=st.integers(min_value=0, max_value=4),
    fates=st.lists(FATES, max_size=4),
    crashes=st.lists(st.integers(min_value=1, max_value=60), max_size=25, unique=True),
)
def test_crash_anywhere(
    nodes: int, restarts: int, fates: list[tuple[str, int]], crashes: list[int]
) -> None:
    run = make_run(numNodes=nodes, maxRestarts=restarts, command=["train.py"])
    calm = play(run, fates, [])
    stormy = play(run, fates, crashes)
    assert outcome(stormy) == outcome(calm)
    assert sorted(stormy.created) == sorted(calm.created)
    assert {*stormy.events} >= {key for key in calm.events if "end" in key or key == "failed"}
    for world in (calm, stormy):
        active = [w for w in world.workers.values() if not w.finished and not w.deleting]
        assert active == [], "workers were left behind"
