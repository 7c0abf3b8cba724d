"""Series of single runs, made from what is stored whenever Prometheus asks: none is left over."""

import time
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from trainyard_api import labels, metrics
from trainyard_api.spec import GPU
from trainyard_api.status import FINISHED
from trainyard_lifecycle.diagnosis import REASONS

# How long a finished run is still told of: its last values must be scraped.
FINISHED_SECONDS = 900.0
_MOST = metrics.RUN_PHASE.labels[1].at_most


@dataclass(frozen=True)
class RunFacts:
    """What is told of a run. Times are seconds since 1970."""

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

    def is_told(self, now: float) -> bool:
        return self.phase not in FINISHED or now - (self.ended or 0.0) < FINISHED_SECONDS


def facts_of(body: Mapping[str, Any]) -> RunFacts:
    """Of a run as the API server has it; one that was refused may hold anything in its spec."""
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
        gpus=_whole(nodes) * _whole(limits.get(GPU)),
        restarts=status.get("restarts") or 0,
        failures=Counter(known_reason(attempt.get("reason")) for attempt in failed),
        waiting_since=_seconds(newest) or time.time(),
        active_before=status.get("activeSeconds") or 0,
        active_since=_seconds(status.get("activeSince")),
        ended=_seconds(status.get("completionTime")),
    )


def known_reason(reason: str | None) -> str:
    """A reason of ours: a label must not take any value there is."""
    return reason if reason in REASONS else "Unknown"


class RunSeries(Collector):
    """Reads `runs` at every scrape; of more runs than the bound some are left out."""

    def __init__(self, runs: Mapping[Hashable, RunFacts]) -> None:
        self._runs = runs

    def collect(self) -> Iterator[Family]:
        now = time.time()
        told = [run for run in list(self._runs.values()) if run.is_told(now)]
        told = sorted(told, key=lambda run: run.phase in FINISHED)[:_MOST]
        phase = gauge(metrics.RUN_PHASE)
        waiting = gauge(metrics.RUN_WAITING_SECONDS)
        gpus = gauge(metrics.RUN_GPUS)
        active = _counter(metrics.RUN_ACTIVE_SECONDS)
        restarts = _counter(metrics.RUN_RESTARTS)
        failed = gauge(metrics.RUN_FAILED_ATTEMPTS)
        study = gauge(metrics.RUN_STUDY)
        for run in told:
            of = [run.namespace, run.name]
            phase.add_metric([*of, run.phase], 1)
            gpus.add_metric(of, run.gpus)
            active.add_metric(of, run.active_seconds(now))
            restarts.add_metric(of, run.restarts)
            if run.phase == "Pending":
                waiting.add_metric([*of, run.queue], max(0.0, now - run.waiting_since))
            if run.study:
                study.add_metric([*of, run.study], 1)
            for reason, count in run.failures.items():
                failed.add_metric([*of, reason], count)
        yield from (phase, waiting, gpus, active, restarts, failed, study)


def gauge(metric: metrics.Metric) -> GaugeMetricFamily:
    """An empty family of that name."""
    return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def _counter(metric: metrics.Metric) -> CounterMetricFamily:
    return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _whole(value: Any) -> int:
    return int(value) if str(value).isdecimal() else 0


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None
