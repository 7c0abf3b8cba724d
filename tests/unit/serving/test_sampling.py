"""Sampling: greedy, seeded, nucleus."""

import pytest
import torch

from trainyard_serving.generate.engine import SamplingOptions
from trainyard_serving.generate.sampling import Sampler, nucleus

CPU = torch.device("cpu")
LOGITS = torch.tensor([0.0, 2.0, 1.0, -torch.inf, 1.5])


def draws(sampling: SamplingOptions, count: int = 200) -> list[int]:
    sampler = Sampler(sampling, CPU)
    return [sampler.select(LOGITS) for _ in range(count)]


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-5])
def test_low_temperatures_are_greedy(temperature: float) -> None:
    assert set(draws(SamplingOptions(temperature=temperature))) == {1}


def test_a_seed_repeats_and_another_differs() -> None:
    assert draws(SamplingOptions(seed=1)) == draws(SamplingOptions(seed=1))
    assert draws(SamplingOptions(seed=1)) != draws(SamplingOptions(seed=2))
    assert draws(SamplingOptions()) != draws(SamplingOptions())


def test_excluded_tokens_are_never_sampled() -> None:
    assert 3 not in draws(SamplingOptions(temperature=2, seed=0), 2000)


def test_draws_follow_the_softmax() -> None:
    counts = torch.bincount(torch.tensor(draws(SamplingOptions(temperature=0.7, seed=0), 4000)))
    expected = torch.softmax(LOGITS / 0.7, -1)
    assert torch.allclose(counts / 4000, expected, atol=0.04)


def test_nucleus_keeps_the_smallest_set_that_reaches_top_p() -> None:
    probs = torch.tensor([0.1, 0.5, 0.15, 0.25])
    assert nucleus(probs, 0.5).tolist() == pytest.approx([0, 0.5, 0, 0])
    assert nucleus(probs, 0.6).tolist() == pytest.approx([0, 0.5, 0, 0.25])
    assert nucleus(probs, 0.0).tolist() == pytest.approx([0, 0.5, 0, 0])
    assert nucleus(probs, 1.0).tolist() == pytest.approx(probs.tolist())
