"""The texts of one model in progress: prompts are prefilled in pieces, then texts decode together.

add -> prefill (its prompt, alone) -> decode (one row beside the others) -> its last chunk
         ^                              |
         +---- its context is full -----+
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from trainyard_serving.generate.engine import Chunk
from trainyard_serving.generate.sampling import select_tokens
from trainyard_serving.generate.sequence import TextSequence
from trainyard_serving.generate.token_model import PaddedCache, TokenModel

# Tokens of a prompt that are prefilled between two tokens of the other texts, which wait meanwhile.
PREFILL_TOKENS = {"cpu": 128, "cuda": 1024}
# The same for a prompt whose tokens are scored: the logits of all are in memory.
SCORED_TOKENS = 128

# Texts with their next chunk, or with the error that ends them.
Results = list[tuple[TextSequence, Chunk | Exception]]


@dataclass(eq=False)
class _Prefill:
    """A text whose window is not yet completely in its cache."""

    sequence: TextSequence
    cache: DynamicCache


class Batch:
    """Up to `capacity` texts. A text that ends or fails is removed."""

    def __init__(self, model: TokenModel, capacity: int) -> None:
        self._model = model
        self._capacity = capacity
        # A model that cannot decode several texts together may not support prefill in pieces.
        pieces, whole = PREFILL_TOKENS[model.device.type], model.context_length
        self._prefill_tokens = pieces if capacity > 1 else whole
        self._scored_tokens = min(pieces, SCORED_TOKENS) if capacity > 1 else whole
        self._prefilling: deque[_Prefill] = deque()
        self._decoding: list[TextSequence] = []  # one for each row of the cache
        self._cache = PaddedCache()

    @property
    def sequences(self) -> list[TextSequence]:
        return [*(prefill.sequence for prefill in self._prefilling), *self._decoding]

    @property
    def full(self) -> bool:
        return len(self._prefilling) + len(self._decoding) >= self._capacity

    @property
    def num_decoding(self) -> int:
        """Number of texts that `decode` computes together."""
        return len(self._decoding)

    def add(self, sequence: TextSequence) -> None:
        self._prefilling.append(_Prefill(sequence, self._model.new_cache()))

    def drop(self, dropped: Collection[TextSequence]) -> None:
        """Remove the texts of `dropped` that are in this batch."""
        self._prefilling = deque(p for p in self._prefilling if p.sequence not in dropped)
        self._keep([row for row, one in enumerate(self._decoding) if one not in dropped])

    @torch.inference_mode()
    def prefill(self) -> Results:
        """Process the next piece of one prompt; the prompts take turns."""
        if not self._prefilling:
            return []
        prefill = self._prefilling.popleft()
        sequence = prefill.sequence
        try:
            logits = self._process(prefill)
        except Exception as error:
            return [(sequence, error)]
        if sequence.uncached:
            self._prefilling.append(prefill)
            return []
        if sequence.only_reads:
            return [(sequence, sequence.end_prompt())]
        (result,) = self._advance([sequence], logits)
        if _keeps_row(sequence, result):
            self._cache.add_row(prefill.cache)
            self._decoding.append(sequence)
        return self._results([sequence], [result])

    def _process(self, prefill: _Prefill) -> Tensor:
        """Cache the next piece of a prompt; returns the logits [1, vocabulary] after it."""
        sequence = prefill.sequence
        if sequence.scores_prompt:
            piece = sequence.uncached[: self._scored_tokens]
            logits = self._model.all_logits(piece, prefill.cache)
            sequence.score_prompt(logits)
            logits = logits[-1:].float()
        else:
            piece = sequence.uncached[: self._prefill_tokens]
            logits = self._model.logits([piece], prefill.cache)
        sequence.num_cached += len(piece)
        return logits

    @torch.inference_mode()
    def decode(self) -> Results:
        """Generate a token for every text that has been prefilled."""
        if not self._decoding:
            return []
        sequences, cache = self._decoding, self._cache
        tokens = [sequence.uncached for sequence in sequences]
        logits = self._model.logits(tokens, cache.cache, cache.padding)
        for sequence in sequences:
            sequence.num_cached += 1
        results = self._advance(sequences, logits)
        rows = enumerate(zip(sequences, results, strict=True))
        self._keep([row for row, (one, result) in rows if _keeps_row(one, result)])
        return self._results(sequences, results)

    def _advance(
        self, sequences: list[TextSequence], logits: Tensor
    ) -> list[Chunk | Exception | None]:
        """Give each sequence its next token; an error affects only its own."""
        reported = {
            row: logits[row : row + 1].clone()  # `selectable` changes them
            for row, sequence in enumerate(sequences)
            if sequence.num_top is not None
        }
        samplers = [sequence.sampler for sequence in sequences]
        tokens = select_tokens(samplers, self._model.selectable(logits))
        return [
            token if isinstance(token, Exception) else _advanced(sequence, token, reported.get(row))
            for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True))
        ]

    def _keep(self, rows: list[int]) -> None:
        self._decoding = [self._decoding[row] for row in rows]
        self._cache.keep_rows(rows)

    def _results(
        self, sequences: list[TextSequence], results: list[Chunk | Exception | None]
    ) -> Results:
        """The results that are not None. Adds the texts again that need a new cache."""
        present: Results = []
        for sequence, result in zip(sequences, results, strict=True):
            if result is not None:
                present.append((sequence, result))
            if not _ended(result) and sequence.num_cached == 0:
                self.add(sequence)
        return present


def _advanced(
    sequence: TextSequence, token: int, logits: Tensor | None
) -> Chunk | Exception | None:
    try:
        return sequence.advance(token, logits)
    except Exception as error:
        return error


def _ended(result: Chunk | Exception | None) -> bool:
    return isinstance(result, Exception) or (
        result is not None and result.finish_reason is not None
    )


def _keeps_row(sequence: TextSequence, result: Chunk | Exception | None) -> bool:
    return not _ended(result) and sequence.num_cached > 0
