"""Publishing and fencing of directories, without any training."""

import fcntl
import itertools
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import safetensors.torch
import torch

import trainyard_trainer.checkpoint.publish as publishing
from tests.support.trainer.crash import killed_before
from trainyard_api.checkpoint import Manifest, step_name
from trainyard_storage.checkpoints import (
    InvalidCheckpointError,
    digest,
    newest_valid,
    read_manifest,
    verify,
)
from trainyard_trainer.checkpoint.publish import Fence, prepare_run_dir, publish
from trainyard_trainer.errors import ConfigError, SupersededError


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
    assert (tmp_path / "attempt").read_text().startswith("10\n")
    with pytest.raises(SupersededError, match="attempt 1 stops: attempt 10 of this run"):
        put(tmp_path, old, 2)
    with pytest.raises(SupersededError):
        prepare_run_dir(tmp_path, 9)
    found, _, _ = newest_valid(tmp_path / "checkpoints")
    assert found
    assert found.name == "step-00000001"


def test_the_same_attempt_started_twice(tmp_path: Path) -> None:
    """The later one continues; they never write into the same directory."""
    first, second = prepare_run_dir(tmp_path, 2), prepare_run_dir(tmp_path, 2)
    assert first.writer != second.writer
    put(tmp_path, second, 1)
    with pytest.raises(SupersededError, match="attempt 2 stops: the same attempt was started a"):
        put(tmp_path, first, 2)


def test_a_new_run_takes_over_the_directory_of_another(tmp_path: Path) -> None:
    """Attempt numbers of different runs say nothing about which is newer: the last claim wins."""
    old = prepare_run_dir(tmp_path, 12, "old")
    put(tmp_path, old, 1)
    new = prepare_run_dir(tmp_path, 1, "a-longer-uid")
    put(tmp_path, new, 2)
    with pytest.raises(SupersededError, match="12 stops: attempt 1 of the run with uid a-longer-"):
        put(tmp_path, old, 3)
    next_one = prepare_run_dir(tmp_path, 2, "a-longer-uid")
    with pytest.raises(SupersededError, match="attempt 1 stops: attempt 2 of this run"):
        put(tmp_path, new, 4)
    with pytest.raises(SupersededError, match="attempt 1 stops: attempt 2 of this run"):
        prepare_run_dir(tmp_path, 1, "a-longer-uid")
    put(tmp_path, next_one, 5)
    nameless = prepare_run_dir(tmp_path, 1)
    with pytest.raises(SupersededError, match="attempt 1 of a run without a uid has taken"):
        put(tmp_path, next_one, 6)
    put(tmp_path, nameless, 7)
    assert (tmp_path / "attempt").read_text() == f"1\n{nameless.writer}\n\n"


def as_earlier_versions_read(file: Path) -> tuple[int, str]:
    number, _, rest = file.read_bytes()[:200].decode().partition("\n")
    return int(number), rest.partition("\n")[0]


def as_earlier_versions_write(file: Path, attempt: int, writer: str) -> None:
    """Over the old content, of which a longer one's end remains."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    os.pwrite(descriptor, f"{attempt}\n{writer}\n".encode(), 0)
    os.close(descriptor)


def test_an_upgrade_during_a_run(tmp_path: Path) -> None:
    file = tmp_path / "attempt"
    as_earlier_versions_write(file, 3, "attempt-3-0123abcd")
    new = prepare_run_dir(tmp_path, 4, "uid")
    # The process of attempt 3, if it is still alive, sees a larger number, and stops.
    assert as_earlier_versions_read(file) == (4, new.writer)
    # And back: the earlier version's attempt 5 fences off attempt 4; attempt 6 continues.
    as_earlier_versions_write(file, 5, "attempt-5-0123abcd")
    with pytest.raises(SupersededError, match="attempt 4 stops"):
        put(tmp_path, new, 1)
    put(tmp_path, prepare_run_dir(tmp_path, 6, "uid"), 2)


def test_a_new_run_on_the_data_that_an_earlier_version_left(tmp_path: Path) -> None:
    as_earlier_versions_write(tmp_path / "attempt", 2, "attempt-2-0123abcd")
    put(tmp_path, prepare_run_dir(tmp_path, 1, "uid"), 1)


def test_an_empty_attempt_file_is_replaced_and_a_damaged_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "attempt"
    file.write_text("")  # a full disk
    prepare_run_dir(tmp_path, 1)
    file.write_text("x\n")
    with pytest.raises(ConfigError, match="attempt: 'x' is not an attempt number"):
        prepare_run_dir(tmp_path, 2)


def test_a_stopped_process_does_not_keep_the_lock_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "LOCK_TIMEOUT", 0.02)
    old = prepare_run_dir(tmp_path, 1)
    with old.held():
        prepare_run_dir(tmp_path, 2)
    with pytest.raises(SupersededError):
        put(tmp_path, old, 1)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_all_files_have_the_mode_that_the_umask_gives(
    tmp_path: Path, umask: int, mode: int
) -> None:
    """Those of safetensors, too."""
    before = os.umask(umask)
    try:
        fence = prepare_run_dir(tmp_path, 1)
        temporary = tmp_path / "checkpoints" / ".tmp-1"
        temporary.mkdir()
        safetensors.torch.save_file({"x": torch.zeros(1)}, temporary / "state.safetensors")
        final = tmp_path / "checkpoints" / step_name(1)
        publish(temporary, final, manifest(1), fence)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in final.iterdir()} == {
        "manifest.json": mode,
        "state.safetensors": mode,
    }


def test_a_loader_worker_forked_during_a_save_does_not_keep_the_lock(tmp_path: Path) -> None:
    """It inherits the open file, as a duplicate of the descriptor."""
    fence = prepare_run_dir(tmp_path, 1)
    with fence._locked() as file:
        inherited = os.dup(file)
    with fence.path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError if it is held
    os.close(inherited)


@pytest.mark.parametrize("old", ["none", "good", "damaged"])
def test_a_kill_at_any_point_leaves_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str
) -> None:
    """Killed before each file operation in turn, publishing over nothing, or over another one."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a kill leaves the page cache as it is
    run_dir = tmp_path / "run"
    for point in itertools.count():
        shutil.rmtree(run_dir, ignore_errors=True)
        fence = prepare_run_dir(run_dir, 1)
        put(run_dir, fence, 1)
        if old != "none":
            put(run_dir, fence, 2, eval_loss=1.0)
        if old == "damaged":
            (run_dir / "checkpoints" / step_name(2) / "deep" / "data").write_bytes(b"")

        def again(fence: Fence = fence) -> Path:
            return put(run_dir, fence, 2, eval_loss=2.0)

        killed = killed_before(point, str(run_dir), again)
        prepare_run_dir(run_dir, 2)
        _, found, _ = newest_valid(run_dir / "checkpoints")
        assert found
        was = {"none": (1, None), "good": (2, 1.0), "damaged": (1, None)}[old]
        now = found.step, found.metrics.get("eval_loss")
        assert now in {was, (2, 2.0)}, point
        assert set(names(run_dir)) <= {step_name(1), step_name(2)}
        if not killed:
            assert now == (2, 2.0)
            assert point > 20  # there were that many chances to go wrong
            break


def test_everything_is_on_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence = prepare_run_dir(tmp_path, 1)
    order: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(file: int) -> None:
        order.append(os.readlink(f"/proc/self/fd/{file}"))
        fsync(file)

    def note_rename(path: Path, target: Path) -> Path:
        order.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    put(tmp_path, fence, 1)
    parent = tmp_path / "checkpoints"
    inside = {parent / ".tmp-1" / name for name in ("", "deep", "deep/data", "manifest.json")}
    assert {Path(name) for name in order[: order.index("rename")]} == inside
    assert order[-1] == str(parent)


def test_no_byte_of_a_manifest_changes_unnoticed(tmp_path: Path) -> None:
    final = put(tmp_path, prepare_run_dir(tmp_path, 1), 5, loss=1.5)
    path = final / "manifest.json"
    content, whole = path.read_bytes(), verify(final)
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 7
        path.write_bytes(flipped)
        try:
            read = read_manifest(final)
        except InvalidCheckpointError:
            continue
        assert read == whole  # only white space
