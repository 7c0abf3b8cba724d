"""Token sequences of different lengths, tokenised once into memory-mapped files of some rows each.

Nothing of the size of the data is in the memory of a process: not the table, and not its tokens.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from trainyard_trainer.data.cache import Array, cached, cached_parts
from trainyard_trainer.data.rows import Rows

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
    from transformers import PreTrainedTokenizerBase

Tokens = npt.NDArray[np.int32]

PART_ROWS = 2048
_FORMAT = 1  # of the cached files


class Part:
    """The sequences of some rows of a table, in one array.

    Attributes:
        rows: the row of each sequence, shape (len,).
        starts: where each starts in `tokens`, and where the last one ends, shape (len + 1,).
        num_prompt: how many tokens of each are its prompt, shape (len,).
        tokens: the ids of all.
    """

    def __init__(
        self,
        rows: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        num_prompt: npt.NDArray[np.int64],
        tokens: Tokens,
    ) -> None:
        self.rows = rows
        self.starts = starts
        self.num_prompt = num_prompt
        self.tokens = tokens

    @classmethod
    def of(cls, sequences: Iterable[tuple[int, int, Tokens]]) -> Self:
        """Row, num_prompt and tokens of each sequence."""
        rows: list[int] = []
        prompts: list[int] = []
        starts = [0]
        tokens = [np.empty(0, np.int32)]
        for row, num_prompt, ids in sequences:
            rows.append(row)
            prompts.append(num_prompt)
            tokens.append(ids)
            starts.append(starts[-1] + len(ids))
        return cls(
            np.array(rows, np.int64),
            np.array(starts, np.int64),
            np.array(prompts, np.int64),
            np.concatenate(tokens),
        )

    def packed(self) -> Array:
        """All of it as one array."""
        numbers = np.concatenate([[len(self.rows)], self.rows, self.starts, self.num_prompt])
        return np.concatenate([numbers.astype(np.int64).view(np.int32), self.tokens])

    @classmethod
    def unpacked(cls, array: Array) -> Self:
        """What was `packed`, without a copy."""
        array = np.asarray(array)  # np.memmap is slow to index
        count = int(array[:2].view(np.int64)[0])
        ends = 2 * np.cumsum([1, count, count + 1, count])
        rows, starts, num_prompt = (
            array[start:end].view(np.int64) for start, end in pairwise(ends)
        )
        return cls(rows, starts, num_prompt, array[ends[-1] :])

    def between(self, start: int, end: int) -> "Part":
        """The sequences of rows start to end - 1."""
        first, last = np.searchsorted(self.rows, [start, end])
        chosen = slice(first, last)
        return Part(
            self.rows[chosen], self.starts[first : last + 1], self.num_prompt[chosen], self.tokens
        )


class Sequences:
    """Numbered token sequences; those of the parts, one after another.

    Attributes:
        num_tokens: of all.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part.rows) for part in parts])
        self.num_tokens = sum(int(part.starts[-1] - part.starts[0]) for part in parts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Tokens:
        part, i = self._find(index)
        return part.tokens[part.starts[i] : part.starts[i + 1]]

    def num_prompt(self, index: int) -> int:
        """How many tokens are the prompt."""
        part, i = self._find(index)
        return int(part.num_prompt[i])

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sequence, shape (len,)."""
        return np.concatenate([np.diff(part.starts) for part in self.parts])

    def prompt_lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sequence's prompt, shape (len,)."""
        return np.concatenate([part.num_prompt for part in self.parts])

    def _find(self, index: int) -> tuple[Part, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[number]
        return part, int(index - self._ends[number]) + len(part.rows)


def tokenised(
    rows: Rows, start: int, end: int, key: str, encode: Callable[["pa.Table", int], Part]
) -> list[Part]:
    """The sequences of rows start to end - 1, tokenised by whoever needs them first.

    `encode` makes those of a table whose first row has this number; `key`: see cache_key.
    Raises ConfigError and DiskFullError.
    """
    numbers = range(start // PART_ROWS, -(-end // PART_ROWS))

    def make(i: int) -> Array:
        first = numbers[i] * PART_ROWS
        table = rows.read(first, min(first + PART_ROWS, rows.num_rows))
        return encode(table, first).packed()

    # Set, or the tokenizer warns when loader workers are forked later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    names = [f"{key}/{number:06}" for number in numbers]
    arrays = cached_parts(names, make, f"tokenising {rows.source}")
    return [Part.unpacked(array).between(start, end) for array in arrays]


def definition(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A sha256 of what defines a tokenizer's ids; before it is used, as that changes settings."""
    import tokenizers
    import transformers

    if tokenizer.is_fast:
        ids = str(tokenizer.backend_tokenizer.to_str())
    else:
        ids = repr((sorted(tokenizer.get_vocab().items()), tokenizer.init_kwargs))
    versions = tokenizers.__version__, transformers.__version__
    parts = type(tokenizer).__name__, ids, tokenizer.chat_template, versions
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def cache_key(kind: str, *parts: object) -> str:
    """A name for what depends on these parts."""
    return f"{kind}-{hashlib.sha256(repr((_FORMAT, parts)).encode()).hexdigest()}"


def cached_digest(name: str, update: Callable[["hashlib._Hash"], None]) -> str:
    """The sha256 of what `update` adds to it, as hex; computed once."""

    def make() -> Array:
        digest = hashlib.sha256()
        update(digest)
        return np.frombuffer(digest.digest(), np.uint8)

    return cached(name, make).tobytes().hex()
