"""The live panel of `trainyard run` on a terminal, drawn with rich."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from trainyard_cli.display import event_line, news
from trainyard_lifecycle.plan import Event
from trainyard_lifecycle.status import format_duration
from trainyard_local.backend import LossPoint
from trainyard_local.display import Display, View

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 40
SAMPLE_LINES = 6
COLOURS = {"Running": "green", "Succeeded": "green", "Failed": "red", "Restarting": "yellow"}


class LiveDisplay(Display):
    """Redraws one panel in place; events scroll above it."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._spinner = Spinner("dots")
        self._doing = ""
        self._since = time.monotonic()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, view: View, events: Sequence[Event]) -> None:
        for event in news(events):
            style = "yellow" if event.type == "Warning" else "dim"
            self._console.print(Text(event_line(event), style=style))
        what = f"{view.run.status.phase} {view.doing}"
        if what != self._doing:
            self._doing, self._since = what, time.monotonic()
        self._live.update(self._panel(view))

    def say(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _panel(self, view: View) -> RenderableType:
        rows: list[RenderableType] = [Text(), _header(view)]
        status = view.run.status
        if status.step is not None and status.total_steps:
            rows.append(_bar(status.step, status.total_steps, status.eta))
        if numbers := _numbers(view):
            rows.append(numbers)
        if view.report and view.report.sample:
            rows.append(_sample(view.report.sample))
        waited = format_duration(time.monotonic() - self._since)
        self._spinner.update(text=Text(f"{view.doing} ({waited})", style="dim"))
        rows.append(self._spinner)
        rows.append(Text("Ctrl-C stops the run so that it can go on later", style="dim"))
        return Group(*rows)


def sparkline(losses: Sequence[LossPoint], width: int = SPARKLINE_WIDTH) -> str:
    """The losses as blocks, averaged into `width` columns of equal numbers of points."""
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
