"""Texts as token ids, of different lengths; prompts in front of them stay out of the loss."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from trainyard_trainer.data.sampling import Batch, Ids, Noise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
