"""`make` installs torch's CPU build where there is no GPU and its index answers in time."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from dev.torch_backend import PROBE_SECONDS, choose

CPU = ["--torch-backend=cpu"]


@pytest.fixture
def index() -> Iterator[str]:
    """An index that answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/cpu/torch/" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_request_decides(index: str) -> None:
    assert choose("cpu", has_gpu=True)[0] == CPU
    assert choose("pypi", has_gpu=False, index=f"{index}/cpu")[0] == []
    with pytest.raises(SystemExit, match="TORCH_INDEX=gpu: use cpu or pypi"):
        choose("gpu", has_gpu=False)


def test_a_gpu_gets_the_cuda_build(index: str) -> None:
    options, reason = choose("", has_gpu=True, index=f"{index}/cpu")
    assert (options, "has an NVIDIA GPU" in reason) == ([], True)


def test_an_index_that_answers_gives_the_cpu_build(
    index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dev.torch_backend.PROBE_SECONDS", 60.0)  # the test's machine may be slow
    assert choose("", has_gpu=False, index=f"{index}/cpu")[0] == CPU
    options, reason = choose("", has_gpu=False, index=f"{index}/empty")
    assert (options, "WARNING: no NVIDIA GPU here" in reason) == ([], True)


def test_an_index_that_does_not_answer_is_given_up_loudly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        before = time.monotonic()
        options, reason = choose(
            "", has_gpu=False, index=f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
    assert options == []
    assert "WARNING: no NVIDIA GPU here, but http://127.0.0.1" in reason
    assert time.monotonic() - before < PROBE_SECONDS + 30
