"""What a rank's memory holds: parameters, gradients and optimizer state under DDP, ZeRO-1 and FSDP.

Run it:   torchrun --standalone --nproc-per-node=2 examples/learn/what_lies_where.py
Break it: torchrun --standalone --nproc-per-node=2 examples/learn/what_lies_where.py --break
"""

import os
import sys
from collections.abc import Iterable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


def build() -> nn.Sequential:
    """About four million parameters, most of them in square layers."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(1024, 1024), nn.GELU()]
    return nn.Sequential(*layers)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One optimizer step. The gradients are left in place, to be counted."""
    model(torch.randn(8, 1024)).square().mean().backward()
    optimizer.step()


def megabytes(tensors: Iterable[object]) -> float:
    """Of the tensors' parts in this process."""
    total = 0
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor):
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            total += local.numel() * local.element_size()
    return total / 1e6


def show(name: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One line of the table, as rank 0 sees itself."""
    step(model, optimizer)
    inner = optimizer.optim if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer
    parts = [
        megabytes(model.parameters()),
        megabytes(parameter.grad for parameter in model.parameters()),
        megabytes(value for state in inner.state.values() for value in state.values()),
    ]
    if dist.get_rank() == 0:
        row = " ".join(f"{part:>10.1f}" for part in [*parts, sum(parts)])
        print(f"{name:<8} {row}", flush=True)


def main() -> None:
    if "RANK" not in os.environ:
        sys.exit("start this script with: torchrun --standalone --nproc-per-node=2 SCRIPT")
    broken = "--break" in sys.argv
    dist.init_process_group("gloo", timeout=timedelta(seconds=5 if broken else 60))
    rank = dist.get_rank()
    if rank == 0:
        count = sum(parameter.numel() for parameter in build().parameters())
        print(f"{count:,} parameters, fp32, AdamW, {dist.get_world_size()} ranks: MB on rank 0")
        print(f"{'':<8} {'parameters':>10} {'gradients':>10} {'optimizer':>10} {'in all':>10}")

    ddp = DistributedDataParallel(build())
    show("DDP", ddp, torch.optim.AdamW(ddp.parameters()))

    zero = DistributedDataParallel(build())
    show("ZeRO-1", zero, ZeroRedundancyOptimizer(zero.parameters(), torch.optim.AdamW))

    fsdp = build()
    for layer in fsdp:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(fsdp)
    show("FSDP", fsdp, torch.optim.AdamW(fsdp.parameters()))

    if broken and rank == 0:
        print("rank 0 alone collects the whole model, to save it", flush=True)
    if not broken or rank == 0:  # collecting is a collective: every rank must take part
        whole = get_model_state_dict(fsdp, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            print(f"collected on rank 0: {megabytes(whole.values()):.1f} MB", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # at once: PyTorch 2.15 may abort while Python takes its threads down


if __name__ == "__main__":
    main()
