"""The trainer's cross-entropy is PyTorch's, in value and in gradient."""

import pytest
import torch
import torch.nn.functional as F

from trainyard_trainer.models.cross_entropy import cross_entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 5, 1000, generator=generator) * 20  # large enough to overflow exp
    targets = torch.randint(1000, (2, 5), generator=generator)
    inputs = [values.to(dtype).requires_grad_() for _ in range(2)]
    scale = torch.tensor(3.0)

    ours = cross_entropy(inputs[0] * 1, targets)
    theirs = F.cross_entropy((inputs[1] * 1).float().flatten(0, 1), targets.flatten())
    torch.testing.assert_close(ours, theirs)
    torch.autograd.backward([ours * scale, theirs * scale])
    assert inputs[0].grad is not None
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


def test_without_gradients() -> None:
    with torch.no_grad():
        loss = cross_entropy(torch.zeros(1, 3, 8), torch.zeros(1, 3, dtype=torch.long))
    assert loss.item() == pytest.approx(torch.tensor(8.0).log().item())
