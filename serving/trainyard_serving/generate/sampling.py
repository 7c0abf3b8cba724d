"""Selects the tokens of texts from logits: penalties and bias, temperature, filters, seeds.

The order is vLLM's: what changes logits (bias, minimum length, penalties), then temperature, min_p,
top_k and top_p. An option that is off costs nothing per token.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TopKLogitsWarper,
)

from trainyard_serving.generate.engine import SamplingOptions

# Below this, dividing by the temperature would overflow float32; only the top token would remain.
GREEDY_BELOW = 1e-4


class Sampler:
    """Selects the tokens of one text, one after the other.

    The same seed gives the same tokens for the same logits, whatever is sampled beside it.

    Attributes:
        takes_most_likely: whether it always selects the most likely token of unchanged logits.
        complete: whether the grammar, if there is one, lets nothing follow.
    """

    def __init__(
        self,
        options: SamplingOptions,
        device: torch.device,
        prompt: Sequence[int] = (),
        stop_ids: Collection[int] = (),
    ) -> None:
        """
        Args:
            prompt: its tokens count as repeated ones.
            stop_ids: tokens that end the text; not selected before `options.min_tokens`.
        """
        self._options = options
        self._ids = list(prompt)
        self._processors = _processors(options, device, len(prompt), stop_ids)
        self._top_k = TopKLogitsWarper(options.top_k) if options.top_k > 0 else None
        self._greedy = options.temperature < GREEDY_BELOW
        self._grammar = options.grammar.copy() if options.grammar else None
        self.complete = False
        self.takes_most_likely = self._greedy and not self._processors and not self._grammar
        self._generator = torch.Generator(device)
        if options.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(options.seed)

    def select(self, logits: Tensor) -> int:
        """A token for `logits` [vocabulary], in which -inf marks excluded tokens."""
        if self._grammar is None:
            return self._select(logits)
        self._grammar.mask(logits)
        token = self._select(logits)
        self.complete = self._grammar.accept(token)
        return token

    def _select(self, logits: Tensor) -> int:
        if not self._processors:
            return self._choose(logits)
        ids: Any = torch.tensor([self._ids], device=logits.device)
        token = self._choose(self._processors(ids, logits[None])[0])
        self._ids.append(token)
        return token

    def _choose(self, logits: Tensor) -> int:
        if self._greedy:
            return int(logits.argmax())
        options, scores = self._options, logits.float() / self._options.temperature
        if options.min_p > 0:
            bound = scores.max() + math.log(options.min_p)
            scores = scores.masked_fill(scores < bound, -torch.inf)
        if self._top_k:
            scores = self._top_k(None, scores)  # it looks at the scores only
        probs = torch.softmax(scores, dim=-1)
        if options.top_p < 1:
            probs = nucleus(probs, options.top_p)
        return int(torch.multinomial(probs, 1, generator=self._generator))


def select_tokens(samplers: Sequence[Sampler], logits: Tensor) -> list[int | Exception]:
    """A token for each row of `logits` [rows, vocabulary]; an error concerns its row only."""
    greedy = any(sampler.takes_most_likely for sampler in samplers)
    most_likely = logits.argmax(dim=-1).tolist() if greedy else []
    return [
        most_likely[row] if sampler.takes_most_likely else _selected(sampler, logits[row])
        for row, sampler in enumerate(samplers)
    ]


def _selected(sampler: Sampler, logits: Tensor) -> int | Exception:
    try:
        return sampler.select(logits)
    except Exception as error:
        return error


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """`probs` [vocabulary] with all but the smallest set of total probability >= top_p set to 0.

    The most likely token always remains. Holtzman et al. 2020, arXiv:1904.09751. transformers'
    TopPLogitsWarper is not used because it returns logits: the softmax would be computed twice.
    """
    ordered, order = probs.sort(descending=True)
    before = ordered.cumsum(-1) - ordered  # total probability of the tokens before each
    ordered[1:][before[1:] >= top_p] = 0
    return torch.zeros_like(probs).scatter(-1, order, ordered)


def _processors(
    options: SamplingOptions, device: torch.device, prompt_length: int, stop_ids: Collection[int]
) -> LogitsProcessorList:
    """What changes the logits, as greedy sampling needs it, too; empty for the defaults."""
    processors = LogitsProcessorList()
    if options.logit_bias:
        bias: Any = {(token,): float(value) for token, value in options.logit_bias.items()}
        processors.append(SequenceBiasLogitsProcessor(bias))
    if options.min_tokens and stop_ids:
        processors.append(
            MinNewTokensLengthLogitsProcessor(
                prompt_length, options.min_tokens, list(stop_ids), str(device)
            )
        )
    if options.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.frequency_penalty or options.presence_penalty:
        processors.append(_OutputPenalty(options, prompt_length))
    return processors


class _OutputPenalty:
    """Lowers the logits of tokens that were generated, by how often (OpenAI's definition)."""

    def __init__(self, options: SamplingOptions, prompt_length: int) -> None:
        self._options = options
        self._prompt_length = prompt_length

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        tokens, counts = torch.unique(ids[0, self._prompt_length :], return_counts=True)
        options = self._options
        penalties = options.frequency_penalty * counts + options.presence_penalty
        return scores.index_add(1, tokens, -penalties.to(scores.dtype)[None])
