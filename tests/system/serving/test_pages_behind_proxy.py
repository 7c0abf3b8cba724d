"""The servers' pages in a real browser, behind a proxy that publishes them under a path prefix."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.patience import until
from tests.support.serving.classify_server import classify_server, model_of
from tests.support.serving.news_model import write_news_model
from tests.support.serving.reverse_proxy import PREFIX, behind_proxy
from tests.support.serving.servers import loaded, running
from tests.support.serving.sglang_server import stand_in
from trainyard_serving.settings import VisionSettings
from trainyard_serving.vision.app import create_vision_app


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("classify")
    write_news_model(model_of(run_dir, 10), step=10)
    return run_dir


def test_classify_and_its_documentation(news: Path, page: Page) -> None:
    """A proxy that keeps the prefix; the page's links lead to the documentation, which works."""
    with (
        classify_server(news, path_prefix=PREFIX) as client,
        behind_proxy(client, strip=False) as url,
    ):
        page.goto(f"{url}/try")
        expect(page.locator("#served")).to_contain_text("news, step 10")
        page.get_by_label("Text").fill("word7 word8")
        page.get_by_role("button", name="Classify").click()
        expect(page.get_by_role("status")).to_contain_text(", in ")
        page.get_by_role("link", name="/docs").click()
        page.get_by_text("/predict/batch").wait_for()
        page.locator("#operations-default-health_health_get").get_by_role("button").first.click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        expect(page.locator(".request-url")).to_contain_text(f"{url}/health")
        expect(page.locator(".live-responses-table .response-col_status").last).to_have_text("200")
        page.goto(f"{url}/")
        expect(page.get_by_text("/predict/batch")).to_be_visible()


@pytest.mark.parametrize("slash", ["", "/"])
def test_generate(run_dir: Path, page: Page, slash: str) -> None:
    """A proxy that removes the prefix; opened with and without a slash at its end."""
    with loaded(run_dir=run_dir) as client, behind_proxy(client, strip=True) as url:
        page.goto(url + slash)
        expect(page.locator("#served")).to_contain_text("shakespeare")
        with page.expect_response(f"{url}/v1/completions") as response:
            page.locator("#prompt").fill("a")
            page.locator("#form").evaluate("form => form.requestSubmit()")
        assert response.value.ok


def test_vision(page: Page) -> None:
    with stand_in() as sglang:
        app = create_vision_app(VisionSettings(sglang_url=sglang.url, poll_seconds=0.05))
        with running(app) as client, behind_proxy(client, strip=True) as url:
            until(lambda: client.get("/ready").status_code == 200)
            page.goto(f"{url}/")
            with page.expect_response(f"{url}/answer") as response:
                page.locator("#url").fill("http://127.0.0.1/")
                page.locator("#question").fill("What is it?")
                page.locator("#form").evaluate("form => form.requestSubmit()")
            assert response.value.status in (400, 422), "the server's own answer about this address"
