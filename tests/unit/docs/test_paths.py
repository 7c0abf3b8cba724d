"""Paths that the pages for contributors name exist: the tree may move, the pages follow."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGES = ("CONTRIBUTING.md", "RELEASING.md", "SECURITY.md", "tests/README.md")
# `a/b`, `a/b/` or `a/*.py` in prose and tables; NAME and CHART stand for a new file's or a chart's.
PATH = re.compile(r"`([.\w*-]+(?:/[.\w*-]+)*/?)`")
TOP = {path.name for path in ROOT.iterdir()}


def paths(page: Path) -> list[str]:
    found = PATH.findall(page.read_text())
    return [path for path in found if "/" in path and path.split("/")[0] in TOP]


@pytest.mark.parametrize("name", PAGES)
def test_a_path_that_a_page_names_exists(name: str) -> None:
    page = ROOT / name
    missing = []
    for path in paths(page):
        made_up = re.search(r"/(\w*NAME\w*)\.\w+$", path)  # the file that a reader will add
        pattern = str(Path(path).parent) if made_up else path.replace("CHART", "*")
        if not list(ROOT.glob(pattern.rstrip("/"))):
            missing.append(path)
    assert missing == []


def test_the_pages_do_name_paths() -> None:
    assert len(paths(ROOT / "CONTRIBUTING.md")) > 20
