"""A bench as one table: for the terminal, and as Markdown with all that it takes to repeat it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from trainyard_api.bench import BenchSpec
from trainyard_api.bench_report import BenchReport, CellResult, Machine, Spread
from trainyard_operator.bench.cells import label, short_names, value_text, varied
from trainyard_operator.bench.units import memory, milliseconds, number
from trainyard_operator.status import counted

MISSING = "-"
HEADER_WIDTH = 9  # letters
BUSY = 0.5  # load per core, before the bench began, at which figures say little


@dataclass(frozen=True)
class Column:
    """One column: its title, and what it shows of a cell."""

    title: str
    show: Callable[[CellResult], str]
    figure: bool = True


def columns(report: BenchReport) -> list[Column]:
    """What tells the cells apart, samples/s, then the figures that at least one cell has."""
    matrix, cells = report.spec.matrix, report.cells
    names = short_names(matrix)
    keys = [Column(names[path], partial(_value, path), figure=False) for path in varied(matrix)]
    figures = [
        Column("samples/s", lambda cell: _spread(cell.samples_per_second, number)),
        Column("tokens/s", lambda cell: _median(cell.tokens_per_second, number)),
        Column("vs first", lambda cell: _factor(cell.speedup)),
        Column("efficiency", lambda cell: _percent(cell.efficiency)),
        Column("step ms", lambda cell: _median(cell.step_seconds, milliseconds)),
        Column("p99 ms", lambda cell: _median(cell.step_seconds_p99, milliseconds)),
        Column("peak memory", _peak),
    ]
    shown = figures[:1] + [c for c in figures[1:] if any(c.show(cell) != MISSING for cell in cells)]
    if all(cell.processes == 1 for cell in cells):
        shown = [column for column in shown if column.title != "efficiency"]
    return keys + shown


def rows(report: BenchReport) -> list[list[str]]:
    """The cells as the columns show them; one without figures says why in their place."""
    shown = columns(report)
    found = []
    for cell in report.cells:
        row = [column.show(cell) for column in shown]
        if cell.samples_per_second is None:
            row[len(varied(report.spec.matrix))] = "failed" if cell.failure else "not run"
        found.append(row)
    return found


def failures(report: BenchReport) -> list[str]:
    """A line for every cell that failed."""
    lines = []
    for cell in report.cells:
        if failure := cell.failure:
            which = f"{label(cell.values, report.spec.matrix)}; repeat {failure.repeat}"
            log = f" (log: {failure.log})" if failure.log else ""
            lines.append(f"{which} failed: {failure.reason}: {failure.message}{log}")
    return lines


def conditions(spec: BenchSpec, threads: str) -> str:
    """How it is measured, in a few words."""
    parts = [
        "one run" if spec.repeats == 1 else f"{spec.repeats} interleaved runs",
        f"of {spec.steps} steps after {spec.warmup_steps} of warm-up,",
        f"{threads} thread{'' if threads == '1' else 's'} per process",
    ]
    return " ".join(parts)


def notes(report: BenchReport) -> list[str]:
    """What to know when reading the table."""
    spec = report.spec
    lines = [f"Each cell: {conditions(spec, report.threads_per_process)}."]
    if spec.repeats > 1:
        lines[0] += " Figures are medians, in brackets the least and the most."
    if report.end_time is None:
        done = sum(len(cell.measurements) for cell in report.cells)
        lines.append(f"Interrupted after {counted(done, 'run')}: medians are of what there is.")
    machine = report.machine
    if machine.load is not None and machine.load > machine.cores * BUSY:
        lines.append(
            f"Other programs kept the machine busy (load {machine.load:.1f} on"
            f" {counted(machine.cores, 'core')}): measure again when it is idle."
        )
    names = short_names(spec.matrix)
    if alike := [path for path in spec.matrix if path not in varied(spec.matrix)]:
        values = (f"{names[path]}={value_text(spec.matrix[path][0])}" for path in alike)
        lines.append(f"In every cell: {', '.join(values)}.")
    return lines


def machine_text(machine: Machine) -> str:
    """The machine in one line."""
    parts = [f"{machine.cores} x {machine.cpu}"]
    if machine.memory_bytes:
        parts[0] += f", {memory(machine.memory_bytes)}"
    parts += machine.gpus or ["no GPU"]
    parts.append(f"Python {machine.python}")
    if machine.torch:
        parts.append(f"torch {machine.torch}")
    if machine.load is not None:
        parts.append(f"load {machine.load:.1f} when it began")
    return ", ".join(parts)


def terminal(report: BenchReport) -> RenderableType:
    """The table for a terminal."""
    shown = columns(report)
    table = Table(
        title=report.name, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    for column in shown:
        justify: Literal["left", "right"] = "right" if column.figure else "left"
        table.add_column(_stacked(column.title), justify=justify, vertical="bottom")
    for cell, row in zip(report.cells, rows(report), strict=True):
        style = None if cell.samples_per_second else ("red" if cell.failure else "dim")
        table.add_row(*map(escape, row), style=style)
    return table


def markdown(report: BenchReport) -> str:
    """bench.md."""
    shown = columns(report)
    lines = [
        f"# {report.name}",
        "",
        f"`{report.command}`" + (f", commit {report.commit}" if report.commit else ""),
        "",
        *notes(report),
        f"Machine: {machine_text(report.machine)}.",
        "",
        _markdown_row([column.title for column in shown]),
        _markdown_row(["---:" if column.figure else "---" for column in shown]),
        *(_markdown_row(row) for row in rows(report)),
    ]
    if failed := failures(report):
        lines += ["", *(f"- {line}" for line in failed)]
    return "\n".join(lines) + "\n"


def _spread(spread: Spread | None, show: Callable[[float], str]) -> str:
    """`1,234 (1,200–1,260)`; the median alone where the three read the same."""
    if spread is None:
        return MISSING
    median, least, most = show(spread.median), show(spread.min), show(spread.max)
    return median if least == most == median else f"{median} ({least}–{most})"


def _value(path: str, cell: CellResult) -> str:
    value = cell.values[path]
    return MISSING if value is None else value_text(value)


def _median(spread: Spread | None, show: Callable[[float], str]) -> str:
    """The spread of what a step takes is that of the samples/s; bench.json has it all."""
    return MISSING if spread is None else show(spread.median)


def _peak(cell: CellResult) -> str:
    size = cell.peak_memory_bytes
    return MISSING if size is None else memory(size)


def _factor(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.0%}"


def _stacked(title: str) -> str:
    """`activation_checkpointing`, `numProcPerNode` or `peak memory` as lines of a narrow header."""
    lines = [""]
    for word in re.findall(r"[A-Z]?[^A-Z_ ]+[_ ]?|.", title):
        if lines[-1] and len(lines[-1] + word) > HEADER_WIDTH:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.strip() for line in lines)


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
