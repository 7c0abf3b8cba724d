"""The key-value caches of several sequences as the rows of one, padded on the left."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache


class PaddedCache:
    """Rows join and leave; there is never a column that is padding in all of them.

    A single row is its own cache, untouched: that works for caches of any kind.

    Attributes:
        padding: for each row, how many columns at its left hold nothing.
    """

    def __init__(self) -> None:
        self.padding: list[int] = []
        self._cache: DynamicCache | None = None

    @property
    def cache(self) -> DynamicCache:
        """What the model reads and extends."""
        assert self._cache is not None, "no row has joined"
        return self._cache

    def join(self, newcomer: DynamicCache) -> None:
        """Add a cache of one row, which is used up by it, below the others."""
        if self._cache is None:
            self._cache, self.padding = newcomer, [0]
            return
        ours, theirs = self._cache.get_seq_length(), newcomer.get_seq_length()
        width = max(ours, theirs)
        for layer, new in zip(_layers(self._cache), _layers(newcomer), strict=True):
            layer.keys = torch.cat([_widened(layer.keys, width), _widened(new.keys, width)])
            layer.values = torch.cat([_widened(layer.values, width), _widened(new.values, width)])
            new.reset()
        self.padding = [count + width - ours for count in self.padding] + [width - theirs]

    def keep(self, rows: Sequence[int]) -> None:
        """Only these rows, in this order, and none of the columns that only the others filled."""
        if not rows:
            self._cache, self.padding = None, []
        elif len(rows) < len(self.padding):
            empty = min(self.padding[row] for row in rows)
            for layer in _layers(self.cache):
                index = torch.tensor(rows, device=layer.keys.device)
                layer.keys = layer.keys[:, :, empty:].index_select(0, index)
                layer.values = layer.values[:, :, empty:].index_select(0, index)
            self.padding = [self.padding[row] - empty for row in rows]


def _layers(cache: DynamicCache) -> list[Any]:
    """Of more than one row they are DynamicLayers, which hold keys and values and no more."""
    return list(cache.layers)


def _widened(states: Tensor, width: int) -> Tensor:
    """`states` [rows, heads, columns, size] with empty columns at the left."""
    return pad(states, (0, 0, width - states.shape[2], 0))
