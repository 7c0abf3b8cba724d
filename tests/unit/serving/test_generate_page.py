"""The page to try a language model by hand, in a real browser."""

from pathlib import Path

import httpx
from playwright.sync_api import Page, expect

from tests.unit.serving.browser import PHONE, fits, shoot


def test_writes_text(client: httpx.Client, page: Page, tmp_path: Path) -> None:
    page.goto(str(client.base_url))
    page.get_by_label("Prompt").fill("to be")
    page.get_by_label("Most tokens").fill("8")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status")).to_contain_text("8 tokens in")
    shoot(page, tmp_path, "generate")
    page.set_viewport_size(PHONE)
    assert fits(page)
