"""A curve of bounded size, kept while points stream in.

Each bucket keeps its lowest and its highest point, so that no spike is lost; when there are too
many, neighbours are merged. However long a run's history is, a curve takes some kilobytes.
"""

import math
from array import array

POINTS = 500  # at most; fewer than that are all kept


class Curve:
    """y over x, where x does not decrease."""

    def __init__(self, points: int = POINTS) -> None:
        self._buckets = points // 4 * 2
        self._size = 2  # points in a full bucket
        self._filled = 0  # points in the newest one
        # One entry a bucket: its lowest and its highest point.
        self._low_x, self._low_y = array("d"), array("d")
        self._high_x, self._high_y = array("d"), array("d")
        self._last: tuple[float, float] | None = None
        self.count = 0

    def add(self, x: float, y: float) -> None:
        """One more point; what is no number is left out, for it can't be drawn."""
        if not (math.isfinite(x) and math.isfinite(y)):
            return
        self.count += 1
        self._last = (x, y)
        if not self._low_x or self._filled == self._size:
            if len(self._low_x) == self._buckets:
                self._merge()
            self._filled = 1
            self._low_x.append(x)
            self._low_y.append(y)
            self._high_x.append(x)
            self._high_y.append(y)
            return
        self._filled += 1
        if y < self._low_y[-1]:
            self._low_x[-1], self._low_y[-1] = x, y
        if y >= self._high_y[-1]:
            self._high_x[-1], self._high_y[-1] = x, y

    def points(self) -> tuple[list[float], list[float]]:
        """x and y, in order of x; the newest point is always among them."""
        found: list[tuple[float, float]] = []
        columns = zip(self._low_x, self._low_y, self._high_x, self._high_y, strict=True)
        for low_x, low_y, high_x, high_y in columns:
            low, high = (low_x, low_y), (high_x, high_y)
            found += [low] if low == high else sorted((low, high))
        if self._last and (not found or found[-1] != self._last):
            found.append(self._last)
        return [x for x, _ in found], [y for _, y in found]

    def _merge(self) -> None:
        """Two neighbours become one bucket of twice the size; there is an even number of them."""
        pairs = range(0, len(self._low_x), 2)
        low = [i if self._low_y[i] <= self._low_y[i + 1] else i + 1 for i in pairs]
        high = [i if self._high_y[i] > self._high_y[i + 1] else i + 1 for i in pairs]
        self._low_x, self._low_y = _chosen(self._low_x, low), _chosen(self._low_y, low)
        self._high_x, self._high_y = _chosen(self._high_x, high), _chosen(self._high_y, high)
        self._size *= 2


def _chosen(values: "array[float]", indices: list[int]) -> "array[float]":
    return array("d", (values[i] for i in indices))
