"""The site builds without a warning, and a reader's browser asks nobody but its own server."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from tests import patience
from tests.support.serving.browser import PHONE, chromium, fits, page

ROOT = Path(__file__).parents[3]
__all__ = ["chromium", "page"]  # fixtures

# Attributes by which a page makes a browser load something; a link to click is not one.
LOADING = {"src", "srcset", "poster", "data"}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site: `make docs`, into a directory of its own."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


class Loads(HTMLParser):
    """Addresses that a page loads by itself, and the ids that its own links can lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in LOADING or (tag == "link" and name == "href"):
                self.loaded.append(value or "")
            elif tag == "a" and name == "href":
                self.links.append(value or "")


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for path in pages:
        text = path.read_text()
        outside = [each for each in Loads(text).loaded if "//" in each and each[:5] != "data:"]
        assert outside == [], path.relative_to(site)
        assert "Content-Security-Policy" in text, path.relative_to(site)
    for path in site.rglob("*.css"):
        assert "url(http" not in path.read_text(), path.name
        assert "@import" not in path.read_text(), path.name


def test_links_between_built_pages_lead_to_something(site: Path) -> None:
    """What the hook has moved, too: MkDocs checked the links before they were files."""
    parsed = {path: Loads(path.read_text()) for path in site.rglob("*.html")}
    broken = set()
    for path, built in parsed.items():
        if path.name == "404.html":
            continue  # its links are absolute, as it is shown anywhere
        for link in built.links:
            target, _, anchor = link.partition("#")
            if ":" in target.partition("/")[0]:
                continue
            file = (path.parent / target).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or (anchor and file in parsed and anchor not in parsed[file].ids):
                broken.add(f"{path.relative_to(site)}: {link}")
    assert broken == set()


def test_the_generators_are_not_part_of_the_site(site: Path) -> None:
    assert not [path for path in site.rglob("*.py") if path.is_file()]
    assert not (site / "theme").exists()


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site behind a real web server."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("where", ["", "reference/trainingrun/", "learn/"])
def test_a_browser_asks_no_other_host(page: Page, address: str, where: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}/{where}")
    page.wait_for_load_state("networkidle")
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    page.set_viewport_size(PHONE)
    assert fits(page)


def test_search_works_without_internet(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_role("textbox", name="Search").first.press_sequentially("maxRestarts")
    found = page.locator(".md-search-result__item")
    expect(found.filter(has_text="TrainingRun").first).to_be_visible()


def test_colours_follow_the_system(chromium: Browser, address: str) -> None:
    backgrounds = set()
    for scheme in SCHEMES:
        context = chromium.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(address)
        backgrounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        context.close()
    assert len(backgrounds) == 2
