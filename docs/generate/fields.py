"""The pages of TrainingRun and ScalingStudy: every field, from the pydantic models."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainyard_api.base import CEL_RULES, Model
from trainyard_api.run import API_VERSION, TrainingRun
from trainyard_api.spec import Quantity
from trainyard_api.study import ScalingStudy

GENERATED = "This page is generated from the models by `make reference`."
TRAINING_RUN = f"""\
# TrainingRun

`apiVersion: {API_VERSION}`, `kind: TrainingRun`. One object describes one training run:
[concepts](../start/concepts.md) explains what becomes of it, and [recipes](recipes.md) lists the
settings that go into `spec.config`. The same text is in the cluster: `kubectl explain
trainingrun.spec`. {GENERATED}

Unknown fields are errors. A field that is *immutable* can't be changed once the run exists: create
a new run instead.

    kubectl explain trainingrun.spec.checkpoint      # on a cluster
    trainyard validate FILE                          # checks a manifest without one
"""
SCALING_STUDY = f"""\
# ScalingStudy

`apiVersion: {API_VERSION}`, `kind: ScalingStudy`. A study is a [TrainingRun](trainingrun.md) and a
matrix of values to try; [the guide](../guides/studies.md) explains how it measures. The same text
is in the cluster: `kubectl explain scalingstudy.spec`. {GENERATED}

Unknown fields are errors. A field that is *immutable* can't be changed once the study exists. The
`template`, the `matrix` and `exclude` can't be changed once the study has begun either: the
operator stops a study in which they have changed.
"""
_BOUNDS = {
    "minimum": "at least {:,}",
    "exclusiveMinimum": "more than {:,}",
    "maximum": "at most {:,}",
    "exclusiveMaximum": "less than {:,}",
    "minItems": "at least {:,} items",
    "maxItems": "at most {:,} items",
    "minLength": "at least {:,} characters",
    "maxLength": "at most {:,} characters",
    "maxProperties": "at most {:,} keys",
}


@dataclass(frozen=True)
class _Group:
    """An object of the API: where it is in a manifest, and its model."""

    path: str
    model: type[BaseModel]


def training_run() -> str:
    """docs/reference/trainingrun.md."""
    return TRAINING_RUN + _objects(TrainingRun)


def scaling_study() -> str:
    """docs/reference/scalingstudy.md."""
    return SCALING_STUDY + _objects(ScalingStudy)


def _objects(kind: type[Model]) -> str:
    schema = kind.model_json_schema(by_alias=True)
    parts = []
    for name in ("spec", "status"):
        annotation = kind.model_fields[name].annotation
        assert isinstance(annotation, type)
        for group in _groups(name, annotation):
            parts.append(_section(group, schema["$defs"][group.model.__name__]))
    rules = "".join(f"- {rule.message}\n" for rule in kind.rules)
    return "".join(parts) + (f"\n## metadata\n\n{rules}" if rules else "")


def _groups(path: str, model: type[BaseModel]) -> Iterator[_Group]:
    """The object at `path`, and below it every object that it holds."""
    yield _Group(path, model)
    for name, field in model.model_fields.items():
        inner, suffix = _held(field.annotation)
        if inner is not None:
            yield from _groups(f"{path}.{field.alias or name}{suffix}", inner)


def _held(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The model that a field holds, if any, and `[]` where it holds a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    for part in get_args(annotation):
        inner, suffix = _held(part)
        if inner is not None:
            return inner, suffix or ("[]" if "list" in str(annotation).lower() else "")
    return None, ""


def _section(group: _Group, schema: dict[str, Any]) -> str:
    with_defaults = group.path.startswith("spec")
    head = "| field | type | default | description |\n|---|---|---|---|\n"
    if not with_defaults:
        head = "| field | type | description |\n|---|---|---|\n"
    level = "##" if "." not in group.path else "###"
    text = f"\n{level} {group.path}\n\n{_paragraph(schema.get('description', ''))}\n\n{head}"
    for name, field in group.model.model_fields.items():
        wire = field.alias or name
        text += _row(wire, field, schema["properties"][wire], with_defaults)
    rules = "".join(f"- {rule.message}\n" for rule in getattr(group.model, "rules", ()))
    return text + (f"\nRules:\n\n{rules}" if rules else "")


def _row(name: str, field: FieldInfo, schema: dict[str, Any], with_defaults: bool) -> str:
    what = _paragraph(field.description or _first_line(field.annotation))
    limits = _limits(schema)
    if limits:
        what += f" {limits[0].upper()}{limits[1:]}."
    what += "".join(f" Rule: {rule['message']}." for rule in _of_value(schema).get(CEL_RULES, []))
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra.get("immutable"):
        what += " *Immutable.*"
    cells = [f"`{name}`", _type(field.annotation, schema)]
    if with_defaults:
        cells.append(_default(field))
    return f"| {' | '.join([*cells, what.strip().replace('|', chr(92) + '|')])} |\n"


def _first_line(annotation: Any) -> str:
    """What the model that a field holds says about itself."""
    model, _ = _held(annotation)
    return (model.__doc__ or "").splitlines()[0] if model else ""


def _of_value(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field's value, where the field may also be left out (null)."""
    options = [each for each in schema.get("anyOf", []) if each.get("type") != "null"]
    return {**schema, **options[0]} if len(options) == 1 else schema


def _limits(schema: dict[str, Any]) -> str:
    value = _of_value(schema)
    if "x-kubernetes-int-or-string" in value:
        return ""
    found = [_bound(text, value[key]) for key, text in _BOUNDS.items() if key in value]
    return ", ".join(found)


def _bound(text: str, limit: float) -> str:
    words = text.format(limit)
    return words.removesuffix("s") if limit == 1 and words.endswith("s") else words


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ({}, [], ""):
        return ""
    if isinstance(value, BaseModel):
        wire = value.model_dump(mode="json", by_alias=True, exclude_none=True)
        inner = {key: item for key, item in wire.items() if item not in ({}, [])}
        return f"`{_flow(inner)}`" if inner else ""
    return f"`{_flow(value)}`"


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _type(annotation: Any, schema: dict[str, Any]) -> str:
    value = _of_value(schema)
    if "enum" in value:
        return " or ".join(f"`{each}`" for each in value["enum"])
    if annotation == Quantity or "x-kubernetes-int-or-string" in value:
        return "quantity"
    if "$ref" in value or "allOf" in value:
        return "object"
    match value.get("type"):
        case "array":
            return f"list of {_plural(_type(None, value.get('items', {})))}"
        case "object":
            inner = value.get("additionalProperties")
            if isinstance(inner, dict) and inner:
                return f"map of {_plural(_type(None, inner))}"
            return "object"
        case "string":
            return "time" if value.get("format") == "date-time" else "string"
        case None:
            return "any value"
        case other:
            return str(other)


def _plural(name: str) -> str:
    return {"quantity": "quantities", "any value": "values", "object": "objects"}.get(
        name, name if name.startswith(("list", "map", "`")) else f"{name}s"
    )


def _paragraph(text: str) -> str:
    return " ".join(text.split())
