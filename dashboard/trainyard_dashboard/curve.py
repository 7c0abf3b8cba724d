"""A curve of bounded size, kept while points stream in.

Each bucket keeps its lowest and its highest point, so that no spike is lost; when there are too
many, neighbours are merged. However long a run's history is, a curve takes some kilobytes.
"""

from array import array

POINTS = 500  # at most; fewer than that are all kept
BUCKETS = POINTS // 4 * 2 - 2  # an even number; the newest points are told beside them
WAITING = 2048  # points not yet in buckets: by the thousand they are sorted in quickly

Point = tuple[float, float]


class Curve:
    """y over x, where x does not decrease and both are finite."""

    def __init__(self) -> None:
        self._size = 2  # points in a bucket
        # Of each bucket the lowest and the highest point.
        self._low_x, self._low_y = array("d"), array("d")
        self._high_x, self._high_y = array("d"), array("d")
        self._x, self._y = array("d"), array("d")  # newer points
        self.count = 0
        self._inverse = 0.0  # the sum of 1 / y

    def add(self, x: float, y: float) -> None:
        """One more point."""
        self._x.append(x)
        self._y.append(y)
        self.count += 1
        if y > 0:
            self._inverse += 1 / y
        if len(self._x) >= WAITING:
            self._sort_in()

    @property
    def rate(self) -> float | None:
        """The harmonic mean: what a rate that was told once every so many steps comes to."""
        return self.count / self._inverse if self._inverse else None

    def points(self) -> tuple[list[float], list[float]]:
        """x and y, in order of x; the newest point is always among them."""
        if not self._low_x and len(self._x) <= POINTS:
            return self._x.tolist(), self._y.tolist()
        self._sort_in()
        found: list[Point] = []
        columns = zip(self._low_x, self._low_y, self._high_x, self._high_y, strict=True)
        for low_x, low_y, high_x, high_y in columns:
            found += _in_order((low_x, low_y), (high_x, high_y))
        if self._x:
            found += _in_order(*_ends(self._x, self._y))
            if found[-1] != (newest := (self._x[-1], self._y[-1])):
                found.append(newest)
        return [x for x, _ in found], [y for _, y in found]

    def _sort_in(self) -> None:
        """Put into buckets what fills whole ones, but for the newest point."""
        while len(self._low_x) + (len(self._x) - 1) // self._size > BUCKETS:
            self._merge()
        end = (len(self._x) - 1) // self._size * self._size
        for start in range(0, end, self._size):
            stop = start + self._size
            low, high = _ends(self._x[start:stop], self._y[start:stop])
            self._low_x.append(low[0])
            self._low_y.append(low[1])
            self._high_x.append(high[0])
            self._high_y.append(high[1])
        del self._x[:end], self._y[:end]

    def _merge(self) -> None:
        """Two neighbours become one bucket of twice the size; one left over is filled anew."""
        self._size *= 2
        if len(self._low_x) % 2:
            low = self._low_x.pop(), self._low_y.pop()
            high = self._high_x.pop(), self._high_y.pop()
            xs, ys = zip(*_in_order(low, high), strict=True)
            self._x, self._y = array("d", xs) + self._x, array("d", ys) + self._y
        pairs = range(0, len(self._low_x), 2)
        lows = [i if self._low_y[i] <= self._low_y[i + 1] else i + 1 for i in pairs]
        highs = [i if self._high_y[i] > self._high_y[i + 1] else i + 1 for i in pairs]
        self._low_x, self._low_y = _chosen(self._low_x, lows), _chosen(self._low_y, lows)
        self._high_x, self._high_y = _chosen(self._high_x, highs), _chosen(self._high_y, highs)


def _ends(x: "array[float]", y: "array[float]") -> tuple[Point, Point]:
    """The lowest and the highest point."""
    low, high = y.index(min(y)), y.index(max(y))
    return (x[low], y[low]), (x[high], y[high])


def _in_order(low: Point, high: Point) -> list[Point]:
    return [low] if low == high else sorted((low, high))


def _chosen(values: "array[float]", indices: list[int]) -> "array[float]":
    return array("d", (values[i] for i in indices))
