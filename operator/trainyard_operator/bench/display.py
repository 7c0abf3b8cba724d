"""Shows a bench as it goes: bars on a terminal, and a line for every finished run."""

import sys
import time
from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from trainyard_api.bench_report import CellFailure, Measurement
from trainyard_operator.bench.cells import Cell
from trainyard_operator.bench.units import memory, milliseconds, number
from trainyard_operator.local.display import Display, View
from trainyard_operator.plan import RunEvent
from trainyard_operator.status import duration_text


class BenchDisplay(Display):
    """A line for every finished run: for logs and pipes."""

    def __init__(self, total: int) -> None:
        """`total`: runs of the whole bench."""
        self._total = total
        self._number = 0
        self._began = time.monotonic()

    def begin(self, cell: Cell, repeat: int) -> None:
        """Another run begins."""
        self._number += 1

    def end(self, cell: Cell, repeat: int, outcome: Measurement | CellFailure) -> None:
        """It has ended, with figures or without."""
        head = f"[{self._number}/{self._total}] {cell.label}; repeat {repeat}"
        if isinstance(outcome, CellFailure):
            self.say(f"{head}: failed: {outcome.reason}: {outcome.message}")
            return
        parts = [
            f"{number(outcome.samples_per_second)} samples/s",
            f"{milliseconds(outcome.step_seconds.mean)} ms a step",
        ]
        if outcome.peak_memory_bytes:
            parts.append(f"peak {memory(outcome.peak_memory_bytes)}")
        self.say(f"{head}: {', '.join(parts)} ({duration_text(outcome.seconds)})")

    def skip(self, runs: int) -> None:
        """So many of the runs won't be needed."""
        self._total -= runs

    def left(self) -> str:
        """How long the rest will take if it takes as long as what is done; empty at first."""
        done = self._number - 1
        if done < 1:
            return ""
        each = (time.monotonic() - self._began) / done
        return f"{duration_text(each * (self._total - done))} left"


class LiveBenchDisplay(BenchDisplay):
    """Also bars for the bench and for its current run."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self._console = Console(highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
            transient=True,
        )
        self._runs = self._progress.add_task("", total=total, note="")
        self._steps: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, cell: Cell, repeat: int) -> None:
        super().begin(cell, repeat)
        self._progress.update(
            self._runs,
            description=f"run {self._number} of {self._total}",
            completed=self._number - 1,
            total=self._total,
            note=", ".join(filter(None, (self.left(), "Ctrl-C ends the bench"))),
        )
        if self._steps is not None:
            self._progress.remove_task(self._steps)
        description = f"{cell.label}; repeat {repeat}"
        self._steps = self._progress.add_task(description, total=None, note="")

    def show(self, view: View, events: Sequence[RunEvent]) -> None:
        status = view.run.status
        if self._steps is not None:
            self._progress.update(
                self._steps,
                total=status.total_steps,
                completed=status.step or 0,
                note=view.doing if view.stop_requests else status.throughput or view.doing,
            )

    def say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def new_display(total: int) -> BenchDisplay:
    """The display that fits where the output goes."""
    return LiveBenchDisplay(total) if sys.stdout.isatty() else BenchDisplay(total)
