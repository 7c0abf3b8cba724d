"""The trainer's cross-entropy is PyTorch's in value and gradients, in one chunk and in several."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainyard_trainer.models import cross_entropy
from trainyard_trainer.models.cross_entropy import linear_cross_entropy


def make(dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Inputs and weights that need gradients, and targets."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator) for shape in ((2, 5, 16), (100, 16)))
    targets = torch.randint(100, (2, 5), generator=generator)
    # Logits large enough to overflow exp.
    return ((5 * x).to(dtype).requires_grad_(), (5 * weight).to(dtype).requires_grad_()), targets


@pytest.mark.parametrize("chunk", [4096, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradients(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, chunk: int
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    ours, targets = make(dtype)
    theirs, _ = make(dtype)
    loss = linear_cross_entropy(*ours, targets)
    expected = F.cross_entropy(F.linear(*theirs).float().flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected)
    torch.autograd.backward([3 * loss, 3 * expected])
    for mine, other in zip(ours, theirs, strict=True):
        atol = 1e-5 if dtype == torch.float32 else 2e-2  # the roundings of bf16 gradients
        torch.testing.assert_close(mine.grad, other.grad, rtol=1.6e-2, atol=atol)


def test_without_gradients() -> None:
    inputs, targets = make(torch.float32)
    with torch.no_grad():
        loss = linear_cross_entropy(*inputs, targets)
    torch.testing.assert_close(loss, linear_cross_entropy(*inputs, targets).detach())


def test_autocast_casts_the_products_and_adds_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", 1)
    (x, weight), targets = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.autograd.backward(linear_cross_entropy(x, weight, targets))
    (half_x, half_weight), _ = make(torch.bfloat16)
    torch.autograd.backward(linear_cross_entropy(half_x, half_weight, targets))
    for gradient, half in ((x.grad, half_x.grad), (weight.grad, half_weight.grad)):
        assert gradient is not None
        assert half is not None
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, half.float(), rtol=2e-2, atol=2e-2)
