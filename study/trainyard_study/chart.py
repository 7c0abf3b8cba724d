"""Draws a study: the throughput of each cell, and speedup over processes with the fitted law."""

from pathlib import Path
from typing import Any

from trainyard_api.study import ScalingStudy
from trainyard_api.study_status import CellResult, ScalingCurve
from trainyard_study.fit import fit
from trainyard_study.report import conditions, number
from trainyard_study.results import (
    Configuration,
    configurations,
    rates,
    throughput,
    throughput_unit,
)

# Distinct with every kind of colour vision, and in grey by lightness (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#555555")
WHISKERS = {"ecolor": "#222222", "elinewidth": 1.2, "capsize": 3}
LAW_POINTS = 60


def draw(study: ScalingStudy, path: Path) -> None:
    """Write the chart as PNG. Raises ImportError if matplotlib is not installed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells, laws = study.status.cells, [curve for curve in study.status.curves if curve.law]
    height = max(1.9 + 0.42 * len(cells), 4.2 if laws else 0)
    figure = Figure(figsize=(12 if laws else 8, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        1, 2 if laws else 1, squeeze=False, width_ratios=(1,) * (1 + bool(laws))
    )
    _throughput(panels[0][0], study)
    if laws:
        _speedup(panels[0][1], study)
    for axes in panels[0]:
        axes.grid(alpha=0.25, axis="both" if axes is not panels[0][0] else "x")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    how = conditions(study.spec, study.status.threads_per_process)
    figure.suptitle(f"{study.name}: {how}", fontsize=11)
    figure.savefig(path, format="png")


def _colours(study: ScalingStudy) -> dict[int, str]:
    """A colour per configuration, by the number of each of its cells."""
    return {
        cell.number: COLOURS[index % len(COLOURS)]
        for index, configuration in enumerate(configurations(study.status.cells))
        for cell in configuration.cells
    }


def _throughput(axes: Any, study: ScalingStudy) -> None:
    """A bar per cell; whiskers from minimum to maximum."""
    cells, unit = study.status.cells, throughput_unit(study.status.cells)
    spreads = [throughput(cell, unit) for cell in cells]
    highest = max((spread.max for spread in spreads if spread), default=1.0)
    colours = _colours(study)
    for position, (cell, spread) in enumerate(zip(cells, spreads, strict=True)):
        if spread is None:
            text = "failed" if cell.failure else "not run"
            axes.text(highest * 0.01, position, text, va="center", color="#b00020", style="italic")
            continue
        whisker = [[spread.median - spread.min], [spread.max - spread.median]]
        axes.barh(position, spread.median, 0.72, color=colours[cell.number])
        if spread.min < spread.max:
            axes.errorbar(spread.median, position, xerr=whisker, fmt="none", **WHISKERS)
        axes.text(
            spread.max + highest * 0.015, position, _bar_text(cell, spread.median), va="center"
        )
    axes.set_xlim(0, highest * 1.4)
    axes.set_xlabel(f"{unit}/s")
    axes.set_yticks(range(len(cells)), [cell.label for cell in cells])
    axes.set_ylim(len(cells) - 0.4, -0.6)  # the first cell on top, as in the table


def _bar_text(cell: CellResult, rate: float) -> str:
    text = number(rate)
    if cell.speedup is not None and cell.efficiency is not None and cell.speedup != 1:
        text += f"  ({cell.efficiency:.0%} efficient)"
    return text


def _speedup(axes: Any, study: ScalingStudy) -> None:
    """Measured points, the ideal, and each law, dashed outside the measured range.

    Where a law's interval is too wide for a middle, only the interval is drawn.
    """
    by_values = {str(item.values): item for item in configurations(study.status.cells)}
    colours = _colours(study)
    curves = [curve for curve in study.status.curves if curve.law]
    for curve in curves:
        configuration = by_values[str(curve.configuration)]
        _curve(axes, curve, configuration, colours[configuration.cells[0].number])
    points = [point for curve in curves for point in curve.points]
    smallest, largest = (pick(p.processes for p in points) for pick in (min, max))
    ideal = largest / smallest
    axes.plot([smallest, largest], [1, ideal], color="#888888", lw=1, ls=":", label="ideal")
    axes.set_xlim(0, largest * 1.03)
    # Where it scales badly the ideal leaves the picture, not the measurements.
    axes.set_ylim(0, min(ideal, 2.5 * max(point.speedup for point in points)) * 1.03)
    axes.set_xlabel("processes")
    axes.set_ylabel("speedup")
    axes.legend(frameon=False, loc="upper left", fontsize=9)


def _curve(axes: Any, curve: ScalingCurve, configuration: Configuration, colour: str) -> None:
    """Draw one configuration."""
    law = fit({cell.processes: rates(cell, curve.unit) for cell in configuration.cells})
    measured = [point for point in curve.points if point.source == "measured"]
    base = measured[0].throughput.value
    end, largest = measured[-1].processes, max(point.processes for point in curve.points)
    name = f"{curve.label} " if curve.label else ""
    axes.errorbar(
        [point.processes for point in measured],
        [point.speedup for point in measured],
        yerr=[
            [(point.throughput.value - point.throughput.low) / base for point in measured],
            [(point.throughput.high - point.throughput.value) / base for point in measured],
        ],
        fmt="o",
        color=colour,
        capsize=3,
        label=f"{name}measured",
        zorder=3,
    )
    start = measured[0].processes
    sizes = [start + (largest - start) * i / LAW_POINTS for i in range(LAW_POINTS + 1)]
    intervals = [law.throughput(size) for size in sizes]
    axes.fill_between(
        sizes,
        [interval.low / base for interval in intervals],
        [interval.high / base for interval in intervals],
        color=colour,
        alpha=0.15,
        lw=0,
    )
    inside = [(n, t.value / base) for n, t in zip(sizes, intervals, strict=True) if n <= end]
    beyond = [
        (n, t.value / base)
        for n, t in zip(sizes, intervals, strict=True)
        if n >= end and not t.too_wide
    ]
    inside.append((end, law.throughput(end).value / base))
    axes.plot(*zip(*inside, strict=True), color=colour, lw=1.5)
    axes.plot(
        *zip(inside[-1], *beyond, strict=True),
        color=colour,
        lw=1.5,
        ls="--",
        label=f"{name}projected",
    )
