"""Shows progress: live panels on a terminal, plain lines anywhere else; for runs and studies."""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from trainyard_api.study_status import CellFailure, Measurement
from trainyard_lifecycle.plan import Event
from trainyard_lifecycle.status import format_bytes, format_duration, format_rate
from trainyard_local.backend import LossPoint
from trainyard_local.display import Display, StudyDisplay, View
from trainyard_study.report import milliseconds

PLAIN_SECONDS = 5.0
BLOCKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 40
SAMPLE_LINES = 6
COLOURS = {"Running": "green", "Succeeded": "green", "Failed": "red", "Restarting": "yellow"}


def new_display() -> Display:
    """The display of a run that fits standard output."""
    return LiveDisplay() if sys.stdout.isatty() else PlainDisplay()


def new_study_display() -> "PlainStudyDisplay":
    """The display of a study that fits standard output."""
    return LiveStudyDisplay() if sys.stdout.isatty() else PlainStudyDisplay()


class PlainDisplay(Display):
    """A line per event, and every few seconds a line of progress: for logs and pipes."""

    def __init__(self) -> None:
        self._last_line = ""
        self._activity = ""
        self._since = self._shown = time.monotonic()

    def show(self, view: View, events: Sequence[Event]) -> None:
        for event in _without_outcome(events):
            self.say(_event_line(event))
        now = time.monotonic()
        activity = f"{view.run.status.phase}: {view.activity}"
        if activity != self._activity:
            self._activity, self._since = activity, now
        line = progress_line(view)
        if line is None and self._since != now:
            line = f"{activity} ({format_duration(now - self._since)})"
        if line and line != self._last_line and now - self._shown >= PLAIN_SECONDS:
            self._last_line, self._shown = line, now
            self.say(line)


class LiveDisplay(Display):
    """Redraws one panel in place; events scroll above it."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._spinner = Spinner("dots")
        self._activity = ""
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, view: View, events: Sequence[Event]) -> None:
        for event in _without_outcome(events):
            style = "yellow" if event.type == "Warning" else "dim"
            self._console.print(Text(_event_line(event), style=style))
        activity = f"{view.run.status.phase} {view.activity}"
        if activity != self._activity:
            self._activity, self._since = activity, time.monotonic()
        self._live.update(self.panel(view))

    def say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def panel(self, view: View) -> RenderableType:
        """The panel for the run's current state."""
        rows: list[RenderableType] = [Text(), _header(view)]
        status = view.run.status
        if status.step is not None and status.total_steps:
            rows.append(_bar(status.step, status.total_steps, status.eta))
        if numbers := _numbers(view):
            rows.append(numbers)
        if status.usage:
            rows.append(Text(status.usage, style="dim"))
        if view.report and view.report.sample:
            rows.append(_sample(view.report.sample))
        waited = format_duration(time.monotonic() - self._since)
        self._spinner.update(text=Text(f"{view.activity} ({waited})", style="dim"))
        rows.append(self._spinner)
        rows.append(Text("Ctrl-C stops the run; it can be resumed later", style="dim"))
        return Group(*rows)


class PlainStudyDisplay(StudyDisplay):
    """A line for every finished run: for logs and pipes."""

    def __init__(self) -> None:
        self._number = self._total = 0
        self._first = 0  # number of the first run that this process measures
        self._started = time.monotonic()

    def run_started(self, title: str, number: int, total: int) -> None:
        self._first = self._first or number
        self._number, self._total = number, total

    def run_finished(self, title: str, outcome: Measurement | CellFailure) -> None:
        head = f"[{self._number}/{self._total}] {title}"
        if isinstance(outcome, CellFailure):
            self.say(f"{head}: failed: {outcome.reason}: {outcome.message}")
            return
        if outcome.tokens_per_second is not None:
            parts = [format_rate(outcome.tokens_per_second, "tokens")]
        else:
            parts = [format_rate(outcome.samples_per_second, "samples")]
        parts.append(f"{milliseconds(outcome.step_seconds.mean)} ms per step")
        if outcome.peak_memory_bytes:
            parts.append(f"peak {format_bytes(outcome.peak_memory_bytes)}")
        self.say(f"{head}: {', '.join(parts)} ({format_duration(outcome.seconds)})")

    def remaining_time(self) -> str:
        """Estimate from the finished runs, such as `5m left`; empty before the first."""
        finished = self._number - self._first
        if finished < 1:
            return ""
        each = (time.monotonic() - self._started) / finished
        return f"{format_duration(each * (self._total - self._number + 1))} left"


class LiveStudyDisplay(PlainStudyDisplay):
    """Adds progress bars for the study and its current run."""

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

    def run_started(self, title: str, number: int, total: int) -> None:
        super().run_started(title, number, total)
        self._progress.update(
            self._runs,
            description=f"run {number} of {total}",
            completed=number - 1,
            total=total,
            note=", ".join(filter(None, (self.remaining_time(), "Ctrl-C stops the study"))),
        )
        if self._steps is not None:
            self._progress.remove_task(self._steps)
        self._steps = self._progress.add_task(title, total=None, note="")

    def show(self, view: View, events: Sequence[Event]) -> None:
        status = view.run.status
        if self._steps is not None:
            self._progress.update(
                self._steps,
                total=status.total_steps,
                completed=status.step or 0,
                note=view.activity if view.stop_requests else status.throughput or view.activity,
            )

    def say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def progress_line(view: View) -> str | None:
    """`step 120/500  loss 2.310  12.3k tokens/s  ETA 40s`; None before the first report."""
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


def sparkline(losses: Sequence[LossPoint], width: int = SPARKLINE_WIDTH) -> str:
    """The losses as blocks: at most `width` columns, each the mean of equally many points."""
    if len(losses) < 2:
        return ""
    columns = min(width, len(losses))
    edges = [round(index * len(losses) / columns) for index in range(columns + 1)]
    means = [
        sum(point.loss for point in losses[start:end]) / (end - start)
        for start, end in pairwise(edges)
    ]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


def _without_outcome(events: Sequence[Event]) -> list[Event]:
    """The events to show; the summary reports how the run ended."""
    return [event for event in events if event.key not in ("succeeded", "failed")]


def _event_line(event: Event) -> str:
    """`AttemptStarted: attempt 1: ...`."""
    return f"{event.reason}: {event.message}"


def _header(view: View) -> Text:
    run, status = view.run, view.run.status
    phase = status.phase or "Pending"
    text = Text.assemble((run.name, "bold"), "  ", (phase, COLOURS.get(phase, "cyan")))
    ranks = (status.nodes or run.spec.num_nodes) * run.nproc
    plural = "" if ranks == 1 else "es"
    text.append(f"  attempt {status.attempt}  {run.spec.strategy} on {ranks} process{plural}")
    if status.restarts:
        text.append(f"  {status.restarts} restarts", style="yellow")
    if status.start_time:
        text.append(f"  {format_duration((datetime.now(UTC) - status.start_time).total_seconds())}")
    return text


def _bar(step: int, total: int, eta: str) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    share = f"{100 * step // total}%"
    left = f"ETA {eta}" if eta else ""
    row.add_row(ProgressBar(total=total, completed=step, width=40), f"{step}/{total}", share, left)
    return row


def _numbers(view: View) -> RenderableType | None:
    status = view.run.status
    parts = []
    if status.loss is not None:
        parts.append(f"loss {status.loss:.3f} {sparkline(view.losses)}".rstrip())
    if status.eval_loss is not None:
        parts.append(f"eval loss {status.eval_loss:.3f}")
    if status.throughput:
        parts.append(status.throughput)
    if status.last_checkpoint:
        age = datetime.now(UTC) - status.last_checkpoint.time
        ago = format_duration(age.total_seconds())
        parts.append(f"checkpoint {status.last_checkpoint.step}, {ago} ago")
    return Text("   ".join(parts)) if parts else None


def _sample(sample: str) -> RenderableType:
    lines = sample.strip("\n").splitlines()[:SAMPLE_LINES]
    return Text(
        "\n".join(f"│ {line}" for line in lines), style="cyan", no_wrap=True, overflow="ellipsis"
    )
