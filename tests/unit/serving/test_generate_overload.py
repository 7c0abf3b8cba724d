"""Too many requests, clients that leave, and stopping."""

import re
import socket
from pathlib import Path
from typing import Any

import httpx

from .conftest import eventually, loaded

ENDLESS = {"prompt": "a", "max_tokens": 10**9}


def metric(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.M)
    return float(found[1]) if found else 0


def post_and_keep(client: httpx.Client, body: bytes) -> socket.socket:
    """Send a request without reading its answer."""
    url = client.base_url
    peer = socket.create_connection((url.host, url.port or 80))
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    peer.sendall(head.encode() + body)
    return peer


def queue_depth(client: httpx.Client) -> float:
    return metric(client, "trainyard_serving_queue_depth")


def served(client: httpx.Client, code: int) -> float:
    return metric(
        client, f'trainyard_serving_requests_total{{code="{code}",route="/v1/completions"}}'
    )


def test_a_full_queue_is_a_429_and_leaving_makes_room(run_dir: Path) -> None:
    settings: dict[str, Any] = {"run_dir": run_dir, "max_queue": 1, "max_batch_size": 1}
    settings["max_tokens"] = 10**9
    small = b'{"prompt": "a", "max_tokens": 1}'
    with loaded(**settings) as client:
        with client.stream("POST", "/v1/completions", json=ENDLESS | {"stream": True}) as endless:
            lines = endless.iter_lines()
            next(lines)  # the model is busy, for ever
            waiting = post_and_keep(client, small)
            eventually(lambda: queue_depth(client) == 1)

            full = client.post("/v1/completions", json={"prompt": "a"})
            assert full.status_code == 429
            assert 1 <= int(full.headers["retry-after"]) <= 60
            assert full.json()["error"]["code"] == "queue_full"
            # Refused before it is read, so that too much costs next to nothing.
            assert client.post("/v1/chat/completions", content=b"{").status_code == 429
            assert client.get("/health").status_code == 200  # the event loop is free

            waiting.close()  # leaves the queue before its turn
            eventually(lambda: queue_depth(client) == 0)
            eventually(lambda: served(client, 499) == 1)
            waiting = post_and_keep(client, small)
            eventually(lambda: queue_depth(client) == 1)
        # The endless stream's client is gone: its computation ends and the next one is answered.
        assert waiting.recv(12) == b"HTTP/1.1 200"
        waiting.close()


def test_leaving_an_answer_that_does_not_stream_cancels_it_too(run_dir: Path) -> None:
    with loaded(run_dir=run_dir, max_tokens=10**9) as client:
        before = metric(client, "trainyard_serving_generated_tokens_total")
        leaver = post_and_keep(client, b'{"prompt": "a", "max_tokens": 1000000000}')
        eventually(lambda: metric(client, "trainyard_serving_generated_tokens_total") > before)
        leaver.close()
        eventually(lambda: served(client, 499) == 1)
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_stopping_ends_what_overstays_and_joins_the_threads(run_dir: Path) -> None:
    with loaded(run_dir=run_dir, max_tokens=10**9) as client:
        peer = post_and_keep(client, b'{"prompt": "a", "max_tokens": 1000000000}')
        eventually(lambda: metric(client, "trainyard_serving_generated_tokens_total") > 0)
    # `loaded` has joined the server: it did not wait for the endless answer.
    assert not peer.recv(12).startswith(b"HTTP/1.1 200")
    peer.close()
