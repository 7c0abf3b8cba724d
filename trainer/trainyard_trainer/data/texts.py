"""Texts as token ids: tokenised once, padded per batch."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from trainyard_trainer.data.rows import Labels
from trainyard_trainer.data.sampling import Batch, Ids, Noise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


IGNORED = -100  # target of positions without loss; the default ignore_index of cross_entropy
_TOKENIZER_BATCH = 1000  # texts in one call of the tokenizer, to bound its memory

Tokens = npt.NDArray[np.int32]


class TokenSamples:
    """Numbered token sequences; the first `num_prompt` tokens of each have no loss.

    Attributes:
        num_targets: tokens with loss in each, shape (len,).
    """

    def __init__(self, sequences: Sequence[tuple[Tokens, int]], pad_to: int | None = None) -> None:
        """`sequences`: ids and num_prompt of each; `pad_to`: pad all batches to this length."""
        lengths = np.array([len(tokens) for tokens, _ in sequences], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.tokens = np.concatenate([tokens for tokens, _ in sequences])
        # The first token has no prediction.
        self.num_prompt = np.maximum(
            1, np.array([prompt for _, prompt in sequences], dtype=np.int64)
        )
        self.num_targets = lengths - self.num_prompt
        self.pad_to = pad_to

    def __len__(self) -> int:
        return len(self.num_targets)

    def __getitem__(self, index: int) -> Tokens:
        return self.tokens[self.starts[index] : self.starts[index + 1]]

    def fetch(self, ids: Ids, _noise: Noise) -> Batch:
        """Inputs and targets, each (len(ids), T), T that of the longest sample or `pad_to`.

        Padding is on the right: with causal attention no mask is needed.
        """
        rows = [self[index] for index in ids]
        length = (self.pad_to or max(len(row) for row in rows)) - 1
        inputs = np.zeros((len(rows), length), dtype=np.int64)
        targets = np.full((len(rows), length), IGNORED, dtype=np.int64)
        for i, (row, prompt) in enumerate(zip(rows, self.num_prompt[ids], strict=True)):
            inputs[i, : len(row) - 1] = row[:-1]
            targets[i, prompt - 1 : len(row) - 1] = row[prompt:]
        return {"ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}

    def update(self, digest: "hashlib._Hash") -> None:
        """Add everything that defines the samples to a digest."""
        for array in (self.tokens, self.starts, self.num_prompt):
            digest.update(array.tobytes())


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    prompts: Sequence[str] | None,
    max_length: int,
) -> Iterable[tuple[Tokens, int]]:
    """Token ids of each text, and how many of them are its prompt; at most `max_length`.

    A text that isn't truncated ends with the tokenizer's end-of-text token. A prompt becomes the
    user's message in the tokenizer's chat template, and the text the answer; without a template a
    blank line separates them.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for start in range(0, len(texts), _TOKENIZER_BATCH):
        chunk = slice(start, start + _TOKENIZER_BATCH)
        heads: list[list[int]] = [[]] * len(texts[chunk])
        if prompts is not None:
            heads = _encode_prompts(tokenizer, prompts[chunk])
        bodies = _ids(tokenizer, texts[chunk], special=prompts is None)
        for head, body in zip(heads, bodies, strict=True):
            ids = head + body + (end if body[-1:] != end else [])
            yield np.array(ids[:max_length], dtype=np.int32), len(head)


def _encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]
) -> list[list[int]]:
    if tokenizer.chat_template is None:
        return _ids(tokenizer, [f"{prompt}\n\n" for prompt in prompts], special=True)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rendered: Any = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    return _ids(tokenizer, rendered, special=False)  # the template contains the special tokens


def _ids(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], special: bool
) -> list[list[int]]:
    encoded = tokenizer(
        list(texts),
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning: longer texts are truncated later
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


class Texts:
    """Texts of different lengths, one after another in one array.

    Attributes:
        tokens: the ids of all texts.
        starts: where each text starts, and where the last one ends, shape (len + 1,).
        labels: the class of each, shape (len,).
        max_length: maximum tokens of a text.
        multiple: batch lengths are rounded up to it: 8 on GPUs, for fast matrix products and few
            different shapes; 1 on a CPU, where padding only costs time.
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
        """Tokenise in parallel; texts are truncated to `max_length` tokens."""
        # Set, or the tokenizer warns when loader workers are forked later.
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
        # Positions beyond a text's end index other texts' tokens; the mask replaces them.
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
