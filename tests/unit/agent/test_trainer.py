"""The agent of a recipe passes on what the trainer's rank 0 serves."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.patience import until
from tests.ports import free_port
from trainyard_agent.server import ReportServer
from trainyard_agent.trainer import TrainerReport
from trainyard_agent.usage import RankUsage

# A trainer's server, as its rank 0 starts it.
TRAINER = """
import sys, time
from trainyard_api.job import TrainerJob
from trainyard_trainer.reporting.http_report import ReportServer
port = int(sys.argv[1])
job = TrainerJob(run="mine", recipe="gpt", run_dir="/x", report_port=port, attempt=2)
server = ReportServer(job, 2)
server.update(phase="training", step=7)
server.metrics.step.set(7)
server.serve(port)
print("serves", flush=True)
time.sleep(600)
"""


@contextmanager
def trainer(port: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", TRAINER, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "serves\n"
        yield process
        process.kill()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def agent(port: int) -> Iterator[ReportServer]:
    usages = [RankUsage(0, 1.5, 2**20)]
    server = ReportServer(TrainerReport("mine", port), lambda: 2, usages=lambda: usages)
    server.serve("127.0.0.1", 0)
    yield server
    server.close()


def ask(server: ReportServer, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_its_report_and_its_series_with_what_the_ranks_use(agent: ReportServer, port: int) -> None:
    assert ask(agent, "/progress")[0] == 404
    with trainer(port):
        code, text = ask(agent, "/progress")
        assert code == 200
        document = json.loads(text)
        assert (document["run"], document["attempt"], document["step"]) == ("mine", 2, 7)
        assert "usage" not in document
        agent.report.saw_usage({"ranks": 2}, 2**20)
        assert json.loads(ask(agent, "/progress")[1])["usage"] == {"ranks": 2}
        series = ask(agent, "/metrics")[1]
    assert 'trainyard_step{run="mine"} 7.0' in series
    assert 'trainyard_agent_rank_memory_bytes{run="mine",rank="0"} 1048576' in series
    assert ask(agent, "/progress")[0] == 404  # it has ended


def test_a_stopped_rank_0_is_not_taken_for_one_that_has_not_started(
    agent: ReportServer, port: int
) -> None:
    with trainer(port) as process:
        process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{process.pid}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it is stopped")
        assert ask(agent, "/progress") == (504, "rank 0 does not answer")
        assert "trainyard_agent_rank_memory_bytes" in ask(agent, "/metrics")[1]
        os.kill(process.pid, signal.SIGCONT)
        until(lambda: ask(agent, "/progress")[0] == 200, "it answers")


def test_a_trainer_has_nothing_to_post(agent: ReportServer, tmp_path: Path) -> None:
    assert agent.variables(tmp_path) == {}
    agent.write_result()
    assert list(tmp_path.iterdir()) == []
