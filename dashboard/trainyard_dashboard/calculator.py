"""Time and cost of a training at any number of processes, from what a study measured."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, Field

from trainyard_api.study import ScalingStudy
from trainyard_api.study_status import Interval, LawKind, ScalingCurve, ScalingStudyStatus
from trainyard_study.fit import PRIOR_NOISE, FittedScalingLaw, ScalingError, fit
from trainyard_study.laws import MIN_SIZES_FOR_PAIRS

MAX_PROCESSES = 100_000
FAR = 8  # times the largest measured size: beyond that a projection deserves a warning
CHART_POINTS = 48
SIZES = ("numNodes", "numProcPerNode")

Known = Literal["measured", "projected"]


class Point(BaseModel):
    """Throughput at one number of processes."""

    processes: int
    origin: Known
    throughput: Interval = Field(
        description="Per second. Measured: median, least, most; projected: what the laws lead to"
        " expect, and between what it lies with a probability of 90%."
    )
    too_wide: bool = Field(description="Projected, and the middle of the interval says nothing.")
    speedup: Interval = Field(description="Against the median of the smallest measured size.")
    efficiency: float = Field(description="Speedup / what processes would give ideally.")


class Training(Point):
    """A whole training at one number of processes."""

    hours: Interval
    cost: Interval | None = Field(default=None, description="Absent without a price.")


class Law(BaseModel):
    """A law in short."""

    kind: LawKind
    choice: str = Field(description="Its name, how probable it is, and what else could be.")
    undecided: bool = Field(description="It is no more probable than the others together.")
    sigma: Interval
    kappa: Interval
    residual: float
    best_processes: float | None = Field(description="More make it slower; null: none do.")


class Projection(BaseModel):
    """What the calculator answers."""

    unit: Literal["tokens", "samples"]
    law: Law | None
    why_no_law: str = ""
    chosen: Training | None = Field(description="Absent: not measured, and there is no law.")
    sizes: list[Training] = Field(description="Measured ones, and doublings up to the chosen.")
    chart: list[Point] = Field(description="The laws from the smallest size on, for a line.")
    base_processes: int = Field(description="The smallest measured size.")
    warnings: list[str]


class Scaling:
    """One configuration of a study: its measurements, and the law fitted to them."""

    def __init__(self, measured: Mapping[int, Sequence[float]], unit: str) -> None:
        """`measured`: number of processes -> throughputs, one per repetition."""
        self.unit: Literal["tokens", "samples"] = "tokens" if unit == "tokens" else "samples"
        self.measured = {n: sorted(values) for n, values in sorted(measured.items()) if values}

    @property
    def law(self) -> FittedScalingLaw | None:
        return self._fitted[0]

    @property
    def why_no_law(self) -> str:
        return self._fitted[1]

    @cached_property
    def _fitted(self) -> tuple[FittedScalingLaw | None, str]:
        """The law, or why there is none: once it is asked for, as a list of studies needs none."""
        try:
            return fit(self.measured), ""
        except ScalingError as error:
            return None, str(error)

    def point(self, processes: int) -> Point | None:
        """What was measured there, else what the law says; None without a law."""
        if values := self.measured.get(processes):
            throughput = Interval(value=_median(values), low=values[0], high=values[-1])
            return self._point(processes, "measured", throughput)
        if self.law is not None:
            return self._point(processes, "projected", self.law.throughput(processes))
        return None

    def _point(self, processes: int, origin: Known, throughput: Interval) -> Point:
        base = min(self.measured)
        single = _median(self.measured[base])
        speedup = Interval(
            value=throughput.value / single,
            low=throughput.low / single,
            high=throughput.high / single,
        )
        return Point(
            processes=processes,
            origin=origin,
            throughput=throughput,
            too_wide=origin == "projected" and throughput.too_wide,
            speedup=speedup,
            efficiency=speedup.value * base / processes,
        )

    def training(self, processes: int, budget: float, price: float | None) -> Training | None:
        """`budget` tokens or samples; `price` of a process for an hour."""
        point = self.point(processes)
        if point is None:
            return None
        rate = point.throughput
        hours = Interval(
            value=budget / rate.value / 3600,
            low=budget / rate.high / 3600,
            high=budget / rate.low / 3600,
        )
        cost = None
        if price is not None:
            hourly = price * processes
            cost = Interval(
                value=hours.value * hourly, low=hours.low * hourly, high=hours.high * hourly
            )
        return Training(**point.model_dump(), hours=hours, cost=cost)

    def project(self, processes: int, budget: float, price: float | None) -> Projection:
        """The whole answer."""
        largest = max([*self.measured, processes])
        sizes = _sizes(self.measured, largest)
        return Projection(
            unit=self.unit,
            law=_law(self.law),
            why_no_law=self.why_no_law,
            chosen=self.training(processes, budget, price),
            sizes=[t for n in sizes if (t := self.training(n, budget, price))],
            chart=self._chart(largest),
            base_processes=min(self.measured),
            warnings=self._warnings(processes),
        )

    def _chart(self, largest: int) -> list[Point]:
        """The law, beside the measured sizes too."""
        if self.law is None:
            return []
        return [
            self._point(n, "projected", self.law.throughput(n))
            for n in _chart_sizes(self.measured, largest)
        ]

    def _warnings(self, processes: int) -> list[str]:
        if processes in self.measured or self.law is None:
            return []
        found, largest = [], max(self.measured)
        if processes > FAR * largest:
            found.append(
                f"{processes} processes are {processes / largest:.0f} times the largest size that"
                f" was measured ({largest}): measure nearer to it before you rely on this."
            )
        if (point := self.point(processes)) and point.too_wide:
            found.append(
                f"The sizes measured don't carry as far as {processes} processes: only a range can"
                " be given. Measure a larger one before you pay for it."
            )
        if len(self.measured) < MIN_SIZES_FOR_PAIRS:
            found.append(
                "Only two sizes were measured: they say nothing of a cost of communication that"
                " makes more processes slower."
            )
        if all(len(values) == 1 for values in self.measured.values()):
            found.append(
                f"Every size was measured once: the intervals take runs to differ by"
                f" {PRIOR_NOISE:.0%}."
            )
        if processes > self.law.best_processes and not self.law.undecided:
            found.append(
                f"Beyond {self.law.best_processes:.0f} processes the law says more make it slower."
            )
        return found


def scalings(study: ScalingStudy) -> list[tuple[str, Scaling]]:
    """The configurations of a study that have measurements, each by its label."""
    found = []
    for curve in study.status.curves:
        measured = _measured(study.status, curve)
        if measured:
            found.append((curve.label or study.name, Scaling(measured, curve.unit)))
    return found


def _measured(status: ScalingStudyStatus, curve: ScalingCurve) -> dict[int, list[float]]:
    """Every measurement of the curve's cells: those that have all values of its configuration."""
    rates: dict[int, list[float]] = {}
    for cell in status.cells:
        if _configuration(cell.values) != _configuration(curve.configuration):
            continue
        for run in cell.measurements:
            rate = run.tokens_per_second if curve.unit == "tokens" else run.samples_per_second
            if rate:
                rates.setdefault(cell.processes, []).append(rate)
    return rates


def _configuration(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without sizes, and without what is as the template has it: null is lost on the wire."""
    return {k: v for k, v in values.items() if k not in SIZES and v is not None}


def _sizes(measured: Mapping[int, object], largest: int) -> list[int]:
    size, found = max(measured), set(measured) | {largest}
    while (size := size * 2) < largest:
        found.add(size)
    return sorted(found)


def _chart_sizes(measured: Mapping[int, object], largest: int) -> list[int]:
    """Enough for a smooth curve: every number at first, then in equal ratios."""
    first, end = min(measured), max(largest, 2 * max(measured))
    ratio = (end / first) ** (1 / CHART_POINTS)
    found = {first, end, *measured}
    found |= {min(end, max(first, round(first * ratio**i))) for i in range(CHART_POINTS)}
    return sorted(found)


def _law(law: FittedScalingLaw | None) -> Law | None:
    if law is None:
        return None
    best = law.best_processes
    return Law(
        kind=law.kind,
        choice=law.choice,
        undecided=law.undecided,
        sigma=law.sigma,
        kappa=law.kappa,
        residual=law.residual,
        best_processes=best if best < MAX_PROCESSES and not law.undecided else None,
    )


def _median(ordered: Sequence[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
