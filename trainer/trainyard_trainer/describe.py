"""`python -m trainyard_trainer.describe NAME FORMAT`: a recipe's settings, for all readers.

Formats: `markdown`, a page with tables; `schema`, a JSON schema of `spec.config`; `values`, the
keys as values of charts/operator.
"""

import json
import sys
import textwrap
import types
from collections.abc import Callable, Iterable
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainyard_trainer.config import ARCHITECTURE, CHANGEABLE, TrainConfig
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.recipes import Recipe
from trainyard_trainer.registry import check_recipe, find_recipe

HEADER = "\n| setting | type | default | on resume | description |\n|---|---|---|---|---|\n"


def what_it_trains(recipe: type[Recipe]) -> str:
    """From its module's first line, `NAME: what it trains.`"""
    first, _, _ = (sys.modules[recipe.__module__].__doc__ or "").strip().partition("\n")
    return (first.partition(": ")[2] or first).rstrip(".")


def page(name: str, recipe: type[Recipe]) -> str:
    """What the recipe trains, and tables of its own settings and of those of every recipe."""
    app = f"`trainyard serve` answers with the app `{recipe.serving}`." if recipe.serving else ""
    what = what_it_trains(recipe)
    source = f"It comes with the package {check_recipe(name).source}."
    about = " ".join(filter(None, (what[:1].upper() + what[1:] + ".", source, app)))
    own = settings_table(recipe.Config, own_settings(recipe.Config))
    shared = {
        name: field
        for name, field in recipe.Config.model_fields.items()
        if name not in own_settings(recipe.Config)
    }
    others = settings_table(recipe.Config, shared)
    return f"# {name}\n\n{about}\n{own}\n## Settings of every recipe\n{others}"


def schema(config: type[TrainConfig]) -> str:
    """JSON schema of `spec.config`."""
    return json.dumps(config.model_json_schema(), indent=2) + "\n"


def values(name: str, config: type[TrainConfig]) -> str:
    """Values of charts/operator, by which the API server refuses other keys; YAML."""
    lines = ["admissionPolicy:", "  recipes:", f"    {name}:"]
    for group, keys in setting_keys(config).items():
        text = f"{json.dumps(group)}: [{', '.join(keys)}]"
        lines += textwrap.wrap(text, 94, initial_indent=" " * 6, subsequent_indent=" " * 8)
    return "\n".join(lines) + "\n"


def own_settings(config: type[TrainConfig]) -> dict[str, FieldInfo]:
    """Fields that the recipe adds, or gives another default."""
    shared = TrainConfig.model_fields
    return {
        name: field
        for name, field in config.model_fields.items()
        if name not in shared or shared[name].default != field.default
    }


def setting_keys(config: type[TrainConfig]) -> dict[str, list[str]]:
    """The keys that a config may have: by the name of a group of settings, "" for the config."""
    keys = {"": list(config.model_fields)}
    for name, field in config.model_fields.items():
        group = _group(field.annotation)
        if group is not None and group.model_config.get("extra") == "forbid":
            keys[name] = list(group.model_fields)
    return keys


def settings_table(config: type[TrainConfig], fields: dict[str, FieldInfo]) -> str:
    """A table of these settings, Markdown."""
    changeable, architecture = config.marked(CHANGEABLE), config.marked(ARCHITECTURE)
    rows = HEADER
    for name, field in fields.items():
        word = "may change" if name in changeable else "fixed"
        rows += _rows({name: field}, "architecture" if name in architecture else word)
    return rows


def _rows(fields: dict[str, FieldInfo], on_resume: str, prefix: str = "") -> str:
    rows = ""
    for name, field in fields.items():
        inner = _group(field.annotation)
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


def _group(annotation: Any) -> type[BaseModel] | None:
    """The group of settings that a field holds, if it holds one (or none of them)."""
    choices = get_args(annotation) if _is_union(annotation) else (annotation,)
    groups = [each for each in choices if isinstance(each, type) and issubclass(each, BaseModel)]
    return groups[0] if len(groups) == 1 else None


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _type(annotation: Any) -> str:
    names = {int: "integer", float: "number", bool: "boolean", str: "text", type(None): ""}
    if annotation in names:
        return names[annotation]
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (list, tuple):
        return f"list of {_type(get_args(annotation)[0])}"
    if _is_union(annotation):
        return " or ".join(filter(None, map(_type, get_args(annotation))))
    return "settings" if _group(annotation) else str(annotation)


def _shown(default: Any) -> str:
    if isinstance(default, bool) or default is None:
        return {True: "true", False: "false", None: "null"}[default]
    return repr(default).replace("'", '"') if isinstance(default, str) else str(default)


FORMATS: dict[str, Callable[[str, type[Recipe]], str]] = {
    "markdown": page,
    "schema": lambda _, recipe: schema(recipe.Config),
    "values": lambda name, recipe: values(name, recipe.Config),
}


def main(arguments: Iterable[str]) -> None:
    name, form = arguments
    try:
        print(FORMATS[form](name, find_recipe(name)), end="")
    except ConfigError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
