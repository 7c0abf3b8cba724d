"""Evaluation on held-out samples, the same every time, distributed over the ranks."""

import math
from collections.abc import Callable

import numpy as np
import torch

from trainyard_trainer.config import TrainConfig
from trainyard_trainer.data.sampling import Ids
from trainyard_trainer.data.transfer import on_device
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.recipes.base import Recipe


@torch.no_grad()
def evaluate(
    recipe: Recipe, parallel: Parallel, config: TrainConfig, on_batch: Callable[[], None]
) -> list[float]:
    """The sums of `recipe.evaluate` over all held-out samples of this evaluation and all ranks.

    Every rank makes the same number of forward passes, as FSDP requires; `on_batch` is called after
    each.
    """
    group, samples = parallel.group, recipe.held_out
    ids = held_out_ids(len(samples), config)
    size = max(1, config.batch_size // (group.world_size * config.gradient_accumulation_steps))
    chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
    totals = torch.zeros(0, dtype=torch.float64, device=group.device)
    parallel.module.eval()
    for turn in range(math.ceil(len(chunks) / group.world_size)):
        index = turn * group.world_size + group.rank
        chunk = chunks[index % len(chunks)]
        noise = np.zeros(len(chunk), dtype=np.uint64)
        batch = on_device(samples.fetch(chunk, noise), group.device)
        with parallel.autocast():
            sums = recipe.evaluate(parallel.module, batch).double()
        counts = 1.0 if index < len(chunks) else 0.0  # beyond the last chunk: not counted
        totals = sums * counts if turn == 0 else totals + sums * counts
        on_batch()
    parallel.module.train()
    return [float(value) for value in group.sum(totals).tolist()]


def held_out_ids(num_samples: int, config: TrainConfig) -> Ids:
    """All samples, or eval_batches of them, evenly spaced."""
    if config.eval_batches is None or config.eval_batches * config.batch_size >= num_samples:
        return np.arange(num_samples, dtype=np.int64)
    count = config.eval_batches * config.batch_size
    return np.linspace(0, num_samples - 1, count).astype(np.int64)
