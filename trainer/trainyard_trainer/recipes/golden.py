"""The golden request of an exported language model: what it writes after some held-out text."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from trainyard_api.golden import GoldenText, write_golden

PROMPT_TOKENS = 16
NEXT_TOKENS = 4
TOP = 5


def prompt_tokens(context: int) -> int:
    """How many tokens of prompt leave a model of that context room to go on."""
    return min(PROMPT_TOKENS, max(1, context - NEXT_TOKENS))


@torch.no_grad()
def write_golden_text(
    directory: Path,
    prompt: str,
    prompt_ids: list[int],
    context: int,
    logits: Callable[[Tensor], Tensor],
) -> None:
    """Write what the model makes of `prompt`.

    Args:
        context: tokens the model reads at most.
        logits: token ids (1, T) to logits (1, T, V), on the CPU.
    """
    next_tokens = min(NEXT_TOKENS, context - len(prompt_ids))
    if not prompt_ids or next_tokens < 1:
        return
    ids = list(prompt_ids)
    top_ids, top_logits = [], []
    for _ in range(next_tokens):
        position = logits(torch.tensor([ids]))[0, -1].float()
        best = position.topk(min(TOP, len(position)))
        top_ids.append(best.indices.tolist())
        top_logits.append(best.values.tolist())
        ids.append(top_ids[-1][0])
    golden = GoldenText(
        prompt=prompt,
        prompt_ids=prompt_ids,
        next_ids=ids[len(prompt_ids) :],
        top_ids=top_ids,
        top_logits=top_logits,
    )
    write_golden(directory, golden)
