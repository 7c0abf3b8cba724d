"""Imports point one way: operator, trainer and serving import api, and none imports another."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PARTS = ("api", "operator", "trainer", "serving")
# What api may need besides Python itself: no torch, no kubernetes, no web.
API_LIBRARIES = {"pydantic", "pydantic_core", "yaml", "trainyard_api"}


def imported(file: Path) -> set[str]:
    """Top-level names of every import in a file, lazy ones included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_itself_and_api(part: str) -> None:
    files = list((REPO / part).rglob("*.py"))
    assert files
    others = {f"trainyard_{other}" for other in PARTS if other not in (part, "api")}
    wrong = {str(file.relative_to(REPO)): imported(file) & others for file in files}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_rules_and_dashboards_need_the_api_only() -> None:
    """They ask for what is exported; who exports it is no concern of theirs."""
    files = list((REPO / "monitoring").rglob("*.py"))
    assert files
    ours = set().union(*map(imported, files)) & {f"trainyard_{part}" for part in PARTS}
    assert ours == {"trainyard_api"}


def test_api_needs_pydantic_only() -> None:
    import sys

    known = API_LIBRARIES | set(sys.stdlib_module_names)
    wrong = {file.name: imported(file) - known for file in (REPO / "api").rglob("*.py")}
    assert {name: found for name, found in wrong.items() if found} == {}
