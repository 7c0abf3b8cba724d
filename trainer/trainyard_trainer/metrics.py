"""Prometheus metrics of a run, built from the names in trainyard_api.metrics."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trainyard_api import metrics as names
from trainyard_api.metrics import Metric

_STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class TrainerMetrics:
    """The metrics rank 0 serves; plain attributes, one per metric."""

    def __init__(self, run: str) -> None:
        self._registry = CollectorRegistry()
        self._run = run
        self.step = self._gauge(names.STEP)
        self.total_steps = self._gauge(names.TOTAL_STEPS)
        self.loss = self._gauge(names.LOSS)
        self.eval_loss = self._gauge(names.EVAL_LOSS)
        self._evaluation = Gauge(
            names.EVALUATION.name,
            names.EVALUATION.help,
            names.EVALUATION.labels,
            registry=self._registry,
        )
        self.learning_rate = self._gauge(names.LEARNING_RATE)
        self.grad_norm = self._gauge(names.GRAD_NORM)
        self.step_seconds = self._histogram(names.STEP_SECONDS).labels(run)
        self._rank_step_seconds = Gauge(
            names.RANK_STEP_SECONDS.name,
            names.RANK_STEP_SECONDS.help,
            names.RANK_STEP_SECONDS.labels,
            registry=self._registry,
        )
        self.data_wait = self._counter(names.DATA_WAIT_SECONDS)
        self.tokens = self._counter(names.TOKENS)
        self.samples = self._counter(names.SAMPLES)
        self.tokens_per_second = self._gauge(names.TOKENS_PER_SECOND)
        self.samples_per_second = self._gauge(names.SAMPLES_PER_SECOND)
        checkpoint = self._histogram(names.CHECKPOINT_SECONDS)
        self.checkpoint_block = checkpoint.labels(run, "block")
        self.checkpoint_write = checkpoint.labels(run, "write")
        self.checkpoint_step = self._gauge(names.CHECKPOINT_STEP)
        self.gpu_memory = self._gauge(names.GPU_MEMORY_BYTES)
        self.world_size = self._gauge(names.WORLD_SIZE)
        self.stalled_seconds = self._gauge(names.STALLED_SECONDS)

    def evaluated(self, results: dict[str, float]) -> None:
        """Set the metrics of an evaluation; a recipe has a handful of them."""
        if "eval_loss" in results:
            self.eval_loss.set(results["eval_loss"])
        for name, value in results.items():
            self._evaluation.labels(self._run, name).set(value)

    def worked(self, seconds: Sequence[float]) -> None:
        """Set each rank's own seconds in a step."""
        for rank, value in enumerate(seconds):
            self._rank_step_seconds.labels(self._run, str(rank)).set(value)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self._registry).labels(
            self._run
        )

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry).labels(
            self._run
        )

    def _histogram(self, metric: Metric) -> Histogram:
        return Histogram(
            metric.name, metric.help, metric.labels, registry=self._registry, buckets=_STEP_BUCKETS
        )
