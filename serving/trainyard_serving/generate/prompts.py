"""Prompts as token ids: bounded while they are tokenised, and refused when they do not fit."""

from typing import Any

from trainyard_serving.generate.engine import ContextLengthError, PromptError

# A text longer than this is first counted in pieces of this many characters, because a token takes
# hundreds of bytes while a text is tokenised.
PIECE = 8192


class PromptEncoder:
    """Encodes texts that fit the context of a model.

    Attributes:
        context_length: the largest number of tokens of a prompt.
    """

    def __init__(
        self, tokenizer: Any, context_length: int, num_embeddings: int, unk_id: int | None
    ) -> None:
        self.context_length = context_length
        self._tokenizer = tokenizer
        self._num_embeddings = num_embeddings
        self._unk_id = unk_id
        # Some tokenizers split at white space and drop it. The others have tokens for it, and must
        # have one for each white-space character of a prompt.
        self._keeps_space = any(token.isspace() for token in tokenizer.get_vocab())

    def encode(self, prompt: str, param: str, add_special_tokens: bool) -> list[int]:
        """Token ids of `prompt`.

        Raises PromptError, which names `param`, when it is empty, too long or has characters
        without a token.
        """
        self._refuse_much_too_long(prompt, param)
        encoding = self._tokenizer(
            prompt,
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids: list[int] = encoding["input_ids"]
        if unknown := self._unknown_characters(prompt, ids, encoding["offset_mapping"]):
            shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unknown[:10])
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            message = f"this model does not know these characters of the prompt: {shown}{more}"
            raise PromptError(message, "unknown_characters", param)
        if not ids:
            message = "the prompt is empty: give this model text to continue"
            raise PromptError(message, "empty_prompt", param)
        if len(ids) > self.context_length:
            raise ContextLengthError(len(ids), self.context_length, param)
        return ids

    def _refuse_much_too_long(self, prompt: str, param: str) -> None:
        """Raise PromptError, after the first pieces, for more than twice the context.

        Cut into pieces a text has about as many tokens as whole, never twice as many.
        """
        limit = 2 * self.context_length
        if prefix_beyond(self._tokenizer, prompt, limit) is not None:
            raise ContextLengthError(f"more than {limit}", self.context_length, param)

    def _unknown_characters(
        self, prompt: str, ids: list[int], offsets: list[tuple[int, int]]
    ) -> list[str]:
        """Characters that only the unknown token covers, in order, without repetition."""
        covered = bytearray(len(prompt))
        for token, (start, end) in zip(ids, offsets, strict=True):
            # A special token may lie beyond the embedding: a GPU would never recover from it.
            if token != self._unk_id and token < self._num_embeddings:
                covered[start:end] = b"\1" * (end - start)
        missing = (char for char, known in zip(prompt, covered, strict=True) if not known)
        return [char for char in dict.fromkeys(missing) if self._keeps_space or not char.isspace()]


def prefix_beyond(tokenizer: Any, text: str, limit: int) -> str | None:
    """The beginning of a long text that has more than `limit` tokens, found in pieces.

    None for a text that has fewer, or is not long.
    """
    if len(text) <= PIECE:
        return None
    count = 0
    for start in range(0, len(text), PIECE):
        end = start + PIECE
        piece = text[start:end]
        count += len(tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"])
        if count > limit:
            return text[:end]
    return None
