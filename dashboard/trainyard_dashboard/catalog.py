"""Runs, studies and curves from all data sources; a failing one costs a message, not the page."""

import json
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, Field, ValidationError

from trainyard_api.base import is_unknown, parse_known
from trainyard_api.profile import known_trace
from trainyard_api.status import FINISHED
from trainyard_api.study import ScalingStudy
from trainyard_dashboard.devices import Device, of_spec
from trainyard_dashboard.history import Known, RunHistory
from trainyard_dashboard.usage import RunUsage

if TYPE_CHECKING:
    from trainyard_dashboard.prometheus import Prometheus
    from trainyard_dashboard.run_details import LogTail, RunDetails

CACHE_SECONDS = 2.0  # several open pages cost a data source no more requests than one
RETRY_SECONDS = 10.0  # after a failure: each attempt may block until its timeout
MAX_DETAILS = 16  # runs whose details are kept; the least recently used are dropped
MAX_PROBLEMS = 20  # messages shown for one data source
MAX_LABELS = 16  # of one run
MAX_TEXT = 500  # characters of a message or a label in the list of runs

T = TypeVar("T")


class DataSourceError(Exception):
    """A data source can't be read; the message is one line that names it and the cause."""


def parse_study(text: str | bytes) -> ScalingStudy:
    """A study as stored, as far as this version knows it. Raises ValidationError."""
    try:
        # As JSON text: it parses times, but does not accept "2" as a number.
        return ScalingStudy.model_validate_json(text)
    except ValidationError as error:
        known = parse_known(ScalingStudy, json.loads(text)) if is_unknown(error) else None
        if known is None:
            raise
        return known


class RunSummary(BaseModel):
    """A run by its status. Unknown values are null."""

    id: str = Field(description="SOURCE/NAMESPACE/NAME")
    name: str
    namespace: str
    source: Literal["local", "cluster", "prometheus"]
    recipe: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    phase: str | None = None
    message: str = ""
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    samples_per_second: float | None = Field(
        default=None, description="Now; of a run that does not train any more, in its mean step."
    )
    tokens_per_second: float | None = None
    eta_seconds: int | None = None
    restarts: int | None = None
    processes: int | None = None
    device: Device | None = Field(default=None, description="cpu or gpu, as its spec says.")
    checkpoint_step: int | None = None
    peak_memory_bytes: int | None = None
    usage: str = Field(default="", description="What its ranks use, as its status says.")
    profile: str | None = Field(
        default=None, description="Its newest trace of steps, in the run's directory."
    )
    start_time: datetime | None = None
    completion_time: datetime | None = None

    @classmethod
    def from_wire(
        cls, run: dict[str, Any], source: Literal["local", "cluster"], name: str | None = None
    ) -> "RunSummary":
        """Summarize a TrainingRun in wire form.

        Reads field by field, because a newer operator may write fields unknown to this version.

        Args:
            run: the object, as JSON.
            source: the kind of data source it comes from.
            name: the name it is stored under, if that isn't `metadata.name`.

        Raises:
            ValueError, KeyError, AttributeError, TypeError: it isn't a TrainingRun.
        """
        metadata, spec, status = (run.get(part) or {} for part in ("metadata", "spec", "status"))
        namespace = metadata.get("namespace") or "default"
        name = name or metadata["name"]
        samples, tokens = _rates(status)
        labels = list((metadata.get("labels") or {}).items())[:MAX_LABELS]
        return cls(
            id=f"{source}/{namespace}/{name}",
            name=name,
            namespace=namespace,
            source=source,
            recipe=spec.get("recipe"),
            labels={str(key)[:MAX_TEXT]: str(value)[:MAX_TEXT] for key, value in labels},
            phase=status.get("phase") or "Pending",
            message=str(status.get("message") or "")[:MAX_TEXT],
            step=status.get("step"),
            total_steps=status.get("totalSteps"),
            loss=status.get("loss"),
            eval_loss=status.get("evalLoss"),
            samples_per_second=samples,
            tokens_per_second=tokens,
            eta_seconds=status.get("etaSeconds"),
            restarts=status.get("restarts"),
            processes=status.get("worldSize"),
            device=of_spec(spec) if source == "cluster" else None,
            peak_memory_bytes=status.get("peakMemoryBytes"),
            usage=str(status.get("usage") or "")[:MAX_TEXT],
            profile=known_trace(status.get("profile")),
            checkpoint_step=(status.get("lastCheckpoint") or {}).get("step"),
            start_time=status.get("startTime") or metadata.get("creationTimestamp"),
            completion_time=status.get("completionTime"),
        )


def _rates(status: dict[str, Any]) -> tuple[float | None, float | None]:
    """Samples and tokens per second; those of its mean step once a run does not train any more."""
    samples, tokens = status.get("samplesPerSecond"), status.get("tokensPerSecond")
    seconds = (status.get("stepSeconds") or {}).get("mean")
    ended = status.get("phase") in (*FINISHED, "Suspended")
    if samples is not None or tokens is not None or not ended or not seconds:
        return samples, tokens
    batch, in_tokens = status.get("batchSize"), status.get("tokensPerBatch")
    return batch and batch / seconds, in_tokens and in_tokens / seconds


class DataSource(Protocol):
    """A store of runs and studies."""

    label: str
    """Its name on the page, such as `Prometheus at URL`."""

    def runs(self) -> tuple[list[RunSummary], list[str]]:
        """Return the runs, and a message for each unreadable one. Raises DataSourceError."""

    def history(
        self, run: RunSummary, metrics: Sequence[str], known: Known | None = None
    ) -> RunHistory:
        """Return the available curves of these metrics; of `known` ones the rest, if it can.

        Raises DataSourceError.
        """

    def usage(self, run: RunSummary) -> RunUsage | None:
        """Return what its ranks use now; None if that is unknown here. Raises DataSourceError."""

    def trace(self, run: RunSummary) -> Path | None:
        """Return the file of its newest trace; None if this process can't read it."""

    def details(self, run: RunSummary) -> "RunDetails":
        """Return all that is known of it. Raises DataSourceError."""

    def log(self, run: RunSummary, name: str) -> "LogTail":
        """Return the newest lines of one of the logs that its details name.

        Raises DataSourceError.
        """

    def studies(self) -> tuple[list[tuple[str, ScalingStudy]], list[str]]:
        """Return the studies by id, and a message for each unreadable one.

        Raises DataSourceError.
        """


@dataclass
class _Cache(Generic[T]):
    """The last result of a query. Concurrent callers wait for one query and share its result."""

    lock: Lock = field(default_factory=Lock)
    expires: float = float("-inf")
    result: T | None = None
    error: str = ""

    def get(self, query: Callable[[], T]) -> T:
        """Raises DataSourceError."""
        with self.lock:
            if time.monotonic() > self.expires:
                self.result, self.error, seconds = None, "", CACHE_SECONDS
                try:
                    self.result = query()
                except DataSourceError as error:
                    self.error, seconds = str(error), RETRY_SECONDS
                self.expires = time.monotonic() + seconds
            if self.result is None:
                raise DataSourceError(self.error)
            return self.result


Listing = tuple[list[T], list[str]]


def _listed(cache: _Cache[Listing[T]], query: Callable[[], Listing[T]]) -> Listing[T]:
    """What a data source lists, and messages; if it can't be read, only that one."""
    try:
        items, problems = cache.get(query)
    except DataSourceError as error:
        return [], [str(error)]
    return items, _truncated(problems)


class Catalog:
    """The runs and studies of all data sources. Thread-safe."""

    def __init__(self, sources: Sequence[DataSource], prometheus: "Prometheus | None") -> None:
        """Create a catalog.

        Args:
            sources: data sources that list runs.
            prometheus: adds the curves that a run's own data source lacks; lists runs only if
                `sources` is empty.
        """
        self._prometheus = prometheus
        self._sources: list[DataSource] = list(sources) or ([prometheus] if prometheus else [])
        self._runs: list[_Cache[Listing[RunSummary]]] = [_Cache() for _ in self._sources]
        self._studies: list[_Cache[Listing[tuple[str, ScalingStudy]]]] = [
            _Cache() for _ in self._sources
        ]
        self._lock = Lock()
        self._details: OrderedDict[str, _Cache[RunDetails]] = OrderedDict()

    @property
    def labels(self) -> list[str]:
        """The names of the data sources."""
        labels = [source.label for source in self._sources]
        if self._prometheus and self._prometheus not in self._sources:
            labels.append(self._prometheus.label)
        return labels

    def runs(self) -> tuple[list[RunSummary], list[str]]:
        """Return all runs, newest first, and a message for everything unreadable."""
        runs: list[RunSummary] = []
        problems: list[str] = []
        for source, cache in zip(self._sources, self._runs, strict=True):
            items, messages = _listed(cache, source.runs)
            runs += items
            problems += messages
        runs.sort(key=lambda run: run.start_time.timestamp() if run.start_time else 0, reverse=True)
        return runs, problems

    def studies(self) -> tuple[dict[str, ScalingStudy], list[str]]:
        """Return all studies by id, and a message for everything unreadable."""
        studies: dict[str, ScalingStudy] = {}
        problems: list[str] = []
        for source, cache in zip(self._sources, self._studies, strict=True):
            items, messages = _listed(cache, source.studies)
            studies |= dict(items)
            problems += messages
        return studies, problems

    def history(
        self, ids: Sequence[str], metrics: Sequence[str], known: Mapping[str, Known] | None = None
    ) -> tuple[dict[str, RunHistory], list[str]]:
        """Return the histories by run id, and a message for everything unreadable.

        Prometheus is queried for the metrics that a run's own data source has no curve of.

        Args:
            ids: the runs.
            metrics: the metrics whose curves to return.
            known: what the caller has already, by run id.
        """
        runs = self._by_id()
        histories: dict[str, RunHistory] = {}
        problems: list[str] = []
        for run_id in ids:
            if run_id not in runs:
                problems.append(f"run {run_id} does not exist (any more)")
                continue
            run, source = runs[run_id]
            history = RunHistory()
            try:
                history = source.history(run, metrics, (known or {}).get(run_id))
                problems += [f"{run.name}: {problem}" for problem in history.problems]
                self._add_missing(run, source, metrics, history)
            except DataSourceError as error:
                problems.append(str(error))
            histories[run_id] = history
        return histories, list(dict.fromkeys(problems))

    def usage(self, ids: Sequence[str]) -> tuple[dict[str, RunUsage], list[str]]:
        """Return what the ranks of these runs use now, and a message for everything unreadable.

        Prometheus is queried for those of which a run's own data source knows nothing. What is
        unknown, as of a run that has ended, is left out.
        """
        runs = self._by_id()
        usages: dict[str, RunUsage] = {}
        problems: list[str] = []
        for run, source in (runs[run_id] for run_id in ids if run_id in runs):
            try:
                usage = source.usage(run)
                if usage is None and self._prometheus and source is not self._prometheus:
                    usage = self._prometheus.usage(run)
                if usage is not None:
                    usages[run.id] = usage
            except DataSourceError as error:
                problems.append(str(error))
        return usages, list(dict.fromkeys(problems))

    def trace(self, run_id: str, path: str | None = None) -> Path | None:
        """Return the file of a run's trace, by default its newest; None if there is none here.

        Raises DataSourceError.
        """
        run, source = self._by_id().get(run_id, (None, None))
        if run and path is not None:
            run = run.model_copy(update={"profile": known_trace(path)})
        return source.trace(run) if run and source and run.profile else None

    def details(self, run_id: str) -> "RunDetails | None":
        """Return all that is known of a run; None if it does not exist (any more).

        Raises DataSourceError.
        """
        run, source = self._by_id().get(run_id, (None, None))
        if run is None or source is None:
            return None
        with self._lock:
            cache = self._details.pop(run_id, None) or _Cache()
            self._details[run_id] = cache
            if len(self._details) > MAX_DETAILS:
                self._details.popitem(last=False)
        return cache.get(lambda: self._read(run, source))

    def _read(self, run: RunSummary, source: DataSource) -> "RunDetails":
        """Details of a run, with what only Prometheus has. Raises DataSourceError."""
        details = source.details(run)
        if self._prometheus and not details.evaluations.items:
            try:
                if newest := self._prometheus.evaluation(run, _ended(details)):
                    part = details.evaluations
                    part.items, part.note = [newest], f"The newest, from {self._prometheus.label}."
            except DataSourceError as error:
                details.warnings.append(str(error))
        return details

    def log(self, run_id: str, name: str) -> "LogTail | None":
        """Return the newest lines of a log; None if the run does not exist (any more).

        Raises DataSourceError.
        """
        run, source = self._by_id().get(run_id, (None, None))
        return source.log(run, name) if run and source else None

    def _by_id(self) -> dict[str, tuple[RunSummary, DataSource]]:
        return {
            run.id: (run, source)
            for source, cache in zip(self._sources, self._runs, strict=True)
            for run in _listed(cache, source.runs)[0]
        }

    def _add_missing(
        self, run: RunSummary, source: DataSource, metrics: Sequence[str], history: RunHistory
    ) -> None:
        """Add the curves that only Prometheus has."""
        if self._prometheus is None or source is self._prometheus:
            return
        missing = [metric for metric in metrics if metric not in history.metrics]
        found = self._prometheus.history(run, missing)
        history.curves += found.curves
        history.metrics = list(dict.fromkeys([*history.metrics, *found.metrics]))
        history.evaluation = list(dict.fromkeys([*history.evaluation, *found.evaluation]))


def _ended(details: "RunDetails") -> datetime | None:
    """When its newest attempt ended; None while that is active, or unknown."""
    attempts = details.status.get("attempts") or [{}]
    ended = attempts[-1].get("endTime")
    return datetime.fromisoformat(ended) if ended else details.run.completion_time


def _truncated(problems: list[str]) -> list[str]:
    more = len(problems) - MAX_PROBLEMS
    return problems[:MAX_PROBLEMS] + ([f"and {more} more like these"] if more > 0 else [])
