"""All-reduce written out: the ring algorithm with plain sends and receives, beside PyTorch's own.

Run it:   torchrun --standalone --nproc-per-node=4 examples/learn/ring.py
Break it: torchrun --standalone --nproc-per-node=4 examples/learn/ring.py --break
"""

import os
import sys
from typing import Any

import torch
import torch.distributed as dist


def exchange(send: torch.Tensor, receive: torch.Tensor) -> int:
    """Send to the right neighbour while receiving from the left one; returns the bytes sent."""
    rank, size = dist.get_rank(), dist.get_world_size()
    sending = dist.isend(send, (rank + 1) % size)
    dist.recv(receive, (rank - 1) % size)
    assert sending is not None
    sending.wait()
    return send.numel() * send.element_size()


def ring_all_reduce(tensor: torch.Tensor, log: list[str]) -> int:
    """Replace `tensor` by the sum over all ranks; returns the bytes that this rank has sent."""
    rank, size = dist.get_rank(), dist.get_world_size()
    chunks = list(tensor.chunk(size))
    incoming = torch.empty_like(chunks[0])
    sent = 0

    # 1. Reduce-scatter: each chunk travels once around the ring and collects every rank's part.
    # Afterwards each rank holds one chunk of the finished sum.
    for step in range(size - 1):
        outgoing, arriving = (rank - step) % size, (rank - step - 1) % size
        sent += exchange(chunks[outgoing], incoming)
        chunks[arriving] += incoming
    log.append(f"after reduce-scatter, chunk {(rank + 1) % size} is complete: {tensor.tolist()}")

    # 2. All-gather: the finished chunks travel around the ring once more and replace the others.
    for step in range(size - 1):
        outgoing, arriving = (rank + 1 - step) % size, (rank - step) % size
        sent += exchange(chunks[outgoing], incoming)
        chunks[arriving].copy_(incoming)
    log.append(f"after all-gather: {tensor.tolist()}")
    return sent


def say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


def say_each(text: str) -> None:
    """Print every rank's text, in the order of the ranks."""
    texts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    for rank, line in enumerate(texts):
        say(f"   rank {rank}: {line}")


def main() -> None:
    if "RANK" not in os.environ:
        sys.exit("start this script with: torchrun --standalone --nproc-per-node=4 ring.py")
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()

    say(f"1. a ring of {size} ranks, one number per chunk")
    small = torch.full((size,), float(10**rank))
    say_each(f"starts with {small.tolist()}")
    log: list[str] = []
    ring_all_reduce(small, log)
    for line in log:
        say_each(line)

    say("2. a million numbers: the result, and what each rank sends")
    torch.manual_seed(rank)
    large = torch.randn(1_000_000 // size * size)
    expected = large.clone()
    dist.all_reduce(expected)
    sent = ring_all_reduce(large, [])
    difference = (large - expected).abs().max().item()
    megabytes = large.numel() * large.element_size() / 1e6
    say_each(
        f"differs from dist.all_reduce by at most {difference:.0e};"
        f" sent {sent / 1e6:.1f} MB for a tensor of {megabytes:.1f} MB"
    )

    if "--break" in sys.argv:
        say("3. rank 1 calls all_reduce with half as many numbers")
        dist.all_reduce(torch.ones(1000 if rank != 1 else 500))
    dist.destroy_process_group()
    os._exit(0)  # at once: PyTorch 2.15 may abort while Python takes its threads down


if __name__ == "__main__":
    main()
