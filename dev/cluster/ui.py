"""What the user sees: a line per phase with its seconds, and a live one on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Tell = Callable[[str], None]


class Phases:
    """Names each phase as it runs, and adds the seconds up at the end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._console = _rich_console()

    @contextmanager
    def phase(self, name: str) -> Iterator[Tell]:
        """Show a phase while it runs; the yielded function shows what it is at."""
        began = time.monotonic()
        if self._console is None:
            shower = _plain(name, began)
            try:
                yield shower
            finally:
                self._end(name, began)
            print(f"  {name}: {self.seconds[name]:.1f} s", flush=True)
            return
        with self._console.status(name) as status:

            def tell(detail: str) -> None:
                spent = time.monotonic() - began
                status.update(f"{name}: {detail} [dim]{spent:.0f} s[/dim]")

            try:
                yield tell
            finally:
                self._end(name, began)
        self._console.print(f"  [green]✓[/green] {name} [dim]{self.seconds[name]:.1f} s[/dim]")

    def _end(self, name: str, began: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def total(self) -> float:
        """Seconds of all phases so far."""
        return sum(self.seconds.values())

    def summary(self) -> str:
        """Every phase's seconds on one line."""
        parts = ", ".join(f"{name} {spent:.1f} s" for name, spent in self.seconds.items())
        return f"{self.total():.1f} s ({parts})"


def _plain(name: str, began: float) -> Tell:
    last = [0.0]

    def tell(detail: str) -> None:
        now = time.monotonic()
        if now - last[0] >= 15:  # logs are read afterwards: a line now and then is enough
            last[0] = now
            print(f"  {name}: {detail} ({now - began:.0f} s)", flush=True)

    return tell


def _rich_console() -> Any:
    """A rich console where there is rich and a terminal; otherwise None."""
    if not sys.stdout.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(highlight=False)
