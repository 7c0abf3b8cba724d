"""Times a rank's optimizer steps, and its waits for other ranks in them.

In synchronous training steps take equally long on all ranks, because the fast ranks wait in the
collectives for the slow one. What differs is the work: the step without the waits.
"""

import time
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, and of this rank's own work in it."""

    seconds: float
    work: float


class StepTimer:
    """Records timestamps in each step: of the host's clock, or CUDA events on a GPU's stream.

    A GPU runs asynchronously to the host, so only events show when a step ends. Recording one takes
    microseconds and does not synchronise; `read` waits for the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        # Of the current step: its begin, then the begin and end of every wait.
        self._marks: list[Any] = []
        self._steps: list[list[Any]] = []

    def begin(self) -> None:
        """A step begins."""
        self._marks = [self._now()]

    def wait_begins(self) -> None:
        """A wait for other ranks begins; no effect outside a step."""
        if len(self._marks) % 2 == 1:
            self._marks.append(self._now())

    def wait_ends(self) -> None:
        """A wait has ended; no effect if none has begun."""
        if self._marks and len(self._marks) % 2 == 0:
            self._marks.append(self._now())

    def end(self) -> None:
        """A step ends, on a GPU when its stream reaches this point."""
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


def watch_ddp(model: nn.parallel.DistributedDataParallel, timer: StepTimer) -> None:
    """Time DDP's waits: after the backward pass, and for rank 0's buffers before the forward pass.

    The caller must call `wait_ends` when the backward pass has returned.
    """

    def on_last_gradient(_: torch.Tensor) -> None:
        # The callback runs at the end of the backward pass. DDP queues its own, in which it waits
        # for the all-reduce, with the last gradient: after this one.
        torch.autograd.Variable._execution_engine.queue_callback(timer.wait_begins)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    last: Any = trained[-1]
    last.register_post_accumulate_grad_hook(on_last_gradient)
    if any(True for _ in model.module.buffers()):
        model.register_forward_pre_hook(lambda *_: timer.wait_begins())
        model.module.register_forward_pre_hook(lambda *_: timer.wait_ends())


def watch_fsdp(module: nn.Module, timer: StepTimer) -> bool:
    """Time FSDP's waits on CPUs, in its collectives for parameters and gradients.

    False on GPUs, where they overlap with the computation and waits can't be measured from the
    streams.
    """
    if next(module.parameters()).device.type != "cpu":
        return False
    for part in module.modules():
        if hasattr(part, "set_custom_all_gather"):
            sharded = cast(Any, part)
            sharded.set_custom_all_gather(_Timed(dist.all_gather_into_tensor, timer))
            sharded.set_custom_reduce_scatter(_Timed(dist.reduce_scatter_tensor, timer))
    return True


class _Timed:
    """A collective of FSDP, whose duration counts as waiting."""

    def __init__(self, collective: Any, timer: StepTimer) -> None:
        self.collective = collective
        self.timer = timer

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, **options: Any
    ) -> Any:
        self.timer.wait_begins()
        try:
            return self.collective(output_tensor, input_tensor, **options)
        finally:
            self.timer.wait_ends()
