"""Reads a run's metrics.jsonl incrementally, into curves of bounded size."""

import json
import os
import threading
import uuid
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from trainyard_api.history import NOT_METRICS, evaluation_metrics, is_finite_number
from trainyard_dashboard.devices import Device, of_torch
from trainyard_dashboard.downsampling import DownsampledCurve
from trainyard_dashboard.history import (
    RANK_SECONDS,
    SAMPLES_AXIS,
    SECONDS_AXIS,
    TOKENS_AXIS,
    Curve,
    Evaluation,
    Known,
    RunHistory,
    TextSample,
)

STEP_SECONDS = "step_seconds"
NUMBER_TYPES = (int, float)
MAX_CURVES = 160  # 64 ranks, and more metrics than any recipe has
MAX_RESUMES = 100
MAX_SAMPLES = 20
MAX_EVALUATIONS = 20
MAX_SAMPLE_CHARACTERS = 4000
MAX_METRICS = 32  # of one evaluation, or with values that are not finite
MAX_NAMED = 3  # metrics that one message names
MAX_NAME = 200  # characters of a metric
CHUNK_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 20  # longer lines are skipped: the trainer writes none


class MetricsLog:
    """One metrics.jsonl file. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._reset()
        self._file_id: tuple[int, int] | None = None  # device and inode

    def read(self, run: str, metrics: Collection[str], known: Known | None = None) -> RunHistory:
        """Return what was logged so far; a file that doesn't exist yet has no curves.

        Args:
            run: the run's id, for the curves.
            metrics: those whose curves to return.
            known: what the caller has already: only points from that step on are returned, unless
                the file was replaced since.

        Raises:
            OSError: the file can't be read.
        """
        with self._lock:
            try:
                self._read_appended()
            except FileNotFoundError:
                self._reset()
            since = known.step if known and known.version == self._version else None
            return RunHistory(
                curves=[
                    _to_curve(run, metric, part, curve, since)
                    for (metric, part), curve in self._curves.items()
                    if metric in metrics
                ],
                samples=[one for one in self._samples if since is None or one.step >= since],
                resumed_at=list(self._resumed_at),
                evaluations=list(self._evaluations),
                metrics=list(dict.fromkeys(metric for metric, _ in self._curves)),
                evaluation=list(self._evaluation),
                device=self._device,
                version=self._version,
                problems=self._problems(),
            )

    def _reset(self) -> None:
        self._version = uuid.uuid4().hex[:12]
        self._offset = 0
        self._partial_line = b""
        self._skipping = False  # inside a line that is too long
        self._curves: dict[tuple[str, str], DownsampledCurve] = {}
        self._samples: deque[TextSample] = deque(maxlen=MAX_SAMPLES)
        self._resumed_at: deque[int] = deque(maxlen=MAX_RESUMES)
        self._evaluations: deque[Evaluation] = deque(maxlen=MAX_EVALUATIONS)
        self._evaluation: dict[str, None] = {}  # names of metrics; a set in order
        self._line = 0
        self._invalid: list[int] = [0, 0]  # how many lines, and the first one's number
        self._not_finite: dict[str, tuple[int, float]] = {}  # how many, and the first one's step
        self._no_room: dict[str, None] = {}  # names of metrics beyond MAX_CURVES
        self._began: float | None = None
        self._device: Device | None = None
        self._batch_size: float | None = None
        self._trained = [0.0, 0.0, 0.0]  # steps, samples and tokens up to the newest progress line

    def _problems(self) -> list[str]:
        """What of the file is not in the curves."""
        problems = []
        count, first = self._invalid
        if count:
            problems.append(
                f"line {first} of metrics.jsonl is left out: it is not a record with a step"
                if count == 1
                else f"{count} lines of metrics.jsonl are left out: they are not records with a"
                f" step (the first is line {first})"
            )
        for metric, (times, step) in self._not_finite.items():
            problems.append(
                f"{metric} is not a finite number in {times} of its records (first at step"
                f" {step:.0f}): no point is drawn there"
            )
        if self._no_room:
            names = ", ".join(self._no_room)
            problems.append(f"only the first {MAX_CURVES} curves are kept: {names} is left out")
        return problems

    def _read_appended(self) -> None:
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())  # not of the path: it may be replaced meanwhile
            file_id = (status.st_dev, status.st_ino)
            # A resumed attempt replaces the file by a shorter one.
            if file_id != self._file_id or status.st_size < self._offset:
                self._reset()
                self._file_id = file_id
            file.seek(self._offset)
            while chunk := file.read(CHUNK_BYTES):
                self._offset += len(chunk)
                for line in self._complete_lines(chunk):
                    self._add_line(line)

    def _complete_lines(self, chunk: bytes) -> Iterator[bytes]:
        *lines, rest = (self._partial_line + chunk).split(b"\n")
        for line in lines:
            self._line += 1
            if self._skipping:
                self._skipping = False
                self._leave_out()
            elif line:
                yield line
        if len(rest) > MAX_LINE_BYTES:
            rest, self._skipping = b"", True
        self._partial_line = rest

    def _leave_out(self) -> None:
        """Count the present line as one that is not a record."""
        count, first = self._invalid
        self._invalid = [count + 1, first or self._line]

    def _add_line(self, line: bytes) -> None:
        record = _record(line)
        if record is None:
            self._leave_out()
            return
        step = record["step"]
        if "event" in record:
            self._add_event(record)
            self._add_time(step, record)
            return
        self._add_time(step, record)
        if isinstance(text := record.get("sample"), str):
            sample = TextSample(step=int(step), text=text[:MAX_SAMPLE_CHARACTERS])
            self._samples.append(sample)
        for name, value in record.items():
            if name == RANK_SECONDS and isinstance(value, list):
                for rank, seconds in enumerate(value):
                    self._add_point((RANK_SECONDS, f"rank {rank}"), step, seconds)
            elif name not in NOT_METRICS and value.__class__ in NUMBER_TYPES:
                key = name[:MAX_NAME], ""
                self._add_point(key, step, value)
        if "loss" in record:
            self._add_trained(step, record)
        if metrics := evaluation_metrics(record):
            self._add_evaluation(int(step), record.get("time"), metrics)

    def _add_evaluation(self, step: int, time: object, found: dict[str, float]) -> None:
        metrics = {name[:MAX_NAME]: value for name, value in found.items()}
        self._evaluation |= dict.fromkeys(name for name in metrics if (name, "") in self._curves)
        self._evaluations.append(
            Evaluation(
                step=step,
                time=time if is_finite_number(time) else None,
                metrics=dict(list(metrics.items())[:MAX_METRICS]),
            )
        )

    def _add_event(self, record: dict[str, Any]) -> None:
        """An attempt's first record has its settings, which hold until the next one's."""
        if record["event"] == "resumed":
            self._resumed_at.append(int(record["step"]))
        config = record.get("config")
        self._device = of_torch(record.get("device")) or self._device
        if isinstance(config, dict):
            size = config.get("batch_size")
            self._batch_size = size if is_finite_number(size) and size > 0 else None

    def _add_time(self, step: float, record: dict[str, Any]) -> None:
        """Seconds since the run's start: an axis for the other curves."""
        now = record.get("time")
        if not is_finite_number(now):
            return
        if self._began is None:
            self._began = now
        self._add_point((SECONDS_AXIS, ""), step, max(0.0, now - self._began))

    def _add_trained(self, step: float, record: dict[str, Any]) -> None:
        """Samples and tokens trained on, and the time of a step, from the size of a batch."""
        rate, tokens = record.get("samples_per_second"), record.get("tokens_per_second")
        if self._batch_size is None or not is_finite_number(rate) or rate <= 0:
            return
        if STEP_SECONDS not in record:
            self._add_point((STEP_SECONDS, ""), step, self._batch_size / rate)
        samples = (step - self._trained[0]) * self._batch_size
        self._trained[0] = step
        self._trained[1] += samples
        self._add_total(SAMPLES_AXIS, step, self._trained[1])
        if is_finite_number(tokens):
            self._trained[2] += samples * tokens / rate
            self._add_total(TOKENS_AXIS, step, self._trained[2])

    def _add_total(self, axis: str, step: float, total: float) -> None:
        if (axis, "") not in self._curves:
            self._add_point((axis, ""), 0, 0.0)
        self._add_point((axis, ""), step, total)

    def _add_point(self, key: tuple[str, str], step: float, value: object) -> None:
        if not is_finite_number(value):
            if value.__class__ in NUMBER_TYPES:
                self._count_not_finite(key[0], step)
            return
        curve = self._curves.get(key)
        if curve is None:
            if len(self._curves) >= MAX_CURVES:
                if len(self._no_room) < MAX_NAMED:
                    self._no_room[key[0]] = None
                return
            curve = self._curves[key] = DownsampledCurve()
        curve.add(step, value)

    def _count_not_finite(self, metric: str, step: float) -> None:
        if metric in self._not_finite or len(self._not_finite) < MAX_METRICS:
            times, first = self._not_finite.get(metric, (0, step))
            self._not_finite[metric] = times + 1, first


def _record(line: bytes) -> dict[str, Any] | None:
    """A line's record; None if a kill or a full disk has cut it, or it has no step."""
    try:
        record = json.loads(line)
        if b"\\u" in line:  # may be half of a pair, which an answer can't hold
            text = json.dumps(record, ensure_ascii=False)
            record = json.loads(text.encode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    valid = isinstance(record, dict) and is_finite_number(record.get("step"))
    return record if valid else None


def _to_curve(
    run: str, metric: str, part: str, curve: DownsampledCurve, since: float | None
) -> Curve:
    x, y = curve.points()
    start = 0 if since is None else bisect_left(x, since)
    return Curve(
        run=run,
        metric=metric,
        part=part,
        x=x[start:],
        y=y[start:],
        since=since,
        count=curve.count,
        rate=curve.rate,
    )
