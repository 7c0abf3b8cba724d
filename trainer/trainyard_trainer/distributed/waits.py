"""Where a rank waits for the others in a step, told to its StepTimer."""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn

from trainyard_trainer.distributed.step_timer import StepTimer


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
