"""Fits scaling laws to measured throughput, and projects it to other numbers of processes.

A few sizes rarely determine which law holds (laws.py), and outside the measured range the laws
diverge. A projection is therefore an average of the laws, weighted by how probable the measurements
make each of them; its interval comes from draws: a law by its probability, its coefficients by the
measured noise.
"""

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from operator import mul

from pydantic import PrivateAttr

from trainyard_api.study_status import Interval, LawKind, ScalingLaw
from trainyard_study.laws import Law, LawForm, evaluate_term, forms_for

DRAWS = 300
CONFIDENCE = 0.9
# Two or three repeats are a poor estimate of their noise, and one is none. The prior: runs differ
# by 2%, with the weight of two more runs.
PRIOR_NOISE, PRIOR_RUNS = 0.02, 2
_SEED = 0  # the same measurements give the same intervals


class ScalingError(ValueError):
    """The measurements determine no law; the message is one line that says what is missing."""


class FittedScalingLaw(ScalingLaw):
    """A law fitted in this process: it can project. Only the base class's fields are stored."""

    _laws: list[tuple[float, Law]] = PrivateAttr(default_factory=list)
    _draws: list[Law] = PrivateAttr(default_factory=list)

    def throughput(self, processes: float) -> Interval:
        """The expected throughput of a number of processes; it need not be measured, or whole.

        The value comes from the mean step time: the laws disagree about a budget in hours.
        """
        seconds = sum(weight * law.time(processes) for weight, law in self._laws)
        return _interval(processes / seconds, [law.throughput(processes) for law in self._draws])


def fit(measured: Mapping[int, Sequence[float]]) -> FittedScalingLaw:
    """Fit the laws to `measured`: number of processes -> throughput of each repeat.

    Relative errors have the same weight at every size. Raises ScalingError.
    """
    runs = _validated(measured)
    medians = {size: statistics.median(values) for size, values in runs.items()}
    counts = {size: len(values) for size, values in runs.items()}
    noise, freedom = _noise(runs)
    laws = _weighted_laws(medians, counts, noise)
    best, weight_by_kind = _most_probable(laws)
    draws = _draw(medians, counts, noise, freedom)
    same_kind = [law for law in draws if law.form.kind == best.form.kind]
    unit_counts = dict.fromkeys(medians, 1)
    fitted = FittedScalingLaw(
        kind=best.form.kind,
        single=_interval(best.throughput(1), [law.throughput(1) for law in draws]),
        sigma=_interval(best.sigma, [law.sigma for law in same_kind]),
        kappa=_interval(best.kappa, [law.kappa for law in same_kind]),
        residual=math.sqrt(sum_of_squares(best, medians, unit_counts) / len(medians)),
        sizes=sorted(runs),
        weights={kind: round(weight, 4) for kind, weight in weight_by_kind.items()},
    )
    fitted._laws, fitted._draws = laws, draws
    return fitted


def solve(form: LawForm, measured: Mapping[int, float]) -> Law | None:
    """Least squares of the relative error of n / X(n); None where a coefficient is negative."""
    constant = [x / n for n, x in measured.items()]  # each row is divided by its own n / X(n)
    columns = [constant]
    for term in form.terms:
        columns.append([evaluate_term(term, n) * x / n for n, x in measured.items()])
    coefficients = _least_squares(columns)
    if coefficients is None or coefficients[0] <= 0 or min(coefficients) < 0:
        return None
    return Law(form, tuple(coefficients))


def sum_of_squares(law: Law, measured: Mapping[int, float], counts: Mapping[int, int]) -> float:
    """Sum of squared relative errors; each size counts as often as it was run."""
    return sum(counts[n] * (law.time(n) * x / n - 1) ** 2 for n, x in measured.items())


def bic_weights(laws: Sequence[Law], residuals: Sequence[float], sizes: int) -> list[float]:
    """The probability of each law among these, by the Bayesian information criterion.

    `residuals`: the sum of squares that each law leaves. A size is one observation, however often
    it was run: more runs say more about the noise, but nothing about the shape of the law.
    Schwarz, 1978; as weights for an average, Hoeting et al., "Bayesian Model Averaging: A
    Tutorial", 1999.
    """
    criteria = [
        sizes * math.log(residual) + len(law.coefficients) * math.log(sizes)
        for law, residual in zip(laws, residuals, strict=True)
    ]
    likelihoods = [math.exp((min(criteria) - criterion) / 2) for criterion in criteria]
    return [likelihood / sum(likelihoods) for likelihood in likelihoods]


def _validated(measured: Mapping[int, Sequence[float]]) -> dict[int, list[float]]:
    runs = {size: [float(x) for x in measured[size]] for size in sorted(measured) if measured[size]}
    if len(runs) < 2:
        raise ScalingError("at least two numbers of processes are required")
    if any(size < 1 for size in runs):
        raise ScalingError("the number of processes must be at least 1")
    if not all(math.isfinite(x) and x > 0 for values in runs.values() for x in values):
        raise ScalingError("a throughput must be a positive number")
    return runs


def _noise(runs: Mapping[int, Sequence[float]]) -> tuple[float, int]:
    """Sum of squared differences between repeats (in logs), and its degrees of freedom."""
    total, freedom = PRIOR_RUNS * PRIOR_NOISE**2, PRIOR_RUNS
    for values in runs.values():
        logs = [math.log(x) for x in values]
        mean = sum(logs) / len(logs)
        total += sum((x - mean) ** 2 for x in logs)
        freedom += len(logs) - 1
    return total, freedom


def _weighted_laws(
    medians: Mapping[int, float], counts: Mapping[int, int], noise: float
) -> list[tuple[float, Law]]:
    """Every law that the sizes can determine, with its probability."""
    laws = [law for form in forms_for(len(medians)) if (law := solve(form, medians))]
    residuals = [noise + sum_of_squares(law, medians, counts) for law in laws]
    weights = bic_weights(laws, residuals, len(medians))
    return list(zip(weights, laws, strict=True))


def _most_probable(laws: Sequence[tuple[float, Law]]) -> tuple[Law, dict[LawKind, float]]:
    """The law to name, and the probability of each kind: the two forms of USL are one kind."""
    by_kind: dict[LawKind, float] = {}
    for weight, law in laws:
        by_kind[law.form.kind] = by_kind.get(law.form.kind, 0.0) + weight
    # Of kinds that are equally probable up to rounding, the first: Amdahl's law for two sizes.
    kind = max(by_kind, key=lambda candidate: round(by_kind[candidate], 6))
    of_kind = [(weight, law) for weight, law in laws if law.form.kind == kind]
    return max(of_kind, key=lambda pair: pair[0])[1], by_kind


def _draw(
    medians: Mapping[int, float], counts: Mapping[int, int], noise: float, freedom: int
) -> list[Law]:
    """Laws that other runs could have given: perturb the medians, then pick a law by its weight.

    The noise is estimated from few runs, so its variance is drawn too (scaled inverse chi-squared).
    """
    generator = random.Random(_SEED)
    draws = []
    for _ in range(DRAWS):
        chi_squared = 2 * generator.gammavariate(freedom / 2, 1)
        sigma = math.sqrt(noise / chi_squared)
        perturbed = {
            n: x * math.exp(statistics.median(generator.gauss(0, sigma) for _ in range(counts[n])))
            for n, x in medians.items()
        }
        weights, laws = zip(*_weighted_laws(perturbed, counts, noise), strict=True)
        draws += generator.choices(laws, weights)
    return draws


def _interval(value: float, samples: Sequence[float]) -> Interval:
    ordered = sorted(samples) or [value]
    cut = round((1 - CONFIDENCE) / 2 * (len(ordered) - 1))
    return Interval(
        value=value, low=min(value, ordered[cut]), high=max(value, ordered[len(ordered) - 1 - cut])
    )


def _least_squares(columns: list[list[float]]) -> list[float] | None:
    """The x that minimises |A x - 1|, by the normal equations; None if they are singular."""
    rows = [[sum(map(mul, a, b)) for b in columns] + [sum(a)] for a in columns]
    for i, pivot in enumerate(rows):  # positive definite: no need to search for larger pivots
        if pivot[i] <= 1e-12 * sum(map(mul, columns[i], columns[i])):
            return None
        for other in rows:
            if other is not pivot:
                factor = other[i] / pivot[i]
                other[:] = [a - factor * b for a, b in zip(other, pivot, strict=True)]
    return [row[-1] / row[i] for i, row in enumerate(rows)]
