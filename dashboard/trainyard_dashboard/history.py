"""Follows a run's metrics.jsonl: reads only what was added, keeps only what is drawn."""

import json
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from trainyard_dashboard.curve import Curve
from trainyard_dashboard.model import CurveData, RunHistory, TextSample

RANKS = "rank_step_seconds"
NO_CURVES = frozenset({"step", "time", "attempt", "event"})
NUMBERS = (int, float)
MAX_CURVES = 160  # 64 ranks, and more metrics than any recipe has
MAX_RESUMES = 100
MAX_SAMPLES = 20
MAX_SAMPLE = 4000  # characters
CHUNK = 1 << 20
MAX_LINE = 1 << 20  # a longer one is none of the trainer's


class HistoryFile:
    """One metrics.jsonl. May be asked by several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._start_anew()
        self._file: tuple[int, int] | None = None  # what tells a file from its successor

    def read(self, run: str) -> RunHistory:
        """All that is known by now. A file that isn't there yet has nothing to tell.

        Raises OSError.
        """
        with self._lock:
            try:
                self._follow()
            except FileNotFoundError:
                self._start_anew()
            return RunHistory(
                curves=[
                    _data(run, name, part, curve) for (name, part), curve in self._curves.items()
                ],
                samples=list(self._samples),
                resumed_at=list(self._resumed_at),
            )

    def _start_anew(self) -> None:
        self._offset = 0
        self._rest = b""  # a line whose end has not been written yet
        self._skipping = False  # inside a line that is too long
        self._curves: dict[tuple[str, str], Curve] = {}
        self._samples: deque[TextSample] = deque(maxlen=MAX_SAMPLES)
        self._resumed_at: deque[int] = deque(maxlen=MAX_RESUMES)

    def _follow(self) -> None:
        with self._path.open("rb") as file:
            status = self._path.stat()
            same = (status.st_dev, status.st_ino)
            # A resumed attempt puts a shorter file in its place.
            if same != self._file or status.st_size < self._offset:
                self._start_anew()
                self._file = same
            file.seek(self._offset)
            while chunk := file.read(CHUNK):
                self._offset += len(chunk)
                for line in self._lines(chunk):
                    self._take(line)

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        *lines, rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            if self._skipping:
                self._skipping = False
            elif line:
                yield line
        if len(rest) > MAX_LINE:
            rest, self._skipping = b"", True
        self._rest = rest

    def _take(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return  # spoilt by a kill or a full disk
        step = record.get("step") if isinstance(record, dict) else None
        if not _is_number(step):
            return
        if record.get("event") == "resumed":
            self._resumed_at.append(int(step))
        if isinstance(text := record.get("sample"), str):
            self._samples.append(TextSample(step=int(step), text=text[:MAX_SAMPLE]))
        for name, value in record.items():
            if name == RANKS and isinstance(value, list):
                for rank, seconds in enumerate(value):
                    self._add(step, (RANKS, f"rank {rank}"), seconds)
            elif name not in NO_CURVES:
                self._add(step, (name, ""), value)

    def _add(self, step: float, key: tuple[str, str], value: object) -> None:
        if not _is_number(value):
            return
        curve = self._curves.get(key)
        if curve is None:
            if len(self._curves) >= MAX_CURVES:
                return
            curve = self._curves[key] = Curve()
        curve.add(step, value)


def _is_number(value: object) -> TypeGuard[float]:
    # Neither booleans nor NaN, nor whole numbers beyond a float's range.
    return value.__class__ in NUMBERS and -1e300 < value < 1e300


def _data(run: str, metric: str, part: str, curve: Curve) -> CurveData:
    x, y = curve.points()
    return CurveData(
        run=run, metric=metric, part=part, x=x, y=y, count=curve.count, rate=curve.rate
    )
