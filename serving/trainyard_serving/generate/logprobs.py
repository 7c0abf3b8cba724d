"""Log-probabilities of tokens, from the model's unchanged logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trainyard_serving.generate.engine import TokenLogprob

# JSON has no infinity. Models that mask tokens give them this log-probability.
LOWEST = -9999.0
# Positions whose logits are normalised at a time: a copy of all would need as much memory again.
POSITIONS = 128


def token_logprobs(logits: Tensor, tokens: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """The log-probability of each token, and of the `num_top` most likely ones beside it.

    Args:
        logits: [positions, vocabulary], the whole of the model's output.
        tokens: one for each position.
    """
    found = []
    for start in range(0, len(tokens), POSITIONS):
        piece = tokens[start : start + POSITIONS]
        found += _of_piece(logits[start : start + len(piece)], piece, num_top)
    return found


def _of_piece(logits: Tensor, tokens: Sequence[int], num_top: int) -> list[TokenLogprob]:
    logprobs = torch.log_softmax(logits.float(), dim=-1).clamp(min=LOWEST)
    columns = torch.tensor(tokens, device=logits.device)[:, None]
    own = logprobs.gather(-1, columns)[:, 0].tolist()
    best = logprobs.topk(min(num_top, logprobs.shape[-1]), dim=-1)
    rows = zip(tokens, own, best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        TokenLogprob(token, logprob, tuple(zip(ids, values, strict=True)))
        for token, logprob, ids, values in rows
    ]
