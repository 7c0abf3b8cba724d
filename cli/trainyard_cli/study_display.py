"""Shows a study as it goes: bars on a terminal, and a line for every finished run."""

import sys
import time
from collections.abc import Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from trainyard_api.study_status import CellFailure, Measurement
from trainyard_lifecycle.plan import Event
from trainyard_lifecycle.status import format_duration, format_rate
from trainyard_local.display import View
from trainyard_local.study_runner import StudyDisplay
from trainyard_study.units import memory, milliseconds


class PlainStudyDisplay(StudyDisplay):
    """A line for every finished run: for logs and pipes."""

    def __init__(self) -> None:
        self._number = self._total = 0
        self._first = 0  # of the runs that this process measures
        self._began = time.monotonic()

    def begin(self, what: str, number: int, total: int) -> None:
        """The study's run `number` of `total` begins: `what` is its cell and repeat."""
        self._first = self._first or number
        self._number, self._total = number, total

    def end(self, what: str, outcome: Measurement | CellFailure) -> None:
        """It has ended, with figures or without."""
        head = f"[{self._number}/{self._total}] {what}"
        if isinstance(outcome, CellFailure):
            self.say(f"{head}: failed: {outcome.reason}: {outcome.message}")
            return
        if outcome.tokens_per_second is not None:
            parts = [format_rate(outcome.tokens_per_second, "tokens")]
        else:
            parts = [format_rate(outcome.samples_per_second, "samples")]
        parts.append(f"{milliseconds(outcome.step_seconds.mean)} ms a step")
        if outcome.peak_memory_bytes:
            parts.append(f"peak {memory(outcome.peak_memory_bytes)}")
        self.say(f"{head}: {', '.join(parts)} ({format_duration(outcome.seconds)})")

    def left(self) -> str:
        """How long the rest will take if it takes as long as what is done; empty at first."""
        done = self._number - self._first
        if done < 1:
            return ""
        each = (time.monotonic() - self._began) / done
        return f"{format_duration(each * (self._total - self._number + 1))} left"


class LiveStudyDisplay(PlainStudyDisplay):
    """Also bars for the study and for its current run."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
            transient=True,
        )
        self._runs = self._progress.add_task("", total=None, note="")
        self._steps: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, what: str, number: int, total: int) -> None:
        super().begin(what, number, total)
        self._progress.update(
            self._runs,
            description=f"run {number} of {total}",
            completed=number - 1,
            total=total,
            note=", ".join(filter(None, (self.left(), "Ctrl-C stops the study"))),
        )
        if self._steps is not None:
            self._progress.remove_task(self._steps)
        self._steps = self._progress.add_task(what, total=None, note="")

    def show(self, view: View, events: Sequence[Event]) -> None:
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


def new_display() -> PlainStudyDisplay:
    """The display that fits where the output goes."""
    return LiveStudyDisplay() if sys.stdout.isatty() else PlainStudyDisplay()
