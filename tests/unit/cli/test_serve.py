"""`trainyard serve` knows an app for every recipe that has one, by the words of each part."""

from pathlib import Path
from typing import get_args

import pytest

from tests.unit.cli.published_run import publish
from trainyard_cli import main as cli
from trainyard_cli.serve import APP_BY_RECIPE, GENERATE
from trainyard_local.store import HOME_ENV
from trainyard_trainer.recipes import RECIPES


def test_only_image_classification_has_no_app() -> None:
    assert RECIPES.keys() - APP_BY_RECIPE.keys() == {"image-classification"}
    assert APP_BY_RECIPE.keys() <= RECIPES.keys()


@pytest.mark.parametrize("recipe", sorted(APP_BY_RECIPE))
def test_apps_are_as_the_serving_part_has_them(recipe: str) -> None:
    programs = pytest.importorskip("trainyard_serving.__main__")
    app = APP_BY_RECIPE[recipe]
    fields = programs.APPS[app.name].settings.model_fields
    assert fields["port"].default == app.port
    assert fields["engine"].default == app.engines[0]
    assert set(get_args(fields["engine"].annotation)) == set(app.engines)


def test_a_model_without_an_app_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_ENV, str(tmp_path))
    publish(tmp_path, "image-classification")
    assert cli.main(["serve", "done"]) == cli.EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert "done: models of recipe image-classification can't be served" in line
    assert "text-classification" in line


def test_an_engine_the_app_does_not_have_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_ENV, str(tmp_path))
    publish(tmp_path, "gpt")
    assert cli.main(["serve", "done", "--engine", "onnx"]) == cli.EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert "app generate has no engine onnx: use --engine torch or sglang" in line
    assert GENERATE.engines == ("torch", "sglang")
