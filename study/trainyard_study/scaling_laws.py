"""The laws throughput may follow, each fitted by least squares, and how probable each then is.

A law says how n / X(n), the time that n processes need for what one does in a step, grows with n:

    linear     a                              ideal
    amdahl     a + b (n - 1)                  Amdahl, 1967: throughput has a limit
    allreduce  a + b (1 - 1/n)                ring all-reduce (Patarasuk, Yuan, 2009): it has none
    tree       a + b log2 n                   reduction by a tree: in between
    usl        a + b (n - 1) + c n (n - 1)    Gunther, 2007; also without b: it has a peak

All are linear in their unknowns, so a fit has no starting values and one answer. No coefficient may
be negative: nothing gets cheaper by being done together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import mul
from typing import Literal

from trainyard_api.study_status import LawKind

Term = Literal["ring", "depth", "others", "pairs"]

SIZES_FOR_PAIRS = 3  # distinct sizes: two can't tell what grows with the pairs from Amdahl's share


@dataclass(frozen=True)
class Candidate:
    """A law's form: the terms that it has beside the constant."""

    kind: LawKind
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Fitted:
    """A law with its coefficients: that of the constant, then one per term."""

    candidate: Candidate
    coefficients: tuple[float, ...]

    def time(self, n: float) -> float:
        """n / X(n)."""
        total = self.coefficients[0]
        for value, term in zip(self.coefficients[1:], self.candidate.terms, strict=True):
            total += value * _term(term, n)
        return total

    def throughput(self, n: float) -> float:
        return n / self.time(n)

    @property
    def kappa(self) -> float:
        """What every pair of processes costs, relative to the constant."""
        return self.coefficients[-1] / self.coefficients[0] if "pairs" in self._terms else 0.0

    @property
    def sigma(self) -> float:
        """The coefficient of the term that is no pairs', relative to the constant."""
        return self.coefficients[1] / self.coefficients[0] if set(self._terms) - {"pairs"} else 0.0

    @property
    def _terms(self) -> tuple[Term, ...]:
        return self.candidate.terms


LINEAR = Candidate("linear", ())
AMDAHL = Candidate("amdahl", ("others",))
USL = Candidate("usl", ("others", "pairs"))
CANDIDATES = (
    LINEAR,
    AMDAHL,
    Candidate("allreduce", ("ring",)),
    Candidate("tree", ("depth",)),
    Candidate("usl", ("pairs",)),
    USL,
)


@cache
def candidates(sizes: int) -> tuple[Candidate, ...]:
    """The laws that so many distinct sizes can determine."""
    return tuple(
        one
        for one in CANDIDATES
        if len(one.terms) < sizes and ("pairs" not in one.terms or sizes >= SIZES_FOR_PAIRS)
    )


def solve(candidate: Candidate, measured: Mapping[int, float]) -> Fitted | None:
    """Least squares of the relative error of n / X(n); None where a coefficient is negative."""
    constant = [x / n for n, x in measured.items()]  # divides a row by its own n / X(n)
    columns = [constant]
    for term in candidate.terms:
        columns.append([_term(term, n) * x / n for n, x in measured.items()])
    found = _least_squares(columns)
    if found is None or found[0] <= 0 or min(found) < 0:
        return None
    return Fitted(candidate, tuple(found))


def squares(law: Fitted, measured: Mapping[int, float], runs: Mapping[int, int]) -> float:
    """Sum of the squares of the relative errors, each size's as often as it was run."""
    return sum(runs[n] * (law.time(n) * x / n - 1) ** 2 for n, x in measured.items())


def weights(laws: Sequence[Fitted], unexplained: Sequence[float], sizes: int) -> list[float]:
    """How probable each law is, of these: by the Bayesian information criterion.

    `unexplained`: the sum of squares that each leaves. A size is one observation, however often it
    was run: more runs of it say more of the noise, but not of how the law bends. Schwarz, 1978; as
    weights for an average, Hoeting et al., "Bayesian Model Averaging: A Tutorial", 1999.
    """
    criteria = [
        sizes * math.log(left) + len(law.coefficients) * math.log(sizes)
        for law, left in zip(laws, unexplained, strict=True)
    ]
    likelihoods = [math.exp((min(criteria) - criterion) / 2) for criterion in criteria]
    return [likelihood / sum(likelihoods) for likelihood in likelihoods]


def _term(term: Term, n: float) -> float:
    if term == "ring":
        return 1 - 1 / n
    if term == "depth":
        return math.log2(n)
    return n - 1 if term == "others" else n * (n - 1)


def _least_squares(columns: list[list[float]]) -> list[float] | None:
    """x that minimises |A x - 1|, by the normal equations; None if they are singular."""
    rows = [[sum(map(mul, a, b)) for b in columns] + [sum(a)] for a in columns]
    for i, pivot in enumerate(rows):  # positive definite: no need to look for larger pivots
        if pivot[i] <= 1e-12 * sum(map(mul, columns[i], columns[i])):
            return None
        for other in rows:
            if other is not pivot:
                factor = other[i] / pivot[i]
                other[:] = [a - factor * b for a, b in zip(other, pivot, strict=True)]
    return [row[-1] / row[i] for i, row in enumerate(rows)]
