"""How throughput grows with the number of processes: a law fitted to measurements.

The universal scalability law (Gunther, "Guerrilla Capacity Planning", 2007) gives the throughput of
n processes as

    X(n) = X(1) n / (1 + sigma (n - 1) + kappa n (n - 1))

sigma is the share that does not run in parallel (contention), kappa what every pair of processes
costs (coherency). With kappa = 0 it is Amdahl's law. n / X(n) is linear in the three unknowns, so
the fit is a small linear least squares problem: no starting values, one answer.
"""

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import Field, PrivateAttr

from trainyard_api.base import Model

SIZES_FOR_USL = 3  # distinct sizes; with two only Amdahl's law is determined
RESAMPLES = 500
CONFIDENCE = 0.9
_SEED = 0  # the same measurements give the same intervals


class ScalingError(ValueError):
    """The measurements determine no law; the message is one line that says what is missing."""


class Interval(Model):
    """A figure, and where it lies in 90 of 100 resamples of the measurements."""

    value: float
    low: float
    high: float


class ScalingLaw(Model):
    """A law that was fitted; throughput is in the measurements' unit."""

    kind: Literal["amdahl", "usl"]
    single: Interval = Field(description="X(1): throughput of one process.")
    sigma: Interval = Field(description="Contention: the share that does not run in parallel.")
    kappa: Interval = Field(description="Coherency: what every pair of processes costs.")
    residual: float = Field(
        description="Root mean square of the relative error over the measured sizes."
    )
    sizes: list[int] = Field(description="Numbers of processes measured.")
    # X(1), sigma, kappa of each resample: not stored, as a fit finds them again.
    _resamples: list[tuple[float, float, float]] = PrivateAttr(default_factory=list)

    @property
    def resamples(self) -> list[tuple[float, float, float]]:
        """Of a law as fitted here; empty in one that was stored."""
        return self._resamples

    def throughput(self, processes: float) -> Interval:
        """What the law says of a number of processes, measured or not (or between two)."""
        value = _throughput(processes, self.single.value, self.sigma.value, self.kappa.value)
        return _interval(value, (_throughput(processes, *fit) for fit in self._resamples))

    @property
    def best_processes(self) -> float:
        """Beyond this number more processes make it slower; infinite without coherency."""
        if self.kappa.value <= 0:
            return math.inf
        return math.sqrt(max(0.0, 1 - self.sigma.value) / self.kappa.value)


def fit(measured: Mapping[int, Sequence[float]]) -> ScalingLaw:
    """The law of `measured`: number of processes -> throughputs, one per repetition.

    Amdahl's law from two sizes, the universal scalability law from three. Relative errors count
    alike at every size. Raises ScalingError.
    """
    runs = {size: [float(x) for x in values] for size, values in measured.items() if values}
    if len(runs) < 2:
        raise ScalingError("two or more numbers of processes are needed")
    if any(size < 1 for size in runs):
        raise ScalingError("a number of processes is 1 or more")
    if not all(math.isfinite(x) and x > 0 for values in runs.values() for x in values):
        raise ScalingError("a throughput must be a positive number")
    usl = len(runs) >= SIZES_FOR_USL
    medians = {size: _median(values) for size, values in runs.items()}
    best = _solve(medians, usl)
    generator = random.Random(_SEED)
    sizes = sorted(runs)
    solved: dict[tuple[float, ...], tuple[float, float, float]] = {}
    resamples = []
    for _ in range(RESAMPLES if any(len(values) > 1 for values in runs.values()) else 0):
        drawn = tuple(_median(generator.choices(runs[n], k=len(runs[n]))) for n in sizes)
        if drawn not in solved:  # a few repeats have few medians
            solved[drawn] = _solve(dict(zip(sizes, drawn, strict=True)), usl)
        resamples.append(solved[drawn])
    errors = [_throughput(n, *best) / x - 1 for n, x in medians.items()]
    columns = zip(*(resamples or [best]), strict=True)
    single, sigma, kappa = (
        _interval(value, column) for value, column in zip(best, columns, strict=True)
    )
    law = ScalingLaw(
        kind="usl" if usl else "amdahl",
        single=single,
        sigma=sigma,
        kappa=kappa,
        residual=math.sqrt(sum(error**2 for error in errors) / len(errors)),
        sizes=sizes,
    )
    law._resamples = resamples
    return law


def _throughput(n: float, single: float, sigma: float, kappa: float) -> float:
    return single * n / (1 + sigma * (n - 1) + kappa * n * (n - 1))


def _solve(measured: dict[int, float], usl: bool) -> tuple[float, float, float]:
    """X(1), sigma, kappa by least squares of the relative error of n / X(n), none negative.

    n / X(n) = a + b (n - 1) + c n (n - 1) with a = 1 / X(1), b = a sigma, c = a kappa. Where the
    unconstrained minimum has a negative b or c, the best one with it at 0 is taken: with two such
    unknowns there are four cases to try.
    """
    rows = []
    for n, x in measured.items():
        weight = x / n  # divides every row by its own n / X(n)
        rows.append((weight, (n - 1) * weight, n * (n - 1) * weight))
    best: tuple[float, tuple[float, float, float]] | None = None
    for use in itertools.product((True, False), (True, False) if usl else (False,)):
        columns = [0, *(index for index, used in enumerate(use, start=1) if used)]
        if len(columns) > len(rows):
            continue
        found = _least_squares([[row[index] for index in columns] for row in rows])
        if found is None or found[0] <= 0 or min(found) < 0:
            continue
        full = [0.0, 0.0, 0.0]
        for index, value in zip(columns, found, strict=True):
            full[index] = value
        error = sum((sum(a * b for a, b in zip(row, full, strict=True)) - 1) ** 2 for row in rows)
        if best is None or error < best[0]:
            best = error, (1 / full[0], full[1] / full[0], full[2] / full[0])
    assert best is not None  # a alone always has a solution
    return best[1]


def _least_squares(rows: list[list[float]]) -> list[float] | None:
    """x that minimises |rows x - 1|, by the normal equations; None if they are singular."""
    size = len(rows[0])
    matrix = [
        [sum(row[i] * row[j] for row in rows) for j in range(size)] + [sum(row[i] for row in rows)]
        for i in range(size)
    ]
    for pivot in range(size):
        largest = max(range(pivot, size), key=lambda i: abs(matrix[i][pivot]))
        matrix[pivot], matrix[largest] = matrix[largest], matrix[pivot]
        if abs(matrix[pivot][pivot]) < 1e-12 * max(1.0, abs(matrix[pivot][-1])):
            return None
        for i in range(size):
            if i != pivot:
                factor = matrix[i][pivot] / matrix[pivot][pivot]
                matrix[i] = [a - factor * b for a, b in zip(matrix[i], matrix[pivot], strict=True)]
    return [matrix[i][-1] / matrix[i][i] for i in range(size)]


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else sum(ordered[middle - 1 : middle + 1]) / 2


def _interval(value: float, samples: Iterable[float]) -> Interval:
    ordered = sorted(samples) or [value]
    cut = round((1 - CONFIDENCE) / 2 * (len(ordered) - 1))
    return Interval(
        value=value, low=min(value, ordered[cut]), high=max(value, ordered[len(ordered) - 1 - cut])
    )
