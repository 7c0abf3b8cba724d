"""Token sequences packed into rows: each is whole in one row, and starts there at position 0."""

import hashlib

import numpy as np
import torch

from trainyard_trainer.data.cache import Array, cached
from trainyard_trainer.data.sampling import Batch, Ids, Noise, permute
from trainyard_trainer.data.texts import IGNORED, TokenSamples
from trainyard_trainer.errors import ConfigError


class PackedSamples:
    """Numbered rows of sequences, for a model that keeps the sequences of a row apart.

    Attributes:
        samples: the sequences.
        num_tokens: of all.
        fill: the share of all rows' positions that hold a token.
    """

    def __init__(self, samples: TokenSamples, packing: Array, max_length: int) -> None:
        """`packing`: what `pack` returned for these arguments."""
        self.samples = samples
        self.num_tokens = samples.num_tokens
        packing = np.asarray(packing)  # np.memmap is slow to index
        self._packing = packing
        count = (len(packing) - len(samples) - 1) // 2
        self._starts, self._num_targets, self._ids = np.split(packing, [count + 1, 2 * count + 1])
        self.fill = (samples.num_tokens - len(samples)) / (count * _capacity(max_length))

    def __len__(self) -> int:
        return len(self._num_targets)

    def num_targets(self, rows: Ids) -> Ids:
        """Tokens with loss in each of these rows, shape (len(rows),)."""
        return self._num_targets[rows]

    def sequences(self, row: int) -> Ids:
        """The numbers of a row's sequences, in their order."""
        return self._ids[self._starts[row] : self._starts[row + 1]]

    def fetch(self, ids: Ids, _noise: Noise) -> Batch:
        """Inputs, targets and positions of these rows, each (len(ids), T).

        The inputs and targets of a sequence are those it has alone: none is predicted from another.
        T is the longest row, or the samples' `pad_to`. Positions begin at 0 in each sequence, and
        count on in the padding.
        """
        rows = [self.sequences(row) for row in ids]
        used = [sum(len(self.samples[i]) - 1 for i in row) for row in rows]
        length = self.samples.pad_to - 1 if self.samples.pad_to else max(used)
        inputs = np.zeros((len(rows), length), dtype=np.int64)
        targets = np.full((len(rows), length), IGNORED, dtype=np.int64)
        positions = np.zeros((len(rows), length), dtype=np.int64)
        for n, row in enumerate(rows):
            at = 0
            for i in row:
                positions[n, at:] = np.arange(length - at)
                at += self.samples.write(i, inputs[n, at:], targets[n, at:])
        arrays = {"ids": inputs, "targets": targets, "positions": positions}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def update(self, digest: "hashlib._Hash") -> None:
        """Add everything that defines the rows to a digest."""
        self.samples.update(digest)
        digest.update(self._packing.tobytes())


def packed(samples: TokenSamples, max_length: int, batch_size: int, name: str) -> PackedSamples:
    """The sequences in rows, which are chosen once for all ranks and attempts.

    `name`: of the cached file. Raises ConfigError if there are fewer rows than a batch has.
    """
    rows = PackedSamples(samples, cached(name, lambda: pack(samples, max_length)), max_length)
    if len(rows) < batch_size:
        raise ConfigError(
            f"config.batch_size: {batch_size} packed rows make a step, but the {len(samples):,}"
            f" texts fill only {len(rows):,} rows of {max_length} tokens; lower it, or give more"
            " data"
        )
    return rows


def pack(samples: TokenSamples, max_length: int) -> Array:
    """Which sequences share a row, as numbers in one array (see PackedSamples.__init__).

    Each goes into the row with the least room that still holds it (best fit), in a shuffled order
    that is always the same. In order of length rows would be a little fuller, but neighbours in a
    row would be of one length, and so less of a random sample. The last token of a sequence is
    never an input, and takes no position: a sequence of `max_length` tokens fills a row.
    """
    lengths = samples.lengths()
    order = permute(np.arange(len(lengths)), len(lengths), seed=0, epoch=0)
    capacity, count = _capacity(max_length), 0
    rows: Ids = np.empty(len(lengths), np.int64)
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows, by their free positions
    rooms = 0  # bit n: whether there are rows with n free positions
    for n, size in enumerate((lengths[order] - 1).tolist()):
        if larger := rooms >> size:
            room = size + (larger & -larger).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, row, count = capacity, count, count + 1
        rows[n] = row
        if left := room - size:
            by_room[left].append(row)
            rooms |= 1 << left
    ids = order[np.argsort(rows, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows))])
    num_targets = lengths - np.maximum(1, samples.prompt_lengths())
    return np.concatenate([starts, np.add.reduceat(num_targets[ids], starts[:-1]), ids])


def _capacity(max_length: int) -> int:
    """Positions of a row."""
    return max_length - 1
