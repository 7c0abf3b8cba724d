"""One model, trained alone, with DDP and with FSDP: the same losses, and who holds what.

Run it:   torchrun --standalone --nproc-per-node=2 examples/learn/three_ways.py
Break it: torchrun --standalone --nproc-per-node=2 examples/learn/three_ways.py --break
"""

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

STEPS = 20
BATCH = 32  # samples of one step, all ranks together


def build() -> nn.Sequential:
    """The same model on every rank and in every way of training."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(4)]
    return nn.Sequential(nn.Linear(16, 64), *blocks, nn.Linear(64, 1))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same data for everybody."""
    torch.manual_seed(1)
    inputs = torch.randn(STEPS, BATCH, 16)
    return [(x, x[:, :1] - x[:, 1:2]) for x in inputs]


def train(model: nn.Module, share: slice) -> list[float]:
    """Train on a share of each batch; returns the loss of every step, averaged over the ranks."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for x, y in batches():
        loss = nn.functional.mse_loss(model(x[share]), y[share])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / dist.get_world_size())
    return losses


def held(model: nn.Module) -> int:
    """Parameters in this process' memory."""
    return sum(
        parameter.to_local().numel() if isinstance(parameter, DTensor) else parameter.numel()
        for parameter in model.parameters()
    )


def say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


def show(name: str, model: nn.Module, losses: list[float]) -> None:
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, held(model))
    shown = " ".join(f"{loss:.4f}" for loss in losses[:: STEPS // 4])
    say(f"{name:<6} loss {shown} ... {losses[-1]:.4f}   parameters per rank {parts}")


def main() -> None:
    if "RANK" not in os.environ:
        sys.exit("start this script with: torchrun --standalone --nproc-per-node=2 three_ways.py")
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    everything, mine = slice(None), slice(rank, None, size)

    alone = build()  # every rank does all the work: what training without DDP amounts to
    show("alone", alone, train(alone, everything))

    ddp = DistributedDataParallel(build())
    if "--break" in sys.argv:
        ddp.module[2].forward = lambda x: x  # the block's weights take no part in the loss
    show("DDP", ddp, train(ddp, mine))

    fsdp = build()
    for block in fsdp:
        fully_shard(block)  # gathered just before it runs, and freed right after
    fully_shard(fsdp)
    show("FSDP", fsdp, train(fsdp, mine))
    dist.destroy_process_group()
    os._exit(0)  # at once: PyTorch 2.15 may abort while Python takes its threads down


if __name__ == "__main__":
    main()
