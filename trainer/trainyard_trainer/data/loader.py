"""Batches in the order of the steps, prepared when needed or ahead by worker processes.

What a batch holds depends on the seed, the step and the sample ids alone, so neither the number of
workers nor a restart changes it.
"""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from trainyard_trainer.config import TrainConfig
from trainyard_trainer.data.sampling import (
    Batch,
    Ids,
    Noise,
    Samples,
    Weights,
    global_batch,
    rank_share,
    sample_noise,
)
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.errors import UserError


@dataclass(frozen=True)
class Share:
    """What one rank trains on in one micro-batch.

    Attributes:
        factor: what the micro-batch's mean loss counts in the step's. The mean over the ranks of
            the sum of loss x factor is the mean over the global batch.
    """

    ids: Ids
    noise: Noise
    factor: float


class Shares:
    """Every share of one rank from step `start` (from 0) to the last, in order."""

    def __init__(
        self,
        config: TrainConfig,
        seed: int,
        num_samples: int,
        weights: Callable[[Ids], Weights | None],
        group: Group,
        start: int,
    ) -> None:
        """`weights`: see Recipe."""
        self.config = config
        self.seed = seed
        self.num_samples = num_samples
        self.weights = weights
        self.group = group
        self.start = start

    def __iter__(self) -> Iterator[Share]:
        config, group = self.config, self.group
        accumulation = config.gradient_accumulation_steps
        for step in range(self.start, config.max_steps):
            batch = global_batch(self.seed, step, config.batch_size, self.num_samples)
            weights = self.weights(batch)
            for micro in range(accumulation):
                place = group.rank, group.world_size, micro, accumulation
                ids = rank_share(batch, *place)
                factor = 1 / accumulation
                if weights is not None:
                    per_weight = group.world_size / weights.sum()
                    factor = float(per_weight * rank_share(weights, *place).sum())
                yield Share(ids, sample_noise(self.seed, step, ids), factor)


class _Fetcher:
    """The data set as torch's DataLoader wants it: indexed by shares.

    A UserError travels back as a value; the loader would wrap it in a worker's traceback.
    """

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, share: Share) -> tuple[Batch, float] | UserError:
        try:
            return self.samples.fetch(share.ids, share.noise), share.factor
        except UserError as error:
            return error


class _EndWithParent:
    """Has a worker die at once with its rank, however that dies (Linux).

    By itself it would notice only some seconds later; until then it holds what it has inherited:
    the connections by whose end the other ranks know of the death, and the report's port, which
    the next attempt needs.
    """

    def __init__(self) -> None:
        self.rank = os.getpid()

    def __call__(self, _worker: int) -> None:
        from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

        _prctl_pr_set_pdeathsig(signal.SIGKILL)
        if os.getppid() != self.rank:  # it died before that
            os._exit(1)


class Loader:
    """An iterator over this rank's batches, on its device, each with its loss's factor."""

    def __init__(self, samples: Samples, shares: Shares) -> None:
        self.device = shares.group.device
        fetcher = _Fetcher(samples)
        self._batches: Iterator[Any]
        if workers := shares.config.dataloader_num_workers:
            loader: Any = torch.utils.data.DataLoader(
                fetcher,  # type: ignore[arg-type]
                sampler=shares,
                batch_size=None,
                num_workers=workers,
                multiprocessing_context="fork",
                pin_memory=self.device.type == "cuda",
                # Its own generator: the loader must not draw from the one dropout uses.
                generator=torch.Generator(),
                worker_init_fn=_EndWithParent(),
            )
            self._batches = iter(loader)
        else:
            self._batches = map(fetcher.__getitem__, shares)

    def __next__(self) -> tuple[Batch, float]:
        found = next(self._batches)
        if isinstance(found, UserError):
            found.on_every_rank = False  # the others read other samples, perhaps on other disks
            raise found
        batch, factor = found
        return on_device(batch, self.device), factor


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors, moved while the device goes on computing."""
    if device.type == "cpu":
        return batch
    # From pinned memory, else the copy waits for all that the device still has to do.
    return {
        name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()
    }
