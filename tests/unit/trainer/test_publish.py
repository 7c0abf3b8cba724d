"""Publishing, fencing and retention of directories, without any training."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from trainyard_api.checkpoint import Manifest, digest, newest_valid, step_name, verify
from trainyard_trainer.errors import SupersededError
from trainyard_trainer.publish import Fence, prepare_run_dir, prune, publish


def manifest(step: int, **metrics: float) -> Manifest:
    return Manifest(
        kind="checkpoint",
        run="r",
        attempt=1,
        recipe="char-gpt",
        step=step,
        created=datetime.now(UTC),
        metrics=metrics,
        files={},
    )


def put(run_dir: Path, fence: Fence, step: int, **metrics: float) -> Path:
    temporary = run_dir / "checkpoints" / f".tmp-{step}"
    (temporary / "deep").mkdir(parents=True)
    (temporary / "deep" / "data").write_bytes(bytes([step]) * 1000)
    final = run_dir / "checkpoints" / step_name(step)
    assert publish(temporary, final, manifest(step, **metrics), fence) == digest(final)
    assert not temporary.exists()
    return final


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_what_is_published_verifies(tmp_path: Path) -> None:
    final = put(tmp_path, prepare_run_dir(tmp_path, 1), 5)
    assert verify(final).files.keys() == {"deep/data"}


def test_a_damaged_directory_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    fence = prepare_run_dir(tmp_path, 1)
    (put(tmp_path, fence, 5) / "deep" / "data").write_bytes(b"")
    verify(put(tmp_path, fence, 5))
    assert names(tmp_path) == ["step-00000005"]


def test_a_newer_attempt_fences_off_the_older(tmp_path: Path) -> None:
    old = prepare_run_dir(tmp_path, 1)
    put(tmp_path, old, 1)
    prepare_run_dir(tmp_path, 10)
    assert (tmp_path / "attempt").read_text() == "10\n"
    with pytest.raises(SupersededError, match="attempt 1 stops: attempt 10 of this run"):
        put(tmp_path, old, 2)
    with pytest.raises(SupersededError):
        prepare_run_dir(tmp_path, 9)
    found, _, _ = newest_valid(tmp_path / "checkpoints")
    assert found
    assert found.name == "step-00000001"


def test_the_same_attempt_may_claim_again(tmp_path: Path) -> None:
    prepare_run_dir(tmp_path, 2)
    prepare_run_dir(tmp_path, 2)


def test_leftovers_are_cleared_at_the_start(tmp_path: Path) -> None:
    leftover = tmp_path / "checkpoints" / ".tmp-step-00000003-attempt-1"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("x")
    prepare_run_dir(tmp_path, 2)
    assert names(tmp_path) == []


def test_retention(tmp_path: Path) -> None:
    fence = prepare_run_dir(tmp_path, 1)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        put(tmp_path, fence, step, eval_loss=loss)
    parent = tmp_path / "checkpoints"
    prune(parent, parent / step_name(4), keep_last=2, keep_best=True)
    assert names(tmp_path) == [step_name(2), step_name(3), step_name(4)]
    prune(parent, parent / step_name(4), keep_last=2, keep_best=False)
    assert names(tmp_path) == [step_name(3), step_name(4)]


def test_retention_counts_only_what_is_complete(tmp_path: Path) -> None:
    fence = prepare_run_dir(tmp_path, 1)
    older = put(tmp_path, fence, 3, eval_loss=1.0)
    good = put(tmp_path, fence, 5)
    (tmp_path / "checkpoints" / step_name(4)).mkdir()
    prune(good.parent, good, keep_last=2, keep_best=False)
    assert names(tmp_path) == [older.name, good.name]


def test_a_damaged_later_step_does_not_push_out_the_good_one(tmp_path: Path) -> None:
    fence = prepare_run_dir(tmp_path, 1)
    damaged = put(tmp_path, fence, 8, eval_loss=0.1)
    (damaged / "deep" / "data").write_bytes(b"\0" * 1000)
    good = put(tmp_path, fence, 5, eval_loss=1.0)  # of the attempt that skipped step 8
    prune(good.parent, good, keep_last=1, keep_best=True)
    assert names(tmp_path) == [good.name]
