"""Loads each rank's batches in step order, on demand or ahead in worker processes.

A batch depends on the seed, the step and the sample ids alone, so neither the number of workers nor
a restart changes it.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
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
    rank_slice,
    sample_noise,
)
from trainyard_trainer.data.transfer import Copy, Transfer
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.errors import UserError


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one rank in one micro-batch.

    Attributes:
        factor: weight of the micro-batch's mean loss in the step's loss. The mean over the ranks
            of the sum of loss x factor is the mean over the global batch.
    """

    ids: Ids
    noise: Noise
    factor: float


class MicroBatches:
    """The micro-batches of one rank from step `start` (from 0) to the last, in order."""

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

    def __iter__(self) -> Iterator[MicroBatch]:
        config, group = self.config, self.group
        accumulation = config.gradient_accumulation_steps
        for step in range(self.start, config.max_steps):
            batch = global_batch(self.seed, step, config.batch_size, self.num_samples)
            weights = self.weights(batch)
            for micro in range(accumulation):
                position = group.rank, group.world_size, micro, accumulation
                ids = rank_slice(batch, *position)
                factor = 1 / accumulation
                if weights is not None:
                    per_weight = group.world_size / weights.sum()
                    factor = float(per_weight * rank_slice(weights, *position).sum())
                yield MicroBatch(ids, sample_noise(self.seed, step, ids), factor)


class _Fetcher:
    """The samples as a map-style data set for DataLoader, indexed by micro-batches.

    A UserError is returned, not raised: DataLoader would wrap it in a worker's traceback.
    """

    def __init__(self, samples: Samples, for_gpu: bool) -> None:
        self.samples = samples
        self.for_gpu = for_gpu

    def __getitem__(self, micro_batch: MicroBatch) -> tuple[Batch, float] | UserError:
        try:
            batch = self.samples.fetch(micro_batch.ids, micro_batch.noise)
        except UserError as error:
            return error
        if self.for_gpu:  # before DataLoader pins them as they are; see `on_device`
            batch = {name: tensor.contiguous() for name, tensor in batch.items()}
        return batch, micro_batch.factor


class _KillWithParent:
    """Worker initialisation: the kernel kills the worker when its rank dies (Linux).

    DataLoader's own check takes some seconds; until then the worker holds the sockets it inherited:
    the connections whose end shows the other ranks the death, and the report's port, which the next
    attempt needs.
    """

    def __init__(self) -> None:
        self.parent = os.getpid()

    def __call__(self, _worker: int) -> None:
        from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

        _prctl_pr_set_pdeathsig(signal.SIGKILL)
        if os.getppid() != self.parent:  # it died before the prctl
            os._exit(1)


# A process that is killed closes its sockets some moments before its parent sees it end.
_SECONDS_TO_END = 2


class Loader:
    """An iterator over this rank's batches, on its device, each with its loss factor.

    Batches for a GPU are copied one ahead, beside the computation.

    Attributes:
        seconds: what the training process has spent on loading.

    Raises:
        RuntimeError: a loader worker was killed. In torch's words, whichever side notices first.
    """

    def __init__(self, samples: Samples, micro_batches: MicroBatches) -> None:
        device = micro_batches.group.device
        self._transfer = Transfer(device) if device.type == "cuda" else None
        self._loaded: tuple[Copy | Batch, float] | Exception | None = None
        self.seconds = 0.0
        fetcher = _Fetcher(samples, for_gpu=device.type == "cuda")
        self._batches: Iterator[Any]
        self._workers: list[BaseProcess] = []
        if workers := micro_batches.config.dataloader_num_workers:
            loader: Any = torch.utils.data.DataLoader(
                fetcher,  # type: ignore[arg-type]
                sampler=micro_batches,
                batch_size=None,
                num_workers=workers,
                multiprocessing_context="fork",
                pin_memory=device.type == "cuda",
                # Its own generator: the loader must not draw from the one that dropout uses.
                generator=torch.Generator(),
                worker_init_fn=_KillWithParent(),
            )
            others = multiprocessing.active_children()
            self._batches = iter(loader)
            children = multiprocessing.active_children()
            self._workers = [child for child in children if child not in others]
        else:
            self._batches = map(fetcher.__getitem__, micro_batches)

    def __next__(self) -> tuple[Batch, float]:
        self._load()
        loaded, self._loaded = self._loaded, None
        if isinstance(loaded, Exception):
            raise loaded
        assert loaded is not None
        batch, factor = loaded
        if isinstance(batch, Copy):
            assert self._transfer is not None
            batch = self._transfer.finish(batch)
        return batch, factor

    def prefetch(self) -> None:
        """On a GPU, which has work to do meanwhile: fetch the next batch and start to copy it."""
        if self._transfer:
            self._load()

    def _load(self) -> None:
        """Fetch the next batch, unless that is done. An error, or the end, is for `next`."""
        if self._loaded is not None:
            return
        began = time.perf_counter()
        try:
            batch, factor = self._fetch()
            self._loaded = self._transfer.start(batch) if self._transfer else batch, factor
        except Exception as error:
            self._loaded = error
        self.seconds += time.perf_counter() - began

    def _fetch(self) -> tuple[Batch, float]:
        """The next batch, on the CPU."""
        try:
            fetched = next(self._batches)
        except (OSError, EOFError) as error:
            # A batch comes over a socket of its worker; torch looks only once who has ended.
            if self._workers:
                self._check_workers(error)
            raise
        if isinstance(fetched, UserError):
            fetched.on_every_rank = False  # other ranks read other samples
            raise fetched
        batch, factor = fetched
        return batch, factor

    def _check_workers(self, error: Exception) -> None:
        ready = wait([worker.sentinel for worker in self._workers], timeout=_SECONDS_TO_END)
        ended = [worker for worker in self._workers if worker.sentinel in ready]
        for worker in ended:
            # Torch's handler of SIGCHLD raises the same error: here, or not at all any more.
            worker.join()
        if ended:
            pids = ", ".join(str(worker.pid) for worker in ended)
            raise RuntimeError(f"DataLoader worker (pid(s) {pids}) exited unexpectedly") from error
