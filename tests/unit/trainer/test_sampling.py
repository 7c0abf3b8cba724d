"""Sampling: every sample once an epoch, and the same batch k whatever the number of ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard_trainer.data.sampling import global_batch, permute, rank_slice


@given(n=st.integers(1, 2000), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 1000))
def test_a_shuffle_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    shuffled = permute(np.arange(n), n, seed, epoch)
    assert sorted(shuffled) == list(range(n))


def test_shuffles_are_uncorrelated() -> None:
    n = 10_000
    first = permute(np.arange(n), n, 1, 0)
    for other in (permute(np.arange(n), n, 2, 0), permute(np.arange(n), n, 1, 1)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.05
        assert (first == other).sum() < 10
    # Neighbours must not stay neighbours, nor parity survive.
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.arange(n) % 2, first % 2)[0, 1]) < 0.05


def test_a_large_data_set_needs_no_table() -> None:
    n = 10**12
    ids = global_batch(seed=3, step=10**6, batch_size=512, num_samples=n)
    assert len(set(ids.tolist())) == 512
    assert 0 <= ids.min() <= ids.max() < n


def test_an_epoch_visits_every_sample_once_even_across_batches() -> None:
    n, size = 10, 4
    stream = np.concatenate([global_batch(5, step, size, n) for step in range(10)])
    for epoch in range(4):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert len({tuple(stream[e * n : (e + 1) * n]) for e in range(4)}) == 4


@given(
    step=st.integers(0, 10**6),
    shape=st.sampled_from([(1, 1), (2, 1), (1, 2), (4, 1), (2, 3), (8, 1), (3, 2)]),
)
def test_ranks_and_accumulation_share_the_same_global_batch(
    step: int, shape: tuple[int, int]
) -> None:
    world_size, accumulation = shape
    ids = global_batch(seed=11, step=step, batch_size=48, num_samples=1000)
    shares = [
        rank_slice(ids, rank, world_size, micro, accumulation)
        for micro in range(accumulation)
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    assert sorted(np.concatenate(shares)) == sorted(ids)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, [467, 103, 168, 228, 71, 101]), (1000, [658, 971, 45, 446, 892, 706])],
)
def test_the_order_never_changes(step: int, expected: list[int]) -> None:
    """A new version of Trainyard must sample as old checkpoints did."""
    assert global_batch(seed=42, step=step, batch_size=6, num_samples=1000).tolist() == expected
