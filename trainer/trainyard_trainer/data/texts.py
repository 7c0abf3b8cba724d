"""Texts as token ids, and batches of them, padded to the longest."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainyard_trainer.data.rows import Labels
from trainyard_trainer.data.sampling import Batch, Ids, Noise
from trainyard_trainer.data.sequences import Part, Sequences, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


IGNORED = -100  # target of positions without loss; the default ignore_index of cross_entropy
_TOKENIZER_BATCH = 1000  # texts in one call of the tokenizer, to bound its memory


class TokenSamples(Sequences):
    """Numbered token sequences; the prompt of each has no loss."""

    def __init__(self, parts: Sequence[Part], pad_to: int | None = None) -> None:
        """`pad_to`: pad all batches to this length."""
        super().__init__(parts)
        self.pad_to = pad_to

    def num_given(self, index: int) -> int:
        """Tokens without loss, at the beginning: there is no prediction of the first."""
        return max(1, self.num_prompt(index))

    def num_targets(self, ids: Ids) -> Ids:
        """Tokens with loss in each of these sequences, shape (len(ids),)."""
        return np.array([len(self[index]) - self.num_given(index) for index in ids], np.int64)

    def fetch(self, ids: Ids, _noise: Noise) -> Batch:
        """Inputs and targets, each (len(ids), T), T that of the longest sample or `pad_to`.

        Padding is on the right: with causal attention no mask is needed.
        """
        length = (self.pad_to or max(len(self[index]) for index in ids)) - 1
        inputs = np.zeros((len(ids), length), dtype=np.int64)
        targets = np.full((len(ids), length), IGNORED, dtype=np.int64)
        for i, index in enumerate(ids):
            self.write(index, inputs[i], targets[i])
        return {"ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}

    def write(self, index: int, inputs: Ids, targets: Ids) -> int:
        """Write a sequence's inputs and targets to the beginning of these; returns how many."""
        tokens, given = self[index], self.num_given(index)
        size = len(tokens) - 1
        inputs[:size] = tokens[:-1]
        targets[given - 1 : size] = tokens[given:]
        return size

    def update(self, digest: "hashlib._Hash") -> None:
        """Add everything that defines the samples to a digest."""
        update_tokens(digest, self, range(len(self)))
        for part in self.parts:
            digest.update(np.maximum(1, part.num_prompt).tobytes())


def update_tokens(digest: "hashlib._Hash", sequences: Sequences, order: Iterable[int]) -> None:
    """Add the tokens of sequences to a digest, and where each starts in all of them together."""
    starts = [0]
    for index in order:
        tokens = sequences[index]
        digest.update(tokens.tobytes())
        starts.append(starts[-1] + len(tokens))
    digest.update(np.array(starts, np.int64).tobytes())


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


class Texts(Sequences):
    """Labelled texts of different lengths.

    Attributes:
        labels: the class of each, shape (len,).
        max_length: maximum tokens of a text.
        multiple: batch lengths are rounded up to it: 8 on GPUs, for fast matrix products and few
            different shapes; 1 on a CPU, where padding only costs time.
    """

    def __init__(self, parts: Sequence[Part], labels: Labels, pad_id: int, max_length: int) -> None:
        super().__init__(parts)
        self.labels = labels
        self.pad_id = pad_id
        self.max_length = max_length
        self.multiple = 8 if torch.cuda.is_available() else 1

    def fetch(self, ids: Ids, _noise: Noise) -> Batch:
        """input_ids and attention_mask, each (len(ids), T), and labels, (len(ids),).

        T is the longest text's length, rounded up.
        """
        rows = [self[index] for index in ids]
        rounded = -(-max(len(row) for row in rows) // self.multiple) * self.multiple
        shape = len(rows), min(rounded, self.max_length)
        input_ids = np.full(shape, self.pad_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=bool)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)] = row
            mask[i, : len(row)] = True
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(self.labels[ids]),
        }

    def update(self, digest: "hashlib._Hash") -> None:
        """Add everything that defines the samples to a digest."""
        update_tokens(digest, self, range(len(self)))
        digest.update(np.ascontiguousarray(self.labels).tobytes())


class TextsByLength(Texts):
    """Texts, shortest first: batches of neighbours need little padding."""

    def __init__(self, texts: Texts) -> None:
        self._order = np.argsort(texts.lengths(), kind="stable")
        super().__init__(texts.parts, texts.labels[self._order], texts.pad_id, texts.max_length)

    def __getitem__(self, index: int) -> Tokens:
        return super().__getitem__(int(self._order[index]))

    def lengths(self) -> Ids:
        lengths: Ids = super().lengths()[self._order]
        return lengths


def encode_labelled(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_length: int
) -> list[Tokens]:
    """Token ids of each text; at most `max_length`, with the special tokens."""
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_length, return_attention_mask=False
    )
    return [np.array(ids, dtype=np.int32) for ids in encoded["input_ids"]]
