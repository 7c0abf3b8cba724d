"""OpenAI's chat completions about images, through its own client, and data: URIs."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests import patience
from tests.support.serving.hostile_web import hostile_web, picture
from tests.support.serving.sglang_stand_in import Chat, ImagePart, StandIn
from tests.unit.serving.test_vision_http import asked
from trainyard_serving.errors import ApiError
from trainyard_serving.vision.chat import HARMLESS
from trainyard_serving.vision.data_uri import read_data_uri

MODEL = "qwen2-vl"


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[httpx.Client, StandIn]]:
    with (
        hostile_web() as web,
        asked(web, max_images=2, max_tokens=9, max_image_bytes=100_000) as both,
    ):
        yield both


@pytest.fixture
def client(server: tuple[httpx.Client, StandIn]) -> openai.OpenAI:
    base = f"{str(server[0].base_url).rstrip('/')}/v1"
    return openai.OpenAI(base_url=base, api_key="-", timeout=patience.SECONDS, max_retries=0)


def image(url: str, **more: str) -> Any:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def text(text: str) -> Any:
    return {"type": "text", "text": text}


def user(*content: Any) -> Any:
    return {"role": "user", "content": list(content)}


def test_an_answer_about_fetched_and_inline_images(
    client: openai.OpenAI, server: tuple[httpx.Client, StandIn]
) -> None:
    sglang = server[1]
    sglang.requests.clear()
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "Be brief."},
            user(
                text("Which is larger?"),
                image("http://web.test/ok.png", detail="low"),
                image(data_uri(picture(size=(33, 22)))),
            ),
        ],
        max_tokens=3,
        temperature=0,
        user="somebody",
    )
    assert answer.choices[0].message.content == "one two three "
    assert (answer.model, answer.object) == (MODEL, "chat.completion")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    (request,) = sglang.requests
    assert isinstance(request, Chat)
    assert (request.max_completion_tokens, request.temperature) == (3, 0)
    system, question = request.messages
    assert (system.role, system.content) == ("system", "Be brief.")
    assert isinstance(question.content, list)
    asks, first, second = question.content
    assert asks.model_dump() == text("Which is larger?")
    assert isinstance(first, ImagePart)
    assert isinstance(second, ImagePart)
    assert first.image_url.detail == "low"
    jpeg = base64.b64decode(second.image_url.url.removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(jpeg)).size == (33, 22)


def test_an_answer_can_be_streamed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[user(image("http://web.test/ok.png"), text("What is it?"))],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == "one two three four five one two three four "
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 9


def test_text_alone_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_completion_tokens=1
    )
    assert answer.choices[0].message.content == "one "


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"n": 2}, "n", "n is not supported: leave it out"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty is not supported"),
        (
            {"max_tokens": 3, "max_completion_tokens": 4},
            None,
            "max_tokens and max_completion_tokens differ: give one of them",
        ),
        ({"max_tokens": 10}, "max_tokens", "max_tokens: at most 9 here (got 10)"),
        ({"messages": []}, "messages", "messages: "),
        (
            {"messages": [user(*[image("http://web.test/ok.png")] * 3)]},
            "messages",
            "messages: at most 2 images here (got 3)",
        ),
        (
            {"messages": [{"role": "system", "content": [image("http://web.test/ok.png")]}]},
            None,
            "messages: only a user can send images, not system",
        ),
        ({"messages": [user(text("a" * 65_537))]}, None, "messages: the texts have more than"),
        ({"messages": [user(image("ftp://a/b"))]}, "image_url", "image_url: must begin with http"),
        ({"messages": [user(image("http://10.0.0.1/"))]}, "image_url", "is not a public address"),
        ({"messages": [user(image("data:,a"))]}, "image_url", "a data: URI must be data:image/"),
    ],
)
def test_what_is_not_possible_is_refused_by_name(
    client: openai.OpenAI, change: dict[str, Any], param: str | None, says: str
) -> None:
    body: dict[str, Any] = {"messages": [user(text("Hello"))]}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=MODEL, **body | change)
    assert error.value.param == param
    assert isinstance(error.value.body, dict)
    assert says in error.value.body["message"]


def test_another_model_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'qwen2-vl'"):
        client.chat.completions.create(model="gpt", messages=[user(text("Hello"))])


def test_fields_without_an_effect_are_accepted(server: tuple[httpx.Client, StandIn]) -> None:
    body = {name: values[0] for name, values in HARMLESS.items()}
    body |= {"messages": [user(text("Hello"))], "logit_bias": None, "stop": "x", "user": "u"}
    assert server[0].post("/v1/chat/completions", json=body).status_code == 200


def test_what_clients_send_back_is_accepted(server: tuple[httpx.Client, StandIn]) -> None:
    hint = {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}
    empty: dict[str, Any] = {
        "refusal": None,
        "annotations": [],
        "tool_calls": None,
        "function_call": None,
    }
    messages = [
        {"role": "user", "content": [hint]},
        {"role": "assistant", "content": "Yes?", **empty},
        {"role": "assistant", "content": None, "audio": None, "reasoning_content": ""},
        {"role": "user", "content": "Go on."},
    ]
    body: dict[str, Any] = {"messages": messages, "service_tier": "auto", "store": True}
    body |= {"parallel_tool_calls": True, "prompt_cache_key": "k", "safety_identifier": "s"}
    body |= {"stream_options": None, "echo": False, "max_tokens": 2, "max_completion_tokens": 2}
    response = server[0].post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text


def test_an_answer_about_a_data_uri(server: tuple[httpx.Client, StandIn]) -> None:
    body = {"image_url": data_uri(picture(size=(30, 20))), "question": "What is it?"}
    response = server[0].post("/answer", json=body)
    assert response.json()["image"] == {"width": 30, "height": 20}


@pytest.mark.parametrize(
    ("uri", "status", "says"),
    [
        ("data:image/png,abc", 400, "must be data:image/TYPE;base64,DATA"),
        ("data:image/png;base64", 400, "must be data:image/TYPE;base64,DATA"),
        ("data:" + "a" * 200 + ";base64,aaaa", 400, "must be data:image/TYPE;base64,DATA"),
        ("data:image/png;base64,a", 400, "not valid base64"),
        ("data:image/png;base64,aaaé", 400, "not valid base64"),
        ("data:image/png;base64,aa\naa", 400, "not valid base64"),
        ("data:text/html;base64,aaaa", 415, "is not an image"),
        ("data:;base64,aaaa", 415, "is not an image"),
        ("data:image/png;base64," + "a" * 2000, 413, "is larger than 1000 bytes"),
    ],
)
def test_bad_data_uris_are_refused(uri: str, status: int, says: str) -> None:
    with pytest.raises(ApiError) as error:
        read_data_uri(uri, 1000)
    assert error.value.status_code == status
    assert says in error.value.detail


def test_data_uris_are_read() -> None:
    for head in ("data:image/png;base64,", "DATA:IMAGE/HEIC;name=a.heic;BASE64,"):
        assert read_data_uri(head + "YWJj", 3) == b"abc"
    assert read_data_uri(data_uri(bytes(1000), "application/octet-stream"), 1000) == bytes(1000)
