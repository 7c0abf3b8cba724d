"""Measures the memory of a rank's last training step; preloaded into rank_server.py.

What torch's allocator has handed out: the model, its optimizer, DDP's and FSDP's buffers, every
temporary tensor; not the recipe's data, which is NumPy's. The GPU's allocator counts it. On the CPU
it is counted by count_memory.c, over all threads: gloo's may be the last to hold a tensor, and
torch.profiler doesn't see it freed there. PEAK_MEMORY is the folder to write it to.
"""

import ctypes
import os
from pathlib import Path

import torch
from torch import Tensor

from trainyard_trainer.loop import Loop

_train_step = Loop._train_step


def _counted(name: str) -> int:
    function = ctypes.CDLL(None)[f"count_memory_{name}"]
    function.restype = ctypes.c_size_t
    return int(function())


_before = _counted("held") if "LD_PRELOAD" in os.environ else None


def train_step(loop: Loop) -> Tensor:
    if "PEAK_MEMORY" not in os.environ or loop.step < loop.config.max_steps - 1:
        return _train_step(loop)
    if _before is not None:
        _counted("reset_peak")
        norm = _train_step(loop)
        peak = _counted("peak") - _before
    else:
        torch.cuda.reset_peak_memory_stats()
        norm = _train_step(loop)
        peak = torch.cuda.max_memory_allocated()
    path = Path(os.environ["PEAK_MEMORY"]) / os.environ.get("RANK", "0")
    path.write_text(str(peak))
    return norm


Loop._train_step = train_step  # type: ignore[method-assign, assignment]
