"""Conditions on a model's metrics and scores, without which it is not served."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_FORM = re.compile(r"\s*([^\s<>=,]+)\s*(<=|>=)\s*([^\s<>=,]+)\s*")
# The same for a list of them, in the syntax that JSON schemas share.
PATTERN = r"^(\s*[^\s<>=,]+\s*[<>]=\s*[-+.0-9eE]+\s*(,|$))*$"


@dataclass(frozen=True)
class Requirement:
    """A bound on one value."""

    metric: str
    relation: str  # <= or >=
    bound: float

    def refusal(self, metrics: Mapping[str, float]) -> str:
        """Why a model with these values is not served; empty if it is."""
        value = metrics.get(self.metric)
        wanted = f"{self.metric}{self.relation}{self.bound:g} is required"
        if value is None:
            return f"{wanted}, and this model has no {self.metric} yet"
        met = value <= self.bound if self.relation == "<=" else value >= self.bound
        return "" if met else f"{wanted}, and this model has {value:.6g}"


def parse_requirements(text: str) -> list[Requirement]:
    """`eval_loss<=2.5, arc_easy/acc>=0.4` -> both. Raises ValueError."""
    found = []
    for part in filter(str.strip, text.split(",")):
        match = _FORM.fullmatch(part)
        try:
            bound = float(match[3]) if match else math.nan
        except ValueError:
            bound = math.nan
        if match is None or not math.isfinite(bound):
            raise ValueError(
                f"{part.strip()!r} is not of the form METRIC<=NUMBER or METRIC>=NUMBER"
            )
        found.append(Requirement(match[1], match[2], bound))
    return found
