"""The command line as a user meets it, in its own process."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import patience
from tests.patience import until
from trainyard_api.checkpoint import MODELS, step_name
from trainyard_storage.checkpoints import digest

COMMAND = [sys.executable, "-m", "trainyard_serving"]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args], capture_output=True, text=True, timeout=patience.SECONDS
    )


def test_verify_prints_step_and_digest(run_dir: Path) -> None:
    result = run("verify", "--run-dir", str(run_dir))
    model = run_dir / MODELS / step_name(500)
    assert result.returncode == 0
    assert result.stdout == (f"verified {model}: run shakespeare, step 500, {digest(model)}\n")


def test_verify_links_to_the_model(run_dir: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(tmp_path)  # an earlier start of the pod made one
    assert run("verify", "--run-dir", str(run_dir), "--link", str(link)).returncode == 0
    assert link.resolve() == (run_dir / MODELS / step_name(500)).resolve()
    assert run("verify", "--model", str(link)).returncode == 0


def test_verify_says_in_one_line_why_not(tmp_path: Path) -> None:
    result = run("verify", "--run-dir", str(tmp_path / "gone"))
    assert result.returncode == 1
    assert result.stderr == f"trainyard_serving: {tmp_path / 'gone'}: no such run directory\n"


def test_a_port_in_use_is_one_line(run_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("generate", "--run-dir", str(run_dir), "--port", port)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert "--port" in line


@pytest.fixture
def server(run_dir: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "generate", "--run-dir", str(run_dir), "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.wait()


def test_the_log_has_a_line_for_each_request_with_its_id(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "generate", "--run-dir", str(tmp_path), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    base = process.stdout.readline().removeprefix("listening on ").strip()
    httpx.get(f"{base}/v1/nothing?key=sk-secret", headers={"x-request-id": "mine"})
    process.terminate()
    _, log = process.communicate(timeout=patience.SECONDS)
    line = r"^\S+ \S+ INFO \[mine\] GET /v1/nothing 404 \d\.\d{3} s \d+ bytes$"
    assert re.search(line, log, re.MULTILINE), log
    assert "sk-secret" not in log


def test_a_connection_may_be_idle_for_a_while(server: subprocess.Popen[str]) -> None:
    """uvicorn's own limit is 5 s, shorter than that of any proxy before it."""
    assert server.stdout
    address = server.stdout.readline().removeprefix("listening on http://").strip()
    client = http.client.HTTPConnection(address, timeout=patience.SECONDS)
    for idle in (6, 0):
        client.request("GET", "/health")
        client.getresponse().read()
        time.sleep(idle)
    client.close()


@pytest.mark.slow
def test_sigterm_lets_a_stream_finish_and_ends_with_status_0(
    server: subprocess.Popen[str],
) -> None:
    assert server.stdout
    base = server.stdout.readline().removeprefix("listening on ").strip()
    with httpx.Client(base_url=base, timeout=patience.SECONDS) as client:
        until(lambda: client.get("/ready").status_code == 200)
        body = {"prompt": "a", "max_tokens": 400, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            server.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in [first, *rest[:-1]]]
    assert sum(len(event["choices"][0]["text"]) for event in events) == 400
    assert server.wait(patience.SECONDS) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{base}/health")
