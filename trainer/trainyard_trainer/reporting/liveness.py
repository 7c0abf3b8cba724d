"""What this rank is doing, its step, and how long it may go on without progress."""

import contextlib
import time
from collections.abc import Iterator

# Long without a sign of progress, and rightly so: reading data, writing to a slow disk. The process
# group itself gives up after as long. Sending a model out has time-outs of its own.
LONG_SECONDS = 1800.0
LIMITS = {
    "loading": LONG_SECONDS,
    "saving": LONG_SECONDS,
    "exporting": LONG_SECONDS,
    "uploading": float("inf"),
}
# The first time something is done kernels are chosen, memory is reserved, connections are made.
FIRST_SECONDS = 600.0
# An ordinary wait may be this many times as long as the longest of the latest ones.
SLACK = 5.0
_FORGET = 0.05  # of the longest wait, with each shorter one


class Liveness:
    """Written by the training thread, read by the watchdog.

    Attributes:
        phase: what the rank does, in the words of the progress report and some more.
        step: optimizer steps done.
        ticks: grows with all progress: an optimizer step, a micro-batch, a part of an evaluation, a
            new phase.
    """

    def __init__(self) -> None:
        self.phase = "loading"
        self.step = 0
        self.ticks = 0
        self._ticked = time.monotonic()
        self._waits: dict[str, list[float]] = {}  # phase -> the first wait, then the longest

    def enter(self, phase: str) -> None:
        """Begin something else."""
        if phase != self.phase:
            self.phase = phase
            self.ticks += 1
            self._ticked = time.monotonic()

    @contextlib.contextmanager
    def doing(self, phase: str) -> Iterator[None]:
        """Do something else for a while."""
        before = self.phase
        self.enter(phase)
        try:
            yield
            self.tick()
        finally:
            self.enter(before)

    def tick(self) -> None:
        """Some more of the same is done."""
        now = time.monotonic()
        wait, self._ticked = now - self._ticked, now
        self.ticks += 1
        waits = self._waits.setdefault(self.phase, [])
        if len(waits) < 2:  # the first one was a special case, and is only the best guess so far
            waits.append(wait)
        else:
            waits[1] = max(wait, waits[1] + (wait - waits[1]) * _FORGET)

    def limit(self, timeout: float, compiling: bool) -> float:
        """Seconds without progress after which something is wrong; never below `timeout`."""
        if compiling:
            return max(timeout, LONG_SECONDS)
        waits = self._waits.get(self.phase)
        usual = SLACK * waits[-1] if waits else FIRST_SECONDS
        return max(timeout, LIMITS.get(self.phase, usual))

    def __str__(self) -> str:
        """`step 137`, `evaluating after step 136`, `loading`."""
        if self.phase == "training":
            return f"step {self.step + 1}"
        return f"{self.phase} after step {self.step}" if self.step else self.phase
