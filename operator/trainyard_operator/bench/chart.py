"""Draws a bench: a bar per cell for throughput and peak memory, whiskers from least to most."""

from pathlib import Path
from typing import Any

from trainyard_api.bench_report import BenchReport, CellResult
from trainyard_operator.bench.cells import label, short_names, value_text, varied
from trainyard_operator.bench.table import conditions
from trainyard_operator.bench.units import number

# Told apart by every kind of colour vision, and in grey by their lightness (Okabe and Ito, 2008).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#555555")
WHISKERS = {"ecolor": "#222222", "elinewidth": 1.2, "capsize": 3}


def draw(report: BenchReport, path: Path) -> None:
    """Write the picture. Raises ImportError where matplotlib is not installed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = report.cells
    figure = Figure(figsize=(11, 1.9 + 0.42 * len(cells)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    speed, memory = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = list(range(len(cells)))
    colours, legend = _colours(report)
    _speed_bars(speed, cells, places, colours)
    _memory_bars(memory, cells, places, colours)
    speed.set_yticks(places, [label(cell.values, report.spec.matrix) for cell in cells])
    speed.set_ylim(len(cells) - 0.4, -0.6)  # the first cell on top, as in the table
    for axes in (speed, memory):
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if legend:
        from matplotlib.patches import Patch

        handles = [Patch(color=colour, label=text) for text, colour in legend.items()]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles), frameon=False
        )
    how = conditions(report.spec, report.threads_per_process)
    figure.suptitle(f"{report.name}: {how}", fontsize=11)
    figure.savefig(path, format="png")


def _speed_bars(axes: Any, cells: list[CellResult], places: list[int], colours: list[str]) -> None:
    spreads = [cell.samples_per_second for cell in cells]
    most = max((spread.max for spread in spreads if spread), default=1.0)
    for place, cell, spread, colour in zip(places, cells, spreads, colours, strict=True):
        if spread is None:
            word = "failed" if cell.failure else "not run"
            axes.text(most * 0.01, place, word, va="center", color="#b00020", style="italic")
            continue
        whisker = [[spread.median - spread.min], [spread.max - spread.median]]
        axes.barh(place, spread.median, 0.72, color=colour)
        if spread.min < spread.max:
            axes.errorbar(spread.median, place, xerr=whisker, fmt="none", **WHISKERS)
        text = number(spread.median)
        if cell.processes > 1 and cell.efficiency is not None:
            text += f"  ({cell.efficiency:.0%} efficient)"
        axes.text(spread.max + most * 0.015, place, text, va="center", fontsize=9)
    axes.set_xlim(0, most * 1.32)
    axes.set_xlabel("samples/s")


def _memory_bars(axes: Any, cells: list[CellResult], places: list[int], colours: list[str]) -> None:
    sizes = [(cell.peak_memory_bytes or 0) / 2**20 for cell in cells]
    for place, size, colour in zip(places, sizes, colours, strict=True):
        if size:
            axes.barh(place, size, 0.72, color=colour)
            axes.text(size + max(sizes) * 0.015, place, f"{size:,.0f}", va="center", fontsize=9)
    axes.set_xlim(0, (max(sizes) or 1) * 1.22)
    axes.set_xlabel("peak memory of a process, MiB")


def _colours(report: BenchReport) -> tuple[list[str], dict[str, str]]:
    """A colour per cell, by the first path that varies, and what each means."""
    path = varied(report.spec.matrix)[0]
    values = [value_text(value) for value in report.spec.matrix[path]]
    if len(values) == 1:
        return [COLOURS[0]] * len(report.cells), {}
    by_value = {value: COLOURS[i % len(COLOURS)] for i, value in enumerate(values)}
    name = short_names(report.spec.matrix)[path]
    legend = {f"{name}={value}": colour for value, colour in by_value.items()}
    return [by_value[value_text(cell.values[path])] for cell in report.cells], legend
