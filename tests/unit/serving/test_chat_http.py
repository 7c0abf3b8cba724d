"""/v1/chat/completions over real HTTP: the template, the protocol's form, what is refused."""

import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import torch

from tests.support.serving.chat_model import CHAT_CONTEXT, chatml, export_chat_gpt
from tests.support.serving.completions import write
from tests.support.serving.models import write_manifest
from tests.support.serving.servers import loaded
from trainyard_serving.generate.app import server_sent_events
from trainyard_serving.generate.chat_template import ChatTemplate
from trainyard_serving.generate.language_model import LanguageModel
from trainyard_serving.model_store.verified import VerifiedModel

SHARED = Path(__file__).parents[4] / "shared" / "data"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("chat")
    export_chat_gpt(directory)
    write_manifest(directory, run="chat")
    return directory


@pytest.fixture(scope="module")
def chat(model_dir: Path) -> Iterator[httpx.Client]:
    with loaded(model=model_dir, max_tokens=64) as client:
        yield client


def ask(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"messages": HELLO, "seed": 1} | body)


def answer(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = ask(client, **body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return dict(choice)


def complete(client: httpx.Client, prompt: str, **body: Any) -> str:
    """What the model writes after the raw text: a chat's answer must be the same."""
    response = client.post("/v1/completions", json={"prompt": prompt, "seed": 1} | body)
    return str(response.json()["choices"][0]["text"])


def test_an_answer_is_the_completion_of_the_rendered_template(chat: httpx.Client) -> None:
    body = ask(chat, max_tokens=20).json()
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    assert body["model"] == "chat"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == complete(chat, chatml(("user", "Hello")), max_tokens=20)
    usage = body["usage"]
    assert usage["prompt_tokens"] == len("user\nHello\nassistant\n") + 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_every_turn_reaches_the_model_and_parts_are_joined(chat: httpx.Client) -> None:
    turns = [("system", "Be kind"), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Go on")]
    messages = [{"role": role, "content": content} for role, content in turns]
    messages[1]["content"] = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]  # type: ignore[assignment]
    messages[2] |= {"refusal": None, "tool_calls": None, "annotations": []}  # type: ignore[dict-item]
    got = answer(chat, messages=messages, max_tokens=12)["message"]["content"]
    assert got == complete(chat, chatml(*turns), max_tokens=12)


def test_a_stream_starts_with_the_role_and_has_the_same_text(chat: httpx.Client) -> None:
    whole = ask(chat, max_tokens=20).json()
    response = ask(chat, max_tokens=20, stream=True, stream_options={"include_usage": True})
    *lines, last, empty = response.text.split("\n\n")
    assert (last, empty) == ("data: [DONE]", "")
    first, *pieces, usage = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [piece["choices"][0]["delta"].get("content", "") for piece in pieces]
    assert "".join(deltas) == whole["choices"][0]["message"]["content"]
    reasons = [piece["choices"][0]["finish_reason"] for piece in pieces]
    assert reasons == [None] * (len(pieces) - 1) + [whole["choices"][0]["finish_reason"]]
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]


async def test_a_line_separator_does_not_split_an_event() -> None:
    """U+2028 ends a line for str.splitlines, but not in an event stream."""

    class Answer:
        headers: ClassVar[dict[str, str]] = {}

        async def response(self) -> dict[str, Any]:
            raise NotImplementedError

        async def events(self) -> AsyncIterator[dict[str, Any]]:
            yield {"text": "a\u2028b"}

    events = [event.decode() async for event in server_sent_events(Answer())]
    assert events == ['data: {"text": "a\u2028b"}\n\n', "data: [DONE]\n\n"]


def test_limits_stop_and_seed_work_as_for_completions(chat: httpx.Client) -> None:
    text = answer(chat, max_completion_tokens=40)["message"]["content"]
    assert answer(chat, max_tokens=40)["message"]["content"] == text
    stopped = answer(chat, max_tokens=40, stop=text[4:6])
    assert stopped["message"]["content"] == text[: text.index(text[4:6])]
    assert stopped["finish_reason"] == "stop"
    greedy = [answer(chat, max_tokens=9, temperature=0, seed=s) for s in (1, 2)]
    assert greedy[0] == greedy[1]


def test_without_a_limit_an_answer_ends_where_the_context_does(chat: httpx.Client) -> None:
    filler = [{"role": "user", "content": "a" * 90}]
    body = ask(chat, messages=filler, temperature=0).json()
    used = body["usage"]
    assert body["choices"][0]["finish_reason"] == "stop" or used["total_tokens"] == CHAT_CONTEXT


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "Hello"}, "messages", "list"),
        ({"messages": [{"role": "critic", "content": "a"}]}, "messages", "or 'tool'"),
        ({"messages": [{"role": "user"}]}, "messages", "content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages", "content must be"),
        ({"messages": [{"role": "user", "content": []}]}, "messages", "content must be"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages", "reads text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages",
            "reads text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}]},
            "messages",
            "tool_calls.0.function",
        ),
        ({"messages": [{"role": "user", "content": "50%"}]}, "messages", "'%' (U+0025)"),
        ({"messages": [{"role": "user", "content": "a" * 200}]}, "messages", "is 128 tokens"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "user speaks first"),
        ({"max_tokens": 65}, "max_tokens", "at most 64"),
        ({"max_completion_tokens": 65}, "max_completion_tokens", "at most 64"),
        ({"max_completion_tokens": 3, "max_tokens": 4}, None, "give one of them"),
        ({"tools": [{"type": "function"}]}, "tools", "function"),
        ({"response_format": {"type": "json_object"}}, "response_format", "cannot write '0'"),
    ],
)
def test_unsupported_fields_are_a_400_that_names_them(
    chat: httpx.Client, change: dict[str, Any], param: str | None, words: str
) -> None:
    response = ask(chat, **change)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert "\n" not in error["message"]


def test_a_lone_surrogate_in_a_message_is_a_400(chat: httpx.Client) -> None:
    content = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'
    headers = {"content-type": "application/json"}
    response = chat.post("/v1/chat/completions", content=content, headers=headers)
    assert response.status_code == 400
    assert "surrogate" in response.json()["error"]["message"]


def test_a_model_without_a_template_refuses_conversations(
    client: httpx.Client, chat: httpx.Client
) -> None:
    response = ask(client)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "no_chat_template"
    assert [c.get("/v1/models").json()["data"][0]["chat"] for c in (client, chat)] == [False, True]


def test_the_templates_end_of_turn_ends_the_answer(chat: httpx.Client) -> None:
    """Neither the model's settings nor the tokenizer's name it: the template does."""
    asked = [ask(chat, max_tokens=64, temperature=2, seed=seed).json() for seed in range(8)]
    ended = [body for body in asked if body["choices"][0]["finish_reason"] == "stop"]
    assert ended
    for body in ended:
        text, used = body["choices"][0]["message"]["content"], body["usage"]["completion_tokens"]
        assert "<|im_end|>" not in text
        assert len(text) < used <= 64  # the end of the turn is a token too, but no text


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not beside this checkout")
def test_qwen2s_real_template_and_its_end_of_turn() -> None:
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer: Any = AutoTokenizer.from_pretrained(SHARED / "tokenizers" / "qwen2")
    template = ChatTemplate(tokenizer)
    system = [{"role": "system", "content": "You are a helpful assistant."}]
    assert template.render(HELLO) == template.render(system + HELLO)
    assert template.render(HELLO).endswith("user\nHello<|im_end|>\n<|im_start|>assistant\n")
    assert template.end_of_turn() == {tokenizer.convert_tokens_to_ids("<|im_end|>")}

    config: Any = Qwen2Config.from_pretrained(SHARED / "configs" / "Qwen2-0.5B-Instruct")
    config.update(
        {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "layer_types": ["full_attention"],
        }
    )
    network = Qwen2ForCausalLM(config).train(False)
    source = VerifiedModel(Path(), "qwen2", None, "sha256:0", datetime.now(UTC))
    model = LanguageModel(source, network, tokenizer, torch.device("cpu"))
    prompt = model.encode_chat(HELLO)
    expected = tokenizer.apply_chat_template(HELLO, add_generation_prompt=True)["input_ids"]
    assert prompt == expected
    chunks = write(model, prompt, max_tokens=4, seed=1)
    assert sum(chunk.num_tokens for chunk in chunks) == 4
