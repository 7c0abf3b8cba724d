"""Curves of a run, and runs nobody else knows, from a Prometheus."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import httpx
from pydantic import SecretStr

from trainyard_api import metrics as names
from trainyard_api.metrics import Metric
from trainyard_api.study import ScalingStudy
from trainyard_dashboard.model import CurveData, RunHistory, RunRow, SourceError
from trainyard_serving.tls import tls_context

TIMEOUT = 5.0  # seconds, of one query
REST_SECONDS = 5.0  # after a failure: else each of a page's queries would wait for its time-out
MAX_BYTES = 8 << 20  # of one answer
POINTS = 500
RECENT = "1h"  # a run whose last sample is older is not listed
LOOK_BACK = "6h"  # for the start of a run that nobody knows
YOUNG = 120  # seconds that such a run is drawn from at least
MAX_PARTS = 64  # ranks or GPUs of one run

CURVES: dict[str, Metric] = {
    "loss": names.LOSS,
    "eval_loss": names.EVAL_LOSS,
    "learning_rate": names.LEARNING_RATE,
    "grad_norm": names.GRAD_NORM,
    "tokens_per_second": names.TOKENS_PER_SECOND,
    "samples_per_second": names.SAMPLES_PER_SECOND,
    "rank_step_seconds": names.RANK_STEP_SECONDS,
}
# What NVIDIA's DCGM exporter calls them.
GPU = {
    "gpu_utilization": "DCGM_FI_DEV_GPU_UTIL",
    "gpu_memory_mib": "DCGM_FI_DEV_FB_USED",
    "gpu_power_watts": "DCGM_FI_DEV_POWER_USAGE",
    "gpu_temperature": "DCGM_FI_DEV_GPU_TEMP",
}
ROW = {
    "step": names.STEP,
    "total_steps": names.TOTAL_STEPS,
    "loss": names.LOSS,
    "eval_loss": names.EVAL_LOSS,
    "samples_per_second": names.SAMPLES_PER_SECOND,
    "tokens_per_second": names.TOKENS_PER_SECOND,
    "processes": names.WORLD_SIZE,
}
WHOLE = ("step", "total_steps", "processes")


class PrometheusSource:
    """A Prometheus that scrapes runs."""

    def __init__(self, url: str, token: SecretStr | None = None) -> None:
        self.where = f"Prometheus at {url}"
        self._failure, self._rests_until = "", 0.0
        headers = {"authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self._client = httpx.Client(
            base_url=url.rstrip("/") + "/api/v1/",
            headers=headers,
            timeout=TIMEOUT,
            verify=tls_context(),
            trust_env=False,
        )

    def runs(self) -> tuple[list[RunRow], list[str]]:
        """Runs seen lately. Their phase is unknown: Prometheus has only their numbers."""
        with self._understood():
            return self._runs(), []

    def _runs(self) -> list[RunRow]:
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for field, metric in ROW.items():
            query = f"max by (namespace, run) (last_over_time({metric.name}[{RECENT}]))"
            for series in self._ask("query", query=query):
                labels = series["metric"]
                key = labels.get("namespace", "default"), labels.get("run", "")
                value = float(series["value"][1])
                if not math.isfinite(value):
                    continue
                rows.setdefault(key, {})[field] = int(value) if field in WHOLE else value
        return [
            RunRow(
                id=f"prometheus/{namespace}/{run}",
                name=run,
                namespace=namespace,
                source="prometheus",
                **values,
            )
            for (namespace, run), values in sorted(rows.items())
        ]

    def history(self, run: RunRow, metrics: Sequence[str]) -> RunHistory:
        with self._understood():
            return self._history(run, metrics)

    def _history(self, run: RunRow, metrics: Sequence[str]) -> RunHistory:
        end = run.completion_time.timestamp() if run.completion_time else time.time()
        start = run.start_time.timestamp() if run.start_time else self._begin(run, end)
        window = {"start": start, "end": end, "step": max(1, math.ceil((end - start) / POINTS))}
        chosen = _of(run)
        pods = f'{run.name}-[0-9]+-[0-9]+"'
        steps: dict[float, float] = {}
        if any(metric in CURVES for metric in metrics):
            for series in self._range(f"max({names.STEP.name}{chosen})", window):
                steps = dict(_points(series))
        found = RunHistory()
        for metric in metrics:
            if metric in CURVES:
                by = " by (rank)" if metric == "rank_step_seconds" else ""
                query = f"max{by} ({CURVES[metric].name}{chosen})"
            elif metric in GPU:
                # A scrape that doesn't honour the exporter's labels renames them.
                name, namespace = GPU[metric], _namespace(run)
                exported = namespace.replace("namespace", "exported_namespace")
                query = f'max by (Hostname, gpu) ({name}{{pod=~"{pods}{namespace}}} or '
                query += f'{name}{{exported_pod=~"{pods}{exported}}})'
            else:
                continue
            for series in self._range(query, window)[:MAX_PARTS]:
                found.curves.append(_curve(run, metric, series, steps, start))
        return found

    def studies(self) -> tuple[list[tuple[str, ScalingStudy]], list[str]]:
        return [], []  # their measurements are in their status, not in metrics

    def _begin(self, run: RunRow, end: float) -> float:
        """When a run's numbers begin, to the minute."""
        seen = f"min_over_time(timestamp({names.STEP.name}{_of(run)})[{LOOK_BACK}:1m])"
        times = [float(series["value"][1]) for series in self._ask("query", query=f"min({seen})")]
        return min([end - YOUNG, *times])

    def _range(self, query: str, window: dict[str, float]) -> list[dict[str, Any]]:
        return self._ask("query_range", query=query, **window)

    def _ask(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        """The result of a query. Raises SourceError, for a while without asking anew."""
        if time.monotonic() < self._rests_until:
            raise SourceError(self._failure)
        try:
            return self._answer(path, parameters)
        except SourceError as error:
            self._failure, self._rests_until = str(error), time.monotonic() + REST_SECONDS
            raise

    def _answer(self, path: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 2 * TIMEOUT
        data = b""
        try:
            with self._client.stream("GET", path, params=parameters) as response:
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > MAX_BYTES:
                        raise SourceError(f"{self.where} answers more than {MAX_BYTES >> 20} MiB")
                    if time.monotonic() > deadline:
                        raise SourceError(f"{self.where} takes too long to answer")
        except httpx.TimeoutException:
            raise SourceError(f"{self.where} does not answer within {TIMEOUT:g} s") from None
        except httpx.HTTPError as error:
            raise SourceError(f"{self.where} can't be reached: {error}") from None
        answer = json.loads(data)
        if answer["status"] != "success":
            raise SourceError(f"{self.where}: {str(answer.get('error'))[:200]}")
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    @contextmanager
    def _understood(self) -> Iterator[None]:
        """Raises SourceError for answers of another form than a Prometheus's."""
        try:
            yield
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise SourceError(f"{self.where} does not answer as a Prometheus does") from None


def _of(run: RunRow) -> str:
    """The labels of a run's metrics."""
    return f"{{run={json.dumps(run.name)}{_namespace(run)}}}"


def _namespace(run: RunRow) -> str:
    """A run of one machine has a namespace in no metric."""
    return "" if run.source == "local" else f",namespace={json.dumps(run.namespace)}"


def _points(series: dict[str, Any]) -> list[tuple[float, float]]:
    """Time and value; what is no number is left out."""
    points = [(float(when), float(value)) for when, value in series["values"]]
    return [(when, value) for when, value in points if math.isfinite(value)]


def _curve(
    run: RunRow, metric: str, series: dict[str, Any], steps: dict[float, float], start: float
) -> CurveData:
    """Over steps where those are known, else over seconds since the start."""
    labels, points = series["metric"], _points(series)
    part = " ".join(
        f"{word} {labels[label]}"
        for label, word in (("rank", "rank"), ("Hostname", "host"), ("gpu", "GPU"))
        if label in labels
    )
    by_step = metric in CURVES and any(when in steps for when, _ in points)
    if by_step:
        points = [(steps[when], value) for when, value in points if when in steps]
    else:
        points = [(when - start, value) for when, value in points]
    return CurveData(
        run=run.id,
        metric=metric,
        part=part,
        x=[x for x, _ in points],
        y=[y for _, y in points],
        x_is="step" if by_step else "seconds",
        count=len(points),
        rate=fmean(value for _, value in points) if points else None,
    )
