"""/tokenize, /detokenize and /info over real HTTP."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.serving.chat_model import CHAT_CONTEXT, chatml, export_chat_gpt
from tests.support.serving.models import CONTEXT, write_manifest
from tests.support.serving.servers import loaded, serving
from trainyard_api import __version__
from trainyard_serving.generate import info as generate_info

HELLO = [{"role": "user", "content": "Hello"}]


def tokenize(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_a_prompt_becomes_the_tokens_that_a_completion_counts(client: httpx.Client) -> None:
    got = tokenize(client, prompt="To be", model="shakespeare")
    completion = client.post("/v1/completions", json={"prompt": "To be", "max_tokens": 1}).json()
    assert got["count"] == len(got["tokens"]) == completion["usage"]["prompt_tokens"]
    assert got["max_model_len"] == CONTEXT
    assert got["token_strs"] is None
    assert tokenize(client, prompt="To", return_token_strs=True)["token_strs"] == ["T", "o"]
    text = client.post("/detokenize", json={"tokens": got["tokens"]})
    assert text.json() == {"prompt": "To be"}


def test_messages_become_the_tokens_of_the_rendered_template(tmp_path: Path) -> None:
    export_chat_gpt(tmp_path)
    write_manifest(tmp_path)
    with loaded(model=tmp_path) as client:
        chat = tokenize(client, messages=HELLO)
        assert chat == tokenize(client, prompt=chatml(("user", "Hello")))
        assert chat["max_model_len"] == CHAT_CONTEXT
        assert (
            chat["count"] - len("assistant\n") - 1
            == (tokenize(client, messages=HELLO, add_generation_prompt=False)["count"])
        )


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {}, "either prompt or messages"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "either prompt or messages"),
        ("/tokenize", {"prompt": "a" * (CONTEXT + 1)}, f"{CONTEXT + 1} tokens"),
        ("/tokenize", {"prompt": "50%"}, "'%' (U+0025)"),
        ("/tokenize", {"prompt": "a", "chat_template": "b"}, "chat_template"),
        ("/tokenize", {"messages": HELLO}, "no chat template"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/detokenize", {"tokens": [1, 5000]}, "no token 5000"),
        ("/detokenize", {"tokens": [2**80]}, "no token"),
    ],
)
def test_what_cannot_be_done_is_a_400_that_says_why(
    client: httpx.Client, path: str, body: dict[str, Any], words: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"]


def test_another_model_is_a_404_and_none_a_503(client: httpx.Client, tmp_path: Path) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert client.post(path, json=body | {"model": "gpt-4"}).status_code == 404
    with serving(run_dir=tmp_path) as waiting:
        assert waiting.post("/tokenize", json={"prompt": "a"}).status_code == 503
        assert waiting.get("/info").status_code == 503


def test_info_names_model_limits_and_versions_but_no_secrets(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(run_dir=run_dir, api_key="sk-secret", max_prompts=3, max_tokens=7) as client:
        generate_info.versions()
        monkeypatch.delattr(generate_info, "version")  # which reads files: only once
        assert client.get("/info").status_code == 401
        response = client.get("/info", headers={"authorization": "Bearer sk-secret"})
        assert "secret" not in response.text
        assert str(run_dir) not in response.text
        info = response.json()
        assert info["model"]["id"] == "shakespeare"
        assert info["model"]["max_model_len"] == CONTEXT
        assert (info["limits"]["max_tokens"], info["limits"]["max_prompts"]) == (7, 3)
        assert info["version"] == __version__
        assert {"python", "torch", "transformers"} <= info["versions"].keys()
        card = client.get("/v1/models", headers={"authorization": "Bearer sk-secret"}).json()
        (model,) = card["data"]
        assert (model["max_tokens"], model["max_prompts"]) == (7, 3)
