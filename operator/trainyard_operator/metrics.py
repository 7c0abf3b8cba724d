"""The operator's Prometheus metrics: its own work, and series of runs and studies.

Series of single runs and studies are computed from the stored objects whenever Prometheus scrapes,
so none is left over when its object is deleted. Names and labels are the API's.
"""

import time
from collections import Counter as Count
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import ValidationError

from trainyard_api import labels, metrics
from trainyard_api.gpus import whole_gpus
from trainyard_api.status import FINISHED, TrainingRunStatus
from trainyard_api.study import Cost
from trainyard_api.study_status import ScalingCurve
from trainyard_lifecycle.diagnosis import REASONS
from trainyard_operator.objects import ObjectKey

disable_created_metrics()  # type: ignore[no-untyped-call]  # an unneeded second series per counter

RECONCILE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# How long a finished run is still exported: its last values must be scraped.
FINISHED_SECONDS = 900.0
_MAX_RUNS = metrics.RUN_PHASE.labels[1].at_most
_MAX_STUDIES = metrics.STUDY_SPEEDUP.labels[1].at_most

Body = Mapping[str, Any]


class OperatorMetrics:
    """All metrics of one operator process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.reconciles = Counter(*_named(metrics.RECONCILES), registry=self.registry)
        self.reconcile_seconds = Histogram(
            *_named(metrics.RECONCILE_SECONDS), registry=self.registry, buckets=RECONCILE_BUCKETS
        )
        self.restarts = Counter(*_named(metrics.RESTARTS), registry=self.registry)
        for reason in REASONS:  # rate() misses the first failure of a series that starts at 1
            self.restarts.labels(reason)
        self.queue_depth = Gauge(*_named(metrics.QUEUE_DEPTH), registry=self.registry)
        self.leader = Gauge(*_named(metrics.LEADER), registry=self.registry)
        self.failing = Gauge(*_named(metrics.FAILING), registry=self.registry)
        self.runs = RunSeries()
        self.registry.register(self.runs)
        self.studies = StudySeries()
        self.registry.register(self.studies)

    def watch_queues(self, depth: Callable[[], float], failing: Callable[[], float]) -> None:
        """Read the queues' depth and their failing keys whenever metrics are scraped."""
        self.queue_depth.set_function(depth)
        self.failing.set_function(failing)

    def count_failed_attempts(self, before: TrainingRunStatus, after: TrainingRunStatus) -> None:
        """Count the attempts that have failed between two statuses, by reason."""
        known = {attempt.number for attempt in before.attempts if attempt.outcome == "Failed"}
        for attempt in after.attempts:
            if attempt.outcome == "Failed" and attempt.number not in known:
                self.restarts.labels(_known_reason(attempt.reason)).inc()


@dataclass(frozen=True)
class RunFacts:
    """What is exported about a run. Times are seconds since 1970."""

    namespace: str
    name: str
    phase: str
    queue: str
    study: str
    gpus: int
    restarts: int
    failures: Mapping[str, int]  # failed attempts by reason
    waiting_since: float
    active_before: float  # seconds before the last suspension
    active_since: float | None
    ended: float | None

    def active_seconds(self, now: float) -> float:
        """Wall time since it began, without suspensions."""
        if self.active_since is None:
            return self.active_before
        return self.active_before + max(0.0, (self.ended or now) - self.active_since)

    def is_exported(self, now: float) -> bool:
        return self.phase not in FINISHED or now - (self.ended or 0.0) < FINISHED_SECONDS


def run_facts(body: Body) -> RunFacts:
    """The facts of a stored run; the spec of an invalid one may hold anything."""
    metadata, status = body["metadata"], body.get("status") or {}
    spec = _mapping(body.get("spec"))
    attempts = status.get("attempts") or []
    failed = [attempt for attempt in attempts if attempt.get("outcome") == "Failed"]
    newest = attempts[-1]["startTime"] if attempts else metadata.get("creationTimestamp")
    nodes = status.get("nodes") or spec.get("numNodes") or 1
    limits = _mapping(_mapping(spec.get("resourcesPerNode")).get("limits"))
    return RunFacts(
        namespace=metadata["namespace"],
        name=metadata["name"],
        phase=str(status.get("phase") or "Pending"),
        queue=str(_mapping(spec.get("queue")).get("name") or ""),
        study=_mapping(metadata.get("labels")).get(labels.STUDY, ""),
        gpus=_integer(nodes) * sum(whole_gpus(limits).values()),
        restarts=status.get("restarts") or 0,
        failures=Count(_known_reason(attempt.get("reason")) for attempt in failed),
        waiting_since=_timestamp(newest) or time.time(),
        active_before=status.get("activeSeconds") or 0,
        active_since=_timestamp(status.get("activeSince")),
        ended=_timestamp(status.get("completionTime")),
    )


class RunSeries(Collector):
    """Runs by phase, and series of single runs; beyond the bound some runs are left out."""

    def __init__(self) -> None:
        self._runs: dict[ObjectKey, RunFacts] = {}

    def update(self, key: ObjectKey, body: Body | None) -> None:
        """Take over a run as stored now; None when it was deleted."""
        if body is None:
            self._runs.pop(key, None)
        else:
            self._runs[key] = run_facts(body)

    def replace_all(self, bodies: Mapping[ObjectKey, Body]) -> None:
        """Take over every run there is, and forget the others."""
        self._runs = {key: run_facts(body) for key, body in bodies.items()}

    def collect(self) -> Iterator[Family]:
        now = time.time()
        runs = list(self._runs.values())
        by_phase = _gauge(metrics.RUNS)
        for name, count in Count(run.phase for run in runs).items():
            by_phase.add_metric([name], count)
        yield by_phase
        exported = [run for run in runs if run.is_exported(now)]
        exported = sorted(exported, key=lambda run: run.phase in FINISHED)[:_MAX_RUNS]
        phase = _gauge(metrics.RUN_PHASE)
        waiting = _gauge(metrics.RUN_WAITING_SECONDS)
        gpus = _gauge(metrics.RUN_GPUS)
        active = _counter(metrics.RUN_ACTIVE_SECONDS)
        restarts = _counter(metrics.RUN_RESTARTS)
        failed = _gauge(metrics.RUN_FAILED_ATTEMPTS)
        study = _gauge(metrics.RUN_STUDY)
        for run in exported:
            names = [run.namespace, run.name]
            phase.add_metric([*names, run.phase], 1)
            gpus.add_metric(names, run.gpus)
            active.add_metric(names, run.active_seconds(now))
            restarts.add_metric(names, run.restarts)
            if run.phase == "Pending":
                waiting.add_metric([*names, run.queue], max(0.0, now - run.waiting_since))
            if run.study:
                study.add_metric([*names, run.study], 1)
            for reason, count in run.failures.items():
                failed.add_metric([*names, reason], count)
        yield from (phase, waiting, gpus, active, restarts, failed, study)


@dataclass(frozen=True)
class StudyFacts:
    """What is exported about a study."""

    phase: str
    curves: list[ScalingCurve]
    currency: str


def study_facts(body: Body) -> StudyFacts:
    """The facts of a stored study."""
    status = body.get("status") or {}
    cost = (body.get("spec") or {}).get("cost") or {}
    return StudyFacts(
        phase=str(status.get("phase") or "Pending"),
        curves=[curve for item in status.get("curves") or [] if (curve := _parse_curve(item))],
        currency=cost.get("currency") or Cost.model_fields["currency"].default,
    )


_RATES = {"tokens": metrics.STUDY_TOKENS_PER_SECOND, "samples": metrics.STUDY_SAMPLES_PER_SECOND}
_POINT_METRICS = (
    *_RATES.values(),
    metrics.STUDY_SPEEDUP,
    metrics.STUDY_EFFICIENCY,
    metrics.STUDY_COST,
)


class StudySeries(Collector):
    """Studies by phase, and the curves of each; beyond the bound some studies are left out."""

    def __init__(self) -> None:
        self._studies: dict[ObjectKey, StudyFacts] = {}

    def update(self, key: ObjectKey, body: Body | None) -> None:
        """Take over a study as stored now; None when it was deleted."""
        if body is None:
            self._studies.pop(key, None)
        else:
            self._studies[key] = study_facts(body)

    def replace_all(self, bodies: Mapping[ObjectKey, Body]) -> None:
        """Take over every study there is, and forget the others."""
        self._studies = {key: study_facts(body) for key, body in bodies.items()}

    def collect(self) -> Iterator[Family]:
        studies = list(self._studies.items())
        by_phase = _gauge(metrics.STUDIES)
        for phase, count in Count(study.phase for _, study in studies).items():
            by_phase.add_metric([phase], count)
        yield by_phase
        families = {metric.name: _gauge(metric) for metric in _POINT_METRICS}
        for key, study in studies[:_MAX_STUDIES]:
            for curve in study.curves:
                _add_curve(families, key, curve, study.currency)
        yield from families.values()


def _add_curve(
    families: Mapping[str, GaugeMetricFamily], key: ObjectKey, curve: ScalingCurve, currency: str
) -> None:
    for point in curve.points:
        if point.too_wide:  # a series has no interval: its middle would be taken at face value
            continue
        names = [key.namespace, key.name, curve.label, str(point.processes), point.source]
        families[_RATES[curve.unit].name].add_metric(names, point.throughput.value)
        families[metrics.STUDY_SPEEDUP.name].add_metric(names, point.speedup)
        families[metrics.STUDY_EFFICIENCY.name].add_metric(names, point.efficiency)
        if point.cost_per_million is not None:
            priced = [*names, curve.unit, currency]
            families[metrics.STUDY_COST.name].add_metric(priced, point.cost_per_million)


def _parse_curve(stored: Body) -> ScalingCurve | None:
    try:
        return ScalingCurve.model_validate(stored)
    except ValidationError:  # another version of the operator wrote it, and will be overwritten
        return None


def _known_reason(reason: str | None) -> str:
    """A reason of ours: a label's values must be bounded."""
    return reason if reason in REASONS else "Unknown"


def _named(metric: metrics.Metric) -> tuple[str, str, tuple[str, ...]]:
    return metric.name, metric.help, metric.labels


def _gauge(metric: metrics.Metric) -> GaugeMetricFamily:
    """An empty family of that name."""
    return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def _counter(metric: metrics.Metric) -> CounterMetricFamily:
    return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)


def _mapping(value: Any) -> Body:
    return value if isinstance(value, Mapping) else {}


def _integer(value: Any) -> int:
    return int(value) if str(value).isdecimal() else 0


def _timestamp(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None
