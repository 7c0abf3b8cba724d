"""The apps' pages, as they are served, need no other files."""

import re
from pathlib import Path

import pytest

import trainyard_serving
from trainyard_serving.pages import page

FOLDER = Path(trainyard_serving.__file__).parent
LOADED = re.compile(r"<link rel=\"stylesheet\"|<script src|@import|url\(|https?://[a-z]")


@pytest.mark.parametrize("app", ["classify", "generate", "vision"])
def test_a_page_loads_nothing(app: str) -> None:
    text = bytes(page(FOLDER / app / "page.html").body).decode()
    assert LOADED.findall(text) == []
    assert "--accent: #0b6b50" in text, "the stylesheet"
    assert "function headers()" in text, "the script"
