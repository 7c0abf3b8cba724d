"""Which models are exported: during training, for servers that follow the run, and the best."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer.ranks import RankServer
from trainyard_api.checkpoint import CHECKPOINTS, MODELS, step_name
from trainyard_api.golden import GoldenText, read_golden
from trainyard_api.job import TrainerJob
from trainyard_storage.checkpoints import file_sha256, read_manifest, steps, verify

MakeJob = Callable[..., TrainerJob]


def test_exports_during_training_change_no_bit_of_the_run(
    make_job: MakeJob, train: Any, tmp_path: Any
) -> None:
    """With dropout, so that any random number used up would show; sharded, so that all must help,
    while checkpoints are written in the background."""

    def run(name: str, **config: Any) -> Any:
        job = {"run_dir": str(tmp_path / name), "strategy": "fsdp"}
        return train(make_job(job, max_steps=8, **config), ranks=2)

    plain, exporting = run("plain"), run("exporting", export_steps=2)
    assert exporting.losses() == plain.losses()
    (last,) = steps(plain.run_dir / MODELS)
    models = list(steps(exporting.run_dir / MODELS))
    # The last ones stay: a server may be reading the one before the newest.
    names = [path.name for path in models]
    assert names == ["step-00000008", "step-00000006", "step-00000004"]
    weights = [file_sha256(path / "model.safetensors") for path in models]
    assert weights[0] == file_sha256(last / "model.safetensors")
    assert len(set(weights)) == 3
    for directory in models:
        assert verify(directory).total_steps == 8
        golden = read_golden(directory, GoldenText)
        assert golden
        assert len(golden.next_ids) == len(golden.top_logits) == 4


@pytest.mark.parametrize(("strategy", "ranks"), [("ddp", 1), ("fsdp", 2)])
def test_the_best_model_is_exported_as_well(
    make_job: MakeJob,
    train: Any,
    launch: Any,
    tmp_path: Path,
    rank_server: RankServer,
    strategy: str,
    ranks: int,
) -> None:
    """From its checkpoint, once, and also if the run dies between the last model and the best."""
    rank_server.preload("tests.support.trainer.observer")

    def job(name: str, attempt: int = 1, keep_last: int = 1, **config: Any) -> TrainerJob:
        checkpoint = {"everySteps": 2, "keepLast": keep_last}
        run = {"run_dir": str(tmp_path / name), "strategy": strategy, "attempt": attempt}
        # The rate rises until it spoils the model: the best is an early one.
        settings = {"max_steps": 16, "log_steps": 16, "warmup_steps": 16, "learning_rate": 1.0}
        return make_job(run | {"checkpoint": checkpoint}, **settings | config)

    during = train(job("during", keep_last=9, export_steps=4), ranks)
    losses = {line["step"]: line["eval_loss"] for line in during.history() if "eval_loss" in line}
    best = min(losses, key=losses.__getitem__)
    assert best < 16
    evaluated = {
        manifest.step
        for manifest in map(read_manifest, steps(during.run_dir / CHECKPOINTS))
        if "eval_loss" in manifest.metrics
    }
    assert evaluated == {4, 8, 12, 16}, "no checkpoint has the loss of an earlier step"

    killed = launch(job("late"), ranks, env={"KILL": "0:export:1"})
    killed.wait_until(lambda: not killed.running(killed.pids[0]), "rank 0 dies")
    killed.kill()
    models = killed.run_dir / MODELS
    assert [path.name for path in steps(models)] == [step_name(16)]
    late = train(job("late", attempt=2), ranks)
    assert [path.name for path in steps(models)] == [step_name(16), step_name(best)]
    for run in (during, late):
        assert run.result["model"]["step"] == 16
        assert run.result["model"]["evalLoss"] == pytest.approx(losses[16])
        assert run.result["bestModel"]["path"] == f"{MODELS}/{step_name(best)}"
        assert run.result["bestModel"]["evalLoss"] == losses[best]
    weights = f"{MODELS}/{step_name(best)}/model.safetensors"
    assert file_sha256(late.run_dir / weights) == file_sha256(during.run_dir / weights)
    train(job("late", attempt=3), ranks)
    assert [verify(path).attempt for path in steps(models)] == [3, 2]
