"""What follows from a bench's measurements: medians, spreads, speed-up and efficiency. Pure."""

import statistics
from collections.abc import Iterable
from typing import Any

from trainyard_api.bench_report import CellResult, Measurement, Spread
from trainyard_api.progress import ProgressReport

# What makes a cell larger, not another configuration.
SIZE_PATHS = ("numNodes", "numProcPerNode")


def measurement(report: ProgressReport, repeat: int, seconds: float) -> Measurement | None:
    """The figures of a finished run's last report; None if it measured no step.

    Throughput is the global batch over the mean step time after the warm-up: the same steps that
    the other figures are of, and neither evaluation nor checkpoints.
    """
    steps, batch = report.step_seconds, report.batch_size
    if steps is None or batch is None:
        return None
    samples = batch / steps.mean
    tokens = None
    if report.tokens_per_second and report.samples_per_second:
        tokens = samples * report.tokens_per_second / report.samples_per_second
    return Measurement(
        repeat=repeat,
        batch_size=batch,
        samples_per_second=samples,
        tokens_per_second=tokens,
        step_seconds=steps,
        peak_memory_bytes=report.peak_memory_bytes,
        loss=report.loss,
        seconds=seconds,
    )


def summarise(cells: list[CellResult]) -> None:
    """Fill in every cell's figures from all the measurements there are."""
    for cell in cells:
        runs = cell.measurements
        cell.samples_per_second = spread(run.samples_per_second for run in runs)
        cell.tokens_per_second = spread(
            run.tokens_per_second for run in runs if run.tokens_per_second is not None
        )
        cell.step_seconds = spread(run.step_seconds.mean for run in runs)
        cell.step_seconds_p99 = spread(run.step_seconds.p99 for run in runs)
        cell.peak_memory_bytes = max(
            (run.peak_memory_bytes for run in runs if run.peak_memory_bytes), default=None
        )
    for cell in cells:
        cell.speedup = _ratio(cell, cells[0])
        single = _single_process(cell, cells)
        ratio = _ratio(cell, single) if single else None
        cell.efficiency = ratio / cell.processes if ratio is not None else None


def spread(values: Iterable[float]) -> Spread | None:
    """Median, least and most; None of nothing."""
    found = list(values)
    if not found:
        return None
    return Spread(median=statistics.median(found), min=min(found), max=max(found))


def _single_process(cell: CellResult, cells: list[CellResult]) -> CellResult | None:
    """The same configuration with one process."""
    configuration = _configuration(cell)
    alike = (other for other in cells if _configuration(other) == configuration)
    return next((other for other in alike if other.processes == 1), None)


def _configuration(cell: CellResult) -> list[tuple[str, Any]]:
    return [(path, value) for path, value in cell.values.items() if path not in SIZE_PATHS]


def _ratio(cell: CellResult, base: CellResult) -> float | None:
    if cell.samples_per_second is None or base.samples_per_second is None:
        return None
    return cell.samples_per_second.median / base.samples_per_second.median
