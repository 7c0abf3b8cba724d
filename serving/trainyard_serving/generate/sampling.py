"""Picking the next token from logits: greedy, temperature and nucleus (top-p) sampling."""

import torch
from torch import Tensor

from trainyard_serving.generate.completion import Sampling

# Below this, dividing by the temperature leaves float32's range and only the top token survives.
GREEDY_BELOW = 1e-4


class Sampler:
    """Draws tokens for one completion; the same seed gives the same draws."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._temperature = sampling.temperature
        self._top_p = sampling.top_p
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def pick(self, logits: Tensor) -> int:
        """One token id from `logits` [vocab]; -inf marks tokens that may not be picked."""
        if self._temperature < GREEDY_BELOW:
            return int(logits.argmax())
        probs = torch.softmax(logits.float() / self._temperature, dim=-1)
        if self._top_p < 1:
            probs = nucleus(probs, self._top_p)
        return int(torch.multinomial(probs, 1, generator=self._generator))


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """`probs` [vocab] with all but the smallest set of total probability >= top_p set to 0.

    The likeliest token always stays. Holtzman et al. 2020, arXiv:1904.09751.
    """
    ordered, order = probs.sort(descending=True)
    before = ordered.cumsum(-1) - ordered  # probability of the tokens ahead of each
    ordered[1:][before[1:] >= top_p] = 0
    return torch.zeros_like(probs).scatter(-1, order, ordered)
