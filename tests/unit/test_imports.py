"""Imports point one way: which package may import which, inside the trainer too."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainyard_trainer import recipes as public

REPO = Path(__file__).resolve().parents[2]

# A package and the ones it may import. What is not listed may not be imported.
PACKAGES: dict[str, set[str]] = {
    "api": set(),
    "agent": set(),
    "sdk": set(),
    "storage": {"api"},
    "lifecycle": {"api"},
    "study": {"api", "lifecycle"},
    "operator": {"api", "lifecycle", "study"},
    "trainer": {"api", "storage"},
    "local": {"api", "agent", "storage", "lifecycle", "study"},
    "cli": {"api", "agent", "storage", "lifecycle", "study", "local"},
    "serving": {"api", "storage"},
    "dashboard": {"api", "storage", "study", "serving"},
}

# Files of sdk/ that need more than Python; `import trainyard` loads them when they are used.
SDK_ENGINE = {
    "checkpointer.py",
    "data.py",
    "golden.py",
    "modules.py",
    "publish.py",
    "start.py",
}

# The trainer's own packages, from the bottom up: each may import those before it.
TRAINER_LAYERS = ("models", "reporting", "distributed", "data", "watchdog", "recipes", "checkpoint")
# Modules beside these packages that any of them may import.
TRAINER_SHARED = {"config", "errors"}

# What recipes are made of, for those of other packages too. The built-in ones, and the bases that
# they share, import nothing else of ours.
RECIPES = REPO / "trainer" / "trainyard_trainer" / "recipes"
RECIPE_BASES = {"classification", "gpt_base", "lora"}
PUBLIC = {"trainyard_trainer.data", "trainyard_trainer.models"} | {
    f"trainyard_trainer.recipes.{name}" for name in (*RECIPE_BASES, "hugging_face")
}

# What api may need besides Python itself: no torch, no kubernetes, no web.
API_LIBRARIES = {"pydantic", "pydantic_core", "yaml", "trainyard_api"}


def imported(file: Path) -> set[str]:
    """Dotted names of every import in a file, those inside functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top_level(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(file)}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_those_it_may(package: str) -> None:
    files = list((REPO / package).rglob("*.py"))
    assert files
    others = set(PACKAGES) - PACKAGES[package] - {package}
    # What scripts of others import as `trainyard`, no part of ours needs.
    forbidden = {"trainyard" if other == "sdk" else f"trainyard_{other}" for other in others}
    wrong = {str(file.relative_to(REPO)): top_level(file) & forbidden for file in files}
    if package == "sdk":
        engine = {"trainyard_api", "trainyard_storage", "trainyard_trainer"}
        for name in wrong:
            wrong[name] -= engine if Path(name).name in SDK_ENGINE else set()
    assert {name: names for name, names in wrong.items() if names} == {}


@pytest.mark.parametrize("layer", TRAINER_LAYERS)
def test_a_layer_of_the_trainer_imports_only_those_below_it(layer: str) -> None:
    below = set(TRAINER_LAYERS[: TRAINER_LAYERS.index(layer)]) | TRAINER_SHARED | {layer}
    wrong = {}
    files = list((REPO / "trainer" / "trainyard_trainer" / layer).rglob("*.py"))
    assert files
    for file in files:
        parts = {
            name.split(".")[1] for name in imported(file) if name.startswith("trainyard_trainer.")
        }
        if parts - below:
            wrong[file.name] = parts - below
    assert wrong == {}


def test_the_built_in_recipes_use_only_what_a_foreign_one_can() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    targets = project["project"]["entry-points"]["trainyard.recipes"].values()
    modules = {target.partition(":")[0].rpartition(".")[2] for target in targets}
    assert len(modules) == len(targets) == 5
    wrong: dict[str, set[str]] = {}
    for name in modules | RECIPE_BASES:
        for used, names in from_imports(RECIPES / f"{name}.py"):
            if used == "trainyard_trainer.recipes":
                hidden = names - set(public.__all__)
            else:
                of_public = any(used == each or used.startswith(f"{each}.") for each in PUBLIC)
                hidden = set() if of_public else {used}
            if hidden:
                wrong.setdefault(name, set()).update(hidden)
    assert wrong == {}


def from_imports(file: Path) -> Iterator[tuple[str, set[str]]]:
    """Each module of ours that a file imports from, and the names that it takes."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((a.name, set()) for a in node.names if a.name.startswith("trainyard"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trainyard"):
            yield node.module or "", {alias.name for alias in node.names}


def test_rules_and_dashboards_need_the_api_only() -> None:
    """They query metrics by name, and need no code of the part that exports them."""
    files = list((REPO / "monitoring").rglob("*.py"))
    assert files
    ours = set().union(*map(top_level, files)) & {f"trainyard_{package}" for package in PACKAGES}
    assert ours == {"trainyard_api"}


def test_api_needs_pydantic_only() -> None:
    known = API_LIBRARIES | set(sys.stdlib_module_names)
    wrong = {file.name: top_level(file) - known for file in (REPO / "api").rglob("*.py")}
    assert {name: names for name, names in wrong.items() if names} == {}
