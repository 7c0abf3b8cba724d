"""The page to ask about an image, in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.patience import until
from tests.support.serving.browser import PHONE, fits, shoot
from tests.support.serving.hostile_web import hostile_web, picture
from tests.support.serving.servers import running
from tests.support.serving.sglang_server import stand_in
from tests.support.serving.vision_server import fetcher
from trainyard_serving.settings import VisionSettings
from trainyard_serving.vision.app import create_vision_app, limits


@pytest.fixture(scope="module")
def vision() -> Iterator[httpx.Client]:
    """A vision server that asks for a key."""
    with hostile_web() as web, stand_in() as sglang:
        settings = VisionSettings.model_validate(
            {"sglang_url": sglang.url, "poll_seconds": 0.05, "api_key": "secret", "max_tokens": 30}
        )
        with running(create_vision_app(settings, fetcher(limits(settings), web))) as client:
            until(lambda: client.get("/ready").status_code == 200)
            yield client


def test_answers_about_an_address_and_a_file(
    vision: httpx.Client, page: Page, tmp_path: Path
) -> None:
    page.goto(str(vision.base_url))
    expect(page.get_by_text("The model is ready.")).to_be_visible()
    page.get_by_label("URL of an image").fill("http://web.test/ok.png")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("status")).to_contain_text("send a valid API key")

    page.get_by_label("Key").fill("secret")
    page.get_by_label("Question").fill("What is it?")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("region", name="Answer")).to_contain_text("one two three")
    expect(page.get_by_role("status")).to_contain_text("image 40 × 20")

    page.get_by_label("URL of an image").fill("http://169.254.169.254/")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("status")).to_contain_text("not a public address: link-local")

    page.reload()  # the key stays
    dropped = page.evaluate_handle(
        """bytes => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "dog.png", { type: "image/png" }));
          return data;
        }""",
        list(picture(size=(50, 60))),
    )
    page.dispatch_event("main", "drop", {"dataTransfer": dropped})
    expect(page.get_by_text("dog.png")).to_be_visible()
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("status")).to_contain_text("image 50 × 60")

    file = {"name": "cat.png", "mimeType": "image/png", "buffer": picture(size=(320, 200))}
    page.get_by_label("Image", exact=True).set_input_files(file)  # type: ignore[arg-type]
    shown = page.get_by_alt_text("The selected image")
    expect(shown).to_be_visible()
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") == 320
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("status")).to_contain_text("image 320 × 200")
    shoot(page, tmp_path, "vision")
    page.set_viewport_size(PHONE)
    assert fits(page)
    page.get_by_role("button", name="Remove").click()
    expect(shown).to_be_hidden()
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("status")).to_contain_text("Enter the URL of an image")
