"""A hang, and two ways to find the rank that causes it: stacks, and a barrier that names names.

Run it:   torchrun --standalone --nproc-per-node=3 examples/learn/hang.py
Break it: torchrun --standalone --nproc-per-node=3 examples/learn/hang.py --break
"""

import faulthandler
import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = 5  # seconds without progress that are too many in this toy


def load_batch(step: int) -> torch.Tensor:
    """The data of a step. With --break, rank 1's disk stops answering in step 3."""
    if "--break" in sys.argv and dist.get_rank() == 1 and step == 3:
        time.sleep(3600)
    return torch.full((4,), float(step))


def main() -> None:
    if "RANK" not in os.environ:
        sys.exit("start this script with: torchrun --standalone --nproc-per-node=3 hang.py")
    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
    rank = dist.get_rank()
    for step in range(1, 6):
        # 1. A rank that gets no further prints where it is.
        faulthandler.dump_traceback_later(PATIENCE)
        batch = load_batch(step)
        # 2. Rank 0 waits for everyone and names who is missing. (gloo only; slow, for debugging)
        dist.monitored_barrier(timeout=timedelta(seconds=2 * PATIENCE))
        dist.all_reduce(batch)
        faulthandler.cancel_dump_traceback_later()
        if rank == 0:
            print(f"step {step}: sum {batch[0].item():g}", flush=True)
    dist.destroy_process_group()
    os._exit(0)  # at once: PyTorch 2.15 may abort while Python takes its threads down


if __name__ == "__main__":
    main()
