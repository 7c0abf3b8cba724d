"""Fields that can't change once the object exists: transition rules in the CRD, and in Python."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, Field


def immutable(**kwargs: Any) -> Any:
    """A field that can't change once the object exists."""
    return Field(json_schema_extra={"immutable": True}, **kwargs)


@dataclass(frozen=True)
class Path:
    """Where a field of a spec is: the attributes that lead to it, and the names in a manifest."""

    attributes: tuple[str, ...]
    names: tuple[str, ...]

    def value(self, spec: Any) -> Any:
        """The field's value; None also where the object that would hold it isn't there."""
        for attribute in self.attributes:
            spec = getattr(spec, attribute, None)
        return spec


def immutable_fields(model: type[BaseModel]) -> Iterator[Path]:
    """Every immutable field of a spec, those of the objects that it holds included."""
    for attribute, field in model.model_fields.items():
        name, extra = str(field.alias or attribute), field.json_schema_extra
        if isinstance(extra, dict) and extra.get("immutable"):
            yield Path((attribute,), (name,))
        elif inner := _object(field.annotation):
            for path in immutable_fields(inner):
                yield Path((attribute, *path.attributes), (name, *path.names))


def immutable_changes(old: BaseModel, new: BaseModel) -> list[str]:
    """The immutable fields that differ, as in a manifest: what the CRD's rules refuse."""
    return [
        ".".join(path.names)
        for path in immutable_fields(type(old))
        if path.value(old) != path.value(new)
    ]


def _object(annotation: Any) -> type[BaseModel] | None:
    """The model of a field that holds one object, or none."""
    optional = get_origin(annotation) in (Union, UnionType)
    parts = get_args(annotation) if optional else (annotation,)
    for part in parts:
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None
