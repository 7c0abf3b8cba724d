"""Runs that begin with another run's checkpoint, and settings that change when a run resumes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer.checkpoint_tensors import digests, load
from tests.support.trainer.ranks import Run
from tests.unit.trainer.test_trainer_faults import refused, steps_in
from trainyard_api.checkpoint import CHECKPOINTS, MANIFEST, step_name
from trainyard_api.job import TrainerJob
from trainyard_api.start_from import StartFrom
from trainyard_storage.checkpoints import (
    describe_files,
    file_sha256,
    manifest_bytes,
    read_manifest,
)

MakeJob = Callable[..., TrainerJob]
MakeBranch = Callable[..., TrainerJob]


@pytest.fixture
def branch(make_job: MakeJob, tmp_path: Path) -> MakeBranch:
    """Builds a job that starts from the run in `tmp_path / "run"`; `start` are fields of startFrom,
    `job` fields of the job, the others settings."""

    def make(
        start: dict[str, Any] | None = None, job: dict[str, Any] | None = None, **config: Any
    ) -> TrainerJob:
        fields = {
            "run": "branch",
            "run_dir": str(tmp_path / "branch"),
            "start_from": StartFrom(**{"run": "tiny"} | (start or {})),
            "start_dir": str(tmp_path / "run"),
        }
        return make_job(fields | (job or {}), **config)

    return make


def contents(directory: Path) -> dict[str, str]:
    """sha256 of every file below a directory."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): file_sha256(path) for path in files}


def state(run: Run, step: int, kind: str) -> dict[str, str]:
    """sha256 of a checkpoint's tensors of one kind."""
    found = digests(run.run_dir, step)
    return {name: sha for name, sha in found.items() if name.startswith(kind)}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_branch_with_the_same_settings_ends_bitwise_the_same(
    make_job: MakeJob, branch: MakeBranch, train: Any, strategy: str
) -> None:
    job = {"strategy": strategy}
    whole = train(make_job(job), ranks=2)
    before = contents(whole.run_dir)
    part = train(branch({"step": 4}, job), ranks=2)
    assert digests(part.run_dir, 12) == digests(whole.run_dir, 12)
    assert contents(whole.run_dir) == before, "the other run is only read"
    assert part.result["startedFrom"] == "step 4 of run tiny"
    assert part.result["resumedFromStep"] == 4
    assert "starting from step 4 of run tiny" in part.out
    assert [line["step"] for line in part.history() if "loss" in line] == list(range(5, 13))


@pytest.mark.parametrize(("old", "new"), [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_a_branch_may_shard_otherwise(
    make_job: MakeJob, branch: MakeBranch, train: Any, old: str, new: str
) -> None:
    """Weights and optimizer arrive bit for bit, on another number of ranks as well."""
    first = train(make_job({"strategy": old}, max_steps=4), ranks=2)
    second = train(branch(job={"strategy": new}, max_steps=8), ranks=1 if new == "ddp" else 2)
    assert "step-00000004" in steps_in(second.run_dir), "saved as its own before the first step"
    for kind in ("model.", "optimizer."):
        assert state(second, 4, kind) == state(first, 4, kind)


def test_a_branch_needs_the_other_run_no_more(
    make_job: MakeJob, branch: MakeBranch, train: Any, launch: Any
) -> None:
    train(make_job(max_steps=4))
    run = launch(branch(max_steps=100_000))
    run.wait_until(lambda: "step-00000004" in steps_in(run.run_dir), "the first checkpoint")
    run.kill()
    (run.run_dir.parent / "run").rename(run.run_dir.parent / "gone")
    again = train(branch(job={"attempt": 2, "start_dir": None}, max_steps=20))
    assert "resuming from step" in again.out
    assert again.result.get("startedFrom") is None


def test_weights_alone_begin_a_new_run(make_job: MakeJob, branch: MakeBranch, train: Any) -> None:
    first = train(make_job(max_steps=4), ranks=2)
    second = train(branch({"what": "weights"}, max_steps=3, learning_rate=1e-4, optimizer="sgd"))
    start = load(second.run_dir / CHECKPOINTS / step_name(0))
    trained = load(first.run_dir / CHECKPOINTS / step_name(4))
    weights = {name: tensor for name, tensor in start.items() if name.startswith("model.")}
    assert weights
    assert all(trained[name].equal(tensor) for name, tensor in weights.items())
    assert not any(name.startswith("optimizer.") for name in start)
    assert second.result["startedFrom"] == "the weights of step 4 of run tiny"
    assert [line["step"] for line in second.history() if "loss" in line] == [1, 2, 3]


def test_which_checkpoint(
    make_job: MakeJob, branch: MakeBranch, train: Any, launch: Any, tmp_path: Path
) -> None:
    # With this rate the loss falls first and rises later: the best one is not the newest.
    first = train(make_job({"checkpoint": {"everySteps": 4, "keepLast": 9}}, max_steps=16))
    losses = {line["step"]: line["eval_loss"] for line in first.history() if "eval_loss" in line}
    best = min(losses, key=losses.__getitem__)

    def began(start: dict[str, Any], name: str, **job: Any) -> str:
        fields = job | {"run_dir": str(tmp_path / name)}
        return str(train(branch(start, fields, max_steps=17)).result["startedFrom"])

    assert began({}, "newest") == "step 16 of run tiny"
    assert began({"step": "best"}, "best") == f"step {best} of run tiny"
    assert began({"step": 8}, "number") == "step 8 of run tiny"
    directory = first.run_dir / CHECKPOINTS / step_name(12)
    start = {"run": None, "path": str(directory)}
    assert began(start, "path", start_dir=str(directory)) == f"step 12 of {directory}"

    line = refused(launch(branch({"step": 5})))
    assert line == (
        "ConfigError: startFrom.run: tiny: there is no checkpoint of step 5; set startFrom.step to"
        " one of 16, 12, 8, 4"
    )
    line = refused(launch(branch(job={"start_dir": str(tmp_path / "nobody")})))
    assert line.startswith("ConfigError: startFrom.run: tiny: there is no checkpoint in ")
    scripts = tmp_path / "script" / CHECKPOINTS / step_name(4)
    scripts.mkdir(parents=True)
    (scripts / "script.json").write_text("{}")
    manifest = read_manifest(directory).model_copy(update={"files": describe_files(scripts)})
    (scripts / MANIFEST).write_bytes(manifest_bytes(manifest))
    line = refused(launch(branch(job={"start_dir": str(tmp_path / "script")})))
    assert line == (
        "ConfigError: startFrom.run: tiny: step-00000004 was saved by a script; name a run of the"
        " same recipe"
    )
    manifest = manifest.model_copy(update={"kind": "model"})
    (scripts / MANIFEST).write_bytes(manifest_bytes(manifest))
    line = refused(launch(branch({"run": None, "path": "/m"}, {"start_dir": str(scripts)})))
    assert line == (
        "ConfigError: startFrom.path: /m: it is a model, not a checkpoint; name a run of the same"
        " recipe"
    )
    (directory / "state.safetensors").write_bytes(b"")
    line = refused(launch(branch({"step": 12})), code=1)
    assert "startFrom.run: tiny: " in line
    assert "0 bytes, the manifest says" in line
    line = refused(launch(branch(job={"start_dir": None})))
    assert "the run has had checkpoints of its own, but there is none in" in line


def test_more_data_and_a_lower_rate(
    make_job: MakeJob, branch: MakeBranch, train: Any, tmp_path: Path, corpus: Path
) -> None:
    train(make_job(max_steps=4))
    more = tmp_path / "more.txt"
    more.write_text(corpus.read_text() + "Ünïcode " * 200)
    second = train(branch(max_steps=8, corpus=str(more), learning_rate=1e-3, batch_size=4))
    assert "400 that are not among these become <unk>" in second.out
    changed = "config.learning_rate: 0.01 -> 0.001"
    assert changed in second.result["changed"]
    (event,) = [line for line in second.history() if line.get("event") == "resumed"]
    assert changed in event["changed"]
    assert event["started_from"] == "step 4 of run tiny"


def test_what_the_weights_do_not_fit_is_refused(
    make_job: MakeJob, branch: MakeBranch, train: Any, launch: Any
) -> None:
    train(make_job(max_steps=4))
    line = refused(launch(branch(max_steps=8, n_embd=64)))
    assert "config.n_embd: 64, but step 4 of run tiny was trained with 32" in line
    assert line.endswith("set it to 32")
    line = refused(launch(branch(max_steps=8, optimizer="sgd")))
    assert line.endswith("set it to 'adamw', or set startFrom.what to weights")
    line = refused(launch(branch(max_steps=2)))
    assert "config.max_steps: 2 steps, but step 4 of run tiny is further; raise it to at" in line


def test_a_diverged_run_resumes_with_a_lower_rate(
    make_job: MakeJob, train: Any, launch: Any
) -> None:
    """What the error advises works, and the run keeps its checkpoints."""
    train(make_job(max_steps=4))
    line = refused(launch(make_job({"attempt": 2}, learning_rate=1e30, optimizer="adamw")), code=1)
    assert "lower config.learning_rate" in line
    assert line.endswith("the run then resumes from its newest checkpoint")
    run = train(make_job({"attempt": 3}, learning_rate=1e-3))
    assert run.result["resumedFromStep"] == 4
    assert "config.learning_rate: 0.01 -> 0.001" in run.result["changed"]
    assert "changed since the checkpoint: config.learning_rate: 0.01 -> 0.001" in run.out


def test_fewer_steps_than_there_are_is_refused(make_job: MakeJob, train: Any, launch: Any) -> None:
    train(make_job(max_steps=8))
    line = refused(launch(make_job({"attempt": 2}, max_steps=5)))
    assert "config.max_steps: 5 steps, but the newest checkpoint (of step 8) is further" in line
    assert "raise it to at least 8 steps" in line
    assert train(make_job({"attempt": 3}, max_steps=8)).result["step"] == 8
