"""Evaluates a study's measurements: configurations, medians, speedup, efficiency, cost. Pure."""

import itertools
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trainyard_api import labels
from trainyard_api.run import TrainingRun
from trainyard_api.study import Cost
from trainyard_api.study_status import CellFailure, CellResult, Measurement, Spread, Unit

NO_REPORT = "it succeeded without reporting its step times"
MAX_UNREPORTED = 2  # how many such runs of a cell are run again
_NODES, _PROCESSES = "numNodes", "numProcPerNode"
_BATCH, _ACCUMULATION = "config.batch_size", "config.gradient_accumulation_steps"
# Paths that may grow with the number of processes, as in weak scaling.
_SIZE_DEPENDENT = ((_BATCH, _ACCUMULATION), (_BATCH,), (_ACCUMULATION,), ())


@dataclass(frozen=True)
class Configuration:
    """The matrix's values without the size, and the cells that have them, smallest first."""

    values: dict[str, Any]
    cells: tuple[CellResult, ...]

    @property
    def smallest(self) -> CellResult | None:
        """The smallest measured cell: the baseline of the others."""
        return next((cell for cell in self.cells if cell.measurements), None)


def configurations(cells: Sequence[CellResult]) -> list[Configuration]:
    """The cells by configuration, in the order of their first cells.

    What only makes a cell larger is not part of its configuration: the numbers of nodes and
    processes, and the batch size or the accumulation steps where every size has just one value of
    them (weak scaling). Where two cells of a configuration would have the same size (2 x 1 and
    1 x 2), the number of processes per node distinguishes them.
    """
    for size, dependent in itertools.product(((_NODES, _PROCESSES), (_NODES,)), _SIZE_DEPENDENT):
        groups = _group(cells, without=(*size, *dependent))
        if all(_sizes_differ(group) for group in groups):
            return groups
    return _group(cells, without=())


def throughput_unit(cells: Sequence[CellResult]) -> Unit:
    """Tokens, if every measured cell reports them; else samples."""
    measured = [cell for cell in cells if cell.measurements]
    return "tokens" if measured and all(c.tokens_per_second for c in measured) else "samples"


def throughput(cell: CellResult, unit: Unit) -> Spread | None:
    """The cell's tokens or samples per second."""
    return cell.tokens_per_second if unit == "tokens" else cell.samples_per_second


def rates(cell: CellResult, unit: Unit) -> list[float]:
    """The throughput of every run of the cell."""
    if unit == "samples":
        return [run.samples_per_second for run in cell.measurements]
    return [run.tokens_per_second for run in cell.measurements if run.tokens_per_second]


def run_key(run: TrainingRun) -> tuple[int, int] | None:
    """(cell, repeat) of a study's run, from its labels; None if they don't say."""
    cell, repeat = run.metadata.labels.get(labels.CELL, ""), run.metadata.labels.get(labels.REPEAT)
    return (int(cell), int(repeat or 0)) if cell.isdecimal() else None


def measurement(run: TrainingRun, repeat: int) -> Measurement | None:
    """The figures of a run that has succeeded; None if its last report is missing.

    Throughput is the global batch divided by the mean step time after warm-up. All figures are of
    these steps: evaluation and checkpoints are not included.
    """
    status = run.status
    steps, batch = status.step_seconds, status.batch_size
    if steps is None or batch is None or steps.mean <= 0 or status.step != status.total_steps:
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


def why_discarded(cell: CellResult, run: TrainingRun) -> str:
    """Why a run that has succeeded says nothing about its cell; empty if it does."""
    if run.status.phase != "Succeeded":
        return ""
    if why := _interruption(run):
        return why
    if measurement(run, repeat=0):
        return ""
    known = run.metadata.uid in cell.unreported
    return NO_REPORT if known or len(cell.unreported) < MAX_UNREPORTED else ""


def failure(run: TrainingRun, repeat: int) -> CellFailure:
    """Why a run that failed, or reported nothing, gives its cell no figures."""
    status = run.status
    if status.phase == "Succeeded":
        message = f"{MAX_UNREPORTED + 1} runs succeeded without reporting their step times"
        return CellFailure(repeat=repeat, reason="NoReport", message=message, run=run.name)
    # A study's table names cells, not workers.
    worker = status.attempts[-1].pod if status.attempts else ""
    message = status.message.removeprefix(f"{worker}: ").removesuffix(" (maxRestarts 0 reached)")
    return CellFailure(repeat=repeat, reason=status.reason, message=message, run=run.name)


def _interruption(run: TrainingRun) -> str:
    """Why a run that has succeeded did not train all its steps in one go; empty if it did.

    After a disruption a run resumes from its newest checkpoint, and reports the times of those
    steps only that were left, if any were.
    """
    attempts = run.status.attempts
    last = attempts[-1] if attempts else None
    if last is None or last.resumed_from_step is None:
        return ""
    if last.number == 1 and run.spec.start_from:
        return ""  # it began with another run's checkpoint, as its spec says
    return f"it was interrupted, and resumed from step {last.resumed_from_step}"


def summarise(
    cells: list[CellResult], configurations: list[Configuration], cost: Cost | None
) -> None:
    """Fill in every cell's figures from the measurements so far."""
    for cell in cells:
        _set_spreads(cell)
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
    """(finished runs, all runs); a failed cell is not repeated."""
    done = total = 0
    for cell in cells:
        finished = len(cell.measurements) + (1 if cell.failure else 0)
        done += finished
        total += finished if cell.failure else repeats
    return done, total


def cost_per_million(cost: Cost, processes: int, rate: float) -> float:
    """The cost of a million tokens (or samples) at `rate` per second."""
    return cost.per_process_hour * processes / 3600 * 1e6 / rate


def spread(values: Iterable[float]) -> Spread | None:
    """Median, minimum and maximum; None if there are no values."""
    known = list(values)
    if not known:
        return None
    return Spread(median=statistics.median(known), min=min(known), max=max(known))


def _set_spreads(cell: CellResult) -> None:
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


def _group(cells: Sequence[CellResult], without: tuple[str, ...]) -> list[Configuration]:
    groups: dict[str, list[CellResult]] = {}
    for cell in cells:
        groups.setdefault(json.dumps(_values(cell, without), default=str), []).append(cell)
    return [
        Configuration(_values(group[0], without), tuple(sorted(group, key=lambda c: c.processes)))
        for group in groups.values()
    ]


def _values(cell: CellResult, without: tuple[str, ...]) -> dict[str, Any]:
    return {path: value for path, value in cell.values.items() if path not in without}


def _sizes_differ(group: Configuration) -> bool:
    return max(Counter(cell.processes for cell in group.cells).values()) == 1
