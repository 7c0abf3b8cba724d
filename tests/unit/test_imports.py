"""Imports point one way: which package may import which, inside the trainer too."""

import ast
import sys
from pathlib import Path

import pytest

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
    "dashboard": {"api", "study", "serving"},
}

# The trainer's own packages, from the bottom up: each may import those before it.
TRAINER_LAYERS = ("models", "reporting", "distributed", "data", "watchdog", "recipes", "checkpoint")
# Modules beside these packages that any of them may import.
TRAINER_SHARED = {"config", "errors"}

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


def test_rules_and_dashboards_need_the_api_only() -> None:
    """They query what is exported, whoever exports it."""
    files = list((REPO / "monitoring").rglob("*.py"))
    assert files
    ours = set().union(*map(top_level, files)) & {f"trainyard_{package}" for package in PACKAGES}
    assert ours == {"trainyard_api"}


def test_api_needs_pydantic_only() -> None:
    known = API_LIBRARIES | set(sys.stdlib_module_names)
    wrong = {file.name: top_level(file) - known for file in (REPO / "api").rglob("*.py")}
    assert {name: names for name, names in wrong.items() if names} == {}
