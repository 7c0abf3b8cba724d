"""Prometheus metrics of a run, built from the names in trainyard_api.metrics."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from trainyard_api import metrics as names
from trainyard_api.job import TrainerJob
from trainyard_api.metrics import Metric

if TYPE_CHECKING:
    from trainyard_trainer.reporting.reporter import Progress

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the counters' series

_STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class OptionalGauge:
    """A gauge without a series until it has a value."""

    def __init__(self, gauge: Gauge, run: str) -> None:
        self._gauge = gauge
        self._run = run

    def set(self, value: float) -> None:
        self._gauge.labels(self._run).set(value)


class TrainerMetrics:
    """The metrics that rank 0 serves, one attribute per metric."""

    def __init__(self, job: TrainerJob) -> None:
        self._registry = CollectorRegistry()
        self._run = job.run
        ProcessCollector(registry=self._registry)
        about = (job.run, job.recipe, job.strategy, job.precision)
        self._gauge(names.RUN_INFO).labels(*about).set(1)
        self._optional(names.ATTEMPT).set(job.attempt)
        self.step = self._optional(names.STEP)
        self.total_steps = self._optional(names.TOTAL_STEPS)
        self.loss = self._optional(names.LOSS)
        self.eval_loss = self._optional(names.EVAL_LOSS)
        self._evaluation = self._gauge(names.EVALUATION)
        self._evaluated: set[str] = set()
        self.learning_rate = self._optional(names.LEARNING_RATE)
        self.grad_norm = self._optional(names.GRAD_NORM)
        self.step_seconds = self._histogram(names.STEP_SECONDS).labels(job.run)
        self._rank_step_seconds = self._gauge(names.RANK_STEP_SECONDS)
        self.productive_seconds = self._counter(names.PRODUCTIVE_SECONDS)
        self.evaluation_seconds = self._counter(names.EVALUATION_SECONDS)
        self.data_wait = self._counter(names.DATA_WAIT_SECONDS)
        self.tokens = self._counter(names.TOKENS)
        self.samples = self._counter(names.SAMPLES)
        self.tokens_per_second = self._optional(names.TOKENS_PER_SECOND)
        self.samples_per_second = self._optional(names.SAMPLES_PER_SECOND)
        checkpoint = self._histogram(names.CHECKPOINT_SECONDS)
        self.checkpoint_block = checkpoint.labels(job.run, "block")
        self.checkpoint_write = checkpoint.labels(job.run, "write")
        self.checkpoint_step = self._optional(names.CHECKPOINT_STEP)
        self.checkpoint_time = self._optional(names.CHECKPOINT_TIME)
        self.gpu_memory = self._optional(names.GPU_MEMORY_BYTES)
        self.world_size = self._optional(names.WORLD_SIZE)
        self.stalled_seconds = self._optional(names.STALLED_SECONDS)

    def set_evaluation(self, results: dict[str, float]) -> None:
        """Set the metrics of an evaluation, up to the bound on their number."""
        if "eval_loss" in results:
            self.eval_loss.set(results["eval_loss"])
        for name, value in results.items():
            if name in self._evaluated or len(self._evaluated) < names.EVALUATION.labels[1].at_most:
                self._evaluated.add(name)
                self._evaluation.labels(self._run, name).set(value)

    def set_rank_seconds(self, seconds: Sequence[float]) -> None:
        """Set each rank's own seconds per step; in a large group only the slowest ranks'."""
        max_ranks = names.RANK_STEP_SECONDS.labels[1].at_most
        ranks = range(len(seconds))
        if len(seconds) > max_ranks:
            ranks_kept = sorted(ranks, key=lambda rank: -seconds[rank])[:max_ranks]
            self._rank_step_seconds.clear()
        else:
            ranks_kept = list(ranks)
        for rank in ranks_kept:
            self._rank_step_seconds.labels(self._run, str(rank)).set(seconds[rank])

    def progress(self, now: "Progress") -> None:
        """Set the metrics of a progress line."""
        self.loss.set(now.loss)
        self.learning_rate.set(now.learning_rate)
        self.grad_norm.set(now.grad_norm)
        self.samples_per_second.set(now.samples_per_second)
        if now.tokens_per_second:
            self.tokens_per_second.set(now.tokens_per_second)
        self.samples.inc(now.samples)
        self.tokens.inc(now.tokens)
        self.data_wait.inc(now.data_seconds)
        if now.gpu_memory_bytes is not None:
            self.gpu_memory.set(now.gpu_memory_bytes)

    def text(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self._registry)

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)

    def _optional(self, metric: Metric) -> OptionalGauge:
        return OptionalGauge(self._gauge(metric), self._run)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry).labels(
            self._run
        )

    def _histogram(self, metric: Metric) -> Histogram:
        return Histogram(
            metric.name, metric.help, metric.labels, registry=self._registry, buckets=_STEP_BUCKETS
        )
