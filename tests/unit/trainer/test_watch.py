"""A rank that is stopped, or keeps the others waiting, is named; a slow one is left alone."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch.distributed as dist

from tests.ports import free_port
from tests.support.trainer.ranks import RankServer
from trainyard_api.job import TrainerJob

MakeJob = Callable[..., TrainerJob]
TIMEOUT = 1.5  # seconds; see faulty_rank.SLOW
SEEN = 100  # steps: by then the ranks have heard of each other in training


@pytest.fixture(autouse=True, scope="module")
def faulty_rank(rank_server: RankServer) -> None:
    rank_server.preload("tests.unit.trainer.faulty_rank")


@pytest.fixture
def agent() -> Iterator[dict[str, str]]:
    """A store outside the ranks, as torchrun's agent serves it."""
    port = free_port()
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", port, is_master=True, wait_for_workers=False
    )
    yield {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(port)}
    del store


def forever(make_job: MakeJob, every_steps: int = 100_000) -> TrainerJob:
    """Steps, and checkpoints if asked for, and nothing else."""
    saves = {"checkpoint": {"everySteps": every_steps}}
    return make_job(saves, max_steps=100_000, eval_steps=0, hang_timeout_seconds=TIMEOUT)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named(
    make_job: MakeJob, launch: Any, agent: dict[str, str], stopped: int
) -> None:
    run = launch(forever(make_job), ranks=2, env=agent)
    run.wait_for_step(SEEN)
    os.kill(run.pids[stopped], signal.SIGSTOP)
    codes = run.wait(terminate=False)
    other = 1 - stopped
    assert codes[stopped] == -signal.SIGKILL  # SIGTERM would have to wait until it continues
    assert codes[other] == 1
    first, *stacks = run.err.splitlines()
    says = "rank 1: " if other else ""
    assert first.startswith(f"{says}HangError: rank {stopped} (")
    assert f"pid {run.pids[stopped]}) is stopped: no heartbeat for " in first
    assert f"; rank {other} is in step " in first
    assert "; last seen in step " in first
    assert stacks[0].startswith(f"  rank {stopped} (")
    assert any("trainyard_trainer/loop.py:" in line for line in stacks)
    assert run.error_message(other) == first.removeprefix(says)


@pytest.mark.slow
def test_a_stopped_rank_that_served_the_store_is_named(make_job: MakeJob, launch: Any) -> None:
    run = launch(forever(make_job), ranks=2)
    run.wait_for_step(SEEN)
    os.kill(run.pids[0], signal.SIGSTOP)
    assert run.wait(terminate=False) == [-signal.SIGKILL, 1]
    assert run.err.startswith("rank 1: HangError: rank 0 (")
    assert "is stopped: no heartbeat for " in run.err


@pytest.mark.slow
def test_a_rank_that_skips_a_collective_is_named(make_job: MakeJob, launch: Any) -> None:
    job = forever(make_job, every_steps=8)
    run = launch(job, ranks=2, env={"FAULT": "1:skips a collective"})
    assert run.wait(terminate=False) == [1, 1]
    first = run.err.splitlines()[0]
    assert first.startswith("HangError: no progress for ")
    assert f"rank 1 ({socket.gethostname()}, pid {run.pids[1]}) is not where the others" in first
    assert ": it is in step 17 at " in first
    assert "; rank 0 waits in checkpointing after step 16 at " in first
    # Both write the same error: the reason does not depend on which the operator reads first.
    assert run.error_message(0) == run.error_message(1) == first


def test_a_rank_that_waits_for_its_data_is_named(make_job: MakeJob, launch: Any) -> None:
    run = launch(forever(make_job), ranks=2, env={"FAULT": "1:waits for data"})
    assert run.wait(terminate=False) == [1, 1]
    first, *stacks = run.err.splitlines()
    assert f"pid {run.pids[1]}) holds up the others: it is in step 10 at " in first
    assert "stuck_in_the_data" in first
    assert "rank 0 waits in step 10 at " in first
    assert any("Loop._train_step" in line for line in stacks)


def test_a_single_process_that_hangs_prints_where(make_job: MakeJob, launch: Any) -> None:
    run = launch(forever(make_job), env={"FAULT": "0:waits for data"})
    assert run.wait() == [1]
    assert "hangs in step 10 at " in run.err
    assert "stuck_in_the_data" in run.err


def test_what_is_slow_does_not_hang(make_job: MakeJob, train: Any) -> None:
    """One rank's first step and evaluation, and the disk, take longer than the timeout."""
    saves = {"checkpoint": {"everySteps": 2}}
    job = make_job(saves, max_steps=4, eval_steps=0, hang_timeout_seconds=TIMEOUT)
    run = train(job, ranks=2, env={"FAULT": "1:is slow"})
    assert run.err == ""
    assert run.result["step"] == 4
