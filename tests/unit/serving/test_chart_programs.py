"""The programs that charts/serving runs in its pods, against real servers."""

import os
import subprocess
import sys
from pathlib import Path

import httpx

from tests import patience
from tests.patience import until
from tests.support.serving.embed_server import SIZE, embed_server, write_encoder
from tests.support.serving.servers import serving
from trainyard_api.checkpoint import MODELS, step_name
from trainyard_storage.checkpoints import digest

FILES = Path(__file__).parents[3] / "charts" / "serving" / "files"
KEYS = "first-key-of-two,second-key-of-two"


def run(program: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", (FILES / program).read_text(), *args],
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
        env=os.environ | env,
    )


def predict(
    client: httpx.Client, app: str, ask: str, **env: str
) -> subprocess.CompletedProcess[str]:
    address = {"HOST": str(client.base_url.host), "PORT": str(client.base_url.port)}
    return run("predict.py", APP=app, ASK=ask, **address, **env)


def test_helm_test_asks_for_a_completion(client: httpx.Client, run_dir: Path) -> None:
    result = predict(client, "generate", "a", RUN="shakespeare")
    assert result.returncode == 0, result.stderr
    model = digest(run_dir / MODELS / step_name(500))
    assert result.stdout.startswith(f"shakespeare {model} answered '")


def test_helm_test_asks_for_an_embedding(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    with embed_server(model=tmp_path) as client:
        result = predict(client, "embed", "word1")
    assert result.returncode == 0, result.stderr
    assert f" answered with {SIZE} dimensions" in result.stdout


def test_helm_test_fails_when_another_run_answers(client: httpx.Client) -> None:
    result = predict(client, "generate", "a", RUN="milton")
    assert result.returncode == 1
    assert "the model is of run shakespeare" in result.stderr


def test_helm_test_fails_with_the_servers_message(client: httpx.Client) -> None:
    result = predict(client, "generate", "日本語のテスト")
    assert result.returncode == 1
    assert "400" in result.stderr
    assert "unknown_characters" in result.stderr


def test_probe_and_helm_test_send_the_first_key(run_dir: Path) -> None:
    settings = {"api_key": KEYS, "protect_health": True}
    with serving(run_dir=run_dir, **settings) as client:
        client.headers["x-api-key"] = "second-key-of-two"
        until(lambda: client.get("/ready").status_code == 200)
        url = str(client.base_url.join("/ready"))
        assert httpx.get(url, timeout=patience.SECONDS).status_code == 401
        assert run("probe.py", url, TRAINYARD_SERVING_API_KEY=KEYS).returncode == 0
        assert run("probe.py", url, TRAINYARD_SERVING_API_KEY="wrong-key").returncode == 1
        assert predict(client, "generate", "a", API_KEY=KEYS).returncode == 0
