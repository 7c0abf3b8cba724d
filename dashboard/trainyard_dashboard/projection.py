"""Projects time, cost and speedup of a training run at any number of processes, from a study."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, Field

from trainyard_api.study import ScalingStudy
from trainyard_api.study_status import Interval, LawKind, ScalingCurve, ScalingStudyStatus
from trainyard_dashboard.devices import Device, of_study
from trainyard_study.fit import PRIOR_NOISE, FittedScalingLaw, ScalingError, fit
from trainyard_study.laws import MIN_SIZES_FOR_PAIRS

MAX_PROCESSES = 100_000
FAR_FACTOR = 8  # a projection this many times beyond the largest measured size gets a warning
CHART_POINTS = 48
SIZE_FIELDS = ("numNodes", "numProcPerNode")

PointOrigin = Literal["measured", "projected"]


class Point(BaseModel):
    """Throughput at one number of processes."""

    processes: int
    origin: PointOrigin
    throughput: Interval = Field(
        description="Per second. Measured: median, smallest and largest; projected: the expected"
        " value and the 90% interval."
    )
    too_wide: bool = Field(
        description="Projected, and the interval is too wide for its middle to mean anything."
    )
    speedup: Interval = Field(description="Relative to the median of the smallest measured size.")
    efficiency: float = Field(description="Speedup divided by the ideal, linear speedup.")


class Training(Point):
    """A whole training run at one number of processes."""

    hours: Interval
    cost: Interval | None = Field(default=None, description="null without a price.")


class Law(BaseModel):
    """Summary of a fitted scaling law."""

    kind: LawKind
    choice: str = Field(description="Its name, its probability, and the alternatives.")
    undecided: bool = Field(description="Its probability is not above that of all others together.")
    sigma: Interval
    kappa: Interval
    residual: float
    best_processes: float | None = Field(
        description="More processes make it slower; null: there is no such limit."
    )


class Projection(BaseModel):
    """The calculator's result."""

    unit: Literal["tokens", "samples"]
    law: Law | None
    why_no_law: str = ""
    chosen: Training | None = Field(description="null: not measured, and there is no law.")
    sizes: list[Training] = Field(
        description="The measured sizes, and doublings up to the requested one."
    )
    chart: list[Point] = Field(description="The law's curve, from the smallest measured size.")
    base_processes: int = Field(description="The smallest measured size.")
    warnings: list[str]


class ScalingModel:
    """The measurements of one configuration of a study, and the law fitted to them."""

    def __init__(
        self,
        measured: Mapping[int, Sequence[float]],
        unit: str,
        device: Device | None = None,
    ) -> None:
        """Create a model; the law is fitted on first use.

        Args:
            measured: throughputs per second, one per repeat, by number of processes.
            unit: `tokens` or `samples`.
            device: what it was measured on, if that is known.
        """
        self.device = device
        self.unit: Literal["tokens", "samples"] = "tokens" if unit == "tokens" else "samples"
        self.measured = {n: sorted(values) for n, values in sorted(measured.items()) if values}

    @property
    def law(self) -> FittedScalingLaw | None:
        return self._fit[0]

    @property
    def why_no_law(self) -> str:
        return self._fit[1]

    @cached_property
    def _fit(self) -> tuple[FittedScalingLaw | None, str]:
        try:
            return fit(self.measured), ""
        except ScalingError as error:
            return None, str(error)

    def training(self, processes: int, budget: float, price: float | None) -> Training | None:
        """Time and cost of a training run; None if the size was not measured and there is no law.

        Args:
            processes: number of processes.
            budget: tokens or samples to train on.
            price: of one process for an hour; without it there is no cost.
        """
        point = self._point(processes)
        if point is None:
            return None
        rate = point.throughput
        hours = Interval(
            value=budget / rate.value / 3600,
            low=budget / rate.high / 3600,
            high=budget / rate.low / 3600,
        )
        cost = scaled(hours, price * processes) if price is not None else None
        return Training(**point.model_dump(), hours=hours, cost=cost)

    def project(self, processes: int, budget: float, price: float | None) -> Projection:
        """The calculator's complete result; arguments as for `training`."""
        largest = max([*self.measured, processes])
        sizes = _table_sizes(self.measured, largest)
        return Projection(
            unit=self.unit,
            law=_summary(self.law),
            why_no_law=self.why_no_law,
            chosen=self.training(processes, budget, price),
            sizes=[t for n in sizes if (t := self.training(n, budget, price))],
            chart=self._chart(largest),
            base_processes=min(self.measured),
            warnings=self._warnings(processes),
        )

    def _point(self, processes: int) -> Point | None:
        if values := self.measured.get(processes):
            throughput = Interval(value=median(values), low=values[0], high=values[-1])
            return self._relative_to_base(processes, "measured", throughput)
        if self.law is not None:
            return self._relative_to_base(processes, "projected", self.law.throughput(processes))
        return None

    def _relative_to_base(self, processes: int, origin: PointOrigin, throughput: Interval) -> Point:
        base = min(self.measured)
        speedup = scaled(throughput, 1 / median(self.measured[base]))
        return Point(
            processes=processes,
            origin=origin,
            throughput=throughput,
            too_wide=origin == "projected" and throughput.too_wide,
            speedup=speedup,
            efficiency=speedup.value * base / processes,
        )

    def _chart(self, largest: int) -> list[Point]:
        """The law's curve; at measured sizes, too, it has the law's values."""
        if self.law is None:
            return []
        return [
            self._relative_to_base(n, "projected", self.law.throughput(n))
            for n in _chart_sizes(self.measured, largest)
        ]

    def _warnings(self, processes: int) -> list[str]:
        if processes in self.measured or self.law is None:
            return []
        warnings, largest = [], max(self.measured)
        if processes > FAR_FACTOR * largest:
            warnings.append(
                f"{processes} processes are {processes / largest:.0f} times the largest measured"
                f" size ({largest}): measure a size closer to it before you rely on this."
            )
        if (point := self._point(processes)) and point.too_wide:
            warnings.append(
                f"The measured sizes allow only a range for {processes} processes, no single"
                " figure. Measure a larger size before you pay for it."
            )
        if len(self.measured) < MIN_SIZES_FOR_PAIRS:
            warnings.append(
                "Only two sizes were measured: they can't show whether communication makes more"
                " processes slower."
            )
        if all(len(values) == 1 for values in self.measured.values()):
            warnings.append(
                "Every size was measured only once: the intervals assume that runs differ by"
                f" {PRIOR_NOISE:.0%}."
            )
        if processes > self.law.best_processes and not self.law.undecided:
            warnings.append(
                f"According to the law, more than {self.law.best_processes:.0f} processes make it"
                " slower."
            )
        return warnings


def scaling_models(study: ScalingStudy) -> list[tuple[str, ScalingModel]]:
    """The models of a study's configurations that have measurements, each with its label."""
    models = []
    device = of_study(study)
    for curve in study.status.curves:
        measured = _measurements(study.status, curve)
        if measured:
            models.append((curve.label or study.name, ScalingModel(measured, curve.unit, device)))
    return models


def scaled(interval: Interval, factor: float) -> Interval:
    """The interval with all three values multiplied by `factor`."""
    return Interval(
        value=interval.value * factor, low=interval.low * factor, high=interval.high * factor
    )


def _measurements(status: ScalingStudyStatus, curve: ScalingCurve) -> dict[int, list[float]]:
    """Throughputs by number of processes, of the cells that belong to the curve's configuration."""
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
    """The values without sizes, and without nulls (the template's value), which the API drops."""
    return {k: v for k, v in values.items() if k not in SIZE_FIELDS and v is not None}


def _table_sizes(measured: Mapping[int, object], largest: int) -> list[int]:
    size, sizes = max(measured), set(measured) | {largest}
    while (size := size * 2) < largest:
        sizes.add(size)
    return sorted(sizes)


def _chart_sizes(measured: Mapping[int, object], largest: int) -> list[int]:
    """Enough for a smooth curve: consecutive sizes at first, then a geometric series."""
    first, end = min(measured), max(largest, 2 * max(measured))
    ratio = (end / first) ** (1 / CHART_POINTS)
    sizes = {first, end, *measured}
    sizes |= {min(end, max(first, round(first * ratio**i))) for i in range(CHART_POINTS)}
    return sorted(sizes)


def _summary(law: FittedScalingLaw | None) -> Law | None:
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
