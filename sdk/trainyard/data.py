"""What a script's loader draws: trainyard.StepSampler, and a generator of its own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

from trainyard.needs import needs

with needs("trainyard.StepSampler"):
    import torch
    from torch.utils.data import DataLoader

    from trainyard_trainer.data.sampling import global_batch, rank_slice
    from trainyard_trainer.errors import ConfigError


class StepSampler:
    """The batch sampler of a DataLoader over a map-style data set; it never ends.

        loader = DataLoader(dataset, batch_sampler=StepSampler(len(dataset), batch_size=64))
        state = trainyard.Checkpointer(run, model=model, optimizer=optimizer, data=loader)
        for step, batch in zip(range(state.resume() + 1, steps + 1), loader):

    Which samples form the batch of step k is a pure function of the seed and k: each epoch has
    every sample once, in its own order. So the sampler's state is just a step, batches that loader
    workers have prefetched don't matter, and another number of ranks sees the same batches.

    Args:
        num_samples: samples in the data set.
        batch_size: samples of one step, all ranks together; divisible by the number of ranks.
        seed: the seed of the order.
        rank, world_size: as torchrun sets them, unless given.

    Attributes:
        start: steps that are done; a new iterator begins with the batch of the next step.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.rank = int(os.environ.get("RANK", "0")) if rank is None else rank
        ranks = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
        self.world_size = ranks
        if num_samples < 1:
            raise ConfigError("StepSampler: the data set is empty")
        if batch_size < 1 or batch_size % ranks:
            raise ConfigError(
                f"StepSampler: batch_size {batch_size} is of all ranks together: use a multiple of"
                f" their number, {ranks}"
            )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.start = 0

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.batch, itertools.count(self.start))

    def batch(self, step: int) -> list[int]:
        """This rank's part of the batch that follows `step` steps, as sample numbers."""
        ids = global_batch(self.seed, step, self.batch_size, self.num_samples)
        part: list[int] = rank_slice(ids, self.rank, self.world_size, 0, 1).tolist()
        return part

    def state_at(self, step: int) -> dict[str, int]:
        """The state after `step` steps."""
        return {
            "step": step,
            "num_samples": self.num_samples,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def state_dict(self) -> dict[str, int]:
        return self.state_at(self.start)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the state's step.

        Raises ConfigError if the state belongs to another data set size, batch size or seed.
        """
        for name, own in self.state_dict().items():
            if name != "step" and state[name] != own:
                raise ConfigError(
                    f"StepSampler: {name} was {state[name]} and is {own}, so step"
                    f" {state['step']} was of other batches: set it back, or start the run under"
                    " another name"
                )
        self.start = int(state["step"])


def own_generator(data: Any) -> None:
    """Give a DataLoader a generator of its own.

    Each new iterator of a loader draws a number. From the default generator, a resumed run, which
    starts an iterator in the middle, would draw one more than the run that it continues.
    """
    if isinstance(data, DataLoader) and data.generator is None:
        data.generator = torch.Generator()
        data.generator.manual_seed(torch.initial_seed())
