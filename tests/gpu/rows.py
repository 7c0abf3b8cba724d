"""Rows of the table: what was measured, what it should be, and whether it is.

Each function compares in one way. What is no finite number, and what is missing, never passes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

NOT_HERE = "not measured here"
K = TypeVar("K", int, str)  # of steps, or of parts


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: was looked at.
        measured, expected: figures with units, or words.
        passed: whether they agree; None if nothing was measured.
    """

    what: str
    measured: str
    expected: str
    passed: bool | None

    @property
    def result(self) -> str:
        return NOT_HERE if self.passed is None else "pass" if self.passed else "FAIL"


def not_here(what: str, why: str) -> Row:
    """Something that this device or machine can't show."""
    return Row(what, "", why, None)


def figure(what: str, value: float | None, unit: str) -> Row:
    """A figure without a limit: there must be one."""
    found = value is not None and math.isfinite(value) and value > 0
    return Row(what, _text(value, unit), "a figure", found)


def at_least(what: str, value: float, limit: float, unit: str = "") -> Row:
    return Row(what, _text(value, unit), f">= {_text(limit, unit)}", value >= limit)


def near(what: str, value: float, expected: float, share: float, unit: str = "") -> Row:
    """Whether a figure is the expected one, but for a share of it."""
    passed = abs(value - expected) <= share * abs(expected)
    measured = f"{_text(value, unit)} ({value / expected - 1:+.1%})" if expected else "nothing"
    return Row(what, measured, f"{_text(expected, unit)} within {share:.0%}", passed)


def same(what: str, found: Mapping[K, object], expected: Mapping[K, object]) -> Row:
    """Whether two things are the same in all their parts; names those that differ."""
    names = sorted(found.keys() | expected.keys())
    differ = [
        name
        for name in names
        if name not in found or name not in expected or found[name] != expected[name]
    ]
    measured = f"{len(names) - len(differ)} of {len(names)} the same"
    if differ:
        measured += f"; not {', '.join(map(str, differ[:3]))}{' …' if differ[3:] else ''}"
    return Row(what, measured, "all the same", bool(names) and not differ)


def close(
    what: str, found: Mapping[K, float], expected: Mapping[K, float], tolerance: float
) -> Row:
    """Whether the same numbers, such as the losses of all steps, differ by at most `tolerance`."""
    wanted = f"within {tolerance:g}"
    if not expected or found.keys() != expected.keys():
        return Row(what, f"{len(found)} of {len(expected)} numbers", wanted, False)
    apart = {name: abs(found[name] - expected[name]) for name in expected}
    worst = max(apart, key=lambda name: math.inf if math.isnan(apart[name]) else apart[name])
    measured = f"{apart[worst]:.2g} apart at {worst}, of {len(apart)}"
    return Row(what, measured, wanted, apart[worst] <= tolerance)


def falls(what: str, losses: Mapping[int, float], to: float) -> Row:
    """Whether the last loss is at most `to`."""
    last = losses[max(losses)] if losses else math.nan
    return Row(what, f"{last:.3f}", f"<= {to:g}", last <= to)


def says(what: str, text: str, pattern: str) -> Row:
    """Whether some line of the text has what the pattern, a regular expression, looks for."""
    lines = text.strip().splitlines()
    found = [line.strip() for line in lines if re.search(pattern, line)]
    shown = found[0] if found else f"not said; the last line: {lines[-1] if lines else 'none'}"
    return Row(what, shown, pattern, bool(found))


def _text(value: float | None, unit: str) -> str:
    if value is None:
        return "none"
    if unit == "%":
        return f"{value:.1%}"
    digits = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"
    return f"{digits} {unit}".rstrip()
