"""What the gateways send, read by the real sglang package's own request classes; no GPU.

    uv venv sglang-venv
    uv pip install --python sglang-venv -e '.[serving,dev]'
    uv pip install --python sglang-venv ipython msgspec orjson pybase64 pyzmq
    uv pip install --python sglang-venv --no-deps sglang==0.5.23
    sglang-venv/bin/python -m pytest tests/sglang

Skipped where the package is not installed; never a part of `make test`.
"""

import base64
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tests.support.serving import sglang_stand_in
from tests.support.serving.hostile_web import picture
from trainyard_serving.generate.openai_api import ChatRequest, CompletionRequest
from trainyard_serving.generate.sglang_engine import sglang_request
from trainyard_serving.vision.app import chat_request

real: Any = pytest.importorskip(
    "sglang.srt.entrypoints.openai.protocol",
    reason="the sglang package is not installed",
    exc_type=ImportError,
)
IMAGE = "data:image/jpeg;base64," + base64.b64encode(picture("JPEG")).decode()
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "What is 1 + 1?"},
]
EVERYTHING: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.9,
    "max_tokens": 7,
    "seed": 1,
    "stop": ["a", "b"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "n": 2,
    "top_k": 0,
    "min_p": 0.1,
    "min_tokens": 2,
    "logit_bias": {"5": -1.0},
    "stop_token_ids": [3],
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.1,
    "include_stop_str_in_output": True,
    "ignore_eos": True,
    "skip_special_tokens": False,
}


def understood(kind: Any, body: dict[str, Any]) -> Any:
    """The real class's reading of `body`: every field must be one that it knows."""
    assert set(body) <= set(kind.model_fields)
    return kind.model_validate(body)


def test_visions_question() -> None:
    body = chat_request("qwen2-vl", "What is it?", IMAGE, 9)
    request = understood(real.ChatCompletionRequest, body)
    image, text = request.messages[0].content
    assert image.image_url.url == IMAGE
    assert (text.text, request.max_completion_tokens) == ("What is it?", 9)


def test_sglang_decodes_the_picture() -> None:
    """Its loader's data: branch; on a GPU server it may decode there instead: not measured here."""
    loader: Any = pytest.importorskip("sglang.srt.utils.common", exc_type=ImportError)
    image, _ = loader.load_image(IMAGE, gpu_image_decode=False)
    assert image.size == (40, 20)


@pytest.mark.parametrize("more", [{}, EVERYTHING])
def test_completions(more: dict[str, Any]) -> None:
    ours = CompletionRequest.model_validate({"prompt": ["a", "b"], "echo": True} | more)
    request = understood(real.CompletionRequest, sglang_request(ours, "m"))
    assert (request.prompt, request.echo, request.model) == (["a", "b"], True, "m")
    assert request.stream == bool(more)
    assert request.stop == (["a", "b"] if more else None)
    assert request.max_tokens == (7 if more else 16)
    assert request.no_stop_trim == bool(more)


@pytest.mark.parametrize("more", [{}, EVERYTHING])
def test_chat_completions(more: dict[str, Any]) -> None:
    ours = ChatRequest.model_validate({"messages": TURNS} | more)
    request = understood(real.ChatCompletionRequest, sglang_request(ours, "m"))
    assert [message.role for message in request.messages] == [turn["role"] for turn in TURNS]
    assert request.messages[-1].content == "What is 1 + 1?"
    assert request.max_tokens == (7 if more else None)


@pytest.mark.parametrize(
    ("stand_in", "name"),
    [
        (sglang_stand_in.Completion, "CompletionRequest"),
        (sglang_stand_in.Chat, "ChatCompletionRequest"),
        (sglang_stand_in.StreamOptions, "StreamOptions"),
        (sglang_stand_in.ImageUrl, "ChatCompletionMessageContentImageURL"),
        (sglang_stand_in.ImagePart, "ChatCompletionMessageContentImagePart"),
        (sglang_stand_in.TextPart, "ChatCompletionMessageContentTextPart"),
    ],
)
def test_the_stand_in_knows_no_field_that_sglang_does_not(
    stand_in: type[BaseModel], name: str
) -> None:
    theirs = getattr(real, name).model_fields
    for field, ours in stand_in.model_fields.items():
        assert ours.is_required() == theirs[field].is_required()
        assert ours.default == theirs[field].default


@pytest.mark.parametrize(
    ("stand_in", "name", "body"),
    [
        (sglang_stand_in.Completion, "CompletionRequest", {"prompt": "a", "max_tokens": 0}),
        (sglang_stand_in.Completion, "CompletionRequest", {"prompt": "a", "temperature": None}),
        (sglang_stand_in.Completion, "CompletionRequest", {"prompt": "a", "echo": None}),
        (sglang_stand_in.Completion, "CompletionRequest", {"prompt": None}),
        (sglang_stand_in.Chat, "ChatCompletionRequest", {"messages": [{"role": "user"}]}),
        (sglang_stand_in.Chat, "ChatCompletionRequest", {"messages": TURNS, "stream": None}),
    ],
)
def test_what_sglang_refuses_the_stand_in_refuses(
    stand_in: type[BaseModel], name: str, body: dict[str, Any]
) -> None:
    for kind in (stand_in, getattr(real, name)):
        with pytest.raises(ValidationError):
            kind.model_validate(body)
