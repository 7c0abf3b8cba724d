"""Faults around a run cost one clear line, and nothing that was saved."""

import os
import re
import shutil
import signal
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import patience
from tests.support.trainer.ranks import RankServer
from trainyard_api import metrics as names
from trainyard_api.checkpoint import CHECKPOINTS
from trainyard_api.job import EXIT_CONFIG, TrainerJob
from trainyard_api.progress import ProgressReport
from trainyard_api.recipe_packages import built_in_recipes
from trainyard_storage.checkpoints import verify

MakeJob = Callable[..., TrainerJob]


def refused(run: Any, code: int = EXIT_CONFIG) -> str:
    """The one line a failed run printed, after checking that it is one and alone."""
    codes = run.wait()
    # Any rank may be the first one; then SIGTERM ends the others, if they haven't ended so as well.
    assert code in codes, run.err
    assert set(codes) <= {code, -signal.SIGTERM}, run.err
    (line,) = run.err.splitlines()
    assert run.error_message().startswith(line[:1000])
    return str(line)


def steps_in(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / CHECKPOINTS).glob("step-*"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_layrs": 3}, "ConfigError: config.n_layrs: unknown key; did you mean n_layer?"),
        ({"maxSteps": 3}, "ConfigError: config.maxSteps: unknown key; did you mean max_steps?"),
        ({"max_steps": 0}, "config.max_steps: input should be greater than or equal to 1 (got 0)"),
        ({"learning_rate": "fast"}, "config.learning_rate: input should be a valid number"),
        ({"n_head": 5}, "n_head (5) must divide n_embd (32)"),
        ({"batch_size": 9}, "can't be shared evenly by 2 processes x 1 accumulation steps"),
        ({"corpus": "/nowhere.txt"}, "config.corpus: /nowhere.txt does not exist here"),
        ({"block_size": 4096}, "too few for block_size 4096"),
    ],
)
def test_a_wrong_setting_is_one_line(
    make_job: MakeJob, launch: Any, config: dict[str, Any], message: str
) -> None:
    line = refused(launch(make_job(**config), ranks=2))
    assert line.startswith("ConfigError: ")
    assert message in line


def test_an_unknown_recipe_names_the_known_ones(make_job: MakeJob, launch: Any) -> None:
    line = refused(launch(make_job({"recipe": "chat-gpt"})))
    known = ", ".join(built_in_recipes())
    assert line == f"ConfigError: recipe: chat-gpt: unknown; known recipes: {known}"


def test_a_hub_data_set_that_cannot_be_downloaded(make_job: MakeJob, launch: Any) -> None:
    job = make_job(corpus="hub:nobody/nothing")
    line = refused(launch(job))  # ranks of tests are offline
    assert line.startswith("ConfigError: config.corpus: hub:nobody/nothing could not be loaded: ")


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(make_job: MakeJob, launch: Any) -> None:
    line = refused(launch(make_job({"require_gpu": True}), ranks=2))
    assert "the manifest asks for GPUs (resourcesPerNode.limits), but PyTorch finds none" in line


def test_a_run_directory_that_cannot_be_written(
    make_job: MakeJob, launch: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    line = refused(launch(make_job({"run_dir": str(tmp_path / "file" / "run")}), ranks=2))
    assert "cannot be written: Not a directory" in line


def test_nodes_that_share_no_volume(
    make_job: MakeJob, launch: Any, train: Any, tmp_path: Path
) -> None:
    """DDP needs only rank 0's disk, to resume as well; FSDP says what it needs."""
    jobs = [make_job({"run_dir": str(tmp_path / name)}, max_steps=4) for name in ("one", "two")]
    train(jobs, ranks=2)
    again = [job.model_copy(update={"attempt": 2}) for job in jobs]
    assert train(again, ranks=2).result["resumedFromStep"] == 4
    assert not (tmp_path / "two").exists()
    fsdp = [job.model_copy(update={"attempt": 3, "strategy": "fsdp"}) for job in jobs]
    line = refused(launch(fsdp, ranks=2))
    assert "does not see rank 0's run directory" in line
    assert "ReadWriteMany" in line


def test_what_breaks_exact_resume_is_refused(make_job: MakeJob, launch: Any, train: Any) -> None:
    train(make_job(max_steps=4))
    again = {"attempt": 2}
    line = refused(launch(make_job(again, max_steps=4, batch_size=16)))
    assert "config.batch_size: 16, but the checkpoint of step 4 was trained with 8" in line
    assert "start a run under another name with startFrom" in line
    line = refused(launch(make_job(again, max_steps=4, n_layer=3)))
    assert "config.n_layer: 3, but" in line
    assert "under another name from step 0: the weights don't fit" in line
    line = refused(launch(make_job(again | {"seed": 8}, max_steps=4)))
    assert "spec.seed: 8, but" in line
    line = refused(launch(make_job(again | {"strategy": "fsdp"}, max_steps=4), ranks=2))
    assert "spec.strategy: 'fsdp', but the checkpoint of step 4 was trained with 'ddp'" in line
    # Longer, with another schedule, is the same run.
    assert train(make_job(again, max_steps=6)).result["step"] == 6


def test_another_text_under_the_same_name_is_refused(
    make_job: MakeJob, launch: Any, train: Any, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be\n" * 100)
    train(make_job(max_steps=2, corpus=str(text)))
    text.write_text("to be or not to be!\n" * 100)
    line = refused(launch(make_job({"attempt": 2}, max_steps=2, corpus=str(text))))
    assert "is not the text the checkpoint was trained on" in line


def test_a_damaged_checkpoint_is_skipped_and_reported(make_job: MakeJob, train: Any) -> None:
    run = train(make_job(max_steps=8, lr_decay_steps=12))
    newest = run.run_dir / CHECKPOINTS / "step-00000008"
    data = newest / "state.safetensors"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    again = train(make_job({"attempt": 2}))
    assert "step-00000008/state.safetensors: sha256 differs" in again.err
    assert again.result["resumedFromStep"] == 4
    verify(newest)  # written again, this time whole


def test_only_damaged_checkpoints_are_not_a_fresh_start(
    make_job: MakeJob, launch: Any, train: Any
) -> None:
    run = train(make_job(max_steps=4))
    (run.run_dir / CHECKPOINTS / "step-00000004" / "manifest.json").write_text("{")
    line = refused(launch(make_job({"attempt": 2}), ranks=2), code=1)
    assert line.startswith("CheckpointError: none of the 1 checkpoints in ")
    assert "move that folder aside to start from step 0" in line


def test_a_loss_that_explodes_stops_the_run(make_job: MakeJob, launch: Any) -> None:
    job = make_job(
        {"checkpoint": {"everySteps": 1}},
        learning_rate=1e18,
        max_grad_norm=0,
        log_steps=5,
        warmup_steps=0,
    )
    run = launch(job, ranks=2)
    run.wait()
    assert "NonFiniteLossError: the loss of step " in run.err
    assert "Traceback" not in run.err
    for name in steps_in(run.run_dir):
        verify(run.run_dir / CHECKPOINTS / name)
    assert run.error_message().startswith("NonFiniteLossError: the loss of step ")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_gradient_that_is_nan_is_never_saved(
    make_job: MakeJob, launch: Any, train: Any, rank_server: Any, strategy: str
) -> None:
    """The loss of its step is fine, and the step is one that saves: only the gradient tells."""
    rank_server.preload("tests.support.trainer.observer")
    job = make_job({"strategy": strategy, "checkpoint": {"everySteps": 1}}, max_steps=6)
    run = launch(job, ranks=2, env={"POISON": "1:3"})
    run.wait()
    assert "NonFiniteLossError: the gradient of step 3 is nan, its loss " in run.err
    assert "Traceback" not in run.err
    assert steps_in(run.run_dir) == ["step-00000001", "step-00000002"]
    again = train(job.model_copy(update={"attempt": 2}), ranks=2)
    assert again.result["resumedFromStep"] == 2


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_weights_that_are_not_finite_are_not_saved(
    make_job: MakeJob, launch: Any, strategy: str
) -> None:
    """Loss and gradient of the first step are finite; its update is not."""
    job = make_job(
        {"strategy": strategy, "checkpoint": {"everySteps": 1}},
        optimizer="sgd",
        learning_rate=3e38,
        weight_decay=1e3,
    )
    run = launch(job, ranks=2)
    run.wait()
    assert "step-00000001: the weights are not finite; training continues" in run.err
    assert "NonFiniteLossError: the loss of step 2 is " in run.err
    assert steps_in(run.run_dir) == []


def test_a_disk_that_fills_up_costs_a_warning(make_job: MakeJob, launch: Any) -> None:
    # A limit on file size stands in for the full disk: the same writes fail in the same places.
    run = launch(make_job(max_steps=6), ranks=2, max_file_bytes=60_000)
    codes = run.wait()
    assert "warning: checkpoint not saved: " in run.err
    assert "step-00000004: File too large (" in run.err
    assert " MiB free); training continues" in run.err
    assert "step 6/6" in run.out
    assert "DiskFullError: the last checkpoint could not be saved: " in run.err
    assert " MiB: free some space, and start the run again\n" in run.err
    assert "Traceback" not in run.err
    assert 1 in codes
    assert steps_in(run.run_dir) == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_model_is_exported_though_its_checkpoint_does_not_fit(
    make_job: MakeJob, launch: Any, train: Any, strategy: str
) -> None:
    """Once there is room, the run ends without training a step again; changed, it trains them."""
    job = make_job({"strategy": strategy}, max_steps=6, n_embd=64)
    limit = 700_000 if strategy == "ddp" else 500_000  # bytes; a shard is half of the state
    run = launch(job, ranks=2, max_file_bytes=limit)
    run.wait()
    assert "Traceback" not in run.err
    last = run.err.splitlines()[-1]
    assert last.startswith("DiskFullError: the last checkpoint could not be saved: ")
    assert last.endswith("start the run again (the model of step 6 is exported)")
    assert run.error_message().startswith("DiskFullError: ")
    assert steps_in(run.run_dir) == []
    model = verify(run.run_dir / "models" / "step-00000006")

    again = train(job.model_copy(update={"attempt": 2}), ranks=2)
    assert "step 6 was the last one" in again.out
    assert "step 1/6" not in again.out
    assert again.result["step"] == again.result["totalSteps"] == 6
    assert again.result["model"]["path"] == "models/step-00000006"
    assert verify(run.run_dir / "models" / "step-00000006") == model
    assert sorted(again.losses()) == list(range(1, 7))

    longer = job.model_copy(update={"attempt": 3, "config": job.config | {"max_steps": 7}})
    assert train(longer, ranks=2).result["step"] == 7
    assert not (run.run_dir / CHECKPOINTS / "exported.json").exists()


def test_a_port_in_use_costs_a_warning(make_job: MakeJob, train: Any) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        run = train(make_job({"report_port": port}, max_steps=2))
    (line,) = run.err.splitlines()
    assert line.startswith(f"warning: port {port}: Address already in use; training continues")


def test_an_older_attempt_stops_when_a_newer_one_has_started(
    make_job: MakeJob, launch: Any, train: Any
) -> None:
    train(make_job({"attempt": 3}, max_steps=2))
    line = refused(launch(make_job({"attempt": 2}), ranks=2), code=1)
    assert line.startswith("SupersededError: attempt 2 stops: attempt 3 of this run has started")


def test_a_new_run_resumes_from_the_kept_data_of_one_with_more_attempts(
    make_job: MakeJob, launch: Any, train: Any
) -> None:
    """As whenDeleted: Retain and claimName leave it. The older run, still alive, must stop."""
    train(make_job({"uid": "older"}, max_steps=4, lr_decay_steps=12))
    endless = {"max_steps": 100_000, "lr_decay_steps": 12}
    older = launch(make_job({"uid": "older", "attempt": 2}, **endless), ranks=2)
    older.wait_for_step(6)
    newer = launch(make_job({"uid": "newer", "attempt": 1}, **endless))
    older.wait()
    assert "SupersededError: attempt 2 stops: attempt 1 of the run with uid newer has" in older.err
    report = newer.wait_for_step(12)
    assert report.resumed_from_step is not None
    assert report.resumed_from_step >= 4
    newer.kill()
    assert (newer.run_dir / "attempt").read_text().splitlines()[::2] == ["1", "newer"]


def test_an_older_attempt_does_not_publish(make_job: MakeJob, launch: Any) -> None:
    run = launch(make_job(max_steps=100_000, eval_steps=0, log_steps=100), ranks=2)
    run.wait_until(lambda: (run.run_dir / CHECKPOINTS / "step-00000004").exists(), "it has saved")
    (run.run_dir / "attempt").write_text("2\n")
    run.wait()
    assert "SupersededError: attempt 1 stops: attempt 2 of this run has started" in run.err
    for name in steps_in(run.run_dir):
        verify(run.run_dir / CHECKPOINTS / name)


def test_a_failing_rank_ends_the_others(make_job: MakeJob, launch: Any) -> None:
    run = launch(make_job(max_steps=100_000), ranks=2)
    run.wait_for_step(5)
    os.kill(run.pids[1], signal.SIGKILL)
    codes = run.wait(terminate=False)
    assert codes == [1, -signal.SIGKILL]
    # One line, and with the words of the network, by which it is known for a consequence.
    (line,) = run.err.splitlines()
    assert re.fullmatch(r"RankLostError: lost another rank in step \d+: .*[Cc]onnection .*", line)
    assert run.error_message().startswith("RankLostError: ")


def test_an_interrupted_run_prints_how_to_resume(make_job: MakeJob, launch: Any) -> None:
    run = launch(make_job(max_steps=100_000))
    run.wait_for_step(2)
    os.kill(run.pids[0], signal.SIGINT)
    assert run.wait() == [130]
    assert run.err == ""
    assert run.out.splitlines()[-1].startswith("interrupted; start it again to resume from")


def test_the_report_is_there_before_the_others_are(make_job: MakeJob, launch: Any) -> None:
    run = launch(make_job(), ranks=2, only=[0])
    report = run.wait_for_report(lambda report: "waiting" in report.message)
    assert (report.phase, report.ranks_joined, report.world_size) == ("joining", 0, 2)
    assert report.message == "waiting for 1 of 2 ranks to join: 1"
    assert report.step is None


def test_report_and_metrics_while_training(make_job: MakeJob, launch: Any) -> None:
    run = launch(make_job(max_steps=100_000, sample_steps=4), ranks=2)
    report: ProgressReport = run.wait_for_step(9)  # so that step 8 is in the metrics
    assert report.ranks_joined == 2
    assert report.total_steps == 100_000
    assert report.loss
    assert report.tokens_per_second
    assert report.samples_per_second == pytest.approx(report.tokens_per_second / 16)
    assert report.eta_seconds
    url = f"http://127.0.0.1:{run.job.report_port}/metrics"
    with urllib.request.urlopen(url, timeout=patience.SECONDS) as response:
        text = response.read().decode()
    served = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert served <= {metric.name for metric in names.ALL}
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['trainyard_step{run="tiny"}']) >= 8
    assert float(values['trainyard_world_size{run="tiny"}']) == 2
    assert float(values['trainyard_tokens_total{run="tiny"}']) >= 8 * 8 * 16
    assert float(values['trainyard_step_seconds_count{run="tiny"}']) >= 8


def test_a_rank_that_dies_at_the_last_save_ends_the_others(
    make_job: MakeJob, launch: Any, rank_server: RankServer
) -> None:
    """Some ranks see the connection to it end; the others wait for those."""
    rank_server.preload("tests.support.trainer.observer")
    run = launch(make_job({"strategy": "fsdp"}, batch_size=12), ranks=3, env={"KILL": "2:save:2"})
    assert run.wait(terminate=False) == [1, 1, -signal.SIGKILL]
    assert (run.run_dir / CHECKPOINTS / "step-00000008").exists()
    lines = [line.removeprefix("rank 1: ") for line in run.err.splitlines()]
    assert all(line.startswith("RankLostError: lost another rank in step ") for line in lines)
