"""A long sequence of tokens as samples: windows of it, and the part that is held out."""

import numpy as np
import numpy.typing as npt
import torch

from trainyard_trainer.data.sampling import Batch, Ids, Noise
from trainyard_trainer.errors import ConfigError

Tokens = npt.NDArray[np.integer]


class Windows:
    """Stretches of block_size + 1 tokens, the i-th from token i * stride on.

    With a stride of block_size every token but the first is a target exactly once.
    """

    def __init__(self, tokens: Tokens, block_size: int, stride: int) -> None:
        self.tokens = tokens
        self.stride = stride
        self._offsets = np.arange(block_size + 1)

    def __len__(self) -> int:
        return (len(self.tokens) - len(self._offsets)) // self.stride + 1

    def fetch(self, ids: Ids, _noise: Noise) -> Batch:
        """Inputs and targets, each (len(ids), block_size)."""
        windows = self.tokens[ids[:, None] * self.stride + self._offsets]
        both = torch.from_numpy(windows.astype(np.int64))
        return {"ids": both[:, :-1], "targets": both[:, 1:]}


def split(
    tokens: Tokens, block_size: int, eval_fraction: float, stride: int, where: str, unit: str
) -> tuple[Windows, Windows]:
    """Windows to train on, and windows of the sequence's end that are held out.

    Raises ConfigError if there is no room for one of each: `where` names the data, `unit` the
    tokens.
    """
    num_held_out = int(len(tokens) * eval_fraction)
    if min(num_held_out, len(tokens) - num_held_out) <= block_size:
        needed = int((block_size + 1) / min(eval_fraction, 1 - eval_fraction)) + 1
        raise ConfigError(
            f"{where} has {len(tokens):,} {unit}, too few for block_size {block_size}: give at"
            f" least {needed:,}, or lower block_size"
        )
    return (
        Windows(tokens[:-num_held_out], block_size, stride),
        Windows(tokens[-num_held_out:], block_size, block_size),
    )
