"""Trains with DDP straight on, and again from the state after every step; prints what differs.

    torchrun bucket_orders.py [MODE ...]

A mode is a way to use DDP, by its name in `MODES`; `-as-is` after it leaves its buckets alone. The
output is JSON: each mode with the steps from which the resumed run ended with other weights.
"""

import contextlib
import copy
import json
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from trainyard_trainer.distributed.buckets import fix_buckets

STEPS = 3
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "several buckets": {"bucket_cap_mb": 0.004},
    "views": {"gradient_as_bucket_view": True},
    "static graph": {"static_graph": True},
    "unused parameters": {"find_unused_parameters": True},
    "unused parameters of a static graph": {"static_graph": True},
    "accumulation": {"gradient_as_bucket_view": True},
    "compression": {},
}


class Model(nn.Module):
    """Its parameters are used in another order than that of their definition."""

    def __init__(self, unused: bool) -> None:
        super().__init__()
        self.last = nn.Linear(24, 5)
        self.first = nn.Linear(16, 24)
        self.blocks = nn.ModuleList(nn.Linear(24, 24) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(24))
        self.unused = nn.Linear(24, 3) if unused else None

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(inputs)) * self.scale
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        output: torch.Tensor = self.last(hidden)
        return output


class Trial:
    """A model that is trained in one of the modes."""

    def __init__(self, mode: str) -> None:
        self.mode = mode.removesuffix("-as-is")
        torch.manual_seed(1)
        self.ddp = DistributedDataParallel(Model("unused" in self.mode), **MODES[self.mode])
        if self.mode == "compression":
            self.ddp.register_comm_hook(None, bf16_compress_hook)
        if not mode.endswith("-as-is"):
            fix_buckets(self.ddp)
        self.optimizer = torch.optim.SGD(self.ddp.parameters(), lr=0.1, momentum=0.9)

    def step(self, number: int) -> None:
        micro_batches = 2 if self.mode == "accumulation" else 1
        for micro in range(1, micro_batches + 1):
            with contextlib.nullcontext() if micro == micro_batches else self.ddp.no_sync():
                torch.manual_seed(100 * number + 10 * dist.get_rank() + micro)
                torch.autograd.backward(self.ddp(torch.randn(8, 16)).square().mean())
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> Any:
        return copy.deepcopy([self.ddp.module.state_dict(), self.optimizer.state_dict()])

    def load(self, state: Any) -> None:
        self.ddp.module.load_state_dict(state[0])
        self.optimizer.load_state_dict(copy.deepcopy(state[1]))


def differing(mode: str) -> list[int]:
    """The steps from which it ends with other weights than in one go."""
    whole, found = Trial(mode), []
    states = [whole.state()]
    for number in range(STEPS):
        whole.step(number)
        states.append(whole.state())
    for start in range(STEPS):
        resumed = Trial(mode)
        resumed.load(states[start])
        for number in range(start, STEPS):
            resumed.step(number)
        ended, expected = resumed.state()[0], states[-1][0]
        if any(not torch.equal(ended[name], expected[name]) for name in expected):
            found.append(start)
    return found


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {mode: differing(mode) for mode in sys.argv[1:] or MODES}
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()
    os._exit(0)  # at once: PyTorch 2.15 may abort while Python takes its threads down


if __name__ == "__main__":
    main()
