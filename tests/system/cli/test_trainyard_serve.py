"""`trainyard serve` and `trainyard dashboard`: what they print works, and Ctrl-C ends them."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests import patience
from tests.support.dashboard.home import write_run
from tests.support.serving.embed_server import SIZE, write_encoder
from tests.support.serving.models import write_manifest
from trainyard_api.checkpoint import MODELS, step_name

TRAINYARD = [sys.executable, "-m", "trainyard_cli.main"]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=patience.SECONDS) as client:
        yield client


@contextmanager
def started(home: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command of `trainyard`, whose output can be read as it comes."""
    with subprocess.Popen(
        [*TRAINYARD, *words],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TRAINYARD_HOME": str(home)},
        # Where these tests run in a shell's background, SIGINT is ignored, and children inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as command:
        try:
            yield command
        finally:
            command.kill()


def test_serve_prints_a_page_and_a_command_that_work(
    run_dir: Path, tmp_path: Path, http: httpx.Client
) -> None:
    run = tmp_path / "runs" / "shakespeare"
    shutil.copytree(run_dir, run / "data")
    (run / "run.json").write_text(json.dumps({"spec": {"recipe": "char-gpt"}}))
    with started(tmp_path, "serve", "shakespeare", "--port", "0") as command:
        assert command.stdout
        said = []
        for line in command.stdout:
            said.append(line)
            if "curl" in line:
                break
        words = shlex.split(said[-1])
        headers = dict([words[3].split(": ")])
        answer = http.post(words[1], content=words[-1], headers=headers)
        assert answer.json()["usage"]["completion_tokens"] == 64
        page = said[-2].split()[-1]
        assert http.get(page).headers["content-type"].startswith("text/html")
        command.send_signal(signal.SIGINT)
        assert command.wait(patience.SECONDS) == 0


@pytest.mark.parametrize(("flags", "size"), [(["--app", "embed"], 32), ([], SIZE)])
def test_prompt_prints_the_beginning_of_an_embedding(
    run_dir: Path, tmp_path: Path, flags: list[str], size: int
) -> None:
    """Of a causal model if it is asked for, and of an encoder by its files."""
    run = tmp_path / "runs" / "words"
    model = run / "data" / MODELS / step_name(1)
    if flags:
        shutil.copytree(run_dir, run / "data")
    else:
        write_encoder(model)
        write_manifest(model, recipe="")
    (run / "run.json").write_text(json.dumps({"spec": {"command": ["train"]}}))
    done = subprocess.run(
        [*TRAINYARD, "serve", "words", "--prompt", "To be", *flags],
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
        env=os.environ | {"TRAINYARD_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{size} dimensions: ")


def test_dashboard_prints_its_address_and_shows_the_runs(
    tmp_path: Path, http: httpx.Client
) -> None:
    write_run(tmp_path, "shakespeare")
    with started(tmp_path, "dashboard", "--port", "0", "--no-browser") as command:
        assert command.stdout
        url = command.stdout.readline().split()[4]
        assert http.get(url).headers["content-type"].startswith("text/html")
        (run,) = http.get(f"{url}/api/runs").json()["runs"]
        assert run["name"] == "shakespeare"
        command.send_signal(signal.SIGINT)
        assert command.wait(patience.SECONDS) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_wrong_flag_of_the_dashboard_is_one_line(tmp_path: Path) -> None:
    command = [*TRAINYARD, "dashboard", "--port", "0", "--demo-url", "localhost:8000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience.SECONDS)
    assert done.returncode == 2
    assert "--demo-url: String should match pattern" in done.stderr
    assert "Traceback" not in done.stderr
