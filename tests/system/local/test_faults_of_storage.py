"""A disk that is full, damaged checkpoints, a directory that others want: nothing saved is lost."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.patience import until
from tests.system.local.life import Life
from trainyard_trainer.checkpoint.publish import Fence

SMALL = 20_000  # bytes: room for logs and metrics, but for no checkpoint
MODEL = 150_000  # room for the model, too, which is a third of a checkpoint


def damage(checkpoint: Path) -> None:
    """Change one byte of the state."""
    (data,) = checkpoint.glob("*.safetensors")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


@pytest.mark.parametrize("place", ["data", "data/checkpoints"])
def test_a_directory_that_cannot_be_written(box: Any, place: str) -> None:
    """Found by the driver, or by the trainer."""
    life = Life(box, "readonly", numProcPerNode=1)
    blocked = box.run_dir("readonly") / place
    blocked.parent.mkdir(parents=True)
    blocked.touch()
    life.apply()
    life.has_stopped_by("volume-read-only")
    blocked.unlink()
    life.retry()
    life.has_succeeded()


def test_what_was_saved_outlives_the_disk_and_the_run(box: Any) -> None:
    """One run whose directory is taken by another; the next run of its name has its data."""
    life = Life(box, "disk", numProcPerNode=1)
    # A save ends before the next one begins: those of steps 4 and 8 fail, 16 and 20 do not.
    life.strike(1, "limit", rank=0, step=3, bytes=SMALL)
    life.strike(1, "limit", rank=0, step=13, bytes=None)
    life.strike(1, "raise", rank=0, step=26, message="a mistake")
    go = str(box.path / "go")
    life.strike(2, "wait", rank=0, step=26, until=go)
    life.apply()
    life.has_continued_with("disk-full-at-a-save-in-between")
    names = {path.name for path in life.checkpoints}
    assert {"step-00000016", "step-00000020"} <= names
    assert not {"step-00000004", "step-00000008"} & names

    damage(life.checkpoints[-1])
    saved = life.kept
    assert saved >= 16
    command = box.start("retry", "disk")
    until(lambda: "resumedFromStep" in life.status, "the second attempt trains and reports")
    until(Path(f"{go}.awaited").exists, "it waits")
    life.has_continued_with("newest-checkpoint-damaged")
    Fence(life.data, 1, "another").claim()
    before = life.kept
    Path(go).touch()
    life.said = box.end(command)[1]
    life.has_stopped_by("superseded-by-another-run")
    assert life.status["resumedFromStep"] == saved
    assert life.kept == before, "the one that was superseded has published nothing since"

    oldest = life.checkpoints[0]
    copy = shutil.copytree(oldest, box.path / "backup")
    for checkpoint in life.checkpoints:
        damage(checkpoint)
    life.retry()
    life.has_stopped_by("every-checkpoint-damaged")
    shutil.rmtree(oldest)
    copy.rename(oldest)

    assert box.cli("delete", "disk", "--keep-data")[0] == 0
    life.forget()
    life.strike(1, "limit", rank=0, step=38, bytes=MODEL)
    life.apply()
    life.has_continued_with("kept-data-of-an-older-run")
    assert life.status["resumedFromStep"] == int(oldest.name.removeprefix("step-"))
    life.has_stopped_by("disk-full-at-the-last-save")
    assert (life.data / "models" / "step-00000040" / "manifest.json").exists()
    life.retry()
    life.has_succeeded()
    assert "step 40 was the last one: its model is in" in life.log
    assert "step 39/40" not in life.log, "nothing is trained again"
