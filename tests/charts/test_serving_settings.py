"""charts/serving: its `settings` are the fields of the programs' settings, and reach them."""

import argparse
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from trainyard_serving.embed.settings import EmbedSettings
from trainyard_serving.settings import (
    ClassifySettings,
    GenerateSettings,
    VisionSettings,
    add_flags,
    read_settings,
)

from .conftest import CHARTS, Manifest, Refusal, Render
from .serving_values import EMBED, GENERATE, ONNX, VISION

# What the chart says itself, from other values.
OURS = {"run_dir", "model", "step", "digest", "host", "port", "api_key", "admin_api_key", "engine"}
OURS |= {"sglang_url", "sglang_api_key", "cache_dir"}
APPS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "classify": (ClassifySettings, ONNX),
    "embed": (EmbedSettings, EMBED),
    "generate": (GenerateSettings, GENERATE),
    "vision": (VisionSettings, VISION),
}
apps = pytest.mark.parametrize("app", sorted(APPS))
SCHEMA = json.loads((CHARTS / "serving" / "values.schema.json").read_text())
FITTING = (
    "8080",
    "eval_loss<=2.5",
    "/shakespeare",
    "https://app.example.org,http://localhost:3000",
)
COMPARED = ("type", "enum", "minimum", "exclusiveMinimum", "maximum", "minLength", "pattern")


def camel(field: str) -> str:
    head, *tail = field.split("_")
    return head + "".join(word.title() for word in tail)


def fields(app: str) -> dict[str, dict[str, Any]]:
    """Field -> its JSON schema, without the null of a field that may be left out."""
    schemas = APPS[app][0].model_json_schema()["properties"]
    return {
        name: schema | next(iter(schema.get("anyOf", [{}])))
        for name, schema in schemas.items()
        if name not in OURS
    }


def other(schema: dict[str, Any]) -> Any:
    """A value that the field may have and that is not its default."""
    values: dict[str, Callable[[], Any]] = {
        "boolean": lambda: not schema["default"],
        "integer": lambda: (schema["default"] or schema.get("minimum", 0)) + 1,
        "number": lambda: (schema["default"] or 0) + 0.25,
    }
    if "enum" in schema:
        return next(value for value in schema["enum"] if value != schema["default"])
    if pattern := schema.get("pattern"):
        return next(text for text in FITTING if re.search(pattern, text))
    return values.get(schema["type"], lambda: "other")()


def read(container: Manifest, kind: type[Any]) -> Any:
    """What the program would read from the container's arguments and environment."""
    parser = argparse.ArgumentParser()
    add_flags(parser, kind)
    with pytest.MonkeyPatch.context() as patch:
        for item in container.get("env", []):
            if "value" in item:
                patch.setenv(item["name"], item["value"])
        return read_settings(kind, parser.parse_args(container["args"]))


@apps
def test_the_chart_knows_the_programs_settings(app: str) -> None:
    """A key that is missing here could not be set; one with other limits would be refused late."""
    for name, field in fields(app).items():
        known = dict(SCHEMA["properties"]["settings"]["properties"][camel(name)])
        if name == "drain_seconds":  # the pod's grace period follows it
            assert known.pop("maximum") == 3600
        assert {key: known.get(key) for key in COMPARED} == {
            key: field.get(key) for key in COMPARED
        }, name


def test_the_schema_has_no_settings_but_the_programs() -> None:
    known = SCHEMA["properties"]["settings"]["properties"].keys()
    assert known == {camel(name) for app in APPS for name in fields(app)}


@apps
def test_every_setting_reaches_the_program(render: Render, app: str) -> None:
    kind, values = APPS[app]
    given = {name: other(schema) for name, schema in fields(app).items()}
    text = json.dumps({camel(name): value for name, value in given.items()})
    container = render(
        "serving", *values, "apiKey.existingSecret=k", f"settings:={text}"
    ).container("serving")
    settings = read(container, kind)
    assert {name: getattr(settings, name) for name in given} == given


@apps
def test_without_settings_the_programs_defaults_hold(render: Render, app: str) -> None:
    kind, values = APPS[app]
    settings = read(render("serving", *values).container("serving"), kind)
    defaults = {name: schema["default"] for name, schema in fields(app).items()}
    assert {name: getattr(settings, name) for name in defaults} == defaults


@pytest.mark.parametrize(("app", "number"), [("embed", 1000), ("classify", 100)])
def test_a_shorter_queue_needs_no_other_setting(render: Render, app: str, number: int) -> None:
    kind, values = APPS[app]
    container = render("serving", *values, f"settings.maxQueue={number}").container("serving")
    assert read(container, kind).max_texts == number


@apps
def test_settings_of_other_apps_are_refused_by_name(refusal: Refusal, app: str) -> None:
    own = {camel(name) for name in fields(app)}
    known = SCHEMA["properties"]["settings"]["properties"]
    foreign = {key: other({"default": None, **known[key]}) for key in known.keys() - own}
    message = refusal("serving", *APPS[app][1], f"settings:={json.dumps(foreign)}")
    assert f"settings: app {app} has no {', '.join(sorted(foreign))}" in message


def test_numbers_of_a_values_file_stay_numbers(render: Render, tmp_path: Any) -> None:
    """A values file's numbers are floats to helm: 5000000 would become 5e+06."""
    values = tmp_path / "values.yaml"
    values.write_text(
        "run: a\nmodel: 1000000\nsettings: {maxBodyBytes: 5000000, pollSeconds: 0.5}\n"
    )
    settings = read(render("serving", files=str(values)).container("serving"), GenerateSettings)
    assert (settings.max_body_bytes, settings.poll_seconds) == (5000000, 0.5)
    assert settings.step == 1000000


def test_an_api_key_cannot_be_set_as_a_setting(refusal: Refusal) -> None:
    """It would be readable in the Deployment."""
    assert "'apiKey' not allowed" in refusal("serving", *GENERATE, "settings.apiKey=x")
