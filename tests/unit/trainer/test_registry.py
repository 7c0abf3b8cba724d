"""Recipes are found by the entry points of installed packages, or refused in one clear line."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.trainer.packages import COMPLETE, install, use
from trainyard_api.recipe_packages import built_in_recipes, installed_recipe, installed_recipes
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.recipes import Recipe
from trainyard_trainer.registry import check_recipe, find_recipe


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a test has installed is not known to the next one."""
    yield
    installed_recipes.cache_clear()


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as refused:
        find_recipe(name)
    line = str(refused.value)
    assert "\n" not in line
    return line


def test_the_built_in_recipes_are_entry_points_like_any_other() -> None:
    assert built_in_recipes() == [
        "causal-lm-finetune",
        "char-gpt",
        "gpt",
        "image-classification",
        "text-classification",
    ]
    for name in built_in_recipes():
        found = find_recipe(name)
        assert issubclass(found, Recipe)
        assert found.load_exported is not Recipe.load_exported, "no model is published unchecked"
        assert installed_recipe(name).target == f"{found.__module__}:{found.__name__}"


def test_a_recipe_of_another_package_is_found_and_only_its_module_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = {"mine": "mine_1:Mine", "other": "other_1:Other"}
    modules = {"mine_1": COMPLETE, "other_1": "raise RuntimeError('imported')"}
    use(install(tmp_path, "their-recipes", recipes, **modules), monkeypatch)
    assert check_recipe("mine").source == "their-recipes 1.2"
    assert "mine_1" not in sys.modules, "looking it up imports nothing"
    assert find_recipe("mine").__name__ == "Mine"
    assert "other_1" not in sys.modules


def test_two_packages_with_one_name_are_both_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("alpha", "beta"):
        use(install(tmp_path / package, package, {"same": "mine_2:Mine"}), monkeypatch)
    assert refusal("same") == (
        "recipe: same: alpha 1.2 and beta 1.2 each bring a recipe of this name;"
        " uninstall one of them"
    )


def test_a_built_in_recipe_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(install(tmp_path, "alpha", {"gpt": "mine_3:Mine"}, mine_3=COMPLETE), monkeypatch)
    assert refusal("gpt") == (
        f"recipe: gpt: alpha 1.2 and {installed_recipe('char-gpt').source} each bring a recipe of"
        " this name; uninstall alpha"
    )
    assert find_recipe("char-gpt").__name__ == "CharGPT", "others are not affected"


def test_a_package_that_cannot_be_imported_is_named_with_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = {"broken": "broken_4:Mine", "gone": "gone_4:Mine"}
    install(tmp_path, "alpha", recipes, broken_4="import a_package_that_is_missing")
    use(tmp_path, monkeypatch)
    assert refusal("broken") == (
        "recipe: broken: package alpha 1.2, broken_4:Mine can't be imported; install what it"
        " needs, or another version of it (ModuleNotFoundError: No module named"
        " 'a_package_that_is_missing')"
    )
    assert "No module named 'gone_4'" in refusal("gone")


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("", "is not a subclass of trainyard_trainer.recipes.Recipe"),
        ("class Mine: ...", "is not a subclass of trainyard_trainer.recipes.Recipe"),
        (
            COMPLETE.replace("Config = TrainConfig", ""),
            "has no Config that is a subclass of trainyard_trainer.recipes.TrainConfig",
        ),
        (
            COMPLETE.replace("def state", "def status").replace("def loss", "def cost"),
            "lacks loss, state",
        ),
        (
            COMPLETE.replace("Config =", "serving = 'draw'\n    Config ="),
            "has serving = 'draw'; use 'generate' or 'classify' or 'embed' or None",
        ),
    ],
)
def test_what_is_not_a_recipe_is_refused_by_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, line: str
) -> None:
    name = f"mine_{abs(hash(module))}"
    use(install(tmp_path, "alpha", {"mine": f"{name}:Mine"}, **{name: module}), monkeypatch)
    assert refusal("mine") == f"recipe: mine: package alpha 1.2, {name}:Mine {line}"


def test_a_rank_knows_its_recipe_before_it_imports_torch() -> None:
    script = "import sys; from trainyard_trainer.__main__ import check_recipe; check_recipe('gpt');"
    script += "print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
