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


def until(
    condition: Callable[[], bool],
    problem: str | Callable[[], str],
    tell: Callable[[str], None] | None = None,
    *,
    seconds: float = PATIENCE,
) -> None:
    """Poll until the condition holds; past the deadline raise ClusterError(problem).

    `tell` is told the problem too, as long as it lasts.
    """
    deadline = time.monotonic() + seconds
    pause = 0.05
    while not condition():
        text = problem if isinstance(problem, str) else problem()
        if time.monotonic() > deadline:
            raise ClusterError(f"{text} (waited {seconds:.0f} s)")
        if tell is not None:
            tell(text)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
