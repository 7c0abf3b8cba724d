"""A machine of its own for `trainyard` commands: a home below tmp_path, and real processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import patience
from tests.patience import until
from trainyard_agent import procfs
from trainyard_local.store import HOME_ENV


class Box:
    """Runs the command line in a directory of its own and looks at what it leaves.

    Attributes:
        folder: where the next command is called.
    """

    def __init__(self, path: Path) -> None:
        self.path = self.folder = path
        self.home = path / "home"
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **env: str) -> "subprocess.Popen[str]":
        """A `trainyard` command in the background; its output is kept together."""
        command = subprocess.Popen(
            [sys.executable, "-m", "trainyard_cli.main", *arguments],
            cwd=self.folder,
            env={**os.environ, HOME_ENV: str(self.home), "OMP_NUM_THREADS": "1", **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(command)
        return command

    def end(self, command: "subprocess.Popen[str]") -> tuple[int, str]:
        """(exit status, output) of a started command once it ends."""
        output, _ = command.communicate(timeout=patience.SECONDS)
        return command.returncode, output

    def cli(self, *arguments: str, **env: str) -> tuple[int, str]:
        """(exit status, output) of a `trainyard` command."""
        return self.end(self.start(*arguments, **env))

    def manifest(self, name: str, **spec: Any) -> str:
        """Write a manifest; returns its file name. Attempts follow each other at once."""
        run = {
            "apiVersion": "trainyard.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": name},
            "spec": {"backoff": {"initialSeconds": 0}, **spec},
        }
        (self.path / f"{name}.yaml").write_text(yaml.safe_dump(run))
        return f"{name}.yaml"

    def script(self, name: str, text: str) -> str:
        """Write an executable script; returns its absolute path."""
        path = self.path / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def run_dir(self, name: str) -> Path:
        return self.home / "runs" / name

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((self.run_dir(name) / "run.json").read_text())["status"]
        return status

    def processes(self, name: str) -> list[int]:
        """Every living process of the run's workers, agents included."""
        workers = (self.run_dir(name) / "workers").glob("*-*")
        return [pid for worker in workers for pid in procfs.worker_processes(worker)]

    def agent_pid(self, name: str, worker: str = "1-0") -> int:
        """Process id of a worker's agent, once it has started."""
        lock = self.run_dir(name) / "workers" / worker / "lock"
        until(lambda: lock.is_file() and lock.read_text())
        return int(json.loads(lock.read_text())["pid"])

    def close(self) -> None:
        """End all commands and the workers that outlive them."""
        for command in self.started:
            command.kill()
            command.wait()
            if command.stdout:
                command.stdout.close()
        for worker in self.home.glob("runs/*/workers/*-*"):
            procfs.kill_worker(worker)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.close()
