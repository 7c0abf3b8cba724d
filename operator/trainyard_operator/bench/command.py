"""`trainyard bench`: measure a matrix of training runs; print and save one table and a chart."""

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from trainyard_api.bench import BenchSpec
from trainyard_api.bench_report import BenchReport, CellFailure, CellResult
from trainyard_operator.bench.cells import Cell
from trainyard_operator.bench.display import new_display
from trainyard_operator.bench.file import load
from trainyard_operator.bench.machine import commit, this_machine
from trainyard_operator.bench.results import summarise
from trainyard_operator.bench.runner import Runner, refuse_if_none_can_start, same_threads
from trainyard_operator.bench.table import conditions, failures, markdown, notes, terminal
from trainyard_operator.local.run import EXIT_INTERRUPTED, stop_on_signals
from trainyard_operator.local.store import UserError, write_atomic
from trainyard_operator.status import counted

REPORT = "bench.json"
TABLE = "bench.md"
CHART = "bench.png"
WIDE = 200  # columns of the table where no terminal sets a limit


def bench(file: Path, *, repeats: int | None, steps: int | None, out: Path | None) -> int:
    """Measure the file's matrix; returns the exit status, 0 if every run of every cell succeeded.

    Raises UserError, before anything runs, for what is wrong with the file.
    """
    options: dict[str, Any] = {"repeats": repeats, "steps": steps}
    given = {name: value for name, value in options.items() if value is not None}
    spec, cells = load(file, given)
    refuse_if_none_can_start(cells)
    started = datetime.now(UTC)
    directory = _new_directory(out, spec, started)
    command = ["trainyard", "bench", str(file)]
    command += [part for name, value in given.items() for part in (f"--{name}", str(value))]
    with same_threads(cells) as threads:
        report = BenchReport(
            name=spec.name or file.stem,
            command=shlex.join(command),
            commit=commit(),
            start_time=started,
            threads_per_process=threads,
            machine=this_machine(),
            spec=spec,
            cells=[CellResult(values=cell.values, processes=cell.processes) for cell in cells],
        )
        interrupted = _measure(cells, report, directory)
    _tell(report, directory)
    if interrupted:
        return EXIT_INTERRUPTED
    return 1 if any(cell.failure for cell in report.cells) else 0


def _measure(cells: list[Cell], report: BenchReport, directory: Path) -> bool:
    """Run every cell in turn, `repeats` times over; True if the user stopped it.

    Interleaved, so that a machine which slows down slows down for all. The figures are saved after
    every run. A cell that failed is not repeated.
    """
    repeats = report.spec.repeats
    runner = Runner(directory)
    display = new_display(len(cells) * repeats)
    how = conditions(report.spec, report.threads_per_process)
    display.say(f"{counted(len(cells), 'cell')}; each {how}")
    try:
        with stop_on_signals() as stop, display:
            for repeat in range(1, repeats + 1):
                for cell, result in zip(cells, report.cells, strict=True):
                    if result.failure:
                        continue
                    display.begin(cell, repeat)
                    outcome = runner.measure(cell, repeat, display, stop)
                    if outcome is None:
                        return True
                    if isinstance(outcome, CellFailure):
                        result.failure = outcome
                        display.skip(repeats - repeat)
                    else:
                        result.measurements.append(outcome)
                    display.end(cell, repeat, outcome)
                    _save(report, directory)
                    if stop.requests:
                        return True
        report.end_time = datetime.now(UTC)
        return False
    finally:
        runner.tidy()


def _save(report: BenchReport, directory: Path) -> None:
    summarise(report.cells)
    write_atomic(directory / REPORT, report.model_dump_json(by_alias=True, indent=1) + "\n")


def _tell(report: BenchReport, directory: Path) -> None:
    """The table, why cells failed, and where everything is."""
    _save(report, directory)
    write_atomic(directory / TABLE, markdown(report))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    console.print()
    console.print(terminal(report))
    for line in failures(report):
        print(f"  {line}")
    for line in notes(report):
        print(f"  {line}")
    print(f"  table   {directory / TABLE}")
    print(f"  figures {directory / REPORT}")
    try:
        from trainyard_operator.bench.chart import draw

        draw(report, directory / CHART)
        print(f"  chart   {directory / CHART}")
    except ImportError:
        print("  chart   not drawn: matplotlib is not installed (pip install 'trainyard[trainer]')")


def _new_directory(out: Path | None, spec: BenchSpec, now: datetime) -> Path:
    """Where to save everything; an earlier bench is never overwritten."""
    stamp = now.astimezone().strftime("%Y%m%d-%H%M%S")
    directory = out or Path("bench") / f"{spec.name}-{stamp}"
    if (directory / REPORT).exists():
        raise UserError(f"{directory} already holds a bench: give --out another directory")
    directory.mkdir(parents=True, exist_ok=True)
    return directory
