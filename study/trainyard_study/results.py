"""What follows from a study's measurements: a figure per run, then medians and spreads. Pure."""

import statistics
from collections.abc import Iterable

from trainyard_api import labels
from trainyard_api.run import TrainingRun
from trainyard_api.study import Cost
from trainyard_api.study_status import CellFailure, CellResult, Measurement, Spread
from trainyard_study.configurations import Configuration, throughput, throughput_unit

NO_REPORT = "the run succeeded but left no report of its step times"


def run_key(run: TrainingRun) -> tuple[int, int] | None:
    """(cell, repeat) of a study's run; None where its labels say nothing of the kind."""
    cell, repeat = run.metadata.labels.get(labels.CELL, ""), run.metadata.labels.get(labels.REPEAT)
    return (int(cell), int(repeat or 0)) if cell.isdecimal() else None


def measurement(run: TrainingRun, repeat: int) -> Measurement | None:
    """The figures of a finished run; None if it measured no step.

    Throughput is the global batch over the mean step time after the warm-up: the same steps that
    the other figures are of, and neither evaluation nor checkpoints.
    """
    status = run.status
    steps, batch = status.step_seconds, status.batch_size
    if steps is None or batch is None or steps.mean <= 0:
        return None
    tokens = status.tokens_per_batch
    start, end = status.start_time, status.completion_time
    return Measurement(
        repeat=repeat,
        batch_size=batch,
        samples_per_second=batch / steps.mean,
        tokens_per_second=tokens / steps.mean if tokens else None,
        step_seconds=steps,
        peak_memory_bytes=status.peak_memory_bytes,
        loss=status.loss,
        seconds=round((end - start).total_seconds(), 3) if start and end else 0.0,
    )


def failure(run: TrainingRun, repeat: int) -> CellFailure:
    """Why a failed run, or one that measured nothing, gives its cell no figures."""
    status = run.status
    if status.phase == "Succeeded":
        return CellFailure(repeat=repeat, reason="NoReport", message=NO_REPORT, run=run.name)
    # The worker's name is an affair of the run's.
    worker = status.attempts[-1].pod if status.attempts else ""
    message = status.message.removeprefix(f"{worker}: ").removesuffix(" (maxRestarts 0 reached)")
    return CellFailure(repeat=repeat, reason=status.reason, message=message, run=run.name)


def summarise(
    cells: list[CellResult], configurations: list[Configuration], cost: Cost | None
) -> None:
    """Fill in every cell's figures from all the measurements there are."""
    for cell in cells:
        _spreads(cell)
    unit = throughput_unit(cells)
    first = _median(throughput(cells[0], unit)) if cells else None
    for cell in cells:
        cell.versus_first = _ratio(_median(throughput(cell, unit)), first)
    for configuration in configurations:
        base = configuration.smallest
        for cell in configuration.cells:
            rate = _median(throughput(cell, unit))
            cell.speedup = cell.efficiency = cell.cost_per_million = None
            if base is not None:
                cell.speedup = _ratio(rate, _median(throughput(base, unit)))
            if cell.speedup is not None and base is not None:
                cell.efficiency = cell.speedup * base.processes / cell.processes
            if cost is not None and rate:
                cell.cost_per_million = cost_per_million(cost, cell.processes, rate)


def progress(cells: Iterable[CellResult], repeats: int) -> tuple[int, int]:
    """(runs done, all runs): a cell that has failed is not repeated."""
    done = total = 0
    for cell in cells:
        over = len(cell.measurements) + (1 if cell.failure else 0)
        done += over
        total += over if cell.failure else repeats
    return done, total


def cost_per_million(cost: Cost, processes: int, rate: float) -> float:
    """What a million tokens (or samples) cost at `rate` per second."""
    return cost.per_process_hour * processes / 3600 * 1e6 / rate


def spread(values: Iterable[float]) -> Spread | None:
    """Median, least and most; None of nothing."""
    found = list(values)
    if not found:
        return None
    return Spread(median=statistics.median(found), min=min(found), max=max(found))


def _spreads(cell: CellResult) -> None:
    runs = cell.measurements
    cell.samples_per_second = spread(run.samples_per_second for run in runs)
    cell.tokens_per_second = spread(
        run.tokens_per_second for run in runs if run.tokens_per_second is not None
    )
    cell.step_seconds = spread(run.step_seconds.mean for run in runs)
    cell.step_seconds_p50 = spread(run.step_seconds.p50 for run in runs)
    cell.step_seconds_p99 = spread(run.step_seconds.p99 for run in runs)
    cell.peak_memory_bytes = max(
        (run.peak_memory_bytes for run in runs if run.peak_memory_bytes), default=None
    )


def _median(spread: Spread | None) -> float | None:
    return spread.median if spread else None


def _ratio(rate: float | None, base: float | None) -> float | None:
    return rate / base if rate is not None and base else None
