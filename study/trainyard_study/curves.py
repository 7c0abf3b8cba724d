"""How each configuration of a study scales: the measured points, the law, the projections. Pure."""

from collections.abc import Sequence
from typing import Any

from trainyard_api.study import ScalingStudySpec
from trainyard_api.study_status import CellResult, Interval, ScalingCurve, ScalingPoint, Unit
from trainyard_lifecycle.status import format_rate
from trainyard_study.cells import label
from trainyard_study.fit import FittedScalingLaw, ScalingError, fit
from trainyard_study.results import (
    Configuration,
    cost_per_million,
    rates,
    throughput,
    throughput_unit,
)

DEFAULT_PROJECTIONS = (2, 4, 8)  # times the largest measured size


def curves(
    spec: ScalingStudySpec, cells: Sequence[CellResult], configurations: Sequence[Configuration]
) -> list[ScalingCurve]:
    """A curve for every configuration with at least one measured cell."""
    unit = throughput_unit(cells)
    return [
        _curve(spec, configuration, unit, _label(spec, configuration.values, len(configurations)))
        for configuration in configurations
        if configuration.smallest
    ]


def headline(curves: Sequence[ScalingCurve]) -> str:
    """`1.87x on 2 (93%), 12.3k tokens/s; 16: 6.1x projected`, of the fastest configuration."""
    if not curves:
        return ""
    curve = max(curves, key=lambda item: _largest(item).throughput.value)
    point = _largest(curve)
    rate = format_rate(point.throughput.value, curve.unit)
    text = f"{point.speedup:.2f}x on {point.processes} ({point.efficiency:.0%}), {rate}"
    if len([p for p in curve.points if p.source == "measured"]) == 1:
        text = f"{rate} on {point.processes}"
    projected = [p for p in curve.points if p.source == "projected"]
    if projected:
        text += f"; {projected[0].processes}: {_speedup(projected[0])} projected"
    return f"{curve.label}: {text}" if curve.label else text


def _speedup(point: ScalingPoint) -> str:
    if not point.too_wide:
        return f"{point.speedup:.2f}x"
    low, high = (point.speedup_at(rate) for rate in (point.throughput.low, point.throughput.high))
    return f"{low:.1f}x to {high:.1f}x"


def _largest(curve: ScalingCurve) -> ScalingPoint:
    return max(
        (point for point in curve.points if point.source == "measured"),
        key=lambda point: point.processes,
    )


def _curve(
    spec: ScalingStudySpec, configuration: Configuration, unit: Unit, text: str
) -> ScalingCurve:
    measured = {cell.processes: rates(cell, unit) for cell in configuration.cells}
    law: FittedScalingLaw | None = None
    why = ""
    try:
        law = fit(measured)
    except ScalingError as error:
        why = str(error)
    points = [
        _point(spec, configuration, cell.processes, "measured", interval, unit)
        for cell in configuration.cells
        if (interval := _measured(cell, unit))
    ]
    sizes = [point.processes for point in points]
    if law is not None:
        wanted = spec.project_to or [factor * max(sizes) for factor in DEFAULT_PROJECTIONS]
        points += [
            _point(spec, configuration, size, "projected", law.throughput(size), unit)
            for size in sorted(set(wanted) - set(sizes))
        ]
    return ScalingCurve(
        configuration=configuration.values,
        label=text,
        unit=unit,
        law=law,
        why_no_law=why,
        points=points,
    )


def _measured(cell: CellResult, unit: Unit) -> Interval | None:
    rate = throughput(cell, unit)
    return Interval(value=rate.median, low=rate.min, high=rate.max) if rate else None


def _point(
    spec: ScalingStudySpec,
    configuration: Configuration,
    processes: int,
    source: Any,
    rate: Interval,
    unit: Unit,
) -> ScalingPoint:
    base = configuration.smallest
    assert base is not None
    base_rate = throughput(base, unit)
    assert base_rate is not None
    speedup = rate.value / base_rate.median
    return ScalingPoint(
        processes=processes,
        source=source,
        throughput=rate,
        too_wide=source == "projected" and rate.too_wide,
        speedup=speedup,
        efficiency=speedup * base.processes / processes,
        cost_per_million=(
            cost_per_million(spec.cost, processes, rate.value) if spec.cost else None
        ),
    )


def _label(spec: ScalingStudySpec, values: dict[str, Any], total: int) -> str:
    if total == 1:
        return ""
    return label(values, {path: spec.matrix[path] for path in values})
