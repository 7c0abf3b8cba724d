"""Sampling: which samples make up global batch k, a pure function of the seed and k.

It does not depend on the number of ranks, so a run that resumes with more or fewer of them sees
exactly the samples it would have seen: none lost, none repeated. There is no iterator state to
restore: the step is the position.
"""

from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

Ids = npt.NDArray[np.int64]
Noise = npt.NDArray[np.uint64]
Weights = npt.NDArray[Any]  # a number for each sample
Batch = dict[str, torch.Tensor]
Number = TypeVar("Number", bound=np.generic)

_ROUNDS = 6


class Samples(Protocol):
    """Numbered samples that can be fetched in any order."""

    def __len__(self) -> int: ...

    def fetch(self, ids: Ids, noise: Noise) -> Batch:
        """The samples with these ids, stacked along dimension 0, on the CPU.

        `noise`: 64 random bits per sample, the only source of randomness for augmentation.
        """
        ...


def global_batch(seed: int, step: int, batch_size: int, num_samples: int) -> Ids:
    """Sample ids of the batch that optimizer step `step` (from 0) uses, shape (batch_size,).

    Every epoch visits every sample once, in its own order; a batch may span two epochs.
    """
    position = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epochs, offsets = np.divmod(position, num_samples)
    ids: Ids = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        ids[in_epoch] = permute(offsets[in_epoch], num_samples, seed, int(epoch))
    return ids


def rank_slice(
    ids: npt.NDArray[Number], rank: int, world_size: int, micro: int, accumulation: int
) -> npt.NDArray[Number]:
    """The part of a global batch (ids, or a number per id) for `rank` in micro-batch `micro`."""
    part: npt.NDArray[Number] = ids.reshape(accumulation, world_size, -1)[micro, rank]
    return part


def sample_noise(seed: int, step: int, ids: Ids) -> Noise:
    """64 random bits for each sample of a step, the same in every process."""
    key = _mix(np.array([seed], dtype=np.uint64)) ^ np.uint64(step)
    return _mix(_mix(ids.astype(np.uint64)) ^ _mix(key))


def epoch_ended(step: int, batch_size: int, num_samples: int) -> int | None:
    """The number of completed epochs, if optimizer step `step` (from 1) completed one."""
    done = step * batch_size // num_samples
    return done if done > (step - 1) * batch_size // num_samples else None


def permute(indices: Ids, n: int, seed: int, epoch: int) -> Ids:
    """Where a seeded shuffle of range(n) puts `indices`, without a table of n entries.

    A balanced Feistel network is a bijection of [0, 4^half); results outside [0, n) are encrypted
    again until they fall inside (cycle walking; Black and Rogaway, 2002).
    """
    half = max(1, (max(n - 1, 1).bit_length() + 1) // 2)
    keys = _mix(np.arange(_ROUNDS, dtype=np.uint64) + np.uint64(_ROUNDS * epoch))
    keys = _mix(keys ^ _mix(np.array([seed], dtype=np.uint64)))
    out = _feistel(indices.astype(np.uint64), half, keys)
    while (outside := out >= n).any():
        out[outside] = _feistel(out[outside], half, keys)
    return out.astype(np.int64)


def _feistel(
    x: npt.NDArray[np.uint64], half: int, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> shift, x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finalizer (Steele et al., 2014): every input bit reaches every output bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
