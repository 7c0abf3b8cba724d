"""The operator's Prometheus metrics; names and labels are the API's."""

from collections import Counter as Count
from collections.abc import Callable, Hashable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from trainyard_api import metrics
from trainyard_api.status import TrainingRunStatus

RECONCILE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Instruments:
    """All metrics of one operator process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.runs = Gauge(*_named(metrics.RUNS), registry=self.registry)
        self.reconciles = Counter(*_named(metrics.RECONCILES), registry=self.registry)
        self.reconcile_seconds = Histogram(
            *_named(metrics.RECONCILE_SECONDS), registry=self.registry, buckets=RECONCILE_BUCKETS
        )
        self.restarts = Counter(*_named(metrics.RESTARTS), registry=self.registry)
        self.queue_depth = Gauge(*_named(metrics.QUEUE_DEPTH), registry=self.registry)
        self.leader = Gauge(*_named(metrics.LEADER), registry=self.registry)
        self._phases: dict[Hashable, str] = {}

    def watch_queue(self, depth: Callable[[], float]) -> None:
        """Read the queue's depth whenever metrics are scraped."""
        self.queue_depth.set_function(depth)

    def seen(self, key: Hashable, phase: str | None) -> None:
        """A run's phase as last seen; None when it is gone."""
        if phase is None:
            self._phases.pop(key, None)
        else:
            self._phases[key] = phase
        self._count()

    def seen_all(self, phases: dict[Hashable, str]) -> None:
        """Every run there is: what isn't among them is gone."""
        self._phases = dict(phases)
        self._count()

    def failed_attempts(self, before: TrainingRunStatus, after: TrainingRunStatus) -> None:
        """Count the attempts that have failed between two statuses, by reason."""
        known = {attempt.number for attempt in before.attempts if attempt.outcome == "Failed"}
        for attempt in after.attempts:
            if attempt.outcome == "Failed" and attempt.number not in known:
                self.restarts.labels(attempt.reason or "Unknown").inc()

    def _count(self) -> None:
        self.runs.clear()
        for phase, count in Count(self._phases.values()).items():
            self.runs.labels(phase).set(count)


def _named(metric: metrics.Metric) -> tuple[str, str, tuple[str, ...]]:
    return metric.name, metric.help, metric.labels
