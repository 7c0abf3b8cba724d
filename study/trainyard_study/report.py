"""A study as text: the tables of its cells and of its scaling, notes, and number formats. Pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from trainyard_api.study import ScalingStudy, ScalingStudySpec
from trainyard_api.study_status import (
    CellResult,
    Interval,
    Machine,
    ScalingCurve,
    ScalingPoint,
    Spread,
)
from trainyard_lifecycle.status import format_bytes, format_count
from trainyard_study.cells import short_names, value_text, varied
from trainyard_study.results import throughput, throughput_unit

MISSING = "-"
BUSY_LOAD = 0.5  # load average per core above which figures are not reliable


@dataclass(frozen=True)
class Column:
    """A column: its title, and how it shows a row."""

    title: str
    show: Callable[[Any], str]
    figure: bool = True


@dataclass(frozen=True)
class Table:
    """Columns, and the text of each row."""

    columns: list[Column]
    rows: list[list[str]]


def cell_table(study: ScalingStudy) -> Table:
    """The values that distinguish the cells, then the figures that at least one cell has."""
    matrix, cells = study.spec.matrix, study.status.cells
    names = short_names(matrix)
    keys = [Column(names[path], partial(_value, path), figure=False) for path in varied(matrix)]
    unit = throughput_unit(cells)
    rate = Column(f"{unit}/s", lambda cell: _spread(throughput(cell, unit)))
    figures = [
        Column("p50 ms", lambda cell: _median(cell.step_seconds_p50, milliseconds)),
        Column("p99 ms", lambda cell: _median(cell.step_seconds_p99, milliseconds)),
        Column("peak memory", _peak),
        Column("vs first", lambda cell: _factor(cell.versus_first)),
        Column("speedup", lambda cell: _factor(cell.speedup)),
        Column("efficiency", lambda cell: _percent(cell.efficiency)),
        Column(_cost_title(study.spec, unit), lambda cell: _money(cell.cost_per_million)),
    ]
    if len({cell.processes for cell in cells}) == 1:
        figures = [column for column in figures if column.title not in ("speedup", "efficiency")]
    if len(study.status.curves) == 1 and len({cell.processes for cell in cells}) > 1:
        figures = [column for column in figures if column.title != "vs first"]
    processes = [Column("processes", lambda cell: str(cell.processes))]
    if "numProcPerNode" in varied(matrix) and "numNodes" not in matrix:
        keys = [key for key in keys if key.title != names["numProcPerNode"]]
    shown = [c for c in figures if any(c.show(cell) != MISSING for cell in cells)]
    columns = [*keys, *processes, rate, *shown]
    rows = []
    for cell in cells:
        row = [column.show(cell) for column in columns]
        if not cell.measurements:
            row[columns.index(rate)] = "failed" if cell.failure else "not run"
        rows.append(row)
    return Table(columns, rows)


def scaling_table(study: ScalingStudy) -> Table | None:
    """Every point of every curve; None if nothing was measured at two sizes."""
    points = [(curve, point) for curve in study.status.curves for point in curve.points]
    if all(curve.law is None for curve in study.status.curves):
        return None
    unit = study.status.curves[0].unit
    columns = [
        Column("configuration", lambda row: row[0].label, figure=False),
        Column("processes", lambda row: str(row[1].processes)),
        Column("", lambda row: row[1].source, figure=False),
        Column(f"{unit}/s", lambda row: _rate(row[1])),
        Column("speedup", lambda row: _scaled(row[1], row[1].speedup, _factor)),
        Column("efficiency", lambda row: _scaled(row[1], row[1].efficiency, _percent)),
        Column(_cost_title(study.spec, unit), lambda row: _cost(row[1])),
    ]
    columns = [c for c in columns if any(c.show(row) not in ("", MISSING) for row in points)]
    return Table(columns, [[column.show(row) for column in columns] for row in points])


def law_lines(study: ScalingStudy) -> list[str]:
    """For each configuration: the law and how well it fits, or why there is none."""
    lines = [_law_line(curve) for curve in study.status.curves]
    if any(point.too_wide for curve in study.status.curves for point in curve.points):
        lines.append(
            "Where only a range is given, the measured sizes do not determine the projection:"
            " measure a larger size before you pay for it."
        )
    return lines


def failures(study: ScalingStudy) -> list[str]:
    """A line for every failed cell."""
    lines = []
    for cell in study.status.cells:
        if failure := cell.failure:
            log = f" (log: {failure.log})" if failure.log else ""
            which = f"{cell.label}; repeat {failure.repeat}"
            lines.append(f"{which} failed: {failure.reason}: {failure.message}{log}")
    return lines


def conditions(spec: ScalingStudySpec, threads: int | None) -> str:
    """How each cell is measured, in a few words."""
    runs = "one run" if spec.repeats == 1 else f"{spec.repeats} interleaved runs"
    steps = f"of {spec.steps} steps after {spec.warmup_steps} of warm-up"
    each = f", {format_count(threads, 'thread')} per process" if threads else ""
    return f"{runs} {steps}{each}"


def notes(study: ScalingStudy) -> list[str]:
    """What a reader of the tables has to know."""
    spec, status = study.spec, study.status
    lines = [f"Each cell: {conditions(spec, status.threads_per_process)}."]
    if spec.repeats > 1:
        lines[0] += " Figures are medians, with minimum and maximum in parentheses."
    if status.completion_time is None:
        done = sum(len(cell.measurements) for cell in status.cells)
        lines.append(
            f"Unfinished: {format_count(done, 'run')} measured so far; medians are of these."
        )
    machine = status.machine
    if machine and machine.load is not None and machine.load > machine.cores * BUSY_LOAD:
        lines.append(
            f"Other programs kept the machine busy (load {machine.load:.1f} on"
            f" {format_count(machine.cores, 'core')}): measure again on an idle machine."
        )
    names = short_names(spec.matrix)
    if constant := [path for path in spec.matrix if path not in varied(spec.matrix)]:
        values = (f"{names[path]}={value_text(spec.matrix[path][0])}" for path in constant)
        lines.append(f"In every cell: {', '.join(values)}.")
    return lines


def machine_text(machine: Machine) -> str:
    """The machine in one line."""
    parts = [f"{machine.cores} x {machine.cpu}"]
    if machine.memory_bytes:
        parts[0] += f", {format_bytes(machine.memory_bytes)}"
    parts += machine.gpus or ["no GPU"]
    parts.append(f"Python {machine.python}")
    if machine.torch:
        parts.append(f"torch {machine.torch}")
    if machine.load is not None:
        parts.append(f"load {machine.load:.1f} at the start")
    return ", ".join(parts)


def number(value: float) -> str:
    """At least three significant digits: 0.120, 12.0, 1,234."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value < 10 else f"{value:.1f}"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds."""
    return number(seconds * 1e3)


def money(amount: float) -> str:
    """Three significant digits, never in scientific notation: 0.00123, 12.3, 1,234."""
    if amount >= 100:
        return f"{amount:,.0f}"
    if amount == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(amount)))
    return f"{amount:.{digits}f}"


def _law_line(curve: ScalingCurve) -> str:
    head = f"{curve.label}: " if curve.label else ""
    law = curve.law
    if law is None:
        return f"{head}no scaling law: {curve.why_no_law}."
    sizes = ", ".join(map(str, law.sizes))
    figures = [f"{head}{law.choice} from {sizes} processes"]
    if law.undecided:
        return f"{figures[0]}: projections are a weighted average of all."
    if law.kind != "linear":
        figures.append(f"sigma {_coefficient(law.sigma)}")
    if law.kind == "usl":
        figures.append(f"kappa {_coefficient(law.kappa)}")
    figures.append(f"residual {law.residual:.1%}")
    if law.kappa.value > 0:
        figures.append(f"fastest with about {law.best_processes:.0f} processes")
    return f"{'; '.join(figures)}."


def _coefficient(interval: Interval) -> str:
    middle, low, high = (f"{x:.3g}" for x in (interval.value, interval.low, interval.high))
    return middle if low == middle == high else f"{middle} ({low}–{high})"


def _spread(spread: Spread | None) -> str:
    """`1,234 (1,200–1,260)`; the median alone where all three round to the same."""
    if spread is None:
        return MISSING
    return _range(spread.median, spread.min, spread.max)


def _rate(point: ScalingPoint) -> str:
    """Only the range where it is too wide for a middle."""
    rate = point.throughput
    if point.too_wide:
        return f"{number(rate.low)}–{number(rate.high)}"
    return _range(rate.value, rate.low, rate.high)


def _scaled(point: ScalingPoint, value: float, show: Callable[[float], str]) -> str:
    """A figure that is proportional to the throughput."""
    if not point.too_wide:
        return show(value)
    rate = point.throughput
    return "–".join(show(value * end / rate.value) for end in (rate.low, rate.high))


def _cost(point: ScalingPoint) -> str:
    cost, rate = point.cost_per_million, point.throughput
    if cost is None or not point.too_wide:
        return _money(cost)
    return "–".join(money(cost * rate.value / end) for end in (rate.high, rate.low))


def _range(value: float, low: float, high: float) -> str:
    middle, lowest, highest = number(value), number(low), number(high)
    return middle if lowest == middle == highest else f"{middle} ({lowest}–{highest})"


def _value(path: str, cell: CellResult) -> str:
    value = cell.values[path]
    return MISSING if value is None else value_text(value)


def _median(spread: Spread | None, show: Callable[[float], str]) -> str:
    """Step times spread as the throughput does; study.json has the whole spread."""
    return MISSING if spread is None else show(spread.median)


def _peak(cell: CellResult) -> str:
    size = cell.peak_memory_bytes
    return MISSING if size is None else format_bytes(size)


def _factor(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0%}"


def _money(value: float | None) -> str:
    return MISSING if value is None else money(value)


def _cost_title(spec: ScalingStudySpec, unit: str) -> str:
    return f"{spec.cost.currency} / M {unit}" if spec.cost else ""
