"""The embedding server over real HTTP: OpenAI's client, TEI's form, refusals, overload."""

import base64
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from transformers import AutoTokenizer

from tests import patience
from tests.patience import until
from tests.support.serving.embed_server import (
    CONTEXT,
    SIZE,
    WORDS,
    embed_server,
    write_encoder,
    write_pooling,
)
from tests.support.serving.models import write_manifest
from tests.support.serving.servers import running, send
from tests.unit.serving.test_embedder import hidden_states
from trainyard_api import __version__
from trainyard_serving.embed import app as embed_app
from trainyard_serving.embed.app import create_embed_app
from trainyard_serving.embed.embedder import Embedder
from trainyard_serving.embed.settings import EmbedSettings

KEY = "sk-right"
TEXTS = [" ".join(WORDS[start : start + 1 + 2 * start]) for start in range(12)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with mean pooling that gives embeddings of length 1, or their beginnings."""
    directory = tmp_path_factory.mktemp("embed")
    write_encoder(directory, matryoshka_dimensions=[8, 16])
    write_pooling(directory, "mean_tokens", normalize=True)
    write_manifest(directory, run="words")
    return directory


@pytest.fixture(scope="module")
def wanted(directory: Path) -> Any:
    """[texts, size] by transformers, one text at a time, before normalising."""
    return np.stack([hidden_states(directory, text).mean(0).numpy() for text in TEXTS])


@pytest.fixture(scope="module")
def client(directory: Path) -> Iterator[httpx.Client]:
    with embed_server(model=directory, max_texts=20, max_queue=40) as client:
        yield client


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def post(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/embeddings", json={"input": TEXTS[3]} | body)


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object, after checking its form."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    return error


def test_openais_client_gets_what_transformers_computes(directory: Path, wanted: Any) -> None:
    with (
        embed_server(model=directory, api_key=KEY) as client,
        openai.OpenAI(
            base_url=str(client.base_url.join("/v1")),
            api_key=KEY,
            max_retries=0,
            timeout=patience.SECONDS,
        ) as ai,
    ):
        (model,) = ai.models.list().data
        assert (model.id, ai.models.retrieve("words")) == ("words", model)
        by_base64 = ai.embeddings.create(model="words", input=TEXTS)  # its default
        by_floats = ai.embeddings.create(model="words", input=TEXTS, encoding_format="float")
        one = ai.embeddings.create(model="words", input=TEXTS[5], user="somebody", dimensions=16)
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            ai.embeddings.create(model="words", input="word1", dimensions=9)
        with pytest.raises(openai.NotFoundError, match="no model 'text-embedding-3-small' here"):
            ai.embeddings.create(model="text-embedding-3-small", input="word1")
        with pytest.raises(openai.AuthenticationError, match="API key"):
            ai.with_options(api_key="sk-wrong").embeddings.create(model="words", input="word1")
    for answer in (by_base64, by_floats):
        assert [item.index for item in answer.data] == list(range(len(TEXTS)))
        rows = np.array([item.embedding for item in answer.data])
        np.testing.assert_allclose(rows, unit(wanted), atol=1e-5)
        assert answer.usage.prompt_tokens == sum(len(text.split()) + 2 for text in TEXTS)
    (first,) = one.data
    np.testing.assert_allclose([first.embedding], unit(wanted[5:6, :16]), atol=1e-5)


def test_an_answer_has_openais_form(client: httpx.Client) -> None:
    response = post(client, model="words")
    body = response.json()
    assert set(body) == {"object", "data", "model", "usage"}
    assert (body["object"], body["model"]) == ("list", "words")
    tokens = len(TEXTS[3].split()) + 2
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    (item,) = body["data"]
    assert (item["object"], item["index"], len(item["embedding"])) == ("embedding", 0, SIZE)
    assert response.headers["x-trainyard-digest"] == client.get("/health").json()["digest"]
    assert response.headers["x-request-id"]
    (packed,) = post(client, encoding_format="base64").json()["data"]
    floats = np.frombuffer(base64.b64decode(packed["embedding"]), "<f4")
    np.testing.assert_array_equal(floats, np.array(item["embedding"], np.float32))


def test_numbers_are_short_and_exactly_those_of_float32(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patterns = np.random.default_rng(0).integers(0, 2**32, (6, SIZE), np.uint32)
    numbers = np.where(np.isfinite(patterns.view(np.float32)), patterns.view(np.float32), 0.1)
    numbers = numbers.astype(np.float32)
    numbers[0, :5] = 0, 1e-45, -3.4028235e38, 0.1, 1
    threads = set()
    write = embed_app._numbers

    def noted(row: Any) -> str:
        threads.add(threading.current_thread().name)
        return write(row)

    monkeypatch.setattr(embed_app, "_numbers", noted)
    with embed_server(model=directory) as client:
        monkeypatch.setattr(Embedder, "compute", lambda self, encoded: numbers)
        answer = client.post("/embed", json={"inputs": ["word1"] * 6, "normalize": False})
    np.testing.assert_array_equal(np.array(answer.json()).astype(np.float32), numbers)
    assert len(answer.content) < 16 * numbers.size
    assert threads
    assert all(name.startswith("encoder") for name in threads)


def test_tokens_have_the_embedding_of_their_text(client: httpx.Client, directory: Path) -> None:
    auto: Any = AutoTokenizer
    ids = auto.from_pretrained(directory)(TEXTS)["input_ids"]
    texts = post(client, input=TEXTS).json()
    assert post(client, input=ids).json() == texts
    assert post(client, input=ids[2]).json()["data"] == post(client, input=TEXTS[2]).json()["data"]


def test_an_embedding_does_not_depend_on_the_texts_of_other_clients(
    client: httpx.Client, wanted: Any
) -> None:
    def ask(number: int) -> Any:
        texts = TEXTS if number % 3 == 0 else [TEXTS[number % len(TEXTS)]]
        data = post(client, input=texts).json()["data"]
        rows = np.array([item["embedding"] for item in data])
        expected = unit(wanted)
        return rows, expected if number % 3 == 0 else expected[[number % len(TEXTS)]]

    with ThreadPoolExecutor(4) as pool:
        for rows, expected in pool.map(ask, range(30)):
            np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_teis_form(client: httpx.Client, wanted: Any) -> None:
    def embed(**body: Any) -> Any:
        response = client.post("/embed", json=body)
        assert response.status_code == 200, response.text
        assert response.headers["x-trainyard-digest"]
        return np.array(response.json())

    np.testing.assert_allclose(embed(inputs=TEXTS), unit(wanted), atol=1e-5)
    np.testing.assert_allclose(embed(inputs=TEXTS, normalize=False), wanted, atol=1e-5)
    np.testing.assert_allclose(embed(inputs=TEXTS[4]), unit(wanted[4:5]), atol=1e-5)
    long = {"inputs": WORDS * 3, "truncate": True, "truncation_direction": "right"}
    too_many = client.post("/embed", json=long)
    assert "inputs: at most 20 texts" in refused(too_many, 400)["message"]
    text = " ".join(WORDS)
    np.testing.assert_allclose(
        embed(inputs=text, truncate=True), embed(inputs=" ".join(WORDS[: CONTEXT - 2])), atol=1e-5
    )
    error = refused(client.post("/embed", json={"inputs": ["word1", text]}), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "inputs")
    assert error["message"].startswith("inputs[1] has 202 tokens")


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input": None}, "input", "must be a string or a list of strings or of token ids"),
        ({"input": []}, "input", "must not be an empty list"),
        ({"input": ""}, "input", "input is empty"),
        ({"input": ["word1", ""]}, "input", "input[1] is empty"),
        ({"input": ["word1", 5]}, "input", "list of strings or of token ids"),
        ({"input": [[1], []]}, "input", "each at least one"),
        ({"input": [4, 5000]}, "input", "no token 5000: its last one is 203"),
        ({"input": [-1]}, "input", "token ids"),
        ({"input": [2**80]}, "input", "no token"),
        ({"input": ["word1"] * 21}, "input", "at most 20 texts in one request (got 21)"),
        ({"input": "word1 " * 31}, "input", "has 33 tokens, but this model's maximum context"),
        ({"input": [5] * 33}, "input", f"is {CONTEXT} tokens: shorten it, or send truncate: true"),
        ({"encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"dimensions": 9}, "dimensions", "trained for 8, 16 (got 9)"),
        ({"dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"instruction": "query"}, "instruction", "instruction is not supported: leave it out"),
        ({"add_special_tokens": False}, "add_special_tokens", "not supported"),
        ({"normalize": False}, "normalize", "not supported"),
        ({"truncate": "yes"}, "truncate", "boolean"),
    ],
)
def test_what_cannot_be_done_is_a_400_that_says_why(
    client: httpx.Client, body: dict[str, Any], param: str, words: str
) -> None:
    error = refused(post(client, **body), 400)
    assert error["param"] == param
    assert words in error["message"]


def test_fields_without_effect_are_accepted(client: httpx.Client) -> None:
    plain = post(client).json()
    extra = {"user": "a", "encoding_format": None, "dimensions": None, "truncate": False}
    assert post(client, **extra, priority=0, add_special_tokens=True).json() == plain


def test_other_models_are_404_and_none_is_503(client: httpx.Client, tmp_path: Path) -> None:
    assert refused(post(client, model="gpt-4"), 404)["code"] == "model_not_found"
    assert client.get("/v1/models/gpt-4").status_code == 404
    settings = EmbedSettings(run_dir=str(tmp_path), poll_seconds=0.05)
    with running(create_embed_app(settings)) as waiting:
        assert int(post(waiting).headers["retry-after"]) >= 1
        for response in (post(waiting), waiting.get("/info"), waiting.get("/v1/models")):
            assert refused(response, 503)["code"] == "model_not_loaded"
        assert waiting.get("/health").json()["model_loaded"] is False


def test_info_health_docs_and_metrics(client: httpx.Client) -> None:
    post(client)
    info = client.get("/info").json()
    how = {
        "max_model_len": CONTEXT,
        "pooling": "mean",
        "normalize": True,
        "dimensions": SIZE,
        "matryoshka_dimensions": [8, 16],
    }
    assert info["model"].items() >= {"id": "words", "step": 500, **how}.items()
    assert (info["limits"]["max_texts"], info["version"]) == (20, __version__)
    health = client.get("/health").json()
    assert health.items() >= {"status": "healthy", "engine": "torch", **how}.items()
    (card,) = client.get("/v1/models").json()["data"]
    assert card.items() >= {"id": "words", "max_texts": 20, **how}.items()
    assert client.get("/").headers["location"] == "docs"
    assert {"/v1/embeddings", "/embed"} <= client.get("/openapi.json").json()["paths"].keys()
    text = client.get("/metrics").text
    assert "trainyard_serving_batch_size_count" in text
    for stage in ("queue", "tokenise", "compute"):
        assert re.search(f'stage_seconds_count{{stage="{stage}"}} [1-9]', text)
    assert 'requests_total{code="200",route="/v1/embeddings"}' in text


def test_a_batch_has_no_more_tokens_than_the_setting(
    directory: Path, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    compute = Embedder.compute

    def noted(self: Embedder, encoded: Any) -> Any:
        shapes.append((len(encoded), max(map(len, encoded))))
        return compute(self, encoded)

    monkeypatch.setattr(Embedder, "compute", noted)
    with embed_server(model=directory, max_batch_tokens=40) as client:
        shapes.clear()
        data = post(client, input=TEXTS).json()["data"]
    np.testing.assert_allclose([item["embedding"] for item in data], unit(wanted), atol=1e-5)
    assert sum(number for number, _ in shapes) == len(TEXTS)
    assert max(number for number, _ in shapes) > 1
    assert all(number * longest <= 40 for number, longest in shapes)


def test_texts_beyond_the_queue_are_429_and_clients_that_leave_make_room(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing, go_on = threading.Event(), threading.Event()
    compute = Embedder.compute

    def held(self: Embedder, encoded: Any) -> Any:
        if len(encoded[0]) == 9:  # the text that holds up the others
            computing.set()
            assert go_on.wait(patience.SECONDS)
        return compute(self, encoded)

    monkeypatch.setattr(Embedder, "compute", held)
    settings = {"max_queue": 3, "max_texts": 3, "max_batch_size": 1}
    with embed_server(model=directory, **settings) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, client, input=[5] * 9)
        assert computing.wait(patience.SECONDS)
        waiting = pool.submit(post, client, input=["word1", "word2"])
        until(lambda: "queue_depth 2.0" in client.get("/metrics").text)
        # Refused before the tokenizer, which would say that the first is empty.
        assert refused(post(client, input=["", "word2"]), 429)["code"] == "queue_full"
        leaving = send(client, "/embed", b'{"inputs": "word3"}')
        until(lambda: "queue_depth 3.0" in client.get("/metrics").text)
        unread = client.post("/v1/embeddings", content=b"no JSON at all")
        assert refused(unread, 429)["code"] == "queue_full"
        assert int(unread.headers["retry-after"]) >= 1
        leaving.close()
        until(lambda: "queue_depth 2.0" in client.get("/metrics").text)
        go_on.set()
        assert first.result().status_code == 200
        assert len(waiting.result().json()["data"]) == 2


def test_texts_beyond_the_room_before_the_tokenizer_are_429(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted in characters: many short requests may wait, but few of the longest."""
    started, go_on = threading.Semaphore(0), threading.Event()
    encode = Embedder.encode

    def held(self: Embedder, *args: Any) -> Any:
        started.release()
        assert go_on.wait(patience.SECONDS)
        return encode(self, *args)

    long = "word1" + " " * 400
    monkeypatch.setattr(embed_app, "WAITING_BODIES", 2)
    monkeypatch.setattr(Embedder, "encode", held)
    settings = {"max_queue": 3, "max_body_bytes": 500}
    with embed_server(model=directory, **settings) as client, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(post, client, input=long) for _ in range(2)]
        for _ in waiting:
            assert started.acquire(timeout=patience.SECONDS)
        error = refused(post(client, input=long), 429)
        assert (error["code"], error["message"]) == (
            "queue_full",
            "the server is busy: too many requests are waiting",
        )
        waiting.append(pool.submit(post, client, input="word1"))
        go_on.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 3
        assert post(client, input=long).status_code == 200


def test_numbers_that_json_cannot_say_are_an_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(self: Embedder, encoded: Any) -> Any:
        return np.full((len(encoded), SIZE), np.inf, np.float32)

    with embed_server(model=directory) as client:
        monkeypatch.setattr(Embedder, "compute", overflow)
        assert refused(post(client), 500)["code"] == "not_finite"

        def fail(self: Embedder, encoded: Any) -> Any:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(Embedder, "compute", fail)
        assert "the server's log says why" in refused(post(client), 500)["message"]
