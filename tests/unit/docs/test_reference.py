"""The generated pages say what the code says, and leave nothing undescribed."""

from pathlib import Path

import pytest
import yaml

from docs.generate import charts
from docs.generate.__main__ import REFERENCE, pages, pictures

PAGES = pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_current(path: Path) -> None:
    assert path.read_text() == PAGES[path], "run `make reference`"


def test_the_drawings_are_current() -> None:
    for path, text in pictures().items():
        assert path.read_text() == text, f"{path.name}: run `make reference`"
    generated = {path for path in {*PAGES, *pictures()} if path.suffix == ".svg"}
    assert set(REFERENCE.with_name("pictures").glob("*.svg")) == generated


def test_no_page_of_the_reference_is_written_by_hand() -> None:
    generated = {path for path in PAGES if path.parent == REFERENCE}
    assert set(REFERENCE.glob("*.md")) == {*generated, REFERENCE / "README.md"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_row_has_a_description(path: Path) -> None:
    empty = [
        row for row in PAGES[path].splitlines() if row.startswith("| `") and row[-4:] == "|  |"
    ]
    assert empty == []


@pytest.mark.parametrize("chart", ["operator", "serving"])
def test_a_charts_page_has_every_value(chart: str) -> None:
    def paths(node: object, prefix: str = "") -> set[str]:
        if not isinstance(node, dict):
            return set()
        return {f"{prefix}{key}" for key in node}.union(
            *(paths(child, f"{prefix}{key}.") for key, child in node.items())
        )

    text = (charts.ROOT / "charts" / chart / "values.yaml").read_text()
    named = {value.name for value in charts.values(chart)}
    parents = {name.rpartition(".")[0] for name in named}
    free = {value.name for value in charts.values(chart) if isinstance(value.default, dict)}
    missing = {
        path
        for path in paths(yaml.safe_load(text)) - named - parents
        if not any(path.startswith(f"{name}.") for name in free)
    }
    assert {path for path in missing if not any(name.startswith(path) for name in named)} == set()
