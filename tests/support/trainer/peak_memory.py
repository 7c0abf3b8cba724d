"""Measures the memory of a rank's last training step; preloaded into rank_server.py.

What torch's allocator has handed out since the recipe's data was loaded: the model, its optimizer,
DDP's and FSDP's buffers, every temporary tensor. The GPU's allocator counts it; the CPU's is
followed by torch.profiler. PEAK_MEMORY is the folder to write it to.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp._fully_shard import _fsdp_collectives as fsdp
from torch.nn.parallel import distributed as ddp
from torch.profiler import ProfilerActivity, profile, record_function

from trainyard_trainer import worker
from trainyard_trainer.loop import Loop

STEP = "the measured step"

_load = worker._load
_train_step = Loop._train_step
_all_gather: Any = fsdp.DefaultAllGather.__call__
_reduce_scatter: Any = fsdp.DefaultReduceScatter.__call__
_profiles: list[Any] = []


def load(*args: Any) -> Any:
    loaded = _load(*args)
    if "PEAK_MEMORY" in os.environ and args[-1].device.type == "cpu":
        fsdp.DefaultAllGather.__call__ = all_gather  # type: ignore[method-assign, assignment]
        fsdp.DefaultReduceScatter.__call__ = reduce_scatter  # type: ignore[method-assign, assignment]
        # It would be the same: the ranks have the same weights anyway.
        ddp._sync_module_states = lambda *_, **__: None  # type: ignore[attr-defined]
        _profiles.append(profile(activities=[ProfilerActivity.CPU], profile_memory=True))
        _profiles[0].start()
    return loaded


def train_step(loop: Loop) -> Tensor:
    if "PEAK_MEMORY" not in os.environ or loop.step < loop.config.max_steps - 1:
        return _train_step(loop)
    if _profiles:
        with record_function(STEP):
            norm = _train_step(loop)
        _profiles[0].stop()
        peak = _peak(_profiles[0].profiler.kineto_results.events())
    else:
        torch.cuda.reset_peak_memory_stats()
        norm = _train_step(loop)
        peak = torch.cuda.max_memory_allocated()
    path = Path(os.environ["PEAK_MEMORY"]) / os.environ.get("RANK", "0")
    path.write_text(str(peak))
    return norm


def _peak(events: list[Any]) -> int:
    (step,) = (event for event in events if event.name() == STEP)
    memory = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    allocated = peak = 0
    for when, nbytes in memory:
        allocated += nbytes
        if when >= step.start_ns():
            peak = max(peak, allocated)
    return peak


# The last to hold a collective's tensors may be gloo's thread, and the profiler doesn't see it free
# them. So gloo gets copies, in memory that is not torch's, and is called by a thread of which the
# profiler sees nothing: what gloo itself allocates for a moment is not counted.


def all_gather(self: Any, output_tensor: Tensor, input_tensor: Tensor, **more: Any) -> None:
    output = _aside(output_tensor)
    _call(_all_gather, self, output, _aside(input_tensor), **more | {"async_op": False})
    output_tensor.copy_(output)


def reduce_scatter(self: Any, output_tensor: Tensor, input_tensor: Tensor, **more: Any) -> None:
    output = _aside(output_tensor)
    _call(_reduce_scatter, self, output, _aside(input_tensor), **more | {"async_op": False})
    output_tensor.copy_(output)


def _call(function: Any, *args: Any, **named: Any) -> None:
    with ThreadPoolExecutor(1) as thread:
        thread.submit(function, *args, **named).result()


def _aside(tensor: Tensor) -> Tensor:
    memory = torch.from_numpy(np.empty(tensor.nbytes, np.uint8))
    return memory.view(tensor.dtype).view(tensor.shape).copy_(tensor)


worker._load = load  # type: ignore[assignment]
Loop._train_step = train_step  # type: ignore[method-assign, assignment]
