"""Reads a run's metrics.jsonl incrementally, into curves of bounded size."""

import json
import math
import threading
from array import array
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from trainyard_dashboard.catalog import Curve, Evaluation, RunHistory, TextSample

MAX_POINTS = 500  # of a downsampled curve; shorter ones keep every point
MAX_BUCKETS = MAX_POINTS // 4 * 2 - 2  # even; leaves room for the newest points
MAX_PENDING = 2048  # points added to the buckets at once, which is faster than one by one

RANK_SECONDS = "rank_step_seconds"
NOT_METRICS = frozenset({"step", "time", "attempt", "event"})
NUMBER_TYPES = (int, float)
MAX_CURVES = 160  # 64 ranks, and more metrics than any recipe has
MAX_RESUMES = 100
MAX_SAMPLES = 20
MAX_EVALUATIONS = 20
EVALUATION = "eval_"  # a record of an evaluation has a metric whose name begins so
MAX_SAMPLE_CHARACTERS = 4000
MAX_METRICS = 32  # of one evaluation
MAX_NAME = 200  # characters of a metric
CHUNK_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 20  # longer lines are skipped: the trainer writes none

Point = tuple[float, float]


class MetricsLog:
    """One metrics.jsonl file. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._reset()
        self._file_id: tuple[int, int] | None = None  # device and inode

    def read(self, run: str) -> RunHistory:
        """Return everything logged so far; a file that doesn't exist yet has no curves.

        Args:
            run: the run's id, for the curves.

        Raises:
            OSError: the file can't be read.
        """
        with self._lock:
            try:
                self._read_appended()
            except FileNotFoundError:
                self._reset()
            return RunHistory(
                curves=[
                    _to_curve(run, metric, part, curve)
                    for (metric, part), curve in self._curves.items()
                ],
                samples=list(self._samples),
                resumed_at=list(self._resumed_at),
                evaluations=list(self._evaluations),
                warnings=self._warnings(),
            )

    def _reset(self) -> None:
        self._offset = 0
        self._partial_line = b""
        self._skipping = False  # inside a line that is too long
        self._curves: dict[tuple[str, str], DownsampledCurve] = {}
        self._samples: deque[TextSample] = deque(maxlen=MAX_SAMPLES)
        self._resumed_at: deque[int] = deque(maxlen=MAX_RESUMES)
        self._evaluations: deque[Evaluation] = deque(maxlen=MAX_EVALUATIONS)
        self._broken_lines = 0
        self._not_finite: dict[str, tuple[int, float]] = {}  # values, and the first one's step

    def _warnings(self) -> list[str]:
        """What is left out of the curves, in a line each."""
        warnings = []
        if self._broken_lines:
            lines = "1 line is" if self._broken_lines == 1 else f"{self._broken_lines} lines are"
            warnings.append(f"{self._path}: {lines} broken and left out")
        for name, (count, step) in self._not_finite.items():
            values = "1 value" if count == 1 else f"{count} values"
            warnings.append(
                f"{self._path}: {values} of {name} not drawn: NaN or infinite since step {step:g}"
            )
        return warnings

    def _read_appended(self) -> None:
        with self._path.open("rb") as file:
            status = self._path.stat()
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
            if self._skipping:
                self._skipping = False
                self._broken_lines += 1
            elif line:
                yield line
        if len(rest) > MAX_LINE_BYTES:
            rest, self._skipping = b"", True
        self._partial_line = rest

    def _add_line(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None  # truncated by a kill or a full disk
        step = record.get("step") if isinstance(record, dict) else None
        if not _is_finite_number(step):
            self._broken_lines += 1
            return
        if record.get("event") == "resumed":
            self._resumed_at.append(int(step))
        if isinstance(text := record.get("sample"), str):
            sample = TextSample(step=int(step), text=text[:MAX_SAMPLE_CHARACTERS])
            self._samples.append(sample)
        for name, value in record.items():
            if name == RANK_SECONDS and isinstance(value, list):
                for rank, seconds in enumerate(value):
                    self._add_point((RANK_SECONDS, f"rank {rank}"), step, seconds)
            elif name not in NOT_METRICS:
                self._add_point((name, ""), step, value)
        if any(name.startswith(EVALUATION) for name in record):
            self._add_evaluation(int(step), record)

    def _add_evaluation(self, step: int, record: dict[str, object]) -> None:
        time = record.get("time")
        metrics = {
            name[:MAX_NAME]: value
            for name, value in record.items()
            if name not in NOT_METRICS and _is_finite_number(value)
        }
        self._evaluations.append(
            Evaluation(
                step=step,
                time=time if _is_finite_number(time) else None,
                metrics=dict(list(metrics.items())[:MAX_METRICS]),
            )
        )

    def _add_point(self, key: tuple[str, str], step: float, value: object) -> None:
        if not _is_finite_number(value):
            if isinstance(value, float) and not math.isfinite(value):
                self._count_not_finite(key[0], step)
            return
        curve = self._curves.get(key)
        if curve is None:
            if len(self._curves) >= MAX_CURVES:
                return
            curve = self._curves[key] = DownsampledCurve()
        curve.add(step, value)

    def _count_not_finite(self, name: str, step: float) -> None:
        if name in self._not_finite or len(self._not_finite) < MAX_METRICS:
            count, first = self._not_finite.get(name, (0, step))
            self._not_finite[name] = (count + 1, first)


class DownsampledCurve:
    """A curve y(x) of at most MAX_POINTS points, updated as points arrive.

    Each bucket of consecutive points keeps its lowest and highest point, so that no spike is lost.
    When there are too many buckets, neighbours are merged. Memory use is a few kilobytes, however
    many points are added.
    """

    def __init__(self) -> None:
        self.count = 0
        self._bucket_size = 2  # points per bucket
        # The lowest and the highest point of each bucket.
        self._low_x, self._low_y = array("d"), array("d")
        self._high_x, self._high_y = array("d"), array("d")
        self._pending_x, self._pending_y = array("d"), array("d")  # newer than the buckets
        self._inverse_sum = 0.0  # of 1 / y

    def add(self, x: float, y: float) -> None:
        """Add a point; x must not decrease, and both must be finite."""
        self._pending_x.append(x)
        self._pending_y.append(y)
        self.count += 1
        if y > 0:
            self._inverse_sum += 1 / y
        if len(self._pending_x) >= MAX_PENDING:
            self._fill_buckets()

    @property
    def rate(self) -> float | None:
        """The harmonic mean of y: the mean throughput, when logged every fixed number of steps."""
        return self.count / self._inverse_sum if self._inverse_sum else None

    def points(self) -> tuple[list[float], list[float]]:
        """Return x and y, sorted by x; the newest point is always among them."""
        if not self._low_x and len(self._pending_x) <= MAX_POINTS:
            return self._pending_x.tolist(), self._pending_y.tolist()
        self._fill_buckets()
        points: list[Point] = []
        columns = zip(self._low_x, self._low_y, self._high_x, self._high_y, strict=True)
        for low_x, low_y, high_x, high_y in columns:
            points += _sorted_by_x((low_x, low_y), (high_x, high_y))
        if self._pending_x:
            points += _sorted_by_x(*_extremes(self._pending_x, self._pending_y))
            newest = (self._pending_x[-1], self._pending_y[-1])
            if points[-1] != newest:
                points.append(newest)
        return [x for x, _ in points], [y for _, y in points]

    def _fill_buckets(self) -> None:
        """Move pending points into buckets, as far as they fill whole ones; keep the newest."""
        while len(self._low_x) + (len(self._pending_x) - 1) // self._bucket_size > MAX_BUCKETS:
            self._merge_buckets()
        size = self._bucket_size
        end = (len(self._pending_x) - 1) // size * size
        for start in range(0, end, size):
            stop = start + size
            low, high = _extremes(self._pending_x[start:stop], self._pending_y[start:stop])
            self._low_x.append(low[0])
            self._low_y.append(low[1])
            self._high_x.append(high[0])
            self._high_y.append(high[1])
        del self._pending_x[:end], self._pending_y[:end]

    def _merge_buckets(self) -> None:
        """Merge pairs of neighbours; an odd last bucket becomes pending again."""
        self._bucket_size *= 2
        if len(self._low_x) % 2:
            low = self._low_x.pop(), self._low_y.pop()
            high = self._high_x.pop(), self._high_y.pop()
            xs, ys = zip(*_sorted_by_x(low, high), strict=True)
            self._pending_x = array("d", xs) + self._pending_x
            self._pending_y = array("d", ys) + self._pending_y
        pairs = range(0, len(self._low_x), 2)
        lows = [i if self._low_y[i] <= self._low_y[i + 1] else i + 1 for i in pairs]
        highs = [i if self._high_y[i] > self._high_y[i + 1] else i + 1 for i in pairs]
        self._low_x, self._low_y = _select(self._low_x, lows), _select(self._low_y, lows)
        self._high_x, self._high_y = _select(self._high_x, highs), _select(self._high_y, highs)


def _extremes(x: "array[float]", y: "array[float]") -> tuple[Point, Point]:
    """The lowest and the highest point."""
    low, high = y.index(min(y)), y.index(max(y))
    return (x[low], y[low]), (x[high], y[high])


def _sorted_by_x(low: Point, high: Point) -> list[Point]:
    return [low] if low == high else sorted((low, high))


def _select(values: "array[float]", indices: list[int]) -> "array[float]":
    return array("d", (values[i] for i in indices))


def _is_finite_number(value: object) -> TypeGuard[float]:
    # Excludes booleans, NaN, and integers beyond a float's range.
    return value.__class__ in NUMBER_TYPES and -1e300 < value < 1e300


def _to_curve(run: str, metric: str, part: str, curve: DownsampledCurve) -> Curve:
    x, y = curve.points()
    return Curve(run=run, metric=metric, part=part, x=x, y=y, count=curve.count, rate=curve.rate)
