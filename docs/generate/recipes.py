"""docs/reference/recipes.md: every recipe and all its settings."""

import sys
import types
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainyard_trainer.config import ARCHITECTURE, CHANGEABLE, TrainConfig
from trainyard_trainer.recipes import RECIPES, find_recipe

HEAD = """\
# Recipes

A recipe is a model family with its data, loss, evaluation and exported form. `spec.recipe` names
it and `spec.config` holds its settings: unknown ones are errors, those left out have the default
below. Every finished run leaves a model in Hugging Face form in `models/`. This page is generated
from the code by `make reference`.

| recipe | what it trains | examples |
|---|---|---|
"""
EXAMPLES = Path(__file__).parents[2] / "examples"
SHARED = """\

## Settings of every recipe

Names are those of the Hugging Face Trainer where it has one. A recipe with another default says so
in its own table.

*On resume* says whether a setting may change while a run has checkpoints: what is `fixed` may
change in a [branch](../start/concepts.md#branching-start-from-another-run), the `architecture` may
not.
Where a setting names data, the data itself is compared, not the name.
"""


def reference() -> str:
    """The page, Markdown."""
    recipes = {name: find_recipe(name) for name in RECIPES}
    examples: dict[str, list[str]] = {name: [] for name in RECIPES}
    for path in sorted(EXAMPLES.glob("*.yaml")):
        spec = yaml.safe_load(path.read_text()).get("spec", {})
        if "recipe" in spec:
            examples[spec["recipe"]].append(path.stem)
    parts = [HEAD]
    for name, recipe in recipes.items():
        module = sys.modules[recipe.__module__]
        what = (module.__doc__ or "").splitlines()[0].partition(": ")[2].rstrip(".")
        files = ", ".join(f"[{file}](../../examples/{file}.yaml)" for file in examples[name])
        parts.append(f"| [{name}](#{name}) | {what} | {files} |\n")
    parts.append(SHARED)
    parts.append(_table(TrainConfig, TrainConfig.model_fields))
    for name, recipe in recipes.items():
        parts.append(f"\n## {name}\n")
        parts.append(_table(recipe.Config, _own(recipe.Config)))
    return "".join(parts)


def _own(config: type[TrainConfig]) -> dict[str, FieldInfo]:
    """Fields that the recipe adds, or gives another default."""
    shared = TrainConfig.model_fields
    return {
        name: field
        for name, field in config.model_fields.items()
        if name not in shared or shared[name].default != field.default
    }


HEADER = "\n| setting | type | default | on resume | description |\n|---|---|---|---|---|\n"


def _table(config: type[TrainConfig], fields: dict[str, FieldInfo]) -> str:
    changeable, architecture = config.marked(CHANGEABLE), config.marked(ARCHITECTURE)
    rows = HEADER
    for name, field in fields.items():
        word = "may change" if name in changeable else "fixed"
        rows += _rows({name: field}, "architecture" if name in architecture else word)
    return rows


def _rows(fields: dict[str, FieldInfo], on_resume: str, prefix: str = "") -> str:
    rows = ""
    for name, field in fields.items():
        inner = _model(field.annotation)
        default = "required" if field.is_required() else f"`{_shown(field.default)}`"
        what = " ".join((field.description or _inherited(name)).split()).replace("|", "\\|")
        cells = (f"`{prefix}{name}`", _type(field.annotation), default, on_resume, what)
        rows += f"| {' | '.join(cells)} |\n"
        if inner is not None:
            rows += _rows(inner.model_fields, on_resume, f"{prefix}{name}.")
    return rows


def _inherited(name: str) -> str:
    field = TrainConfig.model_fields.get(name)
    return (field.description if field else None) or ""


def _model(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, if it holds one."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _type(annotation: Any) -> str:
    names = {int: "integer", float: "number", bool: "boolean", str: "text", type(None): ""}
    if annotation in names:
        return names[annotation]
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (list, tuple):
        return f"list of {_type(get_args(annotation)[0])}"
    if isinstance(annotation, types.UnionType) or get_origin(annotation) is not None:
        return " or ".join(filter(None, map(_type, get_args(annotation))))
    return "settings" if _model(annotation) else str(annotation)


def _shown(default: Any) -> str:
    if isinstance(default, bool) or default is None:
        return {True: "true", False: "false", None: "null"}[default]
    return repr(default).replace("'", '"') if isinstance(default, str) else str(default)
