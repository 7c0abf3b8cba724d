"""The server over real HTTP: OpenAI's protocol, errors, metrics, the page."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.patience import until
from tests.support.serving.models import ALPHABET, CONTEXT, export_char_gpt, write_manifest
from tests.support.serving.servers import serving
from trainyard_api import metrics as names
from trainyard_api.checkpoint import MANIFEST, MODELS, step_name
from trainyard_serving.generate.token_model import TokenModel
from trainyard_storage.checkpoints import digest


def post(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/completions", json={"prompt": "To be", "seed": 1} | body)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of a stream's events; it must end with [DONE]."""
    parts = response.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object, after checking its form."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    return error


def test_a_completion_has_the_protocols_form(client: httpx.Client, run_dir: Path) -> None:
    response = post(client, max_tokens=20, model="shakespeare")
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert body["model"] == "shakespeare"
    (choice,) = body["choices"]
    assert len(choice.pop("text")) == 20
    assert choice == {"index": 0, "logprobs": None, "finish_reason": "length"}
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 20, "total_tokens": 25}
    expected = digest(run_dir / MODELS / step_name(500))
    assert response.headers["x-trainyard-digest"] == expected


def test_defaults_are_openais(client: httpx.Client) -> None:
    body = client.post("/v1/completions", json={"prompt": "a"}).json()
    assert body["usage"]["completion_tokens"] == 16


def test_a_seed_repeats_the_text_and_no_seed_does_not(client: httpx.Client) -> None:
    texts = [post(client, max_tokens=50).json()["choices"][0]["text"] for _ in range(2)]
    assert texts[0] == texts[1]
    other = post(client, max_tokens=50, seed=None).json()["choices"][0]["text"]
    assert other != texts[0]


def test_a_stream_has_the_same_text_in_pieces(client: httpx.Client) -> None:
    whole = post(client, max_tokens=30).json()
    response = post(client, max_tokens=30, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *pieces, usage = events(response)
    assert len(pieces) > 10
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole["choices"][0]["text"]
    reasons = [piece["choices"][0]["finish_reason"] for piece in pieces]
    assert reasons == [None] * (len(pieces) - 1) + ["length"]
    assert len({piece["id"] for piece in pieces}) == 1
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]


def test_several_prompts_answer_in_order_and_echo_repeats_them(client: httpx.Client) -> None:
    prompts = ["To be", "or not", "été"]
    body = post(client, prompt=prompts, max_tokens=9, echo=True, temperature=0).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    for prompt, choice in zip(prompts, body["choices"], strict=True):
        alone = post(client, prompt=prompt, max_tokens=9, temperature=0).json()
        assert choice["text"] == prompt + alone["choices"][0]["text"]
    streamed = events(
        post(client, prompt=prompts, max_tokens=9, echo=True, temperature=0, stream=True)
    )
    texts = ["", "", ""]
    for event in streamed:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == [choice["text"] for choice in body["choices"]]


def test_stop_strings_end_whole_and_streamed_answers(client: httpx.Client) -> None:
    text = post(client, max_tokens=60).json()["choices"][0]["text"]
    stop = text[30:32]
    whole = post(client, max_tokens=60, stop=stop).json()["choices"][0]
    assert whole["text"] == text[: text.index(stop)]
    assert whole["finish_reason"] == "stop"
    pieces = events(post(client, max_tokens=60, stop=[stop, "zzzz"], stream=True))
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole["text"]


def test_texts_may_be_longer_than_the_context(client: httpx.Client) -> None:
    body = post(client, max_tokens=4 * CONTEXT).json()
    assert len(body["choices"][0]["text"]) == 4 * CONTEXT


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a" * (CONTEXT + 1)}, "prompt"),
        ({"prompt": "50% #1"}, "prompt"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4097}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": 3}, "stop"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
    ],
)
def test_a_bad_value_is_a_400_that_names_it(
    client: httpx.Client, change: dict[str, Any], param: str
) -> None:
    error = refused(post(client, **change), 400)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert next(iter(change)) in error["message"]


@pytest.mark.parametrize(
    "content", [b"", b"nope", b"[]", b"null", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"{}"]
)
def test_a_bad_body_is_a_400(client: httpx.Client, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    refused(client.post("/v1/completions", content=content, headers=headers), 400)


def test_nan_and_infinity_are_refused(client: httpx.Client) -> None:
    body = b'{"prompt": "a", "temperature": NaN}'
    headers = {"content-type": "application/json"}
    refused(client.post("/v1/completions", content=body, headers=headers), 400)


def test_unknown_characters_are_named(client: httpx.Client) -> None:
    error = refused(post(client, prompt="50% off"), 400)
    assert "'%' (U+0025)" in error["message"]
    assert error["code"] == "unknown_characters"


def test_another_model_or_path_or_method_is_not_found(client: httpx.Client) -> None:
    error = refused(post(client, model="gpt-4"), 404)
    assert error["code"] == "model_not_found"
    assert "'shakespeare'" in error["message"]
    refused(client.get("/v1/models/gpt-4"), 404)
    refused(client.get("/v1/nothing"), 404)
    refused(client.get("/v1/completions"), 405)


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
def test_a_body_above_the_limit_is_a_413(client: httpx.Client, declared: bool) -> None:
    body = b'{"prompt": "' + b"a" * (1 << 20) + b'"}'
    content: Any = body if declared else (body[i : i + 65536] for i in range(0, len(body), 65536))
    headers = {"content-type": "application/json"}
    error = refused(client.post("/v1/completions", content=content, headers=headers), 413)
    assert error["code"] == "body_too_large"


def test_the_model_is_listed(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert card["id"] == "shakespeare"
    assert card["object"] == "model"
    assert card["max_model_len"] == CONTEXT
    assert client.get("/v1/models/shakespeare").json() == card


def test_health_and_ready_name_the_model(client: httpx.Client, run_dir: Path) -> None:
    expected = digest(run_dir / MODELS / step_name(500))
    health, ready = client.get("/health").json(), client.get("/ready").json()
    assert health["status"] == "healthy"
    assert health["model_loaded"] is True
    assert health["digest"] == ready["digest"] == expected
    assert ready["step"] == 500


def test_metrics_count_what_happened_under_shared_names(client: httpx.Client) -> None:
    def value(line: str) -> float:
        found = re.search(rf"^{re.escape(line)} (\S+)$", client.get("/metrics").text, re.M)
        return float(found[1]) if found else 0

    ok = f'{names.REQUESTS.name}{{code="200",route="/v1/completions"}}'
    before = [value(ok), value(names.GENERATED_TOKENS.name)]
    post(client, max_tokens=7)
    post(client, max_tokens=5, stream=True)
    until(lambda: value(ok) == before[0] + 2)  # counted once the answer is out
    assert value(names.GENERATED_TOKENS.name) == before[1] + 12
    client.get("/some/unknown/path")
    text = client.get("/metrics").text
    assert "unknown/path" not in text
    assert re.search(rf'{names.MODEL_INFO.name}{{digest="sha256:\w+",run="shakespeare",', text)
    known = {metric.name for metric in vars(names).values() if isinstance(metric, names.Metric)}
    types = re.findall(r"^# TYPE (\S+) ", text, re.M)
    assert set(types) <= known


def test_the_page_loads_no_other_files(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"(src|href)=\"(https?:)?//|@import|url\(", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    labelled = set(re.findall(r'<label for="(\w+)"', page.text))
    assert labelled == set(re.findall(r'<(?:input|textarea) id="(\w+)"', page.text))


def test_a_failure_inside_the_model_is_a_500_and_the_next_request_works(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("boom")

    with monkeypatch.context() as patch:
        patch.setattr(TokenModel, "logits", fail)
        error = refused(post(client), 500)
        assert "boom" not in error["message"]
        assert error["type"] == "server_error"
        streamed = post(client, stream=True).text
        assert json.loads(streamed.removeprefix("data: "))["error"]["type"] == "server_error"
    assert post(client).status_code == 200


def test_before_a_model_exists_the_server_says_why_and_then_serves(tmp_path: Path) -> None:
    with serving(run_dir=tmp_path) as client:

        def reason() -> str:
            return str(client.get("/ready").json().get("reason"))

        until(lambda: "the run has not finished" in reason())
        response = post(client)
        assert "the run has not finished" in refused(response, 503)["message"]
        assert int(response.headers["retry-after"]) >= 1
        refused(client.get("/v1/models"), 503)
        assert client.get("/health").json() == {"status": "healthy", "model_loaded": False}
        assert "x-trainyard-digest" not in response.headers

        damaged = tmp_path / MODELS / step_name(2)
        damaged.mkdir(parents=True)
        (damaged / MANIFEST).write_text("{}")
        until(lambda: step_name(2) in reason())

        publish(tmp_path, 1)
        until(lambda: client.get("/ready").status_code == 200)
        ready = client.get("/ready").json()
        assert ready["step"] == 1
        assert step_name(2) in ready["refused"][0]
        assert post(client, prompt=ALPHABET[:5]).status_code == 200


def publish(run: Path, step: int) -> None:
    """Publish a model as a trainer does: beside, then renamed."""
    hidden = run / MODELS / f".tmp-{step}"
    hidden.mkdir()
    export_char_gpt(hidden)
    write_manifest(hidden, step=step)
    hidden.rename(run / MODELS / step_name(step))
