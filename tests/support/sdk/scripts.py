"""Scripts that `import trainyard`: one process beside a worker's agent, or all ranks of a run."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.patience import until
from tests.ports import free_port
from tests.support.trainer.ranks import RankServer
from trainyard_agent.report import Report
from trainyard_agent.server import ReportServer

SDK = Path(__file__).parents[3] / "sdk"
TRAIN = Path(__file__).with_name("train.py")


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


def run_ranks(
    server: RankServer, script: Path, options: list[str], variables: dict[str, str], ranks: int = 1
) -> tuple[list[int], str, str]:
    """Run every rank of a script, as torchrun does, until all have ended.

    Returns their exit codes, what rank 0 wrote on stdout, and all on stderr.
    """
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    store |= {"WORLD_SIZE": str(ranks), **variables}
    folder = Path(tempfile.mkdtemp(dir=variables["TRAINYARD_RUN_DIR"]))
    pids = []
    for rank in range(ranks):
        request = {
            "script": str(script),
            "argv": options,
            "env": store | {"RANK": str(rank)},
            "out": str(folder / f"out-{rank}"),
            "err": str(folder / f"err-{rank}"),
        }
        pids.append(server.ask({"start": request})["pid"])
    codes: dict[int, int] = {}

    def ended() -> bool:
        left = [pid for pid in pids if pid not in codes]
        found = server.ask({"poll": left}).items()
        codes.update((int(pid), code) for pid, code in found if code is not None)
        return len(codes) == ranks

    until(ended, "all ranks end")
    errors = "".join((folder / f"err-{rank}").read_text() for rank in range(ranks))
    return [codes[pid] for pid in pids], (folder / "out-0").read_text(), errors
