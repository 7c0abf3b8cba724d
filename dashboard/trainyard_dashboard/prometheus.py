"""Data source: curves of runs, GPU metrics, and recent runs, from a Prometheus server."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import httpx
from pydantic import SecretStr

from trainyard_api import metrics as names
from trainyard_api.metrics import Metric
from trainyard_api.study import ScalingStudy
from trainyard_dashboard.catalog import DataSourceError, RunSummary
from trainyard_dashboard.history import (
    RANK_SECONDS,
    SAMPLES_AXIS,
    SECONDS_AXIS,
    TOKENS_AXIS,
    Curve,
    Evaluation,
    Known,
    RunHistory,
)
from trainyard_dashboard.run_details import LogTail, RunDetails, only_metrics
from trainyard_dashboard.usage import GAUGES, PodTraffic, RankUsage, RunUsage, fold
from trainyard_serving.connections import tls_context

TIMEOUT = 5.0  # seconds for one query
RETRY_SECONDS = 5.0  # after a failure: otherwise every query of a page would wait for its timeout
MAX_BYTES = 8 << 20  # of one response
MAX_POINTS = 500  # of one curve
RECENT = "1h"  # runs whose last sample is older are not listed
START_RANGE = "6h"  # how far back the start of a run is searched for, if its status is unknown
MIN_SECONDS = 120  # drawn of such a run, at least
RATE_RANGE = "5m"  # holds two samples, however seldom runs are scraped
EVALUATION_SECONDS = 3600  # in which the newest evaluation is looked for, before a run's end
EVALUATION_STEP = 60  # seconds
MAX_PARTS = 64  # ranks or GPUs of one run

CURVES: dict[str, Metric] = {
    "loss": names.LOSS,
    "eval_loss": names.EVAL_LOSS,
    "learning_rate": names.LEARNING_RATE,
    "grad_norm": names.GRAD_NORM,
    "tokens_per_second": names.TOKENS_PER_SECOND,
    "samples_per_second": names.SAMPLES_PER_SECOND,
    "gpu_memory_bytes": names.GPU_MEMORY_BYTES,
}
RANK_CURVES: dict[str, Metric] = {  # asked for only if wanted: there may be 64 of each
    RANK_SECONDS: names.RANK_STEP_SECONDS,
    "rank_memory_bytes": names.AGENT_MEMORY_BYTES,
}
AXES: dict[str, Metric] = {TOKENS_AXIS: names.TOKENS, SAMPLES_AXIS: names.SAMPLES}
# The names of NVIDIA's DCGM exporter.
GPU_METRICS = {
    "gpu_utilization": "DCGM_FI_DEV_GPU_UTIL",
    "gpu_memory_mib": "DCGM_FI_DEV_FB_USED",
    "gpu_power_watts": "DCGM_FI_DEV_POWER_USAGE",
    "gpu_temperature": "DCGM_FI_DEV_GPU_TEMP",
}
SUMMARY_METRICS = {
    "step": names.STEP,
    "total_steps": names.TOTAL_STEPS,
    "loss": names.LOSS,
    "eval_loss": names.EVAL_LOSS,
    "samples_per_second": names.SAMPLES_PER_SECOND,
    "tokens_per_second": names.TOKENS_PER_SECOND,
    "processes": names.WORLD_SIZE,
}
INTEGERS = ("step", "total_steps", "processes")


class Prometheus:
    """A Prometheus server that scrapes runs."""

    def __init__(self, url: str, token: SecretStr | None = None) -> None:
        self.label = f"Prometheus at {url}"
        self._failure, self._retry_at = "", 0.0
        headers = {"authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self._client = httpx.Client(
            base_url=url.rstrip("/") + "/api/v1/",
            headers=headers,
            timeout=TIMEOUT,
            verify=tls_context(),
            trust_env=False,
        )

    def runs(self) -> tuple[list[RunSummary], list[str]]:
        """Return recent runs. Their phase is unknown: no metric holds it."""
        with self._valid_response():
            return self._recent_runs(), []

    def _recent_runs(self) -> list[RunSummary]:
        runs: dict[tuple[str, str], dict[str, Any]] = {}
        for field, metric in SUMMARY_METRICS.items():
            query = f"max by (namespace, run) (last_over_time({metric.name}[{RECENT}]))"
            for series in self._query("query", query=query):
                labels = series["metric"]
                key = labels.get("namespace", "default"), labels.get("run", "")
                value = float(series["value"][1])
                if not math.isfinite(value):
                    continue
                runs.setdefault(key, {})[field] = int(value) if field in INTEGERS else value
        return [
            RunSummary(
                id=f"prometheus/{namespace}/{run}",
                name=run,
                namespace=namespace,
                source="prometheus",
                **values,
            )
            for (namespace, run), values in sorted(runs.items())
        ]

    def history(
        self, run: RunSummary, metrics: Sequence[str], known: Known | None = None
    ) -> RunHistory:
        with self._valid_response():
            return self._history(run, metrics)

    def _history(self, run: RunSummary, metrics: Sequence[str]) -> RunHistory:
        end = run.completion_time.timestamp() if run.completion_time else time.time()
        start = run.start_time.timestamp() if run.start_time else self._first_sample(run, end)
        resolution = max(1, math.ceil((end - start) / MAX_POINTS))
        window = {"start": start, "end": end, "step": resolution}
        history = RunHistory()
        if any(metric not in GPU_METRICS for metric in metrics):
            self._add_own_curves(history, run, metrics, window)
        for metric in metrics:
            if metric in GPU_METRICS:
                series = self._query_range(_gpu_query(run, metric), window)[:MAX_PARTS]
                history.curves += [_over_seconds(run, metric, one, start) for one in series]
                history.metrics += [metric] if series else []
        return history

    def _add_own_curves(
        self, history: RunHistory, run: RunSummary, metrics: Sequence[str], window: dict[str, float]
    ) -> None:
        """Curves of the metrics that the run itself exports, by one query."""
        own = CURVES | {name: one for name, one in RANK_CURVES.items() if name in metrics}
        own |= {name: one for name, one in AXES.items() if name in metrics}
        by_name = {metric.name: name for name, metric in own.items()}
        exported = "|".join([*by_name, names.STEP.name, names.EVALUATION.name])
        selector = f'{{__name__=~"{exported}",{_selector(run)[1:]}'
        found = self._query_range(f"max by (__name__, rank, metric) ({selector})", window)
        steps: dict[float, float] = {}  # by time
        for series in found:
            if series["metric"]["__name__"] == names.STEP.name:
                steps = dict(_points(series))
        start = window["start"]
        if SECONDS_AXIS in metrics:
            points = [(step, when - start) for when, step in steps.items()]
            history.curves.append(_curve(run, SECONDS_AXIS, "", _increasing(points)))
        parts = 0
        for series in found:
            labels = series["metric"]
            is_evaluation = labels["__name__"] == names.EVALUATION.name
            name = labels["metric"] if is_evaluation else by_name.get(labels["__name__"])
            if name is None or (is_evaluation and name == "eval_loss"):
                continue
            parts += name in RANK_CURVES
            if name in RANK_CURVES and parts > MAX_PARTS:
                continue
            if name not in history.metrics and name not in AXES:
                history.metrics.append(name)
                history.evaluation += [name] if is_evaluation or name == "eval_loss" else []
            if name in metrics:
                history.curves.append(_over_steps(run, name, series, steps, start))

    def usage(self, run: RunSummary) -> RunUsage | None:
        if run.completion_time:
            return None
        with self._valid_response():
            return self._usage(run)

    def _usage(self, run: RunSummary) -> RunUsage | None:
        selector = _selector(run)
        gauges = f'{{__name__=~"{"|".join(GAUGES)}",{selector[1:]}'
        ranks: dict[int, RankUsage] = {}
        for series in self._query("query", query=f"max by (__name__, rank) ({gauges})"):
            labels, value = series["metric"], float(series["value"][1])
            usage = ranks.setdefault(int(labels["rank"]), RankUsage(rank=int(labels["rank"])))
            if math.isfinite(value):
                setattr(usage, GAUGES[labels["__name__"]], value)
        if not ranks:
            return None
        for labels, value in self._now(names.AGENT_CPU_SECONDS, selector, "max by (rank)"):
            if (rank := int(labels["rank"])) in ranks:
                ranks[rank].cpu_cores = value
        pods: dict[str, PodTraffic] = {}
        for metric, field in (
            (names.AGENT_RECEIVED_BYTES, "received"),
            (names.AGENT_SENT_BYTES, "sent"),
        ):
            for labels, value in self._now(metric, selector, "sum by (pod, instance)"):
                name = labels.get("pod") or labels.get("instance", "")
                setattr(pods.setdefault(name, PodTraffic(pod=name)), field, value)
        return fold(ranks.values(), pods.values())

    def _now(
        self, metric: Metric, selector: str, aggregation: str
    ) -> list[tuple[dict[str, str], float]]:
        """Labels and the newest rate of a counter, of what is still scraped."""
        series = f"{metric.name}{selector}"
        query = f"{aggregation} (irate({series}[{RATE_RANGE}]) and {series})"
        found = [
            (each["metric"], float(each["value"][1])) for each in self._query("query", query=query)
        ]
        return [(labels, value) for labels, value in found if math.isfinite(value)]

    def trace(self, run: RunSummary) -> Path | None:
        return None

    def details(self, run: RunSummary) -> RunDetails:
        return only_metrics(run, "Prometheus")

    def evaluation(self, run: RunSummary, ended: datetime | None) -> Evaluation | None:
        """Every metric of its newest evaluation; None without one in the hour up to `ended`.

        ended: when the run's newest attempt ended; None: now.
        """
        end = ended.timestamp() if ended else time.time()
        window = {"start": end - EVALUATION_SECONDS, "end": end, "step": EVALUATION_STEP}
        # By the minute, and the last one counts: an earlier attempt has series of its own, of which
        # one query over the whole hour would mix the values with those of the newest.
        samples = f"{names.EVALUATION.name}{_selector(run)}[{EVALUATION_STEP}s]"
        query = f"max by (metric) (last_over_time({samples}))"
        with self._valid_response():
            found = {
                series["metric"]["metric"]: float(series["values"][-1][1])
                for series in self._query_range(query, window)[:MAX_PARTS]
            }
            metrics = {name: value for name, value in found.items() if math.isfinite(value)}
            return Evaluation(metrics=metrics) if metrics else None

    def log(self, run: RunSummary, name: str) -> LogTail:
        return LogTail(name=name, note="Unknown: Prometheus has only metrics.")

    def studies(self) -> tuple[list[tuple[str, ScalingStudy]], list[str]]:
        return [], []  # their measurements are in their status, not in metrics

    def _first_sample(self, run: RunSummary, end: float) -> float:
        """Unix time of a run's first sample, to the minute."""
        times = f"min_over_time(timestamp({names.STEP.name}{_selector(run)})[{START_RANGE}:1m])"
        series = self._query("query", query=f"min({times})")
        return min([end - MIN_SECONDS, *(float(one["value"][1]) for one in series)])

    def _query_range(self, query: str, window: dict[str, float]) -> list[dict[str, Any]]:
        return self._query("query_range", query=query, **window)

    def _query(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        """The result of a query. Raises DataSourceError; for a while without sending a request."""
        if time.monotonic() < self._retry_at:
            raise DataSourceError(self._failure)
        try:
            return self._request(path, parameters)
        except DataSourceError as error:
            self._failure, self._retry_at = str(error), time.monotonic() + RETRY_SECONDS
            raise

    def _request(self, path: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 2 * TIMEOUT
        data = bytearray()  # of many small chunks
        try:
            with self._client.stream("GET", path, params=parameters) as response:
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > MAX_BYTES:
                        raise DataSourceError(
                            f"{self.label}: the response is larger than {MAX_BYTES >> 20} MiB"
                        )
                    if time.monotonic() > deadline:
                        raise DataSourceError(f"{self.label} takes too long to respond")
        except httpx.TimeoutException:
            raise DataSourceError(f"{self.label} does not respond within {TIMEOUT:g} s") from None
        except httpx.HTTPError as error:
            raise DataSourceError(f"{self.label} can't be reached: {error}") from None
        body = json.loads(data)
        if body["status"] != "success":
            raise DataSourceError(f"{self.label}: {str(body.get('error'))[:200]}")
        result: list[dict[str, Any]] = body["data"]["result"]
        return result

    @contextmanager
    def _valid_response(self) -> Iterator[None]:
        """Raises DataSourceError for a response that isn't Prometheus's."""
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            message = f"{self.label} does not respond like a Prometheus server"
            raise DataSourceError(message) from None


def _selector(run: RunSummary) -> str:
    """PromQL's label selector of a run's metrics."""
    return f"{{run={json.dumps(run.name)}{_namespace_matcher(run)}}}"


def _namespace_matcher(run: RunSummary) -> str:
    """Metrics of a local run have no label `namespace`."""
    return "" if run.source == "local" else f",namespace={json.dumps(run.namespace)}"


def _points(series: dict[str, Any]) -> list[tuple[float, float]]:
    """Pairs of Unix time and value, without NaN and infinity."""
    points = [(float(when), float(value)) for when, value in series["values"]]
    return [(when, value) for when, value in points if math.isfinite(value)]


def _gpu_query(run: RunSummary, metric: str) -> str:
    # Unless the scrape has honor_labels, the exporter's labels are renamed.
    name, namespace = GPU_METRICS[metric], _namespace_matcher(run)
    exported = namespace.replace("namespace", "exported_namespace")
    pods = f'{run.name}-[0-9]+-[0-9]+"'
    return (
        f'max by (Hostname, gpu) ({name}{{pod=~"{pods}{namespace}}} or '
        f'{name}{{exported_pod=~"{pods}{exported}}})'
    )


def _over_seconds(run: RunSummary, metric: str, series: dict[str, Any], start: float) -> Curve:
    labels = series["metric"]
    parts = [
        f"{word} {labels[label]}"
        for label, word in (("rank", "rank"), ("Hostname", "host"), ("gpu", "GPU"))
        if label in labels
    ]
    points = [(when - start, value) for when, value in _points(series)]
    return _curve(run, metric, " ".join(parts), points, "seconds")


def _over_steps(
    run: RunSummary, metric: str, series: dict[str, Any], steps: dict[float, float], start: float
) -> Curve:
    """A curve over steps where those are known, otherwise over seconds since the start."""
    points = [(steps[when], value) for when, value in _points(series) if when in steps]
    if not points:
        return _over_seconds(run, metric, series, start)
    if metric in AXES:
        return _curve(run, metric, "", _counted(points))
    rank = series["metric"].get("rank")
    points = _increasing(points)
    if series["metric"]["__name__"] in (names.EVALUATION.name, names.EVAL_LOSS.name):
        # A gauge keeps its value until the next evaluation.
        points = [
            point
            for before, point in zip([None, *points], points, strict=False)
            if before is None or before[1] != point[1]
        ]
    return _curve(run, metric, "" if rank is None else f"rank {rank}", points)


def _increasing(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points in the order of time, without those whose steps were done again after a restart."""
    kept: list[tuple[float, float]] = []
    for point in points:
        while kept and kept[-1][0] >= point[0]:
            kept.pop()
        kept.append(point)
    return kept


def _counted(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The total by step from a counter that starts at 0 in every attempt."""
    total, counted = 0.0, [(0.0, 0.0)]
    for (step, value), (next_step, next_value) in pairwise([(0.0, 0.0), *points]):
        if next_step > step and next_value > value and next_step > counted[-1][0]:
            each = (next_value - value) / (next_step - step)
            total += each * (next_step - counted[-1][0])
            counted.append((next_step, total))
    return counted


def _curve(
    run: RunSummary,
    metric: str,
    part: str,
    points: list[tuple[float, float]],
    x_is: Literal["step", "seconds"] = "step",
) -> Curve:
    return Curve(
        run=run.id,
        metric=metric,
        part=part,
        x=[x for x, _ in points],
        y=[y for _, y in points],
        x_is=x_is,
        count=len(points),
        rate=fmean(value for _, value in points) if points else None,
    )
