"""What a driver reports while it drives a run or a study; the CLI implements how it is shown."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from trainyard_api.progress import ProgressReport
from trainyard_api.run import TrainingRun
from trainyard_api.study_status import CellFailure, Measurement
from trainyard_lifecycle.plan import Event
from trainyard_local.backend import LossPoint


@dataclass(frozen=True)
class View:
    """A run's current state."""

    run: TrainingRun
    report: ProgressReport | None = None
    losses: Sequence[LossPoint] = field(default_factory=tuple)
    stop_requests: int = 0

    @property
    def activity(self) -> str:
        """What the run is doing or waiting for, in a few words."""
        status = self.run.status
        if self.stop_requests:
            hint = "" if self.stop_requests > 1 else " (Ctrl-C again: kill them now)"
            return f"stopping the workers{hint}"
        if status.phase == "Running" and self.report:
            # The report of a script is empty but for its hang until it reports something itself.
            return self.report.message or status.message or self.report.phase
        return status.message or status.reason


class Display:
    """Base class: shows nothing while the run is active."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, view: View, events: Sequence[Event]) -> None:
        """Show the run's newest state, and the events since the last call."""

    def say(self, text: str) -> None:
        """Print a message."""
        print(text, flush=True)


class StudyDisplay(Display):
    """Base class: is also informed about each run of a study."""

    def run_started(self, title: str, number: int, total: int) -> None:
        """Run `number` of `total` has started; `title` is its cell and repeat."""

    def run_finished(self, title: str, outcome: Measurement | CellFailure) -> None:
        """A run has finished, with figures or without."""
