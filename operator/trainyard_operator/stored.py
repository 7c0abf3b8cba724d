"""A stored object as a model, also when another version of the operator wrote its status."""

from typing import Any, TypeVar

from pydantic import ValidationError

from trainyard_api.base import Model
from trainyard_api.run import TrainingRun
from trainyard_operator.client import Object

M = TypeVar("M", bound=Model)


class InvalidRun(Exception):
    """The object is no valid TrainingRun (or ScalingStudy) though the API server took it."""

    def __init__(self, raw: Object, error: ValidationError) -> None:
        super().__init__()
        self.raw = raw
        self.error = error


def parse_run(raw: Object) -> TrainingRun:
    """The stored run. Raises InvalidRun."""
    return parse(TrainingRun, raw)


def parse(model: type[M], raw: Object) -> M:
    """The stored object as a model; keys of a status that a newer operator wrote are dropped.

    Raises InvalidRun.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        known = {**raw, "status": _known_status(raw.get("status", {}), error)}
    try:
        return model.model_validate(known)
    except ValidationError as error:
        raise InvalidRun(raw, error) from None


def _known_status(status: Object, error: ValidationError) -> Object:
    """A copy of `status` without the keys that `error` calls unknown."""
    copy: Object = _copy(status)
    for item in error.errors():
        if item["type"] == "extra_forbidden" and item["loc"][0] == "status":
            parent: Any = copy
            for step in item["loc"][1:-1]:
                parent = parent[step]
            parent.pop(item["loc"][-1], None)
    return copy


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(child) for key, child in value.items()}
    return [_copy(child) for child in value] if isinstance(value, list) else value
