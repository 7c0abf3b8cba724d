"""Curves of bounded size, whose extremes survive however many points are added."""

from array import array

MAX_POINTS = 500  # of a downsampled curve; shorter ones keep every point
MAX_BUCKETS = MAX_POINTS // 4 * 2 - 2  # even; leaves room for the newest points
MAX_PENDING = 2048  # points added to the buckets at once, which is faster than one by one

Point = tuple[float, float]


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
