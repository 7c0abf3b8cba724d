"""The classify server over real HTTP: seed answers, bad input, overload, a swap."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import patience
from tests.patience import until
from tests.support.serving.classify_server import classify_server, model_of
from tests.support.serving.news_model import LABELS, WORDS, write_news_model
from tests.support.serving.servers import running, send
from trainyard_serving.classify.app import create_classify_app
from trainyard_serving.classify.classifier import Classifier
from trainyard_serving.settings import ClassifySettings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one exported model."""
    run_dir = tmp_path_factory.mktemp("classify")
    write_news_model(model_of(run_dir, 10), step=10)
    return run_dir


@pytest.fixture(scope="module")
def news(run: Path) -> Iterator[httpx.Client]:
    with classify_server(run) as client:
        yield client


def test_one_text_gets_its_class(news: httpx.Client) -> None:
    answer = news.post("/predict", json={"text": "word1 word2"})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"label", "confidence", "probs"}
    assert list(body["probs"]) == LABELS
    assert sum(body["probs"].values()) == pytest.approx(1)
    assert body["confidence"] == body["probs"][body["label"]] == max(body["probs"].values())
    assert answer.headers["x-trainyard-digest"] == news.get("/health").json()["digest"]


def test_several_texts_get_their_classes_in_order(news: httpx.Client) -> None:
    texts = [" ".join(WORDS[number : number + 1 + number % 9]) for number in range(60)]
    together = news.post("/predict/batch", json={"texts": texts}).json()
    assert len(together) == len(texts)
    for text, found in zip(texts[::7], together[::7], strict=True):
        alone = news.post("/predict", json={"text": text}).json()
        assert alone["label"] == found["label"]
        assert alone["confidence"] == pytest.approx(found["confidence"], abs=1e-5)


def test_many_clients_get_their_own_answers(news: httpx.Client) -> None:
    texts = [" ".join(WORDS[number : number + 5]) for number in range(40)]
    alone = [news.post("/predict", json={"text": text}).json()["probs"] for text in texts]
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda text: news.post("/predict", json={"text": text}).json(), texts)
        for found, wanted in zip(answers, alone, strict=True):
            assert found["probs"] == pytest.approx(wanted, abs=1e-5)


def test_health_docs_and_metrics(news: httpx.Client) -> None:
    health = news.get("/health").json()
    assert (health["status"], health["model_loaded"]) == ("healthy", True)
    assert (health["run"], health["step"], health["precision"]) == ("news", 10, "fp32")
    root = news.get("/")
    assert (root.is_redirect, root.headers["location"]) == (True, "docs")
    assert "http" not in news.get("/docs").text.replace("http-equiv", "")  # nothing from elsewhere
    schema = news.get("/openapi.json").json()
    assert {"/predict", "/predict/batch", "/health"} <= set(schema["paths"])
    text = news.get("/metrics").text
    assert "trainyard_serving_batch_size_count" in text
    assert 'trainyard_serving_stage_seconds_count{stage="compute"}' in text


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/predict", {}, "text"),
        ("/predict", {"text": ""}, "text"),
        ("/predict", {"text": "x" * 10_001}, "text"),
        ("/predict", {"text": 7}, "text"),
        ("/predict", {"text": None}, "text"),
        ("/predict", [], "body"),
        ("/predict/batch", {"texts": []}, "texts"),
        ("/predict/batch", {"texts": "x"}, "texts"),
        ("/predict/batch", {"texts": ["x", ""]}, "texts"),
        ("/predict/batch", {"texts": ["x"] * 129}, "texts"),
    ],
)
def test_bad_requests_are_422(news: httpx.Client, path: str, body: Any, where: str) -> None:
    answer = news.post(path, json=body)
    assert answer.status_code == 422
    assert where in str(answer.json()["detail"])


def test_malformed_bodies_are_4xx(news: httpx.Client) -> None:
    for content in (b"", b"{", b'{"text": "\\ud800"}', b"\xff", b"[" * 5000):
        kind = {"content-type": "application/json"}
        assert 400 <= news.post("/predict", content=content, headers=kind).status_code < 500


def test_10000_characters_are_truncated_to_the_context(news: httpx.Client) -> None:
    long = ("word1 " * 2000)[:10_000]
    assert news.post("/predict", json={"text": long}).status_code == 200


def test_without_a_model_requests_are_503(tmp_path: Path) -> None:
    settings = ClassifySettings(run_dir=str(tmp_path), poll_seconds=0.05)
    with running(create_classify_app(settings)) as client:
        answer = client.post("/predict", json={"text": "x"})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/health").json()["model_loaded"] is False


def test_requests_beyond_the_queue_are_429_and_the_others_are_answered(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing, go_on = threading.Event(), threading.Event()
    encode = Classifier.encode

    def held(self: Classifier, texts: list[str]) -> list[list[int]]:
        if "hold" in texts:
            computing.set()
            assert go_on.wait(patience.SECONDS)
        return encode(self, texts)

    monkeypatch.setattr(Classifier, "encode", held)
    settings = {"max_queue": 3, "max_texts": 3}
    with classify_server(run, **settings) as client, ThreadPoolExecutor(4) as pool:
        first = pool.submit(client.post, "/predict", json={"text": "hold"})
        assert computing.wait(patience.SECONDS)
        waiting = pool.submit(client.post, "/predict/batch", json={"texts": ["a", "b"]})
        until(lambda: "queue_depth 2.0" in client.get("/metrics").text)
        full = client.post("/predict/batch", json={"texts": ["c", "d"]})
        assert full.status_code == 429
        assert int(full.headers["retry-after"]) >= 1
        leaving = send(client, "/predict", b'{"text": "e"}')
        until(lambda: "queue_depth 3.0" in client.get("/metrics").text)
        leaving.close()  # a client that disconnects leaves the queue
        until(lambda: "queue_depth 2.0" in client.get("/metrics").text)
        third = pool.submit(client.post, "/predict", json={"text": "f"})
        until(lambda: "queue_depth 3.0" in client.get("/metrics").text)
        unread = client.post("/predict", content=b"no JSON at all")
        assert unread.status_code == 429
        assert int(unread.headers["retry-after"]) >= 1
        counted = 'trainyard_serving_requests_total{code="429",route="/predict"} 1.0'
        assert counted in client.get("/metrics").text
        assert client.get("/predict").status_code == 429  # the path alone says what it costs
        go_on.set()
        assert first.result().status_code == 200
        assert third.result().status_code == 200
        assert len(waiting.result().json()) == 2


def test_a_newer_model_takes_over_and_no_request_fails(tmp_path: Path) -> None:
    write_news_model(model_of(tmp_path, 10), step=10)
    with classify_server(tmp_path) as client:
        old = client.get("/health").json()["digest"]
        seen, failed, stop = set(), [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                answer = client.post("/predict", json={"text": "word3 word4"})
                if answer.status_code != 200:
                    failed.append(answer.text)
                seen.add(answer.headers["x-trainyard-digest"])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            newer = "2026-01-03T00:00:00Z"
            write_news_model(tmp_path / "new", seed=1, step=20, created=newer)
            (tmp_path / "new").rename(model_of(tmp_path, 20))
            until(lambda: client.get("/health").json()["digest"] != old)
            new = client.get("/health").json()["digest"]
            until(lambda: new in seen)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failed == []
        assert seen == {old, new}
