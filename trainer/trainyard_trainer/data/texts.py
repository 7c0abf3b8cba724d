"""Texts as token ids, tokenised once and padded no further than a batch needs."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from trainyard_trainer.data.sampling import Batch, Ids, Noise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
import os
from typing import TYPE_CHECKING, Self

from trainyard_trainer.data.rows import Labels

IGNORED = -100  # the target of a position that doesn't count; cross_entropy's own default
_AT_ONCE = 1000  # texts in one call of the tokenizer: bounds what its answer takes

Tokens = npt.NDArray[np.int32]


class TokenSamples:
    """Numbered token sequences; the first `num_prompt` tokens of each are given, not learnt.

    Attributes:
        num_targets: how many tokens of each are to be predicted, shape (len,).
    """

    def __init__(self, sequences: Sequence[tuple[Tokens, int]], pad_to: int | None = None) -> None:
        """`sequences`: ids and num_prompt of each; `pad_to`: make all batches this long."""
        lengths = np.array([len(tokens) for tokens, _ in sequences], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.tokens = np.concatenate([tokens for tokens, _ in sequences])
        # Nothing predicts the first token.
        self.num_given = np.maximum(1, np.array([given for _, given in sequences], dtype=np.int64))
        self.num_targets = lengths - self.num_given
        self.pad_to = pad_to

    def __len__(self) -> int:
        return len(self.num_targets)

    def __getitem__(self, index: int) -> Tokens:
        return self.tokens[self.starts[index] : self.starts[index + 1]]

    def fetch(self, ids: Ids, _noise: Noise) -> Batch:
        """Inputs and targets, each (len(ids), T), T that of the longest sample or `pad_to`.

        Padding comes last: a causal model's real tokens don't see it, so no mask is needed.
        """
        rows = [self[index] for index in ids]
        length = (self.pad_to or max(len(row) for row in rows)) - 1
        inputs = np.zeros((len(rows), length), dtype=np.int64)
        targets = np.full((len(rows), length), IGNORED, dtype=np.int64)
        for i, (row, given) in enumerate(zip(rows, self.num_given[ids], strict=True)):
            inputs[i, : len(row) - 1] = row[:-1]
            targets[i, given - 1 : len(row) - 1] = row[given:]
        return {"ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}

    def update(self, digest: "hashlib._Hash") -> None:
        """Add everything that defines the samples to a digest."""
        for array in (self.tokens, self.starts, self.num_given):
            digest.update(array.tobytes())


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    prompts: Sequence[str] | None,
    max_length: int,
) -> Iterable[tuple[Tokens, int]]:
    """Token ids of each text, and how many of them are its prompt; at most `max_length`.

    A text that isn't cut off ends with the tokenizer's end token. Prompts are put into its chat
    template as a user's message, the text being the answer; without a template a blank line parts
    them.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for start in range(0, len(texts), _AT_ONCE):
        chunk = slice(start, start + _AT_ONCE)
        heads: list[list[int]] = [[]] * len(texts[chunk])
        if prompts is not None:
            heads = _encode_prompts(tokenizer, prompts[chunk])
        bodies = _ids(tokenizer, texts[chunk], special=prompts is None)
        for head, body in zip(heads, bodies, strict=True):
            whole = head + body + (end if body[-1:] != end else [])
            yield np.array(whole[:max_length], dtype=np.int32), len(head)


def _encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]
) -> list[list[int]]:
    if tokenizer.chat_template is None:
        return _ids(tokenizer, [f"{prompt}\n\n" for prompt in prompts], special=True)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rendered: Any = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    return _ids(tokenizer, rendered, special=False)  # the template has written them


def _ids(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], special: bool
) -> list[list[int]]:
    encoded = tokenizer(
        list(texts),
        add_special_tokens=special,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # texts longer than the model's context are cut later
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


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
