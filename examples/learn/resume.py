"""Exact resume: a run that is killed and started again ends with the same bits as one that is not.

Run it:   torchrun --standalone --nproc-per-node=2 examples/learn/resume.py
Kill it:  torchrun --standalone --nproc-per-node=2 examples/learn/resume.py --kill
          and start it again, without --kill
Break it: start it again with --forget optimizer (or random, or position)
"""

import argparse
import hashlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

FOLDER = Path("resume-checkpoints")
STEPS, EVERY, KILLED_AT = 40, 10, 25
SAMPLES, BATCH = 512, 16  # BATCH is of one step, all ranks together


def fingerprint(model: nn.Module) -> str:
    """Eight digits that differ as soon as one bit of one weight does."""
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:8]


def order(epoch: int) -> list[int]:
    """The order of the samples, from the epoch's number alone: it needs no saving."""
    return torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch)).tolist()


def save(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every rank's random state and rank 0's rest, in a file that is complete or not there."""
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, torch.get_rng_state())
    if dist.get_rank() == 0:
        FOLDER.mkdir(exist_ok=True)
        unfinished = FOLDER / "unfinished"
        state = {
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": states,
        }
        torch.save(state, unfinished)
        unfinished.replace(FOLDER / f"step-{step:03}.pt")  # atomic: never half a checkpoint


def newest() -> dict[str, Any] | None:
    """The newest checkpoint, if there is one."""
    files = sorted(FOLDER.glob("step-*.pt"))
    return torch.load(files[-1]) if files else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kill", action="store_true", help=f"kill rank 1 after step {KILLED_AT}")
    parser.add_argument("--forget", choices=["optimizer", "random", "position"])
    args = parser.parse_args()
    if "RANK" not in os.environ:
        sys.exit("start this script with: torchrun --standalone --nproc-per-node=2 SCRIPT")
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(rank)  # dropout differs from rank to rank; DDP makes the weights equal
    inputs = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.2), nn.Tanh(), nn.Linear(64, 1))
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=0.01)

    done = 0
    checkpoint = newest()
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        if args.forget != "optimizer":
            optimizer.load_state_dict(checkpoint["optimizer"])
        if args.forget != "random":
            torch.set_rng_state(checkpoint["random"][rank])
        done = checkpoint["step"]
        if rank == 0:
            print(f"resumed from step {done}", flush=True)

    skipped = 0 if args.forget == "position" else done
    for step in range(done + 1, STEPS + 1):
        position = (step - done + skipped - 1) * BATCH
        samples = order(position // SAMPLES)[position % SAMPLES :][:BATCH][rank::size]
        x = inputs[samples]
        nn.functional.mse_loss(ddp(x), x.sum(1, keepdim=True).sin()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if step % EVERY == 0:
            save(step, model, optimizer)
        if args.kill and rank == 1 and step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
    if rank == 0:
        shutil.rmtree(FOLDER)  # the run is complete: the next one starts from the beginning
        print(f"step {STEPS}: weights {fingerprint(model)}", flush=True)
    dist.destroy_process_group()
    os._exit(0)  # at once: PyTorch 2.15 may abort while Python takes its threads down


if __name__ == "__main__":
    main()
