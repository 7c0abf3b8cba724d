"""A real browser for the tests of pages: headless Chromium, driven by Playwright.

    def test_answers(client: httpx.Client, page: Page) -> None:
        page.goto(str(client.base_url))
        page.get_by_label("Text").fill("Stocks fall")

A test fails when its page logs an error: a script that broke, or something the policy forbids.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize, expect, sync_playwright

from tests import patience

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # it has none as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE: ViewportSize = {"width": 375, "height": 667}
MILLISECONDS = patience.SECONDS * 1000  # as Playwright counts
expect.set_options(timeout=MILLISECONDS)


# Not once per session: Playwright holds the thread's event loop, which other modules' tests need.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser; the tests of a module share it."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=FLAGS, timeout=MILLISECONDS
        )
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """An empty page with a profile of its own, in light colours."""
    context = chromium.new_context(color_scheme="light")
    context.set_default_timeout(MILLISECONDS)
    page = context.new_page()
    errors: list[str] = []

    def console(message: ConsoleMessage) -> None:
        # The browser also logs every answer that is not 200: the page says those itself.
        if message.type == "error" and "Failed to load resource" not in message.text:
            errors.append(message.text)

    page.on("console", console)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not errors


def fits(page: Page) -> bool:
    """Whether nothing sticks out sideways at the present width."""
    width = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    return bool(page.evaluate(width))


def shoot(page: Page, directory: Path, name: str) -> list[Path]:
    """Pictures of the page for a person to look at: light, dark, and as wide as a phone."""
    pictures = []
    before = page.viewport_size
    for look in ("light", "dark", "phone"):
        page.emulate_media(color_scheme="dark" if look == "dark" else "light")
        if look == "phone":
            page.set_viewport_size(PHONE)
        pictures.append(directory / f"{name}-{look}.png")
        page.screenshot(path=pictures[-1], full_page=True)
    if before:
        page.set_viewport_size(before)
    return pictures
