"""Scripts that `import trainyard`, as one process beside a worker's agent."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from trainyard_agent.report import Report
from trainyard_agent.server import ReportServer

SDK = Path(__file__).parents[3] / "sdk"


def agent_server() -> Iterator[ReportServer]:
    """The part of an agent that a script reports to."""
    found = ReportServer(Report("mine", 3), lambda: 2)
    found.serve("127.0.0.1", 0)
    yield found
    found.close()


def variables(server: ReportServer, directory: Path) -> dict[str, str]:
    """The environment of a rank."""
    run = {"TRAINYARD_RUN": "mine", "TRAINYARD_ATTEMPT": "3", "TRAINYARD_RUN_DIR": str(directory)}
    return server.variables(directory) | run


def start(
    program: str, variables: dict[str, str], python: str = sys.executable
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [python, "-c", program],
        env={**os.environ, "PYTHONPATH": str(SDK), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
