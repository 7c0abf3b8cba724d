"""The scaling law: what was put in comes out again, and larger sizes are foretold."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainyard_api.scaling_law import ScalingError, fit


def usl(n: int, single: float, sigma: float, kappa: float) -> float:
    return single * n / (1 + sigma * (n - 1) + kappa * n * (n - 1))


@given(
    single=st.floats(1, 1e6),
    sigma=st.floats(0, 0.5),
    kappa=st.one_of(st.just(0), st.floats(0, 0.05)),
)
def test_exact_measurements_give_their_law_back(single: float, sigma: float, kappa: float) -> None:
    law = fit({n: [usl(n, single, sigma, kappa)] for n in (1, 2, 4, 8)})
    assert law.kind == "usl"
    assert law.single.value == pytest.approx(single, rel=1e-6)
    assert law.sigma.value == pytest.approx(sigma, abs=1e-6)
    assert law.kappa.value == pytest.approx(kappa, abs=1e-6)
    assert law.residual == pytest.approx(0, abs=1e-6)


def test_two_sizes_give_amdahls_law() -> None:
    law = fit({1: [100, 101, 99], 2: [180, 181, 179]})
    assert law.kind == "amdahl"
    assert law.kappa.value == 0
    assert law.throughput(1).value == pytest.approx(100)
    assert law.throughput(2).value == pytest.approx(180)
    assert law.best_processes == math.inf
    assert law.throughput(10**9).value == pytest.approx(100 / law.sigma.value, rel=1e-3)


def test_larger_sizes_are_foretold_within_the_interval() -> None:
    noise = random.Random(1)
    truth = {n: usl(n, 5000, 0.03, 0.0005) for n in (1, 2, 4, 8, 16, 32)}
    runs = {n: [x * noise.gauss(1, 0.01) for _ in range(5)] for n, x in truth.items()}
    law = fit({n: runs[n] for n in (1, 2, 4, 8)})
    for n in (16, 32):
        told = law.throughput(n)
        assert told.low < told.high
        assert told.low <= truth[n] <= told.high
    assert law.throughput(32).high - law.throughput(32).low > (
        law.throughput(8).high - law.throughput(8).low
    )


def test_more_processes_than_the_best_are_slower() -> None:
    law = fit({n: [usl(n, 10, 0.1, 0.01)] for n in (1, 2, 4, 8, 16)})
    best = law.best_processes
    assert best == pytest.approx(math.sqrt(0.9 / 0.01))
    peak = law.throughput(round(best)).value
    assert peak > law.throughput(round(best) * 3).value


def test_better_than_linear_is_taken_as_linear() -> None:
    """Caches can make two processes more than twice as fast; no law may project that on."""
    law = fit({1: [100], 2: [210], 4: [430]})
    assert (law.sigma.value, law.kappa.value) == (0, 0)
    assert law.throughput(64).value == pytest.approx(64 * law.single.value)
    assert law.residual > 0.01


def test_the_same_measurements_give_the_same_intervals() -> None:
    runs = {1: [100.0, 95.0, 103.0], 2: [180.0, 190.0, 171.0], 4: [300.0, 320.0, 280.0]}
    assert fit(runs) == fit(dict(reversed(runs.items())))


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({}, "two or more"),
        ({2: [10.0, 11.0]}, "two or more"),
        ({1: [10.0], 2: []}, "two or more"),
        ({0: [1.0], 1: [2.0]}, "1 or more"),
        ({1: [10.0], 2: [0.0]}, "positive"),
        ({1: [10.0], 2: [math.nan]}, "positive"),
    ],
)
def test_what_determines_no_law_is_refused(measured: dict[int, list[float]], words: str) -> None:
    with pytest.raises(ScalingError, match=words):
        fit(measured)
