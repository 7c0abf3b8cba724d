"""Centiles of a list of figures."""

from collections.abc import Sequence


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value that `share` of the values do not exceed; None of no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
