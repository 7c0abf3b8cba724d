"""A study as tables: of its cells, and of how each configuration scales. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from trainyard_api.study import ScalingStudy, ScalingStudySpec
from trainyard_api.study_status import CellResult, ScalingPoint, Spread
from trainyard_study.cells import short_names, value_text, varied
from trainyard_study.configurations import throughput, throughput_unit
from trainyard_study.units import memory, milliseconds, money, number

MISSING = "-"


@dataclass(frozen=True)
class Column:
    """One column: its title, and what it shows of a row."""

    title: str
    show: Callable[[Any], str]
    figure: bool = True


@dataclass(frozen=True)
class Table:
    """Columns and what they show of each row."""

    columns: list[Column]
    rows: list[list[str]]


def cell_table(study: ScalingStudy) -> Table:
    """What tells the cells apart, then the figures that at least one cell has."""
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
    """Every point of every curve; None where nothing was measured at two sizes."""
    found = [(curve, point) for curve in study.status.curves for point in curve.points]
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
    columns = [c for c in columns if any(c.show(row) not in ("", MISSING) for row in found)]
    return Table(columns, [[column.show(row) for column in columns] for row in found])


def _spread(spread: Spread | None) -> str:
    """`1,234 (1,200–1,260)`; the median alone where the three read the same."""
    if spread is None:
        return MISSING
    return _range(spread.median, spread.min, spread.max)


def _rate(point: ScalingPoint) -> str:
    """The ends alone where the middle says nothing."""
    found = point.throughput
    if point.too_wide:
        return f"{number(found.low)}–{number(found.high)}"
    return _range(found.value, found.low, found.high)


def _scaled(point: ScalingPoint, value: float, show: Callable[[float], str]) -> str:
    """A figure that is proportional to the throughput."""
    if not point.too_wide:
        return show(value)
    found = point.throughput
    return "–".join(show(value * end / found.value) for end in (found.low, found.high))


def _cost(point: ScalingPoint) -> str:
    cost, found = point.cost_per_million, point.throughput
    if cost is None or not point.too_wide:
        return _money(cost)
    return "–".join(money(cost * found.value / end) for end in (found.high, found.low))


def _range(value: float, low: float, high: float) -> str:
    middle, least, most = number(value), number(low), number(high)
    return middle if least == most == middle else f"{middle} ({least}–{most})"


def _value(path: str, cell: CellResult) -> str:
    value = cell.values[path]
    return MISSING if value is None else value_text(value)


def _median(spread: Spread | None, show: Callable[[float], str]) -> str:
    """The spread of what a step takes is that of the throughput; study.json has it all."""
    return MISSING if spread is None else show(spread.median)


def _peak(cell: CellResult) -> str:
    size = cell.peak_memory_bytes
    return MISSING if size is None else memory(size)


def _factor(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0%}"


def _money(value: float | None) -> str:
    return MISSING if value is None else money(value)


def _cost_title(spec: ScalingStudySpec, unit: str) -> str:
    return f"{spec.cost.currency} / M {unit}" if spec.cost else ""
