"""`trainyard new recipe`: writes a package with a recipe of one's own, which trains as it is."""

import keyword
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from trainyard_api import __version__
from trainyard_api.base import NAME_PATTERN
from trainyard_api.recipe_packages import installed_recipes
from trainyard_cli.init import examples_directory
from trainyard_local.store import UserError

MAX_NAME = 63
# The package that is copied, examples/recipe, under the names that it has there.
FILES = (
    "pyproject.toml",
    "README.md",
    "run.yaml",
    "Containerfile",
    "my_recipe/__init__.py",
    "my_recipe/recipe.py",
    "tests/test_my_recipe.py",
)


def write_recipe(name: str, directory: Path | None) -> str:
    """Write the package to `directory`, or ./NAME; returns what to do next. Raises UserError."""
    _check_name(name)
    folder = directory or Path(name)
    source = examples_directory() / "recipe"
    if not source.is_dir():
        raise UserError(f"the template is missing from {source}: reinstall trainyard")
    if folder.exists():
        raise UserError(f"{folder} already exists: move it away, or choose another --directory")
    for file in FILES:
        target = folder / _renamed(file, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_renamed((source / file).read_text(encoding="utf-8"), name))
    return "\n".join(
        [
            f"wrote {folder}",
            f"  install pip install --editable '{folder}[test]'",
            f"  test    python -m pytest {folder}",
            f"  train   trainyard run {folder / 'run.yaml'}",
            f"  next    your data, model and loss: {folder / _module(name) / 'recipe.py'}",
        ]
    )


def _renamed(text: str, name: str) -> str:
    camel = "".join(part.capitalize() for part in name.split("-"))
    names = {"my-recipe": name, "my_recipe": _module(name), "MyRecipe": camel, "0.0.0": __version__}
    return re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], text)


def _module(name: str) -> str:
    return name.replace("-", "_")


def _check_name(name: str) -> None:
    """Raise UserError unless a recipe, a package and a module may have this name."""
    module = _module(name)
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > MAX_NAME:
        raise UserError(
            f"{name}: a recipe's name has at most {MAX_NAME} lower-case letters, digits and"
            " dashes, and begins with a letter: for example my-recipe"
        )
    for recipe in installed_recipes():
        if recipe.name == name:
            raise UserError(f"{name}: {recipe.source} has a recipe of this name; choose another")
    if keyword.iskeyword(module):
        raise UserError(f"{name}: a keyword of Python, which can't name a module; choose another")
    if find_spec(module) is not None or _is_installed(name):
        raise UserError(f"{name}: a package of this name is installed here; choose another")


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
