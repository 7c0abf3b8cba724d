"""Whole runs in real processes: their files, and that results are reproducible."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.soak.families import FAMILIES
from tests.soak.kill import Case, Kill, Soak, delivered
from tests.support.trainer.ranks import RankServer
from trainyard_api.checkpoint import CHECKPOINTS, MODELS
from trainyard_api.job import TrainerJob
from trainyard_api.progress import ProgressReport
from trainyard_storage.checkpoints import file_sha256, verify

MakeJob = Callable[..., TrainerJob]


def weights_digest(run_dir: Path, step: int) -> str:
    return file_sha256(run_dir / MODELS / f"step-{step:08d}" / "model.safetensors")


def test_two_ranks_train_checkpoint_and_export(make_job: MakeJob, train: Any) -> None:
    run = train(make_job(), ranks=2, picture=True)
    losses = run.losses()
    assert sorted(losses) == list(range(1, 13))
    assert losses[12] < losses[1] - 0.5

    steps = sorted(path.name for path in (run.run_dir / CHECKPOINTS).iterdir())
    assert steps == ["step-00000004", "step-00000008", "step-00000012"]
    manifest = verify(run.run_dir / CHECKPOINTS / "step-00000012")
    assert (manifest.step, manifest.world_size, manifest.recipe) == (12, 2, "char-gpt")
    assert manifest.metrics["eval_loss"] < math.log(90)
    assert manifest.config["learning_rate"] == 1e-2

    model = verify(run.run_dir / MODELS / "step-00000012")
    assert model.kind == "model"
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= model.files.keys()
    assert (run.run_dir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (run.run_dir / "attempt").read_text().startswith("1\n")

    report = ProgressReport.model_validate(run.result)
    assert (report.phase, report.step, report.total_steps) == ("finished", 12, 12)
    assert report.ranks_joined == report.world_size == 2
    assert report.model
    assert report.model.path == "models/step-00000012"
    assert report.last_checkpoint
    assert report.last_checkpoint.step == 12
    assert report.sample
    assert "step 12/12  loss" in run.out


def test_one_process_needs_no_torchrun(make_job: MakeJob, train: Any) -> None:
    run = train(make_job(max_steps=3))
    assert run.result["worldSize"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_run_of_three_ranks_resumes_bitwise(
    rank_server: RankServer, tmp_path: Path, strategy: str
) -> None:
    """In the middle of a step, and of a save; `make kill-soak` does this at random."""
    kills = [Kill(1, "gradients", 5), Kill(0, "files", 110, alone=True)]
    case = Case(FAMILIES["char-gpt"], strategy, ranks=3, workers=2)
    soak = Soak(rank_server, tmp_path)
    assert len(list(soak.kill_and_resume(case, kills, "killed"))) == 2
    soak.launch.close()


def test_a_resumed_line_has_the_loss_of_all_its_steps(
    make_job: MakeJob, train: Any, launch: Any, tmp_path: Path, rank_server: RankServer
) -> None:
    """Also of those before the checkpoint, which lies between two lines."""
    rank_server.preload("tests.support.trainer.observer")
    settings = {"log_steps": 5, "eval_steps": 0, "batch_size": 6}

    def job(name: str, attempt: int = 1) -> TrainerJob:
        run = {"run_dir": str(tmp_path / name), "attempt": attempt}
        return make_job(run | {"checkpoint": {"everySteps": 3}}, **settings)

    whole = train(job("whole"), ranks=3)
    killed = launch(job("killed"), 3, env={"KILL": "0:gradients:7"})
    killed.wait_until(lambda: not killed.running(killed.pids[0]), "rank 0 dies")
    killed.kill()
    resumed = train(job("killed", attempt=2), ranks=3)
    assert resumed.result["resumedFromStep"] in (3, 6)
    assert resumed.losses() == whole.losses()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_number_of_ranks_may_change(
    make_job: MakeJob, train: Any, tmp_path: Path, rank_server: RankServer, strategy: str
) -> None:
    """The same samples in every step, none lost, none repeated within an epoch."""
    rank_server.preload("tests.support.trainer.observer")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("It is a capital mistake to theorise before one has data. " * 2 + "Indeed.")
    same = {"dropout": 0.0, "lr_decay_steps": 12, "corpus": str(corpus), "eval_fraction": 0.3}

    def run(name: str, steps: int, ranks: int, workers: int, **job: Any) -> Any:
        job |= {"run_dir": str(tmp_path / name)}
        settings = same | {"max_steps": steps, "dataloader_num_workers": workers}
        seen = tmp_path / f"seen-{name}-{steps}"
        seen.mkdir()
        return train(make_job(job, **settings), ranks, env={"OBSERVE": str(seen)})

    whole = run("whole", 12, ranks=1, workers=0)
    batches: list[list[int]] = []
    for attempt, (ranks, steps) in enumerate([(1, 3), (2, 6), (1, 9), (4, 12)], start=1):
        workers = 2 * (attempt % 2)
        part = run("elastic", steps, ranks, workers, strategy=strategy, attempt=attempt)
        assert part.result.get("resumedFromStep", 0) == len(batches)
        batches += global_batches(part)[: steps - len(batches)]

    assert batches == global_batches(whole)[:12]
    num_samples = len(corpus.read_text()) - int(len(corpus.read_text()) * 0.3) - 16
    ids = [sample for batch in batches for sample in batch]
    assert len(ids) < 2 * num_samples
    first, second = ids[:num_samples], ids[num_samples:]
    assert sorted(first) == list(range(num_samples))
    assert second
    assert len(set(second)) == len(second)
    assert part.losses() == pytest.approx(whole.losses(), abs=2e-4)
    resumed = [line["step"] for line in part.history() if line.get("event") == "resumed"]
    assert resumed == [3, 6, 9]


def global_batches(run: Any) -> list[list[int]]:
    """The samples of each step that one attempt's loaders delivered, all ranks together."""
    steps: dict[int, list[int]] = {}
    for (_, step), seen in sorted(delivered(run).items()):
        steps.setdefault(step, []).extend(json.loads(seen)["ids"])
    return [steps[step] for step in sorted(steps)]


def test_accumulation_changes_nothing_but_rounding(
    make_job: MakeJob, train: Any, tmp_path: Path
) -> None:
    runs = [
        train(
            make_job(
                {"run_dir": str(tmp_path / name), "strategy": strategy},
                dropout=0.0,
                gradient_accumulation_steps=accumulation,
            ),
            ranks=2,
        )
        for name, strategy, accumulation in (("a", "ddp", 1), ("b", "ddp", 4), ("c", "fsdp", 2))
    ]
    assert runs[1].losses() == pytest.approx(runs[0].losses(), abs=2e-4)
    assert runs[2].losses() == pytest.approx(runs[0].losses(), abs=2e-4)
    weights = [
        safetensors.torch.load_file(run.run_dir / "models/step-00000012/model.safetensors")
        for run in runs
    ]
    assert weights[0].keys() == weights[2].keys()  # DDP and FSDP export the same form
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[2][name], tensor, rtol=0, atol=5e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_half_precision_learns(
    make_job: MakeJob, train: Any, strategy: str, precision: str
) -> None:
    run = train(make_job({"strategy": strategy, "precision": precision}), ranks=2)
    losses = run.losses()
    assert losses[12] < losses[1] - 0.5
    exported = json.loads((run.run_dir / "models/step-00000012/config.json").read_text())
    assert exported["dtype"] == "float32"


def test_retention_keeps_the_newest_and_the_best(make_job: MakeJob, train: Any) -> None:
    # A rate that spoils the model after a good start: the best is an early one.
    job = {"checkpoint": {"everySteps": 2, "keepLast": 1}}
    run = train(make_job(job, eval_steps=2, learning_rate=1e-2, max_steps=8))
    kept = {path.name for path in (run.run_dir / CHECKPOINTS).iterdir()}
    evaluated = {line["step"]: line["eval_loss"] for line in run.history() if "eval_loss" in line}
    best = min(evaluated, key=lambda step: evaluated[step])
    assert kept == {"step-00000008", f"step-{best:08d}"}


def test_a_finished_run_started_again_only_exports(make_job: MakeJob, train: Any) -> None:
    first = train(make_job(max_steps=4))
    digest = weights_digest(first.run_dir, 4)
    again = train(make_job({"attempt": 2}, max_steps=4))
    assert weights_digest(again.run_dir, 4) == digest
    assert again.result["resumedFromStep"] == again.result["step"] == 4
    assert "loss" not in again.out
    manifest = verify(again.run_dir / MODELS / "step-00000004")
    assert manifest.attempt == 2
    assert manifest.metrics.keys() == {"loss", "eval_loss"}
