"""Too many requests, clients that disconnect, and stopping."""

import json
import re
from pathlib import Path
from typing import Any

import httpx

from tests.patience import until
from tests.support.serving.servers import loaded, send

PATH = "/v1/completions"
ENDLESS = {"prompt": "a", "max_tokens": 10**9}


def metric(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.M)
    return float(found[1]) if found else 0


def queue_depth(client: httpx.Client) -> float:
    return metric(client, "trainyard_serving_queue_depth")


def served(client: httpx.Client, code: int) -> float:
    return metric(
        client, f'trainyard_serving_requests_total{{code="{code}",route="/v1/completions"}}'
    )


def test_a_full_queue_is_a_429_and_disconnecting_makes_room(run_dir: Path) -> None:
    settings: dict[str, Any] = {"run_dir": run_dir, "max_queue": 1, "max_batch_size": 1}
    settings["max_tokens"] = 10**9
    small = b'{"prompt": "a", "max_tokens": 1}'
    with loaded(**settings) as client:
        with client.stream("POST", PATH, json=ENDLESS | {"stream": True}) as endless:
            lines = endless.iter_lines()
            next(lines)  # the model is busy, for ever
            waiting = send(client, PATH, small)
            until(lambda: queue_depth(client) == 1)

            full = client.post(PATH, json={"prompt": "a"})
            assert full.status_code == 429
            assert 1 <= int(full.headers["retry-after"]) <= 60
            assert full.json()["error"]["code"] == "queue_full"
            # Refused before it is read, so that too much costs next to nothing.
            assert client.post("/v1/chat/completions", content=b"{").status_code == 429
            assert client.get("/health").status_code == 200  # the event loop is free

            waiting.close()  # leaves the queue before its turn
            until(lambda: queue_depth(client) == 0)
            until(lambda: served(client, 499) == 1)
            waiting = send(client, PATH, small)
            until(lambda: queue_depth(client) == 1)
        # The endless stream's client is gone: its computation ends, and the next is answered.
        assert waiting.recv(12) == b"HTTP/1.1 200"
        waiting.close()


def test_disconnecting_cancels_an_answer_that_does_not_stream(run_dir: Path) -> None:
    with loaded(run_dir=run_dir, max_tokens=10**9) as client:
        before = metric(client, "trainyard_serving_generated_tokens_total")
        leaving = send(client, PATH, json.dumps(ENDLESS).encode())
        until(lambda: metric(client, "trainyard_serving_generated_tokens_total") > before)
        leaving.close()
        until(lambda: served(client, 499) == 1)
        assert client.post(PATH, json={"prompt": "a"}).status_code == 200


def test_stopping_ends_overdue_requests_and_joins_the_threads(run_dir: Path) -> None:
    with loaded(run_dir=run_dir, max_tokens=10**9) as client:
        peer = send(client, PATH, json.dumps(ENDLESS).encode())
        until(lambda: metric(client, "trainyard_serving_generated_tokens_total") > 0)
    # `loaded` has joined the server: it did not wait for the endless answer.
    assert not peer.recv(12).startswith(b"HTTP/1.1 200")
    peer.close()
