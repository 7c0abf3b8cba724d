"""The classify server's pages in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.support.serving.classify_server import classify_server, model_of
from tests.support.serving.news_model import write_news_model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one exported model."""
    run_dir = tmp_path_factory.mktemp("classify")
    write_news_model(model_of(run_dir, 10), step=10)
    return run_dir


@pytest.fixture(scope="module")
def news(run: Path) -> Iterator[httpx.Client]:
    with classify_server(run) as client:
        yield client


def test_the_page_shows_the_classes(news: httpx.Client, page: Page) -> None:
    page.goto(f"{news.base_url}/try")
    expect(page.locator("#served")).to_contain_text("news, step 10 (torch fp32)")
    page.get_by_label("Text").fill("word7 word8")
    page.keyboard.press("Control+Enter")
    label = news.post("/predict", json={"text": "word7 word8"}).json()["label"]
    expect(page.locator("tr").first).to_contain_text(label)
    expect(page.get_by_role("status")).to_contain_text(f"{label}, in ")
    page.get_by_label("Text").fill("")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#text:invalid")).to_be_visible()


def test_the_docs_work_without_a_cdn(news: httpx.Client, page: Page) -> None:
    page.goto(f"{news.base_url}/")
    expect(page.get_by_text("/predict/batch")).to_be_visible()
