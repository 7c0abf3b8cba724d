"""Cross-entropy for large vocabularies, in the memory of the logits themselves.

With GPT-2's 50,257 tokens the logits are by far the largest tensor of a step: PyTorch's own
function allocates two more of that size and makes more passes over them.
"""

from typing import Any, cast

import torch
from torch import Tensor


class _CrossEntropy(torch.autograd.Function):
    """Overwrites the logits with exp(logits - max), and that with their gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        highest = logits.amax(-1, keepdim=True)
        chosen = logits.gather(-1, targets[:, None])
        exponentials = logits.sub_(highest).exp_()
        sums = exponentials.sum(-1, keepdim=True)
        ctx.save_for_backward(exponentials, sums, targets)
        return (sums.log() + highest - chosen).mean()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        exponentials, sums, targets = ctx.saved_tensors
        scale = grad_outputs[0] / len(targets)
        gradient = exponentials.mul_(scale / sums)  # the probabilities, scaled
        rows = torch.arange(len(targets), device=targets.device)
        gradient[rows, targets] -= scale
        return gradient, None


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all positions, computed in fp32; logits (B, T, V), targets (B, T).

    fp32 logits are overwritten. One backward pass only.
    """
    loss = _CrossEntropy.apply(logits.float().flatten(0, 1), targets.flatten())
    return cast(Tensor, loss)
