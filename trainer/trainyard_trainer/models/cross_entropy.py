"""Cross-entropy of a linear layer's outputs for large vocabularies, without all logits at a time.

With GPT-2's 50,257 tokens the logits and their gradient are by far the largest tensors of a step.
Here only as many positions as a chunk has have them, and what the backward pass will need of them
is computed at once.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 4096  # positions: with GPT-2's vocabulary 0.8 GB of logits in fp32

# Of a chunk's inputs, weights and targets; whether to return the gradient, too.
ChunkLoss = Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def chunk_loss(
    x: Tensor, weight: Tensor, targets: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The summed loss of a chunk, in fp32, and its gradient by the logits, in their own type."""
    logits = F.linear(x, weight)
    values = logits.float()  # fp32 logits themselves: all that follows is in place
    highest = values.amax(-1, keepdim=True)
    chosen = values.gather(-1, targets[:, None]) - highest
    exponentials = values.sub_(highest).exp_()
    sums = exponentials.sum(-1, keepdim=True)
    loss = (sums.log() - chosen).sum()
    if not with_gradient:
        return loss, None
    gradient = exponentials.div_(sums).to(logits.dtype)  # the probabilities
    rows = torch.arange(len(targets), device=targets.device)
    # In fp32: a probability near 1 has few digits left in the distance from 1.
    gradient[rows, targets] = (chosen.exp() / sums - 1)[:, 0].to(logits.dtype)
    return loss, gradient


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients of the summed loss in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, loss_of: ChunkLoss
    ) -> Tensor:
        total, parts, weight_gradient = x.new_zeros((), dtype=torch.float32), [], None
        cast_weight = weight.to(dtype)
        for part, target in _chunks(x.to(dtype), targets):
            loss, gradient = loss_of(part, cast_weight, target, True)
            assert gradient is not None
            total += loss
            parts.append(gradient @ cast_weight)
            product = (gradient.t() @ part).float()
            weight_gradient = product if weight_gradient is None else weight_gradient.add_(product)
        ctx.save_for_backward(torch.cat(parts).to(x.dtype), weight_gradient)
        ctx.count, ctx.weight_dtype = len(targets), weight.dtype
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x_gradient, weight_gradient = ctx.saved_tensors
        scale = grad_outputs[0] / ctx.count
        weight_gradient.mul_(scale)
        return x_gradient.mul_(scale), weight_gradient.to(ctx.weight_dtype), None, None, None


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, loss_of: ChunkLoss = chunk_loss
) -> Tensor:
    """Mean cross-entropy over all positions of the logits x @ weight.T, a 0-d fp32 tensor.

    One backward pass only. Products are in the type of autocast, sums over positions in fp32.

    Args:
        x: (B, T, C)
        weight: (V, C)
        targets: (B, T)
        loss_of: `chunk_loss`, or the same compiled.
    """
    x, targets, device = x.flatten(0, 1), targets.flatten(), x.device.type
    enabled = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if enabled else x.dtype
    if torch.is_grad_enabled():
        return cast(Tensor, _LinearCrossEntropy.apply(x, weight, targets, dtype, loss_of))
    x, weight = x.to(dtype), weight.to(dtype)
    losses = [loss_of(part, weight, target, False)[0] for part, target in _chunks(x, targets)]
    return torch.stack(losses).sum() / len(targets)


def _chunks(x: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of equal sizes, as far as possible: compiled code is made for one size."""
    count = math.ceil(len(targets) / CHUNK)
    return zip(x.chunk(count), targets.chunk(count), strict=True)
