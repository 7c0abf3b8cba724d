"""Bounds the work of compiling a JSON schema, where llguidance has no limit of its own.

A string for which several patterns hold is the intersection of their automata, and the ways to go
on from a state of it are the product of those of each pattern. llguidance counts its work only from
one state to the next: 24 patterns of 30 characters took a minute and 4 GB. The remainders of
several `multipleOf` multiply, too, and every pair of `patternProperties` is intersected.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from trainyard_serving.generate.engine import JsonDict

MAX_COST = 2**16  # the costliest schemas found below it take a quarter of a second, and 30 MB
# Keywords that combine schemas. Each is a part of the schema that it is in.
COMBINING = frozenset({"anyOf", "oneOf", "$ref"})
# Beside one of these, they combine nothing that has a pattern.
PLAIN = frozenset(
    {
        "$comment",
        "$defs",
        "$id",
        "$schema",
        "default",
        "definitions",
        "deprecated",
        "description",
        "discriminator",
        "examples",
        "readOnly",
        "title",
        "type",
        "writeOnly",
    }
)
ADVICE = "use fewer or simpler ones"


def too_costly(schema: JsonDict) -> str | None:
    """Why compiling `schema` could take too much work; None if it cannot."""
    nodes = list(_nodes(schema))
    divisor = math.lcm(*(number for node in nodes for number in _divisors(node)))
    if divisor > MAX_COST:
        return (
            f"the values of multipleOf have a least common multiple above {MAX_COST},"
            f" decimal places not counted: {ADVICE}"
        )
    patterns = {pattern: cost for node in nodes for pattern, cost in _patterns(node)}
    total = divisor * math.prod(patterns.values())
    if total > MAX_COST and any(_combines(node) for node in nodes):
        return (
            f"{len(patterns)} values of pattern and format are too many or too long for a schema"
            " that combines schemas (allOf, patternProperties, or anyOf, oneOf or $ref beside other"
            f" keywords): {ADVICE}"
        )
    keys = [key for node in nodes for key in _keys(node.get("patternProperties"))]
    if sum(map(_cost, keys)) ** 2 > MAX_COST:  # each pair of them is intersected
        return f"the {len(keys)} keys of patternProperties are too many or too long: {ADVICE}"
    return None


def _nodes(schema: JsonDict) -> Iterator[Mapping[str, Any]]:
    """Every object in `schema`: what is no schema, such as an example, only adds to the cost."""
    left: list[Any] = [schema]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            yield node
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)


def _divisors(node: Mapping[str, Any]) -> Iterator[int]:
    """Its automaton has a state for each remainder; decimal places are none of them."""
    divisor = node.get("multipleOf")
    if isinstance(divisor, int | float) and 0 < divisor < math.inf:
        number = Decimal(repr(divisor)).normalize()
        yield int(number.scaleb(max(0, -int(number.as_tuple().exponent))))


def _patterns(node: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], int]]:
    if isinstance(pattern := node.get("pattern"), str):
        yield ("pattern", pattern), _cost(pattern)
    if isinstance(name := node.get("format"), str):
        yield ("format", name), 4


def _cost(pattern: str) -> int:
    """Bounds the ways to go on from one state: each takes characters such as [ab]? or a|."""
    return 2 + len(pattern) // 4


def _combines(node: Mapping[str, Any]) -> bool:
    """Whether several patterns could hold for one string because of this schema."""
    if "patternProperties" in node:
        return True
    all_of = node.get("allOf")
    parts = len(all_of) if isinstance(all_of, list) else 0
    parts += len(node.keys() & COMBINING)
    parts += bool(node.keys() - COMBINING - PLAIN - {"allOf"})
    return parts > 1 and bool(all_of or node.keys() & COMBINING)


def _keys(mapping: object) -> Iterable[str]:
    return mapping.keys() if isinstance(mapping, dict) else ()
