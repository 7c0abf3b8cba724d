"""Faults at a chosen step of a run; preloaded into rank_server.py.

PLANT is `FAULT:STEP`: the step before which every rank has it, counted from 0.
"""

import os
import signal
import threading
from collections.abc import Callable

import torch

from trainyard_trainer.loop import Loop

_train_step = Loop._train_step


def kill(loop: Loop) -> None:
    """Die once the newest checkpoint is complete."""
    loop._report_save(loop.checkpointer.wait())
    os.kill(os.getpid(), signal.SIGKILL)


def hang(loop: Loop) -> None:
    """A kernel that takes a minute, which only the next wait for the GPU notices."""
    if loop.group.device.type == "cuda":
        torch.cuda._sleep(2**37)  # type: ignore[no-untyped-call]  # cycles
    else:
        threading.Event().wait()


def memory(loop: Loop) -> None:
    """Ask for 1 PiB, which nothing has."""
    torch.empty(2**50, dtype=torch.uint8, device=loop.group.device)


def index(loop: Loop) -> None:
    """Read beyond the end of a tensor."""
    table = torch.zeros(4, device=loop.group.device)
    table[torch.full((4,), 9, device=loop.group.device)].sum().item()


FAULTS: dict[str, Callable[[Loop], None]] = {
    each.__name__: each for each in (kill, hang, memory, index)
}


def train_step(loop: Loop) -> torch.Tensor:
    fault, _, step = os.environ.get("PLANT", "").partition(":")
    if fault and loop.step == int(step):
        FAULTS[fault](loop)
    return _train_step(loop)


Loop._train_step = train_step  # type: ignore[method-assign, assignment]
