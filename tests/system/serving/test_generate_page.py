"""The page to try a language model, in a real browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.support.serving.browser import PHONE, fits, shoot
from tests.support.serving.chat_model import export_chat_gpt
from tests.support.serving.models import write_manifest
from tests.support.serving.servers import loaded


def test_writes_text(client: httpx.Client, page: Page, tmp_path: Path) -> None:
    page.goto(str(client.base_url))
    page.get_by_label("Prompt").fill("to be")
    page.get_by_label("Maximum tokens").fill("8")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status")).to_contain_text("8 tokens in")
    expect(page.get_by_label("Chat")).to_be_hidden()  # it has no chat template
    shoot(page, tmp_path, "generate")
    page.set_viewport_size(PHONE)
    assert fits(page)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A chat model behind an API key."""
    directory = tmp_path_factory.mktemp("chat")
    export_chat_gpt(directory)
    write_manifest(directory, run="chat")
    with loaded(model=directory, api_key="secret", max_tokens=60) as client:
        yield client


def test_holds_a_conversation_with_a_key(chat: httpx.Client, page: Page, tmp_path: Path) -> None:
    page.goto(str(chat.base_url))
    expect(page.get_by_text("send a valid API key")).to_be_visible()
    page.get_by_label("Key (kept").fill("secret")
    page.get_by_label("Key (kept").press("Tab")
    page.get_by_label("Message").fill("Hello")
    page.get_by_label("Instructions").fill("Be kind")
    page.get_by_label("Maximum tokens").fill("6")
    page.get_by_label("Message").press("Control+Enter")
    expect(page.get_by_role("status")).to_contain_text("tokens in")
    page.get_by_label("Message").fill("And now?")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_role("button", name="Send").click()
    body: Any = sent.value.post_data_json
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    expect(page.get_by_role("log").locator(".turn")).to_have_count(4)
    expect(page.get_by_role("status")).to_contain_text("tokens in")
    shoot(page, tmp_path, "chat")
    page.set_viewport_size(PHONE)
    assert fits(page)
    page.reload()  # the key is still known
    expect(page.get_by_label("Message")).to_be_visible()
    page.get_by_label("Plain text").check()
    page.get_by_label("Prompt").fill("to be")
    page.get_by_label("Maximum tokens").fill("8")
    page.get_by_role("button", name="Generate").click()
    expect(page.get_by_role("status")).to_contain_text("tokens in")
