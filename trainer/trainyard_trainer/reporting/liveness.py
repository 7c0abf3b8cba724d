"""This rank's activity, its step, and how long it may take without progress."""

import contextlib
import sys
import time
from collections.abc import Iterator
from types import FrameType

# Activities that may take long without progress: reading data, writing to a slow disk. The process
# group has the same timeout. Uploads have timeouts of their own.
LONG_SECONDS = 1800.0
LIMITS = {
    "loading": LONG_SECONDS,
    "saving": LONG_SECONDS,
    "exporting": LONG_SECONDS,
    "profiling": LONG_SECONDS,
    "uploading": float("inf"),
}
# The first time, kernels are selected, memory is allocated and connections are made.
FIRST_SECONDS = 600.0
# The limit of other activities, as a multiple of the longest recent interval between ticks.
SLACK = 5.0
_DECAY = 0.05  # of the longest interval, towards each shorter one

# On the stack while a graph is traced and compiled, but not when it runs.
_COMPILER = (
    "torch/_dynamo/convert_frame.py",
    "torch/_inductor/graph.py",
    "torch/_inductor/async_compile.py",
)


class Liveness:
    """Written by the training thread, read by the watchdog.

    Attributes:
        phase: the activity: a phase of the progress report, or a more detailed one.
        step: optimizer steps done.
        ticks: incremented on any progress: an optimizer step, a micro-batch, a batch of an
            evaluation, a new phase.
    """

    def __init__(self) -> None:
        self.phase = "loading"
        self.step = 0
        self.ticks = 0
        self._ticked = time.monotonic()
        self._intervals: dict[
            str, list[float]
        ] = {}  # phase -> the first one, the longest later one

    def enter(self, phase: str) -> None:
        """Start another phase."""
        if phase != self.phase:
            self.phase = phase
            self.ticks += 1
            self._ticked = time.monotonic()

    @contextlib.contextmanager
    def doing(self, phase: str) -> Iterator[None]:
        """Be in another phase for a `with` block."""
        before = self.phase
        self.enter(phase)
        try:
            yield
            self.tick()
        finally:
            self.enter(before)

    def tick(self) -> None:
        """Record progress within the phase."""
        now = time.monotonic()
        interval, self._ticked = now - self._ticked, now
        self.ticks += 1
        intervals = self._intervals.setdefault(self.phase, [])
        if len(intervals) < 2:  # the first is slow, and used only until there is a second
            intervals.append(interval)
        else:
            longest = intervals[1]
            intervals[1] = max(interval, longest + (interval - longest) * _DECAY)

    def limit(self, timeout: float, compiling: bool) -> float:
        """Seconds without progress after which this rank hangs; at least `timeout`."""
        if compiling:
            return max(timeout, LONG_SECONDS)
        intervals = self._intervals.get(self.phase)
        usual = SLACK * intervals[-1] if intervals else FIRST_SECONDS
        return max(timeout, LIMITS.get(self.phase, usual))

    def __str__(self) -> str:
        """`step 137`, `evaluating after step 136`, `loading`."""
        if self.phase == "training":
            return f"step {self.step + 1}"
        return f"{self.phase} after step {self.step}" if self.step else self.phase


def is_compiling() -> bool:
    """Whether torch.compile is compiling, in the main thread or in autograd's.

    It may at any step: a new batch shape causes a recompilation.
    """
    for frame in sys._current_frames().values():
        outer: FrameType | None = frame
        while outer is not None:
            if outer.f_code.co_filename.endswith(_COMPILER):
                return True
            outer = outer.f_back
    return False
