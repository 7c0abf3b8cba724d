"""Waiting for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

from .errors import ClusterError


def until(condition: Callable[[], bool], seconds: float, problem: str | Callable[[], str]) -> None:
    """Poll until the condition holds; past the deadline raise ClusterError(problem)."""
    deadline = time.monotonic() + seconds
    pause = 0.05
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(problem if isinstance(problem, str) else problem())
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
