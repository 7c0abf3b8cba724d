"""`trainyard new recipe` writes a whole package under the name given, or says why not."""

import ast
import tomllib
from pathlib import Path

import pytest
import yaml

from trainyard_api import __version__
from trainyard_cli import main as cli
from trainyard_cli.new import FILES

TEMPLATE = Path(__file__).parents[3] / "examples" / "recipe"


def test_every_file_of_the_template_is_written_under_the_new_name(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["new", "recipe", "sine-fit"]) == 0
    assert "trainyard run sine-fit/run.yaml" in capsys.readouterr().out
    written = {path for path in here.rglob("*") if path.is_file()}
    assert len(written) == len(FILES)
    for path in written:
        text = path.read_text()
        assert not any(old in text for old in ("my-recipe", "my_recipe", "MyRecipe", "0.0.0"))
        if path.suffix == ".py":
            ast.parse(text)
    project = tomllib.loads((here / "sine-fit" / "pyproject.toml").read_text())["project"]
    assert project["name"] == "sine-fit"
    entry_points = project["entry-points"]["trainyard.recipes"]
    assert entry_points == {"sine-fit": "sine_fit.recipe:SineFit"}
    assert "class SineFit(Recipe)" in (here / "sine-fit" / "sine_fit" / "recipe.py").read_text()
    manifest = yaml.safe_load((here / "sine-fit" / "run.yaml").read_text())
    assert manifest["spec"]["recipe"] == manifest["metadata"]["name"] == "sine-fit"
    assert f"trainer:{__version__}" in (here / "sine-fit" / "Containerfile").read_text()


def test_nothing_of_the_template_is_left_out() -> None:
    there = {
        path for path in TEMPLATE.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert {str(path.relative_to(TEMPLATE)) for path in there} == set(FILES)


def test_another_directory(here: Path) -> None:
    assert cli.main(["new", "recipe", "sine-fit", "--directory", "a/b"]) == 0
    assert (here / "a" / "b" / "sine_fit" / "recipe.py").is_file()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "SineFit",
            "SineFit: a recipe's name has at most 63 lower-case letters, digits and dashes",
        ),
        ("sine_fit", "sine_fit: a recipe's name has at most 63 lower-case"),
        ("../sine", "../sine: a recipe's name has at most 63 lower-case"),
        ("s" * 64, "a recipe's name has at most 63"),
        ("class", "class: a keyword of Python, which can't name a module; choose another"),
        ("json", "json: a package of this name is installed here; choose another"),
        ("gpt", f"gpt: trainyard {__version__} has a recipe of this name; choose another"),
        ("there", "there already exists: move it away, or choose another --directory"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, line: str
) -> None:
    (here / "there").mkdir()
    assert cli.main(["new", "recipe", name]) == cli.EXIT_REFUSED
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert [path.name for path in here.iterdir()] == ["there"]
