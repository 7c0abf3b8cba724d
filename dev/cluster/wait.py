"""Waiting for a condition: patiently, and without silence."""

from __future__ import annotations

import time
from collections.abc import Callable

from .errors import ClusterError

# To notice what hangs, never to judge how fast a machine is: what has ended is noticed at once, and
# what takes long is told meanwhile.
PATIENCE = 600.0
# What is fetched from elsewhere, or is several GB large.
TRANSFER = 1800.0
# What comes sooner needs no words.
SILENT = 5.0


def until(
    condition: Callable[[], bool],
    problem: str | Callable[[], str],
    tell: Callable[[str], None] | None = None,
    *,
    seconds: float = PATIENCE,
) -> None:
    """Poll until the condition holds; past the deadline raise ClusterError(problem).

    `tell` is told the problem too, once it has lasted for some seconds.
    """
    began = time.monotonic()
    pause = 0.05
    while not condition():
        text = problem if isinstance(problem, str) else problem()
        waited = time.monotonic() - began
        if waited > seconds:
            raise ClusterError(f"{text} (waited {seconds:.0f} s)")
        if tell is not None and waited > SILENT:
            tell(text)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
