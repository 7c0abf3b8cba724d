"""Records of metrics.jsonl: which of their numbers are metrics, and which of an evaluation."""

from collections.abc import Mapping
from typing import Any, TypeGuard

NOT_METRICS = frozenset({"step", "time", "attempt"})
EVALUATION = "eval_"  # begins the name of a metric that only evaluations measure


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number that a chart can show."""
    # Excludes booleans, NaN, and integers beyond a float's range.
    return value.__class__ in (int, float) and -1e300 < value < 1e300


def evaluation_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """What an evaluation has measured, by name; empty if the record is not of one.

    The trainer writes an evaluation as a record of its own, with whatever numbers the recipe has
    named. In a record with the training loss, only what is named `eval_...` is of an evaluation.
    """
    if "event" in record:
        return {}
    is_progress = "loss" in record
    return {
        name: value
        for name, value in record.items()
        if name not in NOT_METRICS
        and (not is_progress or name.startswith(EVALUATION))
        and is_finite_number(value)
    }
