"""The yardsticks' loop: plain training with a cosine schedule and clipping, as one writes it.

Nothing else: no resuming, no evaluation, no reports, no checkpoints. Under torchrun the same with
DistributedDataParallel.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn

rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def options() -> argparse.ArgumentParser:
    """What every yardstick must provide."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--warmup", type=int, default=20, help="steps that aren't timed")
    parser.add_argument("--batch-size", type=int, required=True, help="samples per process")
    return parser


def train(
    args: argparse.Namespace,
    model: nn.Module,
    compute_loss: Callable[[nn.Module, int], torch.Tensor],
    make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    weight_decay: float,
    last_lr: float,
) -> None:
    """Train; prints one JSON line: samples per second of all processes, and the last loss.

    compute_loss: of a step, with the model it is given.
    last_lr: where the schedule would end that begins at the optimizer's own learning rate.
    """
    if world_size > 1:
        dist.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = make_optimizer(groups)
    first_lr = optimizer.param_groups[0]["lr"]
    loss = torch.zeros(())
    began = time.time()
    for step in range(args.steps):
        if step == args.warmup:
            loss.item()
            began = time.time()
        share = (1 + math.cos(math.pi * step / args.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = last_lr + (first_lr - last_lr) * share
        loss = compute_loss(model, step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            loss.item()
    last_loss = loss.item()  # a GPU is still at work until then
    seconds = time.time() - began
    samples = (args.steps - args.warmup) * args.batch_size * world_size
    if rank == 0:
        print(json.dumps({"samples_per_second": samples / seconds, "loss": last_loss}))
    if world_size > 1:
        dist.destroy_process_group()
