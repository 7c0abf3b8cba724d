"""Starts and ends the processes that send metrics.jsonl to MLflow and TensorBoard.

They are separate processes, so that no step waits for a server, a socket or the GIL.
"""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

from trainyard_trainer.config import TrainConfig
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.reporting.console import Console

DRAIN_TIMEOUT = 10.0  # seconds a finished run waits for unsent records
PACKAGES = {"mlflow": "mlflow-skinny", "tensorboard": "tensorboard"}


def check_report_to(config: TrainConfig) -> None:
    """Raise ConfigError for a tracker that is not installed or has no server."""
    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"config.report_to: {name} is not installed: pip install {PACKAGES[name]},"
                f" or remove {name}"
            )
    if "mlflow" in config.report_to and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(
            "config.report_to: mlflow needs the address of its server: set MLFLOW_TRACKING_URI (in"
            " the shell, or in podTemplate's env), or remove mlflow"
        )


class TrackerProcesses:
    """The processes that follow this attempt's metrics.jsonl (rank 0)."""

    def __init__(self, run_dir: Path, config: TrainConfig, console: Console) -> None:
        self.run_dir = run_dir
        self._console = console
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in dict.fromkeys(config.report_to):
            command = [*_command(run_dir, name), "--follow", str(os.getpid())]
            try:
                self._processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            except OSError as error:
                console.warn(f"nothing is sent to {name}: {error.strerror}; training continues")

    def finish(self) -> None:
        """Wait up to DRAIN_TIMEOUT until everything is sent; else print how to send the rest."""
        deadline = time.monotonic() + DRAIN_TIMEOUT
        for name, process in self._processes.items():
            try:
                unsent = process.wait(timeout=max(0, deadline - time.monotonic())) != 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                unsent = True
            if unsent:
                command = " ".join(["python", *_command(self.run_dir, name)[1:]])
                self._console.warn(
                    f"{name} does not have the whole run; to send the rest: {command}"
                )
        self._processes = {}


def _command(run_dir: Path, name: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "trainyard_trainer.reporting.trackers",
        str(run_dir),
        name,
    ]
