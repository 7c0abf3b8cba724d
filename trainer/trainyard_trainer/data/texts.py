"""Labelled texts as token ids: tokenised once, padded no further than a batch needs."""

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import torch

from trainyard_trainer.data.labels import Labels
from trainyard_trainer.data.sampling import Batch, Ids, Noise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = npt.NDArray[np.int32]


class Texts:
    """Texts of different lengths, one after another in one array.

    Attributes:
        tokens: the ids of all texts.
        starts: where each text starts, and where the last one ends, shape (len + 1,).
        labels: the class of each, shape (len,).
        max_length: tokens that a text can have.
        multiple: lengths are rounded up to it. A GPU's matrix units want 8, and its allocator few
            different shapes; on a CPU every token of padding just costs time.
    """

    def __init__(
        self, tokens: Tokens, starts: Ids, labels: Labels, pad_id: int, max_length: int
    ) -> None:
        self.tokens = tokens
        self.starts = starts
        self.lengths = np.diff(starts)
        self.labels = labels
        self.pad_id = pad_id
        self.max_length = max_length
        self.multiple = 8 if torch.cuda.is_available() else 1

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        labels: Labels,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
    ) -> Self:
        """Tokenise, in all threads there are; texts are cut to `max_length` tokens."""
        # Said here, else the tokenizer warns when loader workers are forked later.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        encoded = tokenizer(
            list(texts), truncation=True, max_length=max_length, return_attention_mask=False
        )
        rows = encoded["input_ids"]
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=starts[1:])
        tokens = np.fromiter((token for row in rows for token in row), np.int32, starts[-1])
        return cls(tokens, starts, labels, int(tokenizer.pad_token_id), max_length)

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, ids: Ids, _noise: Noise) -> Batch:
        """input_ids and attention_mask, each (len(ids), T), and labels, (len(ids),).

        T is the longest text's length, rounded up.
        """
        lengths = self.lengths[ids]
        rounded = -(-lengths.max() // self.multiple) * self.multiple
        columns = np.arange(min(rounded, self.max_length))
        mask = columns < lengths[:, None]
        # Beyond a text's end lie other texts' tokens, or nothing.
        index = np.minimum(self.starts[ids][:, None] + columns, len(self.tokens) - 1)
        input_ids = np.where(mask, self.tokens[index], self.pad_id).astype(np.int64)
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(self.labels[ids]),
        }

    def by_length(self) -> Self:
        """The same texts, shortest first: batches of neighbours need little padding."""
        order = np.argsort(self.lengths, kind="stable")
        tokens = np.concatenate([self.tokens[self.starts[i] : self.starts[i + 1]] for i in order])
        starts = np.concatenate([[0], np.cumsum(self.lengths[order])])
        return type(self)(tokens, starts, self.labels[order], self.pad_id, self.max_length)

    def update(self, digest: "hashlib._Hash") -> None:
        """Add everything that defines the samples to a digest."""
        for array in (self.tokens, self.starts, self.labels):
            digest.update(np.ascontiguousarray(array).tobytes())
