"""Speedup measured: the same global batch on one rank and on all, and what communication costs.

Run it:   torchrun --standalone --nproc-per-node=2 examples/learn/speedup.py
Break it: torchrun --standalone --nproc-per-node=2 examples/learn/speedup.py --break

torchrun sets OMP_NUM_THREADS to 1: both measurements use one thread per rank.
"""

import os
import statistics
import sys
import time

import torch
import torch.distributed as dist
from torch import nn

STEPS, WARMUP = 20, 5
BATCH = 4 if "--break" in sys.argv else 1024  # samples of one step, all ranks together
WIDTH = 512


def measure(ranks: int) -> tuple[float, float]:
    """Median seconds of a step on the first `ranks` ranks, and of the all-reduce in it.

    Gradients are exchanged after backward, not during it as DDP does, so that it can be timed.
    """
    group = dist.new_group(list(range(ranks)))
    steps, exchanges = [], []
    if dist.get_rank() < ranks:
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4)))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        inputs = torch.randn(BATCH // ranks, WIDTH)
        for _ in range(WARMUP + STEPS):
            began = time.perf_counter()
            model(inputs).square().mean().backward()
            exchanging = time.perf_counter()
            if ranks > 1:
                gradients = [parameter.grad for parameter in model.parameters()]
                flat = torch.cat([each.flatten() for each in gradients if each is not None])
                dist.all_reduce(flat, group=group)  # type: ignore[arg-type]  # a member's own group
            exchanged = time.perf_counter()
            optimizer.step()
            optimizer.zero_grad()
            steps.append(time.perf_counter() - began)
            exchanges.append(exchanged - exchanging)
    dist.barrier()
    if not steps:
        return 0.0, 0.0
    return statistics.median(steps[WARMUP:]), statistics.median(exchanges[WARMUP:])


def main() -> None:
    if "RANK" not in os.environ:
        sys.exit("start this script with: torchrun --standalone --nproc-per-node=2 speedup.py")
    dist.init_process_group("gloo")
    size = dist.get_world_size()
    alone, _ = measure(1)
    together, exchange = measure(size)
    if dist.get_rank() == 0:
        print(f"{BATCH} samples in each step, {torch.get_num_threads()} thread per rank")
        print(f"1 rank:  {alone * 1e3:6.1f} ms a step, {BATCH / alone:,.0f} samples/s")
        print(
            f"{size} ranks: {together * 1e3:6.1f} ms a step, {BATCH / together:,.0f} samples/s;"
            f" all-reduce {exchange * 1e3:.1f} ms ({exchange / together:.0%})"
        )
        speedup = alone / together
        print(f"speedup {speedup:.2f}, efficiency {speedup / size:.0%}")
        if speedup > 1:
            sigma = max(0.0, (size / speedup - 1) / (size - 1))
            shown = ", ".join(f"{n}: {n / (1 + sigma * (n - 1)):.1f}" for n in (4, 16, 64))
            limit = f"{1 / sigma:.1f}" if sigma else "none"
            print(f"by Amdahl's law: sigma {sigma:.2f}; speedup on {shown}; limit {limit}")
        else:
            print("slower than one rank")
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # at once: PyTorch 2.15 may abort while Python takes its threads down


if __name__ == "__main__":
    main()
