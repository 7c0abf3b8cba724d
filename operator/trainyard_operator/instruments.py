"""The operator's Prometheus metrics; names and labels are the API's."""

from collections import Counter as Count
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from trainyard_api import metrics
from trainyard_api.status import TrainingRunStatus
from trainyard_lifecycle.diagnosis import REASONS
from trainyard_operator.run_series import RunFacts, RunSeries, facts_of, known_reason
from trainyard_operator.study_series import StudySeries

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter that nobody asks for

RECONCILE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Instruments:
    """All metrics of one operator process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.runs = Gauge(*_named(metrics.RUNS), registry=self.registry)
        self.reconciles = Counter(*_named(metrics.RECONCILES), registry=self.registry)
        self.reconcile_seconds = Histogram(
            *_named(metrics.RECONCILE_SECONDS), registry=self.registry, buckets=RECONCILE_BUCKETS
        )
        self.restarts = Counter(*_named(metrics.RESTARTS), registry=self.registry)
        for reason in REASONS:  # a counter that begins at 1 has never grown
            self.restarts.labels(reason)
        self.queue_depth = Gauge(*_named(metrics.QUEUE_DEPTH), registry=self.registry)
        self.leader = Gauge(*_named(metrics.LEADER), registry=self.registry)
        self.failing = Gauge(*_named(metrics.FAILING), registry=self.registry)
        self._runs: dict[Hashable, RunFacts] = {}
        self.registry.register(RunSeries(self._runs))
        self.studies = StudySeries()
        self.registry.register(self.studies)

    def watch_queue(self, depth: Callable[[], float], failing: Callable[[], float]) -> None:
        """Read the queue's depth and its failing keys whenever metrics are scraped."""
        self.queue_depth.set_function(depth)
        self.failing.set_function(failing)

    def seen(self, key: Hashable, body: Mapping[str, Any] | None) -> None:
        """A run as last seen; None when it is gone."""
        if body is None:
            self._runs.pop(key, None)
        else:
            self._runs[key] = facts_of(body)
        self._count()

    def seen_all(self, bodies: Mapping[Hashable, Mapping[str, Any]]) -> None:
        """Every run there is: what isn't among them is gone."""
        facts = {key: facts_of(body) for key, body in bodies.items()}
        self._runs.clear()
        self._runs.update(facts)
        self._count()

    def failed_attempts(self, before: TrainingRunStatus, after: TrainingRunStatus) -> None:
        """Count the attempts that have failed between two statuses, by reason."""
        known = {attempt.number for attempt in before.attempts if attempt.outcome == "Failed"}
        for attempt in after.attempts:
            if attempt.outcome == "Failed" and attempt.number not in known:
                self.restarts.labels(known_reason(attempt.reason)).inc()

    def _count(self) -> None:
        self.runs.clear()
        for phase, count in Count(run.phase for run in self._runs.values()).items():
            self.runs.labels(phase).set(count)


def _named(metric: metrics.Metric) -> tuple[str, str, tuple[str, ...]]:
    return metric.name, metric.help, metric.labels
