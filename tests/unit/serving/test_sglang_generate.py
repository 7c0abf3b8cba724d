"""Engine sglang: OpenAI's protocol in front of a stand-in for SGLang."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.patience import until
from tests.support.serving.models import write_manifest
from tests.support.serving.servers import send, serving
from tests.support.serving.sglang_server import stand_in
from tests.support.serving.sglang_stand_in import StandIn
from trainyard_api.checkpoint import MANIFEST, MODELS, step_name
from trainyard_serving.settings import GenerateSettings
from trainyard_storage.checkpoints import digest

MESSAGES = [{"role": "user", "content": "Hello"}]


@contextmanager
def forwarded(**changes: Any) -> Iterator[tuple[httpx.Client, StandIn]]:
    """A text generation server that is ready, and its SGLang."""
    with (
        stand_in(name="llama") as sglang,
        serving(engine="sglang", sglang_url=sglang.url, **changes) as client,
    ):
        until(lambda: client.get("/ready").status_code == 200)
        yield client, sglang


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[httpx.Client, StandIn]]:
    with forwarded(max_tokens=50, max_prompts=2) as both:
        yield both


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object, after checking its form."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


def tokens(client: httpx.Client) -> float:
    name = "trainyard_serving_generated_tokens_total "
    (line,) = (line for line in client.get("/metrics").text.splitlines() if line.startswith(name))
    return float(line.removeprefix(name))


def test_openais_client_works_against_it(shared: tuple[httpx.Client, StandIn]) -> None:
    client, _ = shared
    api = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="unused", max_retries=0)
    before = tokens(client)
    assert [model.id for model in api.models.list()] == ["llama"]
    text = api.completions.create(model="llama", prompt="a", max_tokens=2)
    assert (text.choices[0].text, text.choices[0].finish_reason) == ("one two ", "length")
    assert text.usage
    assert text.usage.completion_tokens == 2
    messages: Any = MESSAGES
    chat = api.chat.completions.create(model="llama", messages=messages, max_completion_tokens=3)
    assert chat.choices[0].message.content == "one two three "
    pieces = list(
        api.chat.completions.create(
            model="llama", messages=messages, max_tokens=4, stream=True, stop=["x"], seed=1
        )
    )
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == "one two three four "
    assert all(piece.choices for piece in pieces)  # usage was not asked for
    last = list(
        api.completions.create(
            model="llama",
            prompt=["a", "b"],
            max_tokens=5,
            temperature=0,
            echo=False,
            stream=True,
            stream_options={"include_usage": True},
        )
    )[-1]
    assert last.choices == []
    assert last.usage
    assert last.usage.completion_tokens == 10
    assert tokens(client) - before == 2 + 3 + 4 + 10


def test_sglang_receives_the_requested_options(shared: tuple[httpx.Client, StandIn]) -> None:
    client, sglang = shared
    sglang.requests.clear()
    body: dict[str, Any] = {"prompt": "a", "top_p": 0.5, "user": "me"}
    more: dict[str, Any] = {
        "n": 2,
        "top_k": 0,
        "min_p": 0.1,
        "logprobs": 0,
        "echo": True,
        "logit_bias": {"5": -1},
        "stop_token_ids": [3],
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "ignore_eos": True,
        "skip_special_tokens": False,
    }
    body |= more | {"include_stop_str_in_output": True, "best_of": 2}
    assert client.post("/v1/completions", json=body | {"model": None}).status_code == 200
    assert client.post("/v1/chat/completions", json={"messages": MESSAGES}).status_code == 200
    text, chat = (request.model_dump(exclude_unset=True) for request in sglang.requests)
    own = {"model": "llama", "prompt": ["a"], "top_p": 0.5, "no_stop_trim": True}
    assert text == more | own | {"top_k": -1}
    assert chat == {"model": "llama", "messages": MESSAGES, "max_completion_tokens": 50}


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        ("/v1/completions", {"max_tokens": 51}, "max_tokens"),
        ("/v1/completions", {"prompt": ["a"] * 3}, "prompt"),
        ("/v1/completions", {"temperature": 3}, "temperature"),
        ("/v1/completions", {"best_of": 2}, "best_of"),
        ("/v1/completions", {"max_tokens": 0, "echo": True}, "max_tokens"),
        ("/v1/completions", {"unheard_of": 1}, "unheard_of"),
        ("/v1/chat/completions", {"max_completion_tokens": 51}, "max_completion_tokens"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
    ],
)
def test_our_limits_apply_before_sglangs(
    shared: tuple[httpx.Client, StandIn], path: str, change: dict[str, Any], param: str
) -> None:
    client, sglang = shared
    sglang.requests.clear()
    start: dict[str, Any] = {"messages": MESSAGES} if "chat" in path else {"prompt": "a"}
    error = refused(client.post(path, json=start | change), 400)
    assert error["param"] == param
    assert sglang.requests == []


def test_another_model_is_a_404(shared: tuple[httpx.Client, StandIn]) -> None:
    client, _ = shared
    error = refused(client.post("/v1/completions", json={"prompt": "a", "model": "other"}), 404)
    assert "this server has 'llama'" in error["message"]
    assert refused(client.get("/v1/models/other"), 404)
    assert client.get("/v1/models/llama").json()["max_model_len"] == 32768


def test_sglangs_errors_have_openais_form(shared: tuple[httpx.Client, StandIn]) -> None:
    client, sglang = shared
    cases: list[tuple[Any, int]] = [
        ((400, "The input (40000 tokens) is longer than the context"), 400),
        ((503, "The request queue is full."), 503),
        ((500, "Internal server error"), 502),
        ((200, {"odd": 1}), 502),
    ]
    try:
        for failure, status in cases:
            sglang.failure = failure
            for stream in (False, True) if status != 502 else (False,):
                body = {"prompt": "a", "stream": stream}
                error = refused(client.post("/v1/completions", json=body), status)
                assert failure[0] == 200 or failure[1] in error["message"] or status == 502
    finally:
        sglang.failure = None


def stream(client: httpx.Client) -> list[Any]:
    """The events of a streamed answer."""
    body = {"prompt": "a", "max_tokens": 3, "stream": True}
    parts = client.post("/v1/completions", json=body).text.split("\n\n")
    assert parts.pop() == ""
    return [part if "[DONE]" in part else json.loads(part[6:]) for part in parts]


def test_errors_within_a_stream_are_reported_at_its_end(
    shared: tuple[httpx.Client, StandIn],
) -> None:
    client, sglang = shared
    assert stream(client)[-1] == "data: [DONE]"
    for ending, says in (("error", "CUDA"), ("break", "ended early")):
        sglang.ending = ending
        try:
            *pieces, last = stream(client)
        finally:
            sglang.ending = None
        assert len(pieces) >= 1
        assert says in last["error"]["message"]
        assert set(last["error"]) == {"message", "type", "param", "code"}


def test_disconnecting_cancels_a_stream_and_the_queue_is_bounded() -> None:
    with forwarded(max_running=1, max_queue=1) as (client, sglang):
        sglang.held = True
        body = {"prompt": "a", "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()  # kept: its end would close the connection
            next(lines)
            waiting = send(client, "/v1/completions", b'{"prompt": "a"}')
            until(lambda: "queue_depth 1.0" in client.get("/metrics").text)
            full = client.post("/v1/completions", json={"prompt": "a"})
            assert refused(full, 429)["code"] == "queue_full"
            assert int(full.headers["retry-after"]) >= 1
            waiting.close()
            until(lambda: "queue_depth 0.0" in client.get("/metrics").text)
        until(lambda: sglang.cancelled == 1)
        sglang.held = False
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_the_digest_is_that_of_the_verified_model_sglang_serves(
    run_dir: Path, tmp_path: Path
) -> None:
    model = run_dir / MODELS / step_name(500)
    link = tmp_path / "model"
    link.symlink_to(model)
    with (
        stand_in(name="s", path=str(link)) as sglang,
        serving(engine="sglang", sglang_url=sglang.url, run_dir=run_dir) as client,
    ):
        until(lambda: client.get("/ready").status_code == 200)
        response = client.post("/v1/completions", json={"prompt": "a"})
        assert response.headers["x-trainyard-digest"] == digest(model)
        card = client.get("/v1/models/s").json()
        assert (card["step"], card["digest"]) == (500, digest(model))
        sglang.path = str(tmp_path)  # restarted with something else
        until(lambda: "is not what" in client.get("/ready").text)
        assert "x-trainyard-digest" not in client.get("/health").headers


def test_a_model_that_does_not_verify_is_not_used(tmp_path: Path) -> None:
    model = tmp_path / MODELS / step_name(1)
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    write_manifest(model)
    (model / "config.json").write_text("{ }")
    assert (model / MANIFEST).exists()
    with (
        stand_in(path=str(model)) as sglang,
        serving(engine="sglang", sglang_url=sglang.url, model=model) as client,
    ):
        until(lambda: "config.json" in client.get("/ready").text)
        refused(client.post("/v1/completions", json={"prompt": "a"}), 503)


def test_only_sglang_needs_no_model_setting() -> None:
    assert GenerateSettings(engine="sglang").run_dir is None
    for fields in ({}, {"engine": "sglang", "step": 3}, {"engine": "sglang", "digest": "sha256:"}):
        with pytest.raises(ValueError, match="GenerateSettings"):
            GenerateSettings.model_validate(fields)
