"""The server's Prometheus metrics; names, labels and help come from trainyard_api."""

from collections.abc import Sequence

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

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second, unused series per counter

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics that GET /metrics returns."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = self._counter(names.REQUESTS)
        self.request_seconds = self._histogram(names.REQUEST_SECONDS)
        self.requests_in_progress = self._gauge(names.REQUESTS_IN_PROGRESS)
        self.first_token_seconds = self._histogram(names.FIRST_TOKEN_SECONDS)
        self.generated_tokens = self._counter(names.GENERATED_TOKENS)
        self.queue_depth = self._gauge(names.SERVING_QUEUE)
        self.ready = self._gauge(names.SERVING_READY)
        self.model_info = self._gauge(names.MODEL_INFO)
        self.model_swaps = self._counter(names.MODEL_SWAPS)
        for result in ("loaded", "refused", "rolled_back"):
            self.model_swaps.labels(
                result
            )  # Prometheus sees no increase in a counter that starts at 1
        self.batch_size = self._histogram(names.BATCH_SIZE, SIZES)
        self.stage_seconds = self._histogram(names.STAGE_SECONDS)
        self._predictions = self._counter(names.PREDICTIONS)
        self._classes: set[str] = set()

    def predicted(self, label: str) -> None:
        """Count a text of this class; once the label has its maximum of values, as `other`."""
        if label not in self._classes:
            if len(self._classes) + 1 >= names.PREDICTIONS.labels[0].at_most:
                label = "other"
            self._classes.add(label)
        self._predictions.labels(label).inc()

    def exposition(self) -> bytes:
        """The text format, version 0.0.4."""
        return generate_latest(self._registry)

    def _counter(self, metric: names.Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry)

    def _gauge(self, metric: names.Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)

    def _histogram(self, metric: names.Metric, buckets: Sequence[float] = SECONDS) -> Histogram:
        return Histogram(
            metric.name, metric.help, metric.labels, registry=self._registry, buckets=buckets
        )
