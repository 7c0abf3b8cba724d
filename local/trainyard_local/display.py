"""What a driver shows of a run while it drives it; the `trainyard` command brings the screens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from trainyard_api.progress import ProgressReport
from trainyard_api.run import TrainingRun
from trainyard_lifecycle.plan import Event
from trainyard_local.backend import LossPoint


@dataclass(frozen=True)
class View:
    """What there is to show."""

    run: TrainingRun
    report: ProgressReport | None = None
    losses: Sequence[LossPoint] = field(default_factory=tuple)
    stop_requests: int = 0

    @property
    def doing(self) -> str:
        """What the run does or waits for, in a few words."""
        status = self.run.status
        if self.stop_requests:
            again = "" if self.stop_requests > 1 else " (Ctrl-C again: at once)"
            return f"stopping the workers{again}"
        if status.phase == "Running" and self.report:
            return self.report.message or self.report.phase
        return status.message or status.reason


class Display:
    """Shows nothing while the run goes; the base of those that do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, view: View, events: Sequence[Event]) -> None:
        """The run's newest state, and what has happened since the last call."""

    def say(self, text: str) -> None:
        """A message of our own."""
        print(text, flush=True)
