"""The forms of the scaling laws: how the time of a step grows with the number of processes.

A law gives n / X(n), the time that n processes need for one process's share of a step, as a
function of n:

    linear     a                              ideal
    amdahl     a + b (n - 1)                  Amdahl, 1967: throughput has a limit
    allreduce  a + b (1 - 1/n)                ring all-reduce (Patarasuk, Yuan, 2009): no limit
    tree       a + b log2 n                   reduction by a tree: in between
    usl        a + b (n - 1) + c n (n - 1)    Gunther, 2007; also without b: throughput has a peak

All are linear in their coefficients, so a fit needs no starting values and has one solution. No
coefficient may be negative: sharing work never makes it cheaper.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

from trainyard_api.study_status import LawKind

# What a term's coefficient is multiplied by.
Term = Literal["ring", "depth", "others", "pairs"]

MIN_SIZES_FOR_PAIRS = (
    3  # from two sizes, a cost per pair can't be distinguished from Amdahl's serial part
)


@dataclass(frozen=True)
class LawForm:
    """The terms of a law besides its constant."""

    kind: LawKind
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Law:
    """A form with coefficients: that of the constant, then one per term."""

    form: LawForm
    coefficients: tuple[float, ...]

    def time(self, n: float) -> float:
        """n / X(n)."""
        total = self.coefficients[0]
        for value, term in zip(self.coefficients[1:], self.form.terms, strict=True):
            total += value * evaluate_term(term, n)
        return total

    def throughput(self, n: float) -> float:
        """X(n)."""
        return n / self.time(n)

    @property
    def kappa(self) -> float:
        """The cost per pair of processes, relative to the constant."""
        return self.coefficients[-1] / self.coefficients[0] if "pairs" in self.form.terms else 0.0

    @property
    def sigma(self) -> float:
        """The coefficient of the term other than `pairs`, relative to the constant."""
        if set(self.form.terms) - {"pairs"}:
            return self.coefficients[1] / self.coefficients[0]
        return 0.0


LINEAR = LawForm("linear", ())
AMDAHL = LawForm("amdahl", ("others",))
USL = LawForm("usl", ("others", "pairs"))
FORMS = (
    LINEAR,
    AMDAHL,
    LawForm("allreduce", ("ring",)),
    LawForm("tree", ("depth",)),
    LawForm("usl", ("pairs",)),
    USL,
)


@cache
def forms_for(sizes: int) -> tuple[LawForm, ...]:
    """The forms that this number of distinct sizes can determine."""
    return tuple(
        form
        for form in FORMS
        if len(form.terms) < sizes and ("pairs" not in form.terms or sizes >= MIN_SIZES_FOR_PAIRS)
    )


def evaluate_term(term: Term, n: float) -> float:
    """The term's value for n processes."""
    if term == "ring":
        return 1 - 1 / n
    if term == "depth":
        return math.log2(n)
    return n - 1 if term == "others" else n * (n - 1)
