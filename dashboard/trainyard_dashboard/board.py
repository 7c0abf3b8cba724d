"""All sources as one: a source that fails costs a line on the page, never the page."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

from trainyard_api.study import ScalingStudy
from trainyard_dashboard.model import CurveData, RunHistory, RunRow, Source, SourceError
from trainyard_dashboard.prometheus_source import PrometheusSource

T = TypeVar("T")

KEEP_SECONDS = 2.0  # several open pages ask a source no more often than one
REST_SECONDS = 10.0  # after a failure: each attempt may take as long as its time-out
MAX_FAILURES = 20  # lines of one source


@dataclass
class _Kept(Generic[T]):
    """The last answer of a source; whoever comes while it is asked waits for that answer."""

    lock: Lock = field(default_factory=Lock)
    fresh_until: float = -1e9
    answer: tuple[list[T], list[str]] = field(default_factory=lambda: ([], []))

    def get(self, ask: Callable[[], tuple[list[T], list[str]]]) -> tuple[list[T], list[str]]:
        with self.lock:
            if time.monotonic() > self.fresh_until:
                keep = KEEP_SECONDS
                try:
                    found, problems = ask()
                    self.answer = found, _few(problems)
                except SourceError as error:
                    self.answer, keep = ([], [str(error)]), REST_SECONDS
                self.fresh_until = time.monotonic() + keep
            return self.answer


class Board:
    """What the page shows. May be asked by several threads."""

    def __init__(self, sources: Sequence[Source], prometheus: PrometheusSource | None) -> None:
        """`prometheus`: has curves of other sources' runs, and is a source where there is none."""
        self._prometheus = prometheus
        self._sources: list[Source] = list(sources) or ([prometheus] if prometheus else [])
        self._runs: list[_Kept[RunRow]] = [_Kept() for _ in self._sources]
        self._studies: list[_Kept[tuple[str, ScalingStudy]]] = [_Kept() for _ in self._sources]

    @property
    def where(self) -> list[str]:
        """The sources, for people."""
        named = [source.where for source in self._sources]
        if self._prometheus and self._prometheus not in self._sources:
            named.append(self._prometheus.where)
        return named

    def runs(self) -> tuple[list[RunRow], list[str]]:
        """All runs, the newest first, and a line for everything that can't be read."""
        rows: list[RunRow] = []
        problems: list[str] = []
        for source, kept in zip(self._sources, self._runs, strict=True):
            found, failed = kept.get(source.runs)
            rows += found
            problems += failed
        rows.sort(key=lambda run: run.start_time.timestamp() if run.start_time else 0, reverse=True)
        return rows, problems

    def studies(self) -> tuple[dict[str, ScalingStudy], list[str]]:
        """All studies by id, and a line for everything that can't be read."""
        studies: dict[str, ScalingStudy] = {}
        problems: list[str] = []
        for source, kept in zip(self._sources, self._studies, strict=True):
            found, failed = kept.get(source.studies)
            studies |= dict(found)
            problems += failed
        return studies, problems

    def history(
        self, ids: Sequence[str], metrics: Sequence[str]
    ) -> tuple[dict[str, RunHistory], list[str]]:
        """What is known of these metrics of these runs, and a line for what can't be read.

        Where a run's own source has no curve of a metric, Prometheus is asked.
        """
        known = {
            row.id: (row, source)
            for source, kept in zip(self._sources, self._runs, strict=True)
            for row in kept.get(source.runs)[0]
        }
        found: dict[str, RunHistory] = {}
        problems: list[str] = []
        for name in ids:
            if name not in known:
                problems.append(f"there is no run {name} (any more)")
                continue
            row, source = known[name]
            history = RunHistory()
            try:
                history = source.history(row, metrics)
                history.curves += self._from_prometheus(row, source, metrics, history.curves)
            except SourceError as error:
                problems.append(str(error))
            found[name] = history
        return found, list(dict.fromkeys(problems))

    def _from_prometheus(
        self, row: RunRow, source: Source, metrics: Sequence[str], have: list[CurveData]
    ) -> list[CurveData]:
        if self._prometheus is None or source is self._prometheus:
            return []
        missing = [metric for metric in metrics if metric not in {curve.metric for curve in have}]
        return self._prometheus.history(row, missing).curves


def _few(problems: list[str]) -> list[str]:
    more = len(problems) - MAX_FAILURES
    return problems[:MAX_FAILURES] + ([f"and {more} more of the kind"] if more > 0 else [])
