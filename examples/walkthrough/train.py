"""Data-parallel training in one page: what torchrun, DDP and the sampler do, shown as it happens.

Run it: torchrun --nproc-per-node=2 examples/walkthrough/train.py
"""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def everyone(value: object) -> list[Any]:
    """Every rank's `value`, in the order of the ranks, for every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def say(text: str) -> None:
    """Rank 0 speaks for all. Without this line every message comes once per process."""
    if dist.get_rank() == 0:
        print(text, flush=True)


def say_each(text: str) -> None:
    """What every rank has to say, sorted: their own prints would come in any order."""
    for rank, line in enumerate(everyone(text)):
        say(f"   rank {rank}: {line}")


def fingerprint(model: nn.Module) -> str:
    """Eight digits that differ as soon as one bit of one weight does."""
    weights = nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    return hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:8]


def main() -> None:
    # 1. Join. torchrun started this very file twice; each copy finds its own RANK and LOCAL_RANK,
    # and the same WORLD_SIZE, MASTER_ADDR and MASTER_PORT, in its environment.
    if "RANK" not in os.environ:
        sys.exit(f"start me with: torchrun --nproc-per-node=2 {sys.argv[0]}")
    local_rank = int(os.environ["LOCAL_RANK"])  # the number on this machine: which GPU is mine
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")  # GPUs talk by NCCL, CPUs by gloo
    rank, world_size = dist.get_rank(), dist.get_world_size()
    say(f"1. {world_size} processes have met")
    say_each(f"process {os.getpid()} on {device}")

    # 2. All-reduce: everyone puts a tensor in, everyone gets the sum. DDP is built on it.
    number = torch.tensor(rank + 1, device=device)
    dist.all_reduce(number, op=dist.ReduceOp.SUM)
    say(f"2. all-reduce: every rank gave its rank + 1, and now has {number.item()}")

    # 3. The model. Seeds differ on purpose: DDP copies rank 0's weights to the others.
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1)).to(device)
    say("3. weights before and after DDP wraps the model")
    before = fingerprint(model)
    ddp = DistributedDataParallel(model, device_ids=[local_rank] if cuda else None)
    say_each(f"{before} -> {fingerprint(model)}")

    # 4. The data: 1,000 points of y = x^2, numbered. The sampler deals each of them to one rank.
    x = torch.linspace(-1, 1, 1000).view(-1, 1)
    data = TensorDataset(x, x**2, torch.arange(1000))
    sampler: DistributedSampler[Any] = DistributedSampler(data, shuffle=True, seed=0)
    loader = DataLoader(data, batch_size=25, sampler=sampler)  # 25 per rank
    say("4. first samples of epochs 0 and 1 (without set_epoch they would be the same)")
    first = list(sampler)[:4]
    sampler.set_epoch(1)
    say_each(f"{first} and {list(sampler)[:4]}")

    # 5. Train. backward() all-reduces the gradients while it computes: each rank steps by the
    # mean over all ranks, so weights that were equal before the step are equal after it.
    optimizer = torch.optim.Adam(ddp.parameters(), lr=0.01)
    seen: set[int] = set()
    say("5. training")
    for epoch in range(5):
        sampler.set_epoch(epoch)
        total = torch.zeros((), device=device)
        for x, y, numbers in loader:
            loss = nn.functional.mse_loss(ddp(x.to(device)), y.to(device))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach()
            seen |= set(numbers.tolist()) if epoch == 0 else set()
        dist.all_reduce(total)  # each rank knows the loss of its own share only
        say(f"   epoch {epoch}: loss {total.item() / world_size / len(loader):.4f}")

    # 6. Check what was promised.
    shares = everyone(seen)
    say(f"6. epoch 0 used {[*map(len, shares)]} samples, {len(set.union(*shares))} different ones")
    say_each(f"weights {fingerprint(model)} after {5 * len(loader)} steps")

    # 7. Save once: rank 0 writes, the barrier makes the others wait until the file is there.
    path = Path(os.environ.get("TRAINYARD_RUN_DIR", "."), "walkthrough.pt")
    if rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)  # the bare model: ddp's names begin with "module."
    dist.barrier()
    model.load_state_dict(torch.load(path, map_location=device))
    say(f"7. rank 0 saved {path}; all have read it: {everyone(fingerprint(model))}")

    dist.destroy_process_group()  # 8. Leave in good order ...
    os._exit(0)  # ... and at once: PyTorch 2.15 may abort while Python takes its threads down.


if __name__ == "__main__":
    main()
