"""`trainyard serve` on a real model: what it prints works, and Ctrl-C ends it."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.system

COMMAND = [sys.executable, "-m", "trainyard_operator.cli", "serve"]


def test_serve_prints_a_page_and_a_command_that_work(run_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "shakespeare"
    shutil.copytree(run_dir, run / "data")
    (run / "run.json").write_text(json.dumps({"spec": {"recipe": "char-gpt"}}))
    with subprocess.Popen(
        [*COMMAND, "shakespeare", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TRAINYARD_HOME": str(tmp_path)},
        # Where these tests run in a shell's background, SIGINT is ignored, and children inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as command:
        try:
            assert command.stdout
            said = []
            for line in command.stdout:
                said.append(line)
                if "curl" in line:
                    break
            words = shlex.split(said[-1])
            answer = httpx.post(words[1], content=words[-1], headers=dict([words[3].split(": ")]))
            assert answer.json()["usage"]["completion_tokens"] == 64
            page = said[-2].split()[-1]
            assert httpx.get(page).headers["content-type"].startswith("text/html")
            command.send_signal(signal.SIGINT)
            assert command.wait(60) == 0
        finally:
            command.kill()
