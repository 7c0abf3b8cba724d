"""SIGTERM (suspended, evicted, reclaimed): the step is saved, by all ranks, and nothing is lost."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests import patience
from tests.support.trainer.ranks import RankServer
from trainyard_api.checkpoint import CHECKPOINTS
from trainyard_api.job import TrainerJob
from trainyard_storage.checkpoints import newest_valid

MakeJob = Callable[..., TrainerJob]
ENDLESS = {"max_steps": 100_000, "eval_steps": 0}
NEVER = {"checkpoint": {"everySteps": 100_000}}


@pytest.fixture(autouse=True)
def _observer(rank_server: RankServer) -> None:
    rank_server.preload("tests.support.trainer.observer")


def patient(seconds: float = patience.SECONDS) -> dict[str, str]:
    """How long a rank that was asked to stop may be without progress."""
    return {"PATIENCE": str(seconds)}


@pytest.mark.parametrize(
    ("strategy", "signalled", "ranks"),
    [("ddp", [0], 1), ("ddp", [0, 1], 2), ("ddp", [1], 2), ("fsdp", [0], 2)],
)
def test_all_ranks_save_the_same_step_though_one_got_the_signal(
    make_job: MakeJob, launch: Any, train: Any, strategy: str, signalled: list[int], ranks: int
) -> None:
    job = make_job(NEVER | {"strategy": strategy}, **ENDLESS)
    run = launch(job, ranks, env=patient())
    run.wait_for_step(5)
    for rank in signalled:
        os.kill(run.pids[rank], signal.SIGTERM)
    # As if nothing had been done: the program that started them sees them end by the signal.
    assert run.wait(terminate=False) == [-signal.SIGTERM] * ranks
    assert run.err == ""
    assert list(run.folder.glob("error-*")) == []
    _, manifest, skipped = newest_valid(run.run_dir / CHECKPOINTS)
    assert manifest
    assert not skipped
    last = run.out.splitlines()[-1]
    assert last.startswith(f"SIGTERM: stopped after step {manifest.step} of 100000, which is saved")
    assert manifest.step == max(run.losses())  # not one step is lost
    if len(signalled) < ranks:  # only they know which ranks got it
        assert last.endswith(f"; only rank {signalled[0]} got the signal")
        assert run.error_message() == f"StoppedError: {last}"
    else:
        assert not (run.folder / "result.json").exists()

    config = job.config | {"max_steps": manifest.step + 2, "lr_decay_steps": 100_000}
    again = job.model_copy(update={"attempt": 2, "config": config})
    assert train(again, ranks).result["resumedFromStep"] == manifest.step


def test_a_rank_that_loses_its_peer_while_it_stops(make_job: MakeJob, launch: Any) -> None:
    """What torchrun does when a rank dies: it tells the others to end. They have nothing to add.

    About once in a thousand times gloo misses that a peer is gone, and its waitSend returns only
    at the process group's timeout: then the rank exits without words, as a stuck one does.
    """
    run = launch(make_job(NEVER, **ENDLESS), ranks=2, env=patient(10))
    run.wait_for_step(5)
    os.kill(run.pids[1], signal.SIGSTOP)
    os.kill(run.pids[0], signal.SIGTERM)
    os.kill(run.pids[1], signal.SIGKILL)
    code, killed = run.wait(terminate=False)
    assert (killed, run.err) == (-signal.SIGKILL, "")
    if code != 128 + signal.SIGTERM:
        assert code == -signal.SIGTERM
        assert run.out.splitlines()[-1].startswith("SIGTERM: stopped in step ")


def test_a_stuck_rank_exits(make_job: MakeJob, launch: Any) -> None:
    """Its peer makes no progress and the network reports no error."""
    run = launch(make_job(NEVER, **ENDLESS), ranks=2, env=patient(0.2))
    run.wait_for_step(5)
    os.kill(run.pids[1], signal.SIGSTOP)
    os.kill(run.pids[0], signal.SIGTERM)
    run.wait_until(lambda: not run.running(run.pids[0]), "rank 0 ends")
    assert run.codes[run.pids[0]] == 128 + signal.SIGTERM


def test_a_slow_step_is_finished_and_saved(make_job: MakeJob, launch: Any) -> None:
    """Longer than a rank may be stuck where steps are fast."""
    run = launch(make_job(NEVER, **ENDLESS), ranks=2, env=patient(0.2) | {"SLOW": "1"})
    run.wait_for_step(4)
    for pid in run.pids:
        os.kill(pid, signal.SIGTERM)
    assert run.wait(terminate=False) == [-signal.SIGTERM] * 2
    _, manifest, _ = newest_valid(run.run_dir / CHECKPOINTS)
    assert manifest
    assert manifest.step == max(run.losses()) >= 4
