"""Each rank's own work in a step, and which rank is named as a straggler."""

import re
import socket
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests import patience
from tests.support.trainer.ranks import RankServer
from trainyard_api.job import TrainerJob
from trainyard_trainer.distributed.step_timer import StepTimer
from trainyard_trainer.reporting.console import Console
from trainyard_trainer.reporting.timing import Slowest, Stragglers, slowest

MakeJob = Callable[..., TrainerJob]
SLOW = 0.05  # seconds; a step of these models takes less than a tenth of it


@pytest.fixture(autouse=True)
def _slow_rank(rank_server: RankServer) -> None:
    rank_server.preload("tests.support.trainer.slow_rank")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_slow_rank_is_named(make_job: MakeJob, launch: Any, strategy: str) -> None:
    job = make_job(
        {"strategy": strategy, "checkpoint": {"everySteps": 100_000}},
        max_steps=100_000,
        eval_steps=0,
        log_steps=10,
    )
    run = launch(job, ranks=2, env={"SLOW_RANK": f"1:{SLOW}"})
    # Had waiting been counted as work, the two would be alike.
    found = run.wait_for_report(
        lambda report: (
            (slow := report.slowest_rank) is not None and slow.rank == 1 and slow.factor >= 1.3
        )
    ).slowest_rank
    assert found.host == socket.gethostname()
    assert found.step_seconds >= SLOW
    url = f"http://127.0.0.1:{run.job.report_port}/metrics"
    with urllib.request.urlopen(url, timeout=patience.SECONDS) as response:
        text = response.read().decode()
    work = dict(re.findall(r'trainyard_rank_step_seconds{rank="(\d)",run="tiny"} (\S+)', text))
    assert sorted(work) == ["0", "1"]
    assert float(work["1"]) >= SLOW
    if strategy == "ddp":
        run.wait_until(lambda: "straggler" in run.err, "the straggler is named")
        assert re.fullmatch(
            rf"warning: rank 1 \({re.escape(found.host)}\) is the straggler: its own work takes"
            r" [\d.]+ s of a step, [\d.]+x the others' median\n",
            run.err,
        )


def test_waiting_is_not_work() -> None:
    timer = StepTimer(torch.device("cpu"))
    moments = iter([0.0, 1.0, 4.0, 5.0, 7.0, 10.0])
    timer._now = lambda: next(moments)  # type: ignore[method-assign]
    timer.wait_begins()  # in an evaluation
    timer.wait_ends()
    timer.begin()
    timer.wait_begins()
    timer.wait_begins()
    timer.wait_ends()
    timer.wait_ends()
    timer.wait_begins()
    timer.wait_ends()
    timer.end()
    (step,) = timer.read()
    assert (step.seconds, step.work) == (10.0, 5.0)
    assert timer.read() == []


def test_the_slowest_is_measured_by_the_others() -> None:
    assert slowest([1.0]) is None
    assert slowest([1.0, 3.0]) == Slowest(rank=1, seconds=3.0, others=1.0)
    assert slowest([1.0, 9.0, 3.0, 2.0]) == Slowest(rank=1, seconds=9.0, others=2.0)


def test_one_slow_interval_is_not_a_straggler_and_a_straggler_is_reported_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stragglers = Stragglers(["a", "b"], Console(enabled=True))
    even, slow = Slowest(0, 1.1, 1.0), Slowest(1, 2.0, 1.0)
    for found in (slow, slow, even, slow, slow):
        stragglers.update(found, steps=10)
    assert capsys.readouterr() == ("", "")
    for found in (slow, slow, slow, even, even, slow, even):
        stragglers.update(found, steps=10)
    out, err = capsys.readouterr()
    assert err == (
        "warning: rank 1 (b) is the straggler: its own work takes 2 s of a step,"
        " 2.0x the others' median\n"
    )
    assert out == ""
    for _ in range(4):
        stragglers.update(even, steps=10)
    assert capsys.readouterr() == ("rank 1 is as fast as the others again\n", "")


def test_a_difference_of_no_consequence_is_not_reported(capsys: pytest.CaptureFixture[str]) -> None:
    stragglers = Stragglers(["a", "b"], Console(enabled=True))
    for _ in range(100):
        stragglers.update(Slowest(1, 0.02, 0.01), steps=1)
    assert capsys.readouterr() == ("", "")
