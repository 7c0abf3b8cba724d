"""Fitting scaling laws: known laws are recovered, and larger sizes are projected."""

import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainyard_api.study_status import ScalingLaw
from trainyard_study.fit import CONFIDENCE, FittedScalingLaw, ScalingError, fit, solve
from trainyard_study.laws import AMDAHL, FORMS, Law, LawForm

Curve = Callable[[float], float]

SHAPES: dict[str, Curve] = {
    "linear": lambda n: n,
    "allreduce": lambda n: n / (1 + 0.4 * (1 - 1 / n)),
    "tree": lambda n: n / (1 + 0.2 * math.log2(n)),
    "amdahl": lambda n: n / (1 + 0.1 * (n - 1)),
    "usl": lambda n: n / (1 + 0.05 * (n - 1) + 0.01 * n * (n - 1)),
}
SHARE = st.one_of(st.just(0.0), st.floats(1e-4, 0.5))


def usl(n: int, single: float, sigma: float, kappa: float) -> float:
    return single * n / (1 + sigma * (n - 1) + kappa * n * (n - 1))


def noisy(curve: Curve, sizes: tuple[int, ...], noise: float, seed: int) -> FittedScalingLaw:
    """Of three repeats."""
    draw = random.Random(seed)
    return fit({n: [curve(n) * draw.gauss(1, noise) for _ in range(3)] for n in sizes})


@pytest.mark.parametrize("kind", SHAPES)
def test_exact_measurements_recover_their_law(kind: str) -> None:
    curve = SHAPES[kind]
    law = fit({n: [1000 * curve(n)] * 2 for n in (1, 2, 4, 8, 16)})
    assert law.kind == kind
    assert law.undecided == (kind == "linear")  # the others include it
    assert law.single.value == pytest.approx(1000)
    assert law.residual == pytest.approx(0, abs=1e-9)
    assert law.weights[kind] == max(law.weights.values())
    assert sum(law.weights.values()) == pytest.approx(1, abs=1e-3)
    projected = law.throughput(32)
    assert projected.value == pytest.approx(1000 * curve(32), rel=0.03)
    assert projected.low <= 1000 * curve(32) * (1 + 1e-9)
    assert projected.high >= 1000 * curve(32) * (1 - 1e-9)


@pytest.mark.parametrize("form", FORMS, ids=str)
@settings(max_examples=30)
@given(first=st.floats(1e-6, 1), shares=st.tuples(SHARE, SHARE))
def test_least_squares_find_every_coefficient(
    form: LawForm, first: float, shares: tuple[float, float]
) -> None:
    others = (first * share for share in shares[: len(form.terms)])
    truth = Law(form, (first, *others))
    found = solve(form, {n: truth.throughput(n) for n in (1, 2, 4, 8)})
    if found is None:  # rounding took a coefficient of 0 below it
        assert 0 in shares
        return
    assert found.coefficients == pytest.approx(truth.coefficients, rel=1e-6, abs=1e-6 * first)


def test_two_sizes_leave_several_laws_and_none_with_pairs() -> None:
    law = fit({1: [100, 101, 99], 2: [180, 181, 179]})
    assert (law.kind, law.undecided) == ("amdahl", True)
    assert law.kappa.value == 0
    assert law.best_processes == math.inf
    assert law.weights["amdahl"] == law.weights["tree"] == law.weights["allreduce"] > 0.3
    assert law.weights["linear"] < 0.1
    assert "usl" not in law.weights
    assert law.throughput(2).value == pytest.approx(180, rel=0.01)
    amdahl = solve(AMDAHL, {1: 100, 2: 180})
    assert amdahl
    far = law.throughput(64)
    assert far.low < 1.2 * amdahl.throughput(64)  # the most pessimistic law is in the interval
    assert far.high > 0.8 * 64 * 90  # so is the most hopeful one
    assert far.too_wide
    assert not law.throughput(3).too_wide


@settings(deadline=None, max_examples=15)
@given(
    rates=st.lists(st.floats(0.2, 1.3), min_size=2, max_size=5),
    n=st.floats(1, 500),
    more=st.floats(1, 8),
)
def test_no_projection_gains_from_being_larger(rates: list[float], n: float, more: float) -> None:
    """Throughput per process never rises, whatever was measured."""
    law = fit({2**i: [2**i * rate, 2**i * rate * 1.02] for i, rate in enumerate(rates)})
    near, far = law.throughput(n), law.throughput(n * more)
    slack = 1 + 1e-9
    for here, there in ((near.value, far.value), (near.low, far.low), (near.high, far.high)):
        assert there / (n * more) <= here / n * slack
    assert 0 < far.low <= far.value <= far.high


def test_intervals_hold_what_they_say() -> None:
    """Of 90% intervals nine in ten or more hold the truth, whichever law it is."""
    held = [
        projected.low <= curve(16) <= projected.high
        for curve in SHAPES.values()
        for noise in (0.01, 0.05)
        for seed in range(2)
        for projected in [noisy(curve, (1, 2, 4, 8), noise, seed).throughput(16)]
    ]
    assert statistics.mean(held) >= CONFIDENCE


def test_intervals_widen_with_distance_and_with_noise() -> None:
    def width(noise: float, size: int) -> float:
        projected = noisy(SHAPES["amdahl"], (1, 2, 4, 8), noise, 1).throughput(size)
        return (projected.high - projected.low) / projected.value

    assert width(0.03, 8) < width(0.03, 16) < width(0.03, 64)
    assert width(0.005, 16) < width(0.08, 16)


def test_more_processes_than_the_best_are_slower() -> None:
    law = fit({n: [usl(n, 10, 0.1, 0.01)] for n in (1, 2, 4, 8, 16)})
    best = law.best_processes
    assert best == pytest.approx(math.sqrt(0.9 / 0.01))
    peak = law.throughput(round(best)).value
    assert peak > law.throughput(round(best) * 3).value


def test_better_than_linear_is_taken_as_linear() -> None:
    """Caches can make two processes more than twice as fast; no law may project that on."""
    law = fit({1: [100], 2: [210], 4: [430]})
    assert law.kind == "linear"
    assert (law.sigma.value, law.kappa.value) == (0, 0)
    assert law.throughput(64).value == pytest.approx(64 * law.single.value)
    assert law.residual > 0.01


def test_the_choice_names_what_else_is_likely() -> None:
    assert fit({n: [1000 * SHAPES["amdahl"](n)] * 3 for n in (1, 2, 4, 8)}).choice.startswith(
        "Amdahl's law ("
    )
    words = fit({1: [100.0], 2: [180.0]}).choice
    assert words == (
        "law undecided (linear scaling 6%, Amdahl's law 31%, ring all-reduce 31%,"
        " tree all-reduce 31%)"
    )


def test_the_fitted_fields_are_stored() -> None:
    law = fit({1: [100.0, 95.0], 2: [180.0, 190.0], 4: [300.0, 320.0]})
    stored = ScalingLaw.model_validate(law.to_wire())
    assert (stored.kind, stored.weights, stored.sigma) == (law.kind, law.weights, law.sigma)
    assert stored.choice == law.choice
    older = {name: value for name, value in law.to_wire().items() if name != "weights"}
    assert "likely" not in ScalingLaw.model_validate(older).choice


def test_the_same_measurements_give_the_same_intervals() -> None:
    runs = {1: [100.0, 95.0, 103.0], 2: [180.0, 190.0, 171.0], 4: [300.0, 320.0, 280.0]}
    turned = {size: list(reversed(values)) for size, values in reversed(runs.items())}
    first, second = fit(runs), fit(turned)
    assert first.weights == second.weights
    assert first.throughput(16) == second.throughput(16)


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({}, "at least two numbers"),
        ({2: [10.0, 11.0]}, "at least two numbers"),
        ({1: [10.0], 2: []}, "at least two numbers"),
        ({0: [1.0], 1: [2.0]}, "at least 1"),
        ({1: [10.0], 2: [0.0]}, "positive"),
        ({1: [10.0], 2: [math.nan]}, "positive"),
    ],
)
def test_measurements_that_determine_no_law_are_refused(
    measured: dict[int, list[float]], words: str
) -> None:
    with pytest.raises(ScalingError, match=words):
        fit(measured)
