"""Real checkpoints on real disks: damaged, cut short, out of space, written by two at once."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer.checkpoint_tensors import digests
from trainyard_api.checkpoint import CHECKPOINTS, MANIFEST, step_name
from trainyard_api.job import TrainerJob
from trainyard_storage.checkpoints import (
    describe_files,
    manifest_bytes,
    read_manifest,
    steps,
    verify,
)
from trainyard_trainer.checkpoint.checkpointer import Checkpointer
from trainyard_trainer.checkpoint.resume import find_resume
from trainyard_trainer.distributed.process_group import leave
from trainyard_trainer.errors import CheckpointError, DiskFullError
from trainyard_trainer.worker import work

MakeJob = Callable[..., TrainerJob]
both = pytest.mark.parametrize("strategy", ["ddp", "fsdp"])


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


@both
def test_damage_to_any_file_is_seen(make_job: MakeJob, train: Any, strategy: str) -> None:
    """Every kind of file, each of them flipped, cut, emptied and removed in turn."""
    run = train(make_job({"strategy": strategy}, max_steps=8), ranks=2)
    newest = run.run_dir / CHECKPOINTS / step_name(8)
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    kinds = {
        "ddp": ["manifest.json", "state.safetensors", "trainer.json"],
        "fsdp": [".metadata", "__0_0.distcp", "__1_0.distcp", "manifest.json", "trainer.json"],
    }
    assert [file.name for file in files] == kinds[strategy]
    for file in files:
        content = file.read_bytes()
        for damaged in (flip(content), content[:-2], b"", None):
            file.unlink()
            if damaged is not None:
                file.write_bytes(damaged)
            resume = find_resume(run.job)
            assert resume
            assert resume.manifest.step == 4
            (line,) = resume.skipped
            assert step_name(8) in line
            assert file.name in line
            assert "\n" not in line
            file.write_bytes(content)
    verify(newest)


def test_what_another_version_saved_is_read_or_refused_in_one_line(
    make_job: MakeJob, train: Any
) -> None:
    run = train(make_job(max_steps=4), ranks=1)
    newest = run.run_dir / CHECKPOINTS / step_name(4)
    path = newest / "trainer.json"
    description = json.loads(path.read_text())

    def write(changed: dict[str, Any]) -> None:
        path.write_text(json.dumps(changed))
        manifest = read_manifest(newest).model_copy(update={"files": describe_files(newest)})
        (newest / MANIFEST).write_bytes(manifest_bytes(manifest))

    write(description | {"newer": 1})
    assert find_resume(run.job)
    description.pop("scaler")
    write(description)
    with pytest.raises(CheckpointError, match=r"trainer.json has no scaler, so that another ver"):
        find_resume(run.job)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB: room for two of the tiny model's checkpoints."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@both
def test_a_full_disk_keeps_what_was_saved(
    make_job: MakeJob, launch: Any, train: Any, small_disk: Path, strategy: str
) -> None:
    saves = {"strategy": strategy, "checkpoint": {"everySteps": 1, "keepLast": 5}}
    job = make_job(saves | {"run_dir": str(small_disk / "run")}, max_steps=8, lr_decay_steps=8)
    run = launch(job, ranks=2)
    codes = run.wait()
    assert 1 in codes, run.out + run.err
    assert "Traceback" not in run.err
    warnings = [line for line in run.err.splitlines() if line.startswith("warning: checkpoint")]
    assert warnings
    assert "No space left on device (" in warnings[0]
    for line in warnings:
        assert line.endswith(" MiB free); training continues")
    assert "step 8/8" in run.out
    assert "DiskFullError: the last checkpoint could not be saved: " in run.err
    kept = list(steps(run.run_dir / CHECKPOINTS))
    assert kept
    newest = max(verify(directory).step for directory in kept)
    assert not list((run.run_dir / CHECKPOINTS).glob(".tmp-*"))  # nothing half-written stays

    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    longer = job.config | {"max_steps": 9}  # with 8, an exported model would end the run at once
    again = train(job.model_copy(update={"attempt": 2, "config": longer}), ranks=2)
    assert again.result["resumedFromStep"] == newest


def test_a_last_save_that_fails_at_once_fails_the_run(
    make_job: MakeJob, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the loop asks how it went."""
    save = Checkpointer.save

    def at_once(self: Checkpointer, *args: Any) -> Any:
        saving = save(self, *args)
        saving.exception()
        return saving

    monkeypatch.setattr(Checkpointer, "save", at_once)
    saves = {"checkpoint": {"everySteps": 1, "keepLast": 5}, "run_dir": str(small_disk / "run")}
    job = make_job(saves, max_steps=8, lr_decay_steps=8, hang_timeout_seconds=0)
    try:
        with pytest.raises(DiskFullError, match="the last checkpoint could not be saved: "):
            work(job, None, 0)
    finally:
        leave()


@both
def test_two_attempts_alive_at_once(
    make_job: MakeJob, launch: Any, train: Any, tmp_path: Path, strategy: str
) -> None:
    """The older one, forgotten on a lost node, keeps running and saves: it damages nothing."""
    saves = {"strategy": strategy, "checkpoint": {"everySteps": 1, "keepLast": 2}}
    endless = {"max_steps": 100_000, "lr_decay_steps": 100, "eval_steps": 0}
    old = launch(make_job(saves, **endless), ranks=2)
    old.wait_until(lambda: bool(list(steps(old.run_dir / CHECKPOINTS))), "it has saved")
    new = launch(make_job(saves | {"attempt": 2}, **endless), ranks=2)
    new.wait_for_step(1)
    assert 1 in old.wait()
    assert "SupersededError: attempt 1 stops: attempt 2 of this run has started" in old.err
    new.kill()

    resume = find_resume(new.job)
    assert resume
    step = resume.manifest.step
    whole = make_job(saves | {"run_dir": str(tmp_path / "whole")}, **endless | {"max_steps": step})
    reference = train(whole, ranks=2)
    assert digests(new.run_dir, step) == digests(reference.run_dir, step)
    shutil.rmtree(new.run_dir)
