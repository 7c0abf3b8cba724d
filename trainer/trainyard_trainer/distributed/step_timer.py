"""How long a rank's optimizer steps take, and how much of that it waits for the other ranks.

In lock-step training all ranks take equally long, because the fast ones wait in the collectives
for the slow one. What tells them apart is the work: the step without the waiting.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, and of this rank's own part in it."""

    seconds: float
    work: float


class StepTimer:
    """Marks moments of each step: on the host's clock, or on a GPU's stream by CUDA events.

    A GPU runs behind the host that feeds it, so only its own clock knows when a step is over. A
    mark costs microseconds and waits for nothing; `read` waits for the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        # Of one step: begin, then the begin and end of every wait, then the end.
        self._marks: list[Any] = []
        self._steps: list[list[Any]] = []

    def begin(self) -> None:
        """A step begins."""
        self._marks = [self._now()]

    def wait_begins(self) -> None:
        """What follows in this stream needs the other ranks; without effect outside a step."""
        if len(self._marks) % 2 == 1:
            self._marks.append(self._now())

    def wait_ends(self) -> None:
        """The other ranks have answered; without effect if nothing waits."""
        if self._marks and len(self._marks) % 2 == 0:
            self._marks.append(self._now())

    def end(self) -> None:
        """The step is done, on the GPU as soon as it gets there."""
        self.wait_ends()
        self._steps.append([*self._marks, self._now()])
        self._marks = []

    def read(self) -> list[StepTime]:
        """The steps that ended since the last call."""
        steps, self._steps = self._steps, []
        if steps and self._on_gpu:
            steps[-1][-1].synchronize()
        return [self._time(marks) for marks in steps]

    def _time(self, marks: list[Any]) -> StepTime:
        seconds = self._between(marks[0], marks[-1])
        waits = zip(marks[1:-1:2], marks[2:-1:2], strict=True)
        return StepTime(seconds, seconds - sum(self._between(*wait) for wait in waits))

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        seconds: float = begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin
        return seconds
