"""How long a rank's optimizer steps take, and how much of that time it waits for other ranks.

In synchronous training all ranks take equally long, because the fast ones wait in the collectives
for the slow one. What differs is the work: the step without the waiting.
"""

import time
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn


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


def watch_ddp(model: nn.parallel.DistributedDataParallel, timer: StepTimer) -> None:
    """DDP waits at the end of the backward pass, and for rank 0's buffers before the forward pass.

    The caller says when the backward pass has returned.
    """

    def gradient_is_there(_: torch.Tensor) -> None:
        # Runs when the whole backward pass is computed. DDP queues its own callback, in which it
        # waits for the exchange, with the last gradient: behind this one.
        torch.autograd.Variable._execution_engine.queue_callback(timer.wait_begins)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    last: Any = trained[-1]
    last.register_post_accumulate_grad_hook(gradient_is_there)
    compiled = cast(Any, model.module)._compiled_call_impl is not None  # and its hooks with it
    if not compiled and any(True for _ in model.module.buffers()):
        model.register_forward_pre_hook(lambda *_: timer.wait_begins())
        model.module.register_forward_pre_hook(lambda *_: timer.wait_ends())


def watch_fsdp(module: nn.Module, timer: StepTimer) -> bool:
    """FSDP on CPUs waits in the collectives themselves: for parameters and for gradients.

    False on GPUs, where they run beside the computation: which rank waited can't be told from the
    times of its streams.
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
    """The collective FSDP would call, with the time a rank spends in it as waiting."""

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
