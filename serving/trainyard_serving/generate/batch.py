"""Texts of one model under way: prompts are read piece by piece, then all are written together.

add -> read (its prompt, alone) -> write (a row beside the others) -> its last chunk
         ^                           |
         +---- its context is full --+
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from trainyard_serving.generate.completion import Chunk
from trainyard_serving.generate.padded_cache import PaddedCache
from trainyard_serving.generate.sequence import Sequence
from trainyard_serving.generate.token_model import TokenModel

# Tokens of a prompt read between two tokens of the others: about as long as they can wait.
PIECE = {"cpu": 128, "cuda": 1024}

# A sequence, and its next piece of text or why there is none.
News = list[tuple[Sequence, Chunk | Exception]]


@dataclass(eq=False)
class Reading:
    """A sequence that can't write before the model has read all of its window."""

    sequence: Sequence
    cache: DynamicCache


class Batch:
    """Up to `capacity` sequences. Those that end or fail by themselves leave by themselves."""

    def __init__(self, model: TokenModel, capacity: int) -> None:
        self._model = model
        self._capacity = capacity
        # A model that writes one text at a time may be of a kind that must read at once, too.
        self._piece = PIECE[model.device.type] if capacity > 1 else model.context_length
        self._reading: deque[Reading] = deque()
        self._writing: list[Sequence] = []  # a row of the cache each
        self._cache = PaddedCache()

    @property
    def sequences(self) -> list[Sequence]:
        return [*(reading.sequence for reading in self._reading), *self._writing]

    @property
    def full(self) -> bool:
        return len(self._reading) + len(self._writing) >= self._capacity

    @property
    def num_writing(self) -> int:
        """Sequences that `write` computes together."""
        return len(self._writing)

    def add(self, sequence: Sequence) -> None:
        self._reading.append(Reading(sequence, self._model.new_cache()))

    def drop(self, gone: Collection[Sequence]) -> None:
        """Forget these sequences, those of them that are here."""
        self._reading = deque(one for one in self._reading if one.sequence not in gone)
        self._keep([row for row, one in enumerate(self._writing) if one not in gone])

    @torch.inference_mode()
    def read(self) -> News:
        """Read the next piece of one prompt; the prompts take turns."""
        if not self._reading:
            return []
        reading = self._reading.popleft()
        sequence, piece = reading.sequence, reading.sequence.unread[: self._piece]
        try:
            logits = self._model.next_logits([piece], reading.cache)
        except Exception as error:
            return [(sequence, error)]
        sequence.num_read += len(piece)
        if sequence.unread:
            self._reading.append(reading)
            return []
        said = _take(sequence, logits[0])
        if _goes_on(sequence, said):
            self._cache.join(reading.cache)
            self._writing.append(sequence)
        return self._news([sequence], [said])

    @torch.inference_mode()
    def write(self) -> News:
        """One more token for every sequence that has been read."""
        if not self._writing:
            return []
        sequences, cache = self._writing, self._cache
        unread = [sequence.unread for sequence in sequences]
        logits = self._model.next_logits(unread, cache.cache, cache.padding)
        said = []
        for sequence, row in zip(sequences, logits, strict=True):
            sequence.num_read += 1
            said.append(_take(sequence, row))
        together = zip(sequences, said, strict=True)
        self._keep([row for row, (one, it) in enumerate(together) if _goes_on(one, it)])
        return self._news(sequences, said)

    def _keep(self, rows: list[int]) -> None:
        self._writing = [self._writing[row] for row in rows]
        self._cache.keep(rows)

    def _news(self, sequences: list[Sequence], said: list[Chunk | Exception | None]) -> News:
        """What there is to tell; a sequence that is to be read anew is put back in the line."""
        news = []
        for sequence, it in zip(sequences, said, strict=True):
            if it is not None:
                news.append((sequence, it))
            if not _ended(it) and sequence.num_read == 0:
                self.add(sequence)
        return news


def _take(sequence: Sequence, logits: Tensor) -> Chunk | Exception | None:
    """What the sequence says; an error here is its own and stays its own."""
    try:
        return sequence.take(logits)
    except Exception as error:
        return error


def _ended(said: Chunk | Exception | None) -> bool:
    return isinstance(said, Exception) or (said is not None and said.finish_reason is not None)


def _goes_on(sequence: Sequence, said: Chunk | Exception | None) -> bool:
    """Whether it keeps its row."""
    return not _ended(said) and sequence.num_read > 0
