"""start.sh: with the image's own Python, or without one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

START = Path(__file__).parents[3] / "agent" / "start.sh"
TOOLS = ("sh", "mkdir", "touch")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A directory with programs, as an image's PATH has them: no Python yet."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for tool in TOOLS:
        (programs / tool).symlink_to(str(shutil.which(tool)))
    return programs


def run(image: Path, *command: str) -> subprocess.CompletedProcess[str]:
    worker = image.parent / "worker"
    env = {"PATH": str(image), "TRAINYARD_WORKER_DIR": str(worker)}
    env["TRAINYARD_TERMINATION_LOG"] = str(image.parent / "log")
    words = ["sh", str(START), str(worker), *command]
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_the_agent_starts_the_command_with_the_images_python(image: Path) -> None:
    (image / "python3").symlink_to(sys.executable)
    done = run(image, "sh", "-c", 'echo "$1"; exit 3', "sh", "two words")
    assert (done.returncode, done.stdout, done.stderr) == (3, "two words\n", "")
    assert json.loads((image.parent / "log").read_text())["exitCode"] == 3


@pytest.mark.parametrize("old", [False, True])
def test_without_a_python_that_is_new_enough_the_command_runs_alone(image: Path, old: bool) -> None:
    if old:
        python = image / "python3"
        python.write_text("#!/bin/sh\nexit 1\n")
        python.chmod(0o755)
    done = run(image, "sh", "-c", 'echo "$1"; exit 3', "sh", "two words")
    assert (done.returncode, done.stdout) == (3, "two words\n")
    assert done.stderr.startswith("trainyard: no Python 3.8 or newer in this image: ")
    assert not (image.parent / "log").exists()


def test_a_message_that_cannot_be_written_does_not_change_the_exit_code(image: Path) -> None:
    (image / "python3").symlink_to(sys.executable)
    (image.parent / "log").mkdir()
    done = run(image, "sh", "-c", "exit 3")
    assert done.returncode == 3
    assert "Is a directory" in done.stderr
    assert os.listdir(image.parent / "log") == []
