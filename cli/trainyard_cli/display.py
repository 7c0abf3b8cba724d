"""Shows a run while it runs: a live panel on a terminal, plain lines anywhere else."""

import sys
import time
from collections.abc import Sequence

from trainyard_lifecycle.plan import Event
from trainyard_lifecycle.status import format_duration
from trainyard_local.display import Display, View

PLAIN_SECONDS = 5.0


class PlainDisplay(Display):
    """A line per event, and one per few seconds of progress: for logs and pipes."""

    def __init__(self) -> None:
        self._last = ""
        self._doing = ""
        self._since = self._shown = time.monotonic()

    def show(self, view: View, events: Sequence[Event]) -> None:
        for event in news(events):
            self.say(event_line(event))
        now = time.monotonic()
        what = f"{view.run.status.phase}: {view.doing}"
        if what != self._doing:
            self._doing, self._since = what, now
        line = progress_line(view)
        if line is None and self._since != now:
            line = f"{what} ({format_duration(now - self._since)})"
        if line and line != self._last and now - self._shown >= PLAIN_SECONDS:
            self._last, self._shown = line, now
            self.say(line)


def new_display() -> Display:
    """The display that fits where the output goes."""
    if sys.stdout.isatty():
        from trainyard_cli.live import LiveDisplay

        return LiveDisplay()
    return PlainDisplay()


def news(events: Sequence[Event]) -> list[Event]:
    """The events to tell at once: the run's end is told by the summary."""
    return [event for event in events if event.key not in ("succeeded", "failed")]


def event_line(event: Event) -> str:
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
