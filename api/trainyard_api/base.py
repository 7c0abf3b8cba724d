"""The base of every API model: camelCase on the wire, unknown keys refused, rules checked twice.

A `Rule` says one thing about a model in two languages: CEL, which the API server evaluates, and
Python, which `trainyard run` evaluates. Both carry the same message.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

CEL_RULES = "x-kubernetes-validations"
NAME_PATTERN = "[a-z]([-a-z0-9]*[a-z0-9])?"  # of runs and recipes


@dataclass(frozen=True)
class Rule:
    """One rule; `holds` and `cel` must agree (the end-to-end tests compare them).

    In a model's `rules` it applies to several fields; inside `Annotated`, to that value.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]

    def _check(self, value: Any) -> Any:
        if not self.holds(value):
            raise ValueError(self.message)
        return value

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        described = handler(schema)
        return {**described, CEL_RULES: [*described.get(CEL_RULES, []), self.to_cel()]}

    def to_cel(self) -> dict[str, str]:
        """The rule as an entry of x-kubernetes-validations."""
        return {"rule": self.cel, "message": self.message}


def matches(pattern: str, message: str) -> Rule:
    """The entire value matches `pattern`; `message` says in words what it must look like."""
    return Rule(
        f"self.matches(r'^({pattern})$')",
        message,
        lambda value: re.fullmatch(pattern, value) is not None,
    )


class Model(BaseModel):
    """Base of all API models."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", validate_default=False
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        broken = [rule.message for rule in self.rules if not rule.holds(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self

    def to_wire(self) -> dict[str, Any]:
        """JSON-ready dict with the wire's camelCase names; unset (None) fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Record(Model):
    """Base of what one version writes and another reads: unknown keys are kept as they are.

    So an older operator that changes a status leaves in it what only a newer one understands.
    """

    model_config = ConfigDict(extra="allow")


class SpecModel(Model):
    """Base of what users write, as strict as the API server: "2" is not a number."""

    model_config = ConfigDict(strict=True)


def validation_errors(error: ValidationError) -> list[str]:
    """Each problem of a pydantic error as a line a user can act on, in the error's order."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        what = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            what = "unknown key"
        got = item.get("input")
        shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) else ""
        lines.append(f"{where}: {what}{shown}" if where else f"{what}{shown}")
    return lines


def validation_message(error: ValidationError) -> str:
    """A pydantic error as one line: `spec.numNodes: ... (got 0)`."""
    return "; ".join(validation_errors(error))


# pydantic's errors for a key, and for a value of an enum, that a newer version may know.
_UNKNOWN = ("extra_forbidden", "literal_error")

M = TypeVar("M", bound=BaseModel)


def is_unknown(error: ValidationError) -> bool:
    """Whether all that is wrong are keys and values that a newer version may know."""
    return all(item["type"] in _UNKNOWN for item in error.errors())


def parse_known(model: type[M], data: Any) -> M | None:
    """What this version knows of a document that another wrote; None if that is nothing."""
    try:
        try:
            parsed = model.model_validate(data)
        except ValidationError as error:
            parsed = model.model_validate(_without_unknown(data, error))
    except (ValidationError, TypeError, KeyError, AttributeError, IndexError):
        return None
    _forget_unknown(parsed)
    return parsed


def _without_unknown(data: dict[str, Any], error: ValidationError) -> dict[str, Any]:
    """A copy of `data` without what `error` calls unknown."""
    known = copy.deepcopy(data)
    for item in error.errors():
        if item["type"] not in _UNKNOWN:
            continue
        parent: Any = known
        for step in item["loc"][:-1]:
            parent = parent[step]
        if isinstance(parent, dict):
            parent.pop(item["loc"][-1], None)
    return known


def _forget_unknown(value: Any) -> None:
    """Drop the unknown keys that Records have kept."""
    if isinstance(value, BaseModel):
        if isinstance(value, Record) and value.model_extra:
            value.model_extra.clear()
        value = list(vars(value).values())
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for child in value:
            _forget_unknown(child)
