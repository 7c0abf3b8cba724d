"""Builders for reconcile's tests: a run, a worker, what is observed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from trainyard_api.progress import ProgressReport
from trainyard_api.run import TrainingRun
from trainyard_lifecycle.plan import Observed, Plan, Worker
from trainyard_lifecycle.reconcile import reconcile

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def make_run(**spec: Any) -> TrainingRun:
    """A two-node char-gpt run, with `spec` (wire names) on top."""
    base: dict[str, Any] = {"numNodes": 2}
    if "command" not in spec:
        base["recipe"] = "char-gpt"
    return TrainingRun.model_validate(
        {
            "apiVersion": "trainyard.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": "r", "namespace": "ns", "uid": "u", "generation": 1},
            "spec": base | spec,
        }
    )


def make_worker(node: int = 0, attempt: int = 1, **fields: Any) -> Worker:
    """A worker; Running unless said otherwise."""
    defaults: dict[str, Any] = {"phase": "Running", "host": f"host{node}"}
    return Worker(name=f"r-{attempt}-{node}", attempt=attempt, node=node, **(defaults | fields))


def make_report(attempt: int = 1, joined: int = 2, **fields: Any) -> ProgressReport:
    """Rank 0's report; training with every rank joined unless said otherwise."""
    defaults: dict[str, Any] = {"phase": "training", "world_size": 2, "time": T0}
    return ProgressReport(run="r", attempt=attempt, ranks_joined=joined, **(defaults | fields))


class Story:
    """A run seen over time: each `see` reconciles once and keeps the new status."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run
        self.now = T0

    def see(
        self,
        *workers: Worker,
        after: float = 0,
        report: ProgressReport | None = None,
        lost: frozenset[str] = frozenset(),
        report_error: str = "",
    ) -> Plan:
        self.now += timedelta(seconds=after)
        seen = tuple(replace(each, host_lost=each.host in lost) for each in workers)
        observed = Observed(self.run, self.now, seen, report, report_error)
        plan = reconcile(observed)
        self.run = self.run.model_copy(update={"status": plan.status})
        return plan
