"""How well projections do where the truth is known, beside other ways to choose the law.

    python -m tests.bench.projection_truths

Trains nothing. Curves of six kinds, drawn at random, are "measured" at the first 3, 4 or 5 powers
of two with noise of 1, 3 and 8%, 2 or 3 times; then 1.5, 2 and 4 times the largest size are
projected. The same for tables that were published (tests/bench/published_scaling.py), each size
measured once: there the larger sizes are held out.

Printed of each way: the median and the 90th centile of the error, and of the product's also how
often its interval holds the truth, its width, how often it is too wide for a middle to be named,
and the error where it is not.
"""

import argparse
import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.bench.published_scaling import PUBLISHED
from trainyard_api.study_status import Interval
from trainyard_study.fit import fit, solve, sum_of_squares
from trainyard_study.laws import AMDAHL, FORMS, LINEAR, USL, Law, LawForm

Curve = Callable[[float], float]
Runs = Mapping[int, Sequence[float]]

NOISES = (0.01, 0.03, 0.08)
COUNTS = (3, 4, 5)
REPEATS = (2, 3)
FACTORS = (1.5, 2.0, 4.0)


@dataclass(frozen=True)
class Case:
    """Measurements, and what is true beyond them."""

    group: str
    runs: Runs
    truth: dict[float, float]  # of sizes held out


def truths(seed: int) -> Iterator[tuple[str, Curve]]:
    """A curve of each kind. The product fits the first three as they are; the logarithm and the
    ring have an overhead that its laws lack, and the knee is like none of them."""
    draw = random.Random(seed)
    sigma = math.exp(draw.uniform(math.log(0.005), math.log(0.3)))
    kappa = math.exp(draw.uniform(math.log(0.0005), math.log(0.02)))
    deep, flat = draw.uniform(0.02, 0.3), draw.uniform(0.05, 0.8)
    rest = draw.uniform(0, 0.02)
    knee, step = draw.choice((3, 6, 12)), draw.uniform(0.1, 0.5)
    yield "linear", lambda n: n
    yield "amdahl", lambda n: n / (1 + sigma * (n - 1))
    yield "usl", lambda n: n / (1 + sigma / 2 * (n - 1) + kappa * n * (n - 1))
    yield "log", lambda n: n / (1 + deep * math.log(n) + rest * (n - 1))
    yield "ring", lambda n: n / (1 + flat * (1 - 1 / n) + rest / 3 * (n - 1))
    yield "knee", lambda n: n / (1 + sigma / 3 * (n - 1) + step * max(0.0, n - knee) / n)


def simulated(curves: int) -> Iterator[Case]:
    """Every kind of truth with every noise, number of sizes and number of repeats."""
    for seed in range(curves):
        for kind, curve in truths(seed):
            for noise in NOISES:
                for count in COUNTS:
                    for repeats in REPEATS:
                        # A string seeds alike in every process; a hash would not.
                        draw = random.Random(f"{seed} {kind} {noise} {count} {repeats}")
                        sizes = [2**i for i in range(count)]
                        runs = {
                            n: [curve(n) * math.exp(draw.gauss(0, noise)) for _ in range(repeats)]
                            for n in sizes
                        }
                        ahead = [factor * sizes[-1] for factor in FACTORS]
                        group = f"{kind} noise={noise:.0%} sizes={count}"
                        yield Case(group, runs, {n: curve(n) for n in ahead})


def published() -> Iterator[Case]:
    """The first two, three, ... sizes of each table; the others are the truth."""
    for table in PUBLISHED:
        sizes = sorted(table)
        for count in range(2, len(sizes)):
            runs = {n: [table[n]] for n in sizes[:count]}
            yield Case(f"sizes={count}", runs, {n: table[n] for n in sizes[count:]})


def nearest(law: LawForm, medians: Mapping[int, float]) -> Law:
    """The law; where a coefficient would be negative, the best of its parts without one."""
    parts = [one for one in FORMS if set(one.terms) <= set(law.terms)]
    found = [fitted for one in parts if (fitted := solve(one, medians))]
    return min(found, key=lambda fitted: sum_of_squares(fitted, medians, dict.fromkeys(medians, 1)))


def always(law: LawForm) -> Callable[[Runs], Law]:
    """One law, whatever was measured; with two sizes Amdahl's."""
    return lambda runs: nearest(law if len(runs) > 2 else AMDAHL, _medians(runs))


def leave_largest_out(runs: Runs) -> Law:
    """Linear, Amdahl or USL: what foretells the largest size best from the others."""
    medians = _medians(runs)
    largest = max(medians)
    smaller = {n: x for n, x in medians.items() if n != largest}
    forms = [law for law in (LINEAR, AMDAHL, USL) if len(law.terms) < len(smaller)]
    found = [(form, law) for form in forms if (law := solve(form, smaller))]
    form = min(found, key=lambda f: abs(f[1].throughput(largest) / medians[largest] - 1))[0]
    return nearest(form if len(runs) > 2 else AMDAHL, medians)


def by_aicc(forms: Sequence[LawForm]) -> Callable[[Runs], Law]:
    """The law of the least AICc (Hurvich and Tsai, 1989)."""

    def chosen(runs: Runs) -> Law:
        medians = _medians(runs)
        counts = {n: len(values) for n, values in runs.items()}
        total = sum(counts.values())
        spread = sum((x / medians[n] - 1) ** 2 for n, values in runs.items() for x in values)
        best = math.inf, nearest(LINEAR, medians)
        for form in (form for form in forms if len(form.terms) < len(runs)):
            unknowns = len(form.terms) + 2  # the constant and the noise
            if total - unknowns - 1 <= 0 or (law := solve(form, medians)) is None:
                continue
            left = max(spread + sum_of_squares(law, medians, counts), 1e-9)
            small = 2 * unknowns * (unknowns + 1) / (total - unknowns - 1)
            criterion = total * math.log(left / total) + 2 * unknowns + small
            best = min(best, (criterion, law), key=lambda pair: pair[0])
        return best[1]

    return chosen


WAYS: dict[str, Callable[[Runs], Law]] = {
    "USL, Amdahl of two sizes": always(USL),
    "Amdahl": always(AMDAHL),
    "leave the largest out": leave_largest_out,
    "AICc: linear, Amdahl, USL": by_aicc((LINEAR, AMDAHL, USL)),
    "AICc: all laws": by_aicc(FORMS),
}
PRODUCT = "the product"


@dataclass(frozen=True)
class Projection:
    """A projection beside the truth."""

    way: str
    group: str
    factor: float
    interval: Interval
    truth: float

    @property
    def error(self) -> float:
        return abs(self.interval.value / self.truth - 1)

    @property
    def held(self) -> bool:
        # An exactly predicted truth is within an interval of width zero.
        slack = 1e-9 * self.truth
        return self.interval.low - slack <= self.truth <= self.interval.high + slack


def projections(case: Case) -> Iterator[Projection]:
    """The projection of every method for every size that was held out."""
    largest = max(case.runs)
    law = fit(case.runs)
    for size, truth in case.truth.items():
        yield Projection(PRODUCT, case.group, size / largest, law.throughput(size), truth)
    for way, choose in WAYS.items():
        chosen = choose(case.runs)
        for size, truth in case.truth.items():
            value = chosen.throughput(size)
            point = Interval(value=value, low=value, high=value)
            yield Projection(way, case.group, size / largest, point, truth)


def word(place: int) -> Callable[[Projection], str]:
    """One word of the group's name."""
    return lambda one: one.group.split()[place]


def report(title: str, found: Sequence[Projection], groups: Callable[[Projection], str]) -> None:
    """A line per way and group."""
    print(f"\n{title}\n{'':44}error: median    p90   holds   width  unnamed; else: median    p90")
    for group in sorted({groups(one) for one in found}):
        for way in (PRODUCT, *WAYS):
            some = [one for one in found if one.way == way and groups(one) == group]
            line = f"{group:18}{way:26}{_errors(some)}"
            if way == PRODUCT:
                held = statistics.mean(one.held for one in some)
                width = statistics.median(
                    (one.interval.high - one.interval.low) / one.interval.value for one in some
                )
                named = [one for one in some if not one.interval.too_wide]
                unnamed = 1 - len(named) / len(some)
                line += f"{held:8.0%}{width:8.0%}{unnamed:9.0%}      {_errors(named)}"
            print(line)


def _errors(some: Sequence[Projection]) -> str:
    errors = sorted(one.error for one in some)
    if not errors:
        return f"{'-':>14}{'-':>7}"
    return f"{statistics.median(errors):14.1%}{errors[int(0.9 * (len(errors) - 1))]:7.1%}"


def _medians(runs: Runs) -> dict[int, float]:
    return {n: statistics.median(values) for n, values in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", type=int, default=10, help="of each kind")
    args = parser.parse_args()
    found = [one for case in simulated(args.curves) for one in projections(case)]
    report("simulated, by how far", found, lambda one: f"{one.factor:g}x the largest")
    twice = [one for one in found if one.factor == 2]
    for place, name in enumerate(("by truth", "by noise", "by number of sizes")):
        report(f"at twice the largest, {name}", twice, word(place))
    tables = [one for case in published() for one in projections(case)]
    report("published, by sizes", tables, lambda one: f"{one.group} {one.factor:g}x")


if __name__ == "__main__":
    main()
