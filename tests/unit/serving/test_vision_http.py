"""The vision server over real HTTP: questions, answers, requests to SGLang, errors."""

import base64
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests import patience
from tests.patience import until
from tests.support.serving.hostile_web import hostile_web, picture
from tests.support.serving.servers import running, send
from tests.support.serving.sglang_server import stand_in
from tests.support.serving.sglang_stand_in import Chat, ImagePart, StandIn
from tests.support.serving.vision_server import fetcher
from trainyard_serving.settings import VisionSettings
from trainyard_serving.vision.app import create_vision_app, limits

ASK = {"image_url": "http://web.test/ok.png", "question": "What is it?"}


@pytest.fixture(scope="module")
def web() -> Iterator[int]:
    with hostile_web() as port:
        yield port


@contextmanager
def vision(
    sglang: StandIn, web: int, page_seconds: float = patience.SECONDS, **changes: Any
) -> Iterator[httpx.Client]:
    """A vision server in front of `sglang`, whether that is ready or not."""
    patient = {"fetch_seconds": patience.SECONDS, "answer_seconds": patience.SECONDS}
    settings = VisionSettings(
        **{"sglang_url": sglang.url, "poll_seconds": 0.05, **patient, **changes}
    )
    of_pages = replace(limits(settings), seconds=page_seconds)
    with running(create_vision_app(settings, fetcher(of_pages, web))) as client:
        yield client


@contextmanager
def asked(web: int, **changes: Any) -> Iterator[tuple[httpx.Client, StandIn]]:
    """A vision server that is ready, and its SGLang."""
    with stand_in() as sglang, vision(sglang, web, **changes) as client:
        until(lambda: client.get("/ready").status_code == 200)
        yield client, sglang


@pytest.fixture(scope="module")
def shared(web: int) -> Iterator[tuple[httpx.Client, StandIn]]:
    with asked(web, max_image_bytes=100_000, max_tokens=9) as both:
        yield both


def upload(client: httpx.Client, data: bytes, **fields: Any) -> httpx.Response:
    files = {"image": ("a.png", data, "image/png")}
    return client.post("/answer", files=files, data={"question": "What is it?"} | fields)


def refused(response: httpx.Response, status: int) -> str:
    """The reason, after checking its form."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return str(error["message"])


def test_an_answer_has_the_model_usage_size_and_time(
    shared: tuple[httpx.Client, StandIn],
) -> None:
    client, _ = shared
    body = client.post("/answer", json=ASK | {"max_tokens": 3}).json()
    assert body.pop("seconds") >= 0
    assert body.pop("usage")["completion_tokens"] == 3
    assert body == {
        "answer": "one two three ",
        "model": "qwen2-vl",
        "image": {"width": 40, "height": 20},
    }
    text = client.get("/metrics").text
    assert "trainyard_serving_generated_tokens_total 3.0" in text


def test_sglang_gets_pixels_and_the_question_but_no_url(
    shared: tuple[httpx.Client, StandIn],
) -> None:
    client, sglang = shared
    sglang.requests.clear()
    assert client.post("/answer", json=ASK).status_code == 200
    (request,) = sglang.requests
    assert isinstance(request, Chat)
    assert (request.model, request.max_completion_tokens) == ("qwen2-vl", 9)
    (message,) = request.messages
    assert isinstance(message.content, list)
    image, text = message.content
    assert isinstance(image, ImagePart)
    data = image.image_url.url.removeprefix("data:image/jpeg;base64,")
    assert base64.b64decode(data).startswith(b"\xff\xd8\xff")
    assert text.model_dump() == {"type": "text", "text": "What is it?"}


def test_an_image_can_be_uploaded(shared: tuple[httpx.Client, StandIn]) -> None:
    client, _ = shared
    response = upload(client, picture(size=(33, 22)), max_tokens="2")
    assert response.json()["image"] == {"width": 33, "height": 22}
    assert response.json()["answer"] == "one two "


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 422, "Input should be"),
        (b"{}", 422, "question"),
        (b'{"question": "", "image_url": "http://web.test/"}', 422, "question"),
        (b'{"question": "a"}', 422, "image_url"),
        (b'{"question": "a", "image_url": 5}', 422, "image_url"),
        (b'{"question": "a", "image_url": "x", "n": 5}', 422, "n is not supported"),
        (b'{"question": "a", "image_url": "http://web.test/", "max_tokens": 0}', 422, "max_tokens"),
        (b'{"question": "' + b"a" * 8001 + b'", "image_url": "x"}', 422, "at most 8000 characters"),
        (b'{"question": "\xff", "image_url": "http://web.test/"}', 400, "not valid JSON"),
    ],
)
def test_a_wrong_body_gets_the_reason(
    shared: tuple[httpx.Client, StandIn], body: bytes, status: int, says: str
) -> None:
    client, _ = shared
    headers = {"content-type": "application/json"}
    assert says in refused(client.post("/answer", content=body, headers=headers), status)


def test_a_wrong_form_gets_the_reason(shared: tuple[httpx.Client, StandIn]) -> None:
    client, _ = shared
    assert "question" in refused(upload(client, picture(), question=""), 422)
    assert "not supported" in refused(upload(client, picture(), image_url="http://web.test/"), 422)
    assert "larger than 100000" in refused(upload(client, bytes(100_001)), 413)
    assert "not an image" in refused(upload(client, b"hello"), 415)
    form = {"question": (None, "What?")}
    assert "as a file" in refused(client.post("/answer", files=form), 422)
    broken = {"content-type": "multipart/form-data"}
    assert "form" in refused(client.post("/answer", content=b"x", headers=broken), 400)
    assert "send JSON" in refused(client.post("/answer", content=b"x"), 415)


@pytest.mark.parametrize(
    ("failure", "status", "says"),
    [
        ((400, "The image is too wide."), 400, "SGLang refuses the request: The image is too wide"),
        ((404, {"error": {"message": "gone"}}), 400, "gone"),
        ((503, "The request queue is full."), 503, "busy: The request queue is full"),
        ((500, "Internal server error: CUDA"), 502, "SGLang failed on this request (500)"),
        ((401, {"error": "Unauthorized"}), 503, "refuses this server's key"),
        ((200, {"choices": []}), 502, "unexpected response"),
    ],
)
def test_sglangs_errors_become_clear_messages(
    shared: tuple[httpx.Client, StandIn], failure: tuple[int, Any], status: int, says: str
) -> None:
    client, sglang = shared
    sglang.failure = failure
    try:
        response = client.post("/answer", json=ASK)
    finally:
        sglang.failure = None
    assert says in refused(response, status)
    assert ("retry-after" in response.headers) == (status == 503)


def test_without_a_ready_sglang_requests_are_503_with_the_reason(web: int) -> None:
    with stand_in() as sglang:
        sglang.loading = True
        with vision(sglang, web) as client:
            until(lambda: "still loading" in client.get("/ready").text)
            response = client.post("/answer", json=ASK)
            assert "still loading its model" in refused(response, 503)
            assert int(response.headers["retry-after"]) >= 1
            health = client.get("/health").json()
            assert (health["status"], health["model_loaded"]) == ("healthy", False)
            sglang.loading = False
            until(lambda: client.get("/ready").status_code == 200)
            health = client.get("/health").json()
            assert (health["model_loaded"], health["model"]) == (True, "qwen2-vl")
            assert client.post("/answer", json=ASK).status_code == 200
            sglang.takes_images = False
            until(lambda: "accepts no images" in client.get("/ready").text)
            sglang.takes_images = True
            until(lambda: client.get("/ready").status_code == 200)
    absent = StandIn()
    with socket.create_server(("127.0.0.1", 0)) as free:
        absent.url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with vision(absent, web) as client:
        until(lambda: "does not answer" in client.get("/ready").text)
        assert "not started yet" in refused(client.post("/answer", json=ASK), 503)


def test_disconnecting_cancels_at_sglang_and_the_queue_is_bounded(web: int) -> None:
    with asked(web, max_running=1, max_queue=1) as (client, sglang):
        sglang.held = True
        leaving = [send(client, "/answer", json.dumps(ASK).encode()) for _ in range(2)]
        until(lambda: sglang.waiting == 1)
        until(lambda: "trainyard_serving_queue_depth 1.0" in client.get("/metrics").text)
        full = client.post("/answer", json=ASK)
        assert "too many requests" in refused(full, 429)
        assert int(full.headers["retry-after"]) >= 1
        leaving[1].close()  # from the queue
        until(lambda: "trainyard_serving_queue_depth 0.0" in client.get("/metrics").text)
        leaving[0].close()
        until(lambda: sglang.cancelled == 1)
        sglang.held = False
        assert client.post("/answer", json=ASK).status_code == 200


def test_a_body_that_does_not_arrive_times_out(web: int) -> None:
    with asked(web, body_seconds=0.2) as (client, _):
        peer = send(client, "/answer", b"{", length=50)
        assert peer.recv(12) == b"HTTP/1.1 408"
        peer.close()


def test_the_time_for_fetching_does_not_limit_the_time_for_receiving(web: int) -> None:
    with asked(web, fetch_seconds=1e-9) as (client, _):
        uri = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
        body = json.dumps(ASK | {"image_url": uri}).encode()
        with send(client, "/answer", body[:9], length=len(body)) as peer:
            in_progress = "trainyard_serving_requests_in_progress 1.0"
            until(lambda: in_progress in client.get("/metrics").text)
            peer.sendall(body[9:])
            assert peer.recv(12) == b"HTTP/1.1 200"


def test_a_slow_fetch_times_out(web: int) -> None:
    with asked(web, page_seconds=0.2) as (client, _):
        for page in ("drip", "drip-headers", "silence", "endless-continue"):
            response = client.post("/answer", json=ASK | {"image_url": f"http://web.test/{page}"})
            assert "took longer than 0.2 s" in refused(response, 422)


def test_an_answer_that_does_not_arrive_times_out(web: int) -> None:
    with asked(web, answer_seconds=0.2) as (client, sglang):
        sglang.held = True
        assert "within 0.2 s" in refused(upload(client, picture()), 504)


def test_answers_need_the_api_key_and_sglang_gets_its_own(web: int) -> None:
    with stand_in() as sglang:
        sglang.api_key = "inner"
        with vision(sglang, web, api_key="outer", sglang_api_key="wrong") as client:
            until(lambda: "set --sglang-api-key" in client.get("/ready").text)
        with vision(sglang, web, api_key="outer", sglang_api_key="inner") as client:
            until(lambda: client.get("/ready").status_code == 200)
            assert client.post("/answer", json=ASK).status_code == 401
            client.headers["authorization"] = "Bearer outer"
            assert client.post("/answer", json=ASK).status_code == 200
            assert client.get("/").status_code == 200
