"""Installed packages for tests: folders with the files that pip leaves, put on sys.path."""

from pathlib import Path

import pytest

from trainyard_api.recipe_packages import GROUP, installed_recipes

# A recipe without data of its own: what a class needs to be taken for one.
COMPLETE = """
from trainyard_trainer.recipes import Recipe, TrainConfig


class Mine(Recipe):
    Config = TrainConfig

    def __init__(self, config, saved): ...
    def check_data(self, saved): ...
    def state(self): return {}
    def describe(self): return "nothing"
    def build(self): ...
    def loss(self, model, batch): ...
    def export(self, weights, directory): ...
"""


def install(folder: Path, package: str, recipes: dict[str, str], **modules: str) -> Path:
    """Install version 1.2 of a package with these recipes (name -> target) and modules below
    `folder`."""
    about = folder / f"{package.replace('-', '_')}-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    lines = [f"[{GROUP}]", *(f"{name} = {target}" for name, target in recipes.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process find what is installed in `folder`, until the test ends.

    What was found is remembered: the test's module clears the cache after each test.
    """
    monkeypatch.syspath_prepend(folder)
    installed_recipes.cache_clear()
