"""`trainyard recipes` lists what packages bring; `validate` asks the package that is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.manifests.refused import run
from tests.support.trainer.packages import COMPLETE, install
from trainyard_api.recipes import recipe_keys
from trainyard_trainer.recipes import TrainConfig

SETTINGS = '''"""mine: numbers that are mine."""

from pydantic import BaseModel, ConfigDict, Field
from trainyard_trainer.recipes import Architecture, Recipe, TrainConfig


class Size(BaseModel):
    """Sizes."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    depth: int = Field(default=2, ge=1)
    """Layers."""


class Config(TrainConfig):
    """Settings."""

    size: Architecture[Size | None] = None
    """How large it is."""
'''
MODULE = SETTINGS + COMPLETE.replace(
    "Config = TrainConfig", "serving = 'generate'\n    Config = Config"
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package that brings `mine`, and one that can't be imported."""
    folder = tmp_path_factory.mktemp("packages")
    install(folder, "their-recipes", {"mine": "mine_cli:Mine"}, mine_cli=MODULE)
    install(folder, "broken", {"broken": "broken_cli:Mine"}, broken_cli="import missing_package")
    return folder


def trainyard(packages: Path, *words: str) -> tuple[int, str]:
    """The exit status of a command, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainyard_cli.main", *words],
        env=os.environ | {"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_recipe_is_listed_with_its_package(packages: Path) -> None:
    status, said = trainyard(packages, "recipes")
    assert status == 0
    head, *rows = [line.split() for line in said.splitlines()]
    assert head == ["NAME", "PACKAGE", "VERSION"]
    assert ["mine", "their-recipes", "1.2"] in rows
    assert {row[0] for row in rows} == {*recipe_keys(), "mine", "broken"}


def test_settings_are_shown_as_a_page_a_schema_and_values(packages: Path) -> None:
    status, page = trainyard(packages, "recipes", "show", "mine")
    assert status == 0, page
    assert page.startswith(
        "# mine\n\nNumbers that are mine. It comes with the package their-recipes 1.2. `trainyard"
        " serve` answers with the app `generate`.\n"
    )
    assert "| `size.depth` | integer | `2` | architecture | Layers. |" in page
    assert "| `max_steps` | integer | `500` | may change |" in page

    _, text = trainyard(packages, "recipes", "show", "mine", "--schema")
    schema = jsonschema.Draft202012Validator(json.loads(text))
    assert schema.is_valid({"size": {"depth": 3}, "max_steps": 5})
    assert not schema.is_valid({"size": {"dept": 3}})
    assert not schema.is_valid({"max_stepz": 5})

    _, text = trainyard(packages, "recipes", "show", "mine", "--values")
    built_in = recipe_keys()["char-gpt"]
    shared = [key for key in built_in[""] if key in TrainConfig.model_fields]
    groups = {"": [*shared, "size"], "profile": built_in["profile"], "size": ["depth"]}
    assert yaml.safe_load(text) == {"admissionPolicy": {"recipes": {"mine": groups}}}


def test_what_cannot_be_shown_is_one_line(packages: Path) -> None:
    known = ", ".join(sorted({*recipe_keys(), "mine", "broken"}))
    assert trainyard(packages, "recipes", "show", "theirs") == (
        2,
        f"trainyard: recipe: theirs: unknown; known recipes: {known}\n",
    )
    status, said = trainyard(packages, "recipes", "show", "broken")
    assert status == 2
    assert said == (
        "trainyard: recipe: broken: package broken 1.2, broken_cli:Mine can't be imported; install"
        " what it needs, or another version of it (ModuleNotFoundError: No module named"
        " 'missing_package')\n"
    )


@pytest.mark.parametrize(
    ("recipe", "config", "line"),
    [
        ("mine", {"size": {"dept": 1}}, "config.size.dept: unknown key; did you mean depth?"),
        ("mine", {"size": {"depth": 0}}, "config.size.depth: input should be greater than or"),
        ("broken", {"mine": 1}, "recipe: broken: package broken 1.2, broken_cli:Mine can't be"),
    ],
)
def test_a_manifest_is_checked_by_the_package_that_is_installed(
    packages: Path, tmp_path: Path, recipe: str, config: dict[str, Any], line: str
) -> None:
    manifest = tmp_path / "run.yaml"
    manifest.write_text(yaml.safe_dump(run(recipe, config, image="registry/mine:1")))
    status, said = trainyard(packages, "validate", str(manifest))
    assert status == 2
    assert said.startswith(f"trainyard: {manifest}:")
    assert f": {line}" in said
    assert said.count("\n") == 1


def test_a_right_manifest_is_valid_without_a_remark(packages: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "run.yaml"
    manifest.write_text(yaml.safe_dump(run("mine", {"size": {"depth": 1}}, image="mine:1")))
    said = f"{manifest}: TrainingRun good is valid\n"
    assert trainyard(packages, "validate", str(manifest)) == (0, said)
