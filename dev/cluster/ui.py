"""What the user sees: which step of how many runs, how far it is, and how long it took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# A log is read afterwards: one line in this many seconds is enough.
_LOG_INTERVAL = 15.0


class Report(Protocol):
    """Shows what the running step does, and which fraction (0 to 1) of it is done, if known."""

    def __call__(self, detail: str, fraction: float | None = None) -> None: ...


class Steps:
    """Numbered steps: a live bar on a terminal, plain lines in a log, the seconds at the end."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seconds: dict[str, float] = {}
        self._console = Console(highlight=False)

    @contextmanager
    def step(self, name: str) -> Iterator[Report]:
        """Show a step while it runs."""
        title = f"[{len(self.seconds) + 1}/{self.count}] {name}"
        began = time.monotonic()
        try:
            if sys.stdout.isatty():
                with self._live(title) as report:
                    yield report
            else:
                yield _plain(title, began)
        finally:
            self.seconds[name] = time.monotonic() - began
        self._console.print(f"  {title}: {self.seconds[name]:.1f} s", markup=False, soft_wrap=True)

    @contextmanager
    def _live(self, title: str) -> Iterator[Report]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(title, total=None, detail="")

            def report(detail: str, fraction: float | None = None) -> None:
                total = None if fraction is None else 1.0
                progress.update(task, detail=detail, total=total, completed=fraction or 0.0)

            yield report

    def summary(self) -> str:
        """The seconds of all steps, and those of the longest."""
        longest = max(self.seconds, key=lambda name: self.seconds[name])
        total = sum(self.seconds.values())
        return f"{total:.1f} s, {self.seconds[longest]:.1f} s of them for {longest}"


def _plain(title: str, began: float) -> Report:
    last = [float("-inf")]

    def report(detail: str, fraction: float | None = None) -> None:
        now = time.monotonic()
        if now - last[0] >= _LOG_INTERVAL:
            last[0] = now
            done = "" if fraction is None else f" ({100 * fraction:.0f}%)"
            print(f"  {title}: {detail}{done}, {now - began:.0f} s", flush=True)

    return report
