"""How throughput grows with the number of processes: laws fitted to measurements, and projections.

A few sizes seldom tell which law holds (see scaling_laws.py), and beyond them the laws part.
So a projection is an average of the laws, each with the probability that the measurements give it,
and its interval is of draws: a law by that probability, its coefficients by the measured noise.
"""

import math
import random
from collections.abc import Mapping, Sequence

from pydantic import PrivateAttr

from trainyard_api.study_status import Interval, LawKind, ScalingLaw
from trainyard_study.scaling_laws import (
    Fitted,
    candidates,
    solve,
    squares,
    weights,
)

DRAWS = 300
CONFIDENCE = 0.9
# Two or three repeats know little of their own noise, and one nothing: runs are taken to differ by
# 2% until they show something else, with the force of two more runs.
USUAL_NOISE, USUAL_RUNS = 0.02, 2
_SEED = 0  # the same measurements give the same intervals


class ScalingError(ValueError):
    """The measurements determine no law; the message is one line that says what is missing."""


class FittedScalingLaw(ScalingLaw):
    """A law that was fitted here: it can project. Only its base's fields are stored."""

    _laws: list[tuple[float, Fitted]] = PrivateAttr(default_factory=list)
    _draws: list[Fitted] = PrivateAttr(default_factory=list)

    def throughput(self, processes: float) -> Interval:
        """What is to be expected of a number of processes, measured or not (or between two).

        The middle is of the mean time of a step: what the laws disagree on in a budget of hours.
        """
        seconds = sum(weight * law.time(processes) for weight, law in self._laws)
        return _interval(processes / seconds, [law.throughput(processes) for law in self._draws])


def fit(measured: Mapping[int, Sequence[float]]) -> FittedScalingLaw:
    """The law of `measured`: number of processes -> throughputs, one per repetition.

    Relative errors count alike at every size. Raises ScalingError.
    """
    runs = _checked(measured)
    medians = {size: _median(values) for size, values in runs.items()}
    counts = {size: len(values) for size, values in runs.items()}
    noise, freedom = _noise(runs)
    laws = _weighed(medians, counts, noise)
    best, by_kind = _most_likely(laws)
    draws = _draw(medians, counts, noise, freedom)
    alike = [one for one in draws if one.candidate.kind == best.candidate.kind]
    law = FittedScalingLaw(
        kind=best.candidate.kind,
        single=_interval(best.throughput(1), [one.throughput(1) for one in draws]),
        sigma=_interval(best.sigma, [one.sigma for one in alike]),
        kappa=_interval(best.kappa, [one.kappa for one in alike]),
        residual=math.sqrt(squares(best, medians, dict.fromkeys(medians, 1)) / len(medians)),
        sizes=sorted(runs),
        weights={name: round(chance, 4) for name, chance in by_kind.items()},
    )
    law._laws, law._draws = laws, draws
    return law


def _checked(measured: Mapping[int, Sequence[float]]) -> dict[int, list[float]]:
    runs = {size: [float(x) for x in measured[size]] for size in sorted(measured) if measured[size]}
    if len(runs) < 2:
        raise ScalingError("two or more numbers of processes are needed")
    if any(size < 1 for size in runs):
        raise ScalingError("a number of processes is 1 or more")
    if not all(math.isfinite(x) and x > 0 for values in runs.values() for x in values):
        raise ScalingError("a throughput must be a positive number")
    return runs


def _noise(runs: Mapping[int, Sequence[float]]) -> tuple[float, int]:
    """Sum of squares of what repeats differ by, and its degrees of freedom."""
    total, freedom = USUAL_RUNS * USUAL_NOISE**2, USUAL_RUNS
    for values in runs.values():
        logs = [math.log(x) for x in values]
        mean = sum(logs) / len(logs)
        total += sum((x - mean) ** 2 for x in logs)
        freedom += len(logs) - 1
    return total, freedom


def _weighed(
    medians: Mapping[int, float], counts: Mapping[int, int], noise: float
) -> list[tuple[float, Fitted]]:
    """Every law that the sizes can determine, and how probable it is."""
    laws = [found for one in candidates(len(medians)) if (found := solve(one, medians))]
    unexplained = [noise + squares(law, medians, counts) for law in laws]
    chances = weights(laws, unexplained, len(medians))
    return list(zip(chances, laws, strict=True))


def _most_likely(laws: Sequence[tuple[float, Fitted]]) -> tuple[Fitted, dict[LawKind, float]]:
    """The law to name, and how probable each kind is: the two forms of USL are one."""
    by_kind: dict[LawKind, float] = {}
    for chance, law in laws:
        by_kind[law.candidate.kind] = by_kind.get(law.candidate.kind, 0.0) + chance
    # The first of those that are equally likely, but for rounding: Amdahl's of two sizes.
    kind = max(by_kind, key=lambda found: round(by_kind[found], 6))
    forms = [(chance, law) for chance, law in laws if law.candidate.kind == kind]
    return max(forms, key=lambda form: form[0])[1], by_kind


def _draw(
    medians: Mapping[int, float], counts: Mapping[int, int], noise: float, freedom: int
) -> list[Fitted]:
    """Laws as other runs could have led to: medians as noise moves them, then a law by its chance.

    The noise itself is known from few runs: its variance is drawn too (scaled inverse chi-squared).
    """
    generator = random.Random(_SEED)
    draws = []
    for _ in range(DRAWS):
        chi_squared = 2 * generator.gammavariate(freedom / 2, 1)
        spread = math.sqrt(noise / chi_squared)
        moved = {
            n: x * math.exp(_median([generator.gauss(0, spread) for _ in range(counts[n])]))
            for n, x in medians.items()
        }
        chances, laws = zip(*_weighed(moved, counts, noise), strict=True)
        draws += generator.choices(laws, chances)
    return draws


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else sum(ordered[middle - 1 : middle + 1]) / 2


def _interval(value: float, samples: Sequence[float]) -> Interval:
    ordered = sorted(samples) or [value]
    cut = round((1 - CONFIDENCE) / 2 * (len(ordered) - 1))
    return Interval(
        value=value, low=min(value, ordered[cut]), high=max(value, ordered[len(ordered) - 1 - cut])
    )
