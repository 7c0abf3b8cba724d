"""Shows a run as it goes: a live panel on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from trainyard_api.progress import ProgressReport
from trainyard_api.run import TrainingRun
from trainyard_operator.local.backend import LossPoint
from trainyard_operator.plan import RunEvent
from trainyard_operator.status import duration_text

PLAIN_SECONDS = 5.0


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

    def show(self, view: View, events: Sequence[RunEvent]) -> None:
        """The run's newest state, and what has happened since the last call."""

    def say(self, text: str) -> None:
        """A message of our own."""
        print(text, flush=True)


class PlainDisplay(Display):
    """A line per event, and one per few seconds of progress: for logs and pipes."""

    def __init__(self) -> None:
        self._last = ""
        self._doing = ""
        self._since = self._shown = time.monotonic()

    def show(self, view: View, events: Sequence[RunEvent]) -> None:
        for event in news(events):
            self.say(event_line(event))
        now = time.monotonic()
        what = f"{view.run.status.phase}: {view.doing}"
        if what != self._doing:
            self._doing, self._since = what, now
        line = progress_line(view)
        if line is None and self._since != now:
            line = f"{what} ({duration_text(now - self._since)})"
        if line and line != self._last and now - self._shown >= PLAIN_SECONDS:
            self._last, self._shown = line, now
            self.say(line)


def new_display() -> Display:
    """The display that fits where the output goes."""
    if sys.stdout.isatty():
        from trainyard_operator.local.live import LiveDisplay

        return LiveDisplay()
    return PlainDisplay()


def news(events: Sequence[RunEvent]) -> list[RunEvent]:
    """The events to tell at once: the run's end is told by the summary."""
    return [event for event in events if event.key not in ("succeeded", "failed")]


def event_line(event: RunEvent) -> str:
    """`AttemptStarted: attempt 1: ...`."""
    return f"{event.reason}: {event.message}"


def progress_line(view: View) -> str | None:
    """`step 120/500  loss 2.310  12.3k tokens/s  ETA 40s`; None while nothing is known."""
    status = view.run.status
    if status.phase != "Running" or status.step is None:
        return None
    parts = [f"step {status.progress}"]
    if status.loss is not None:
        parts.append(f"loss {status.loss:.3f}")
    if status.eval_loss is not None:
        parts.append(f"eval loss {status.eval_loss:.3f}")
    if status.throughput:
        parts.append(status.throughput)
    if status.eta:
        parts.append(f"ETA {status.eta}")
    if status.last_checkpoint:
        parts.append(f"checkpoint {status.last_checkpoint.step}")
    return "  ".join(parts)
