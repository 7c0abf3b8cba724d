"""No sequence of saves, removals, damage and kills loses a valid checkpoint."""

import os
import random
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.trainer.crash import killed_before
from trainyard_api.checkpoint import CHECKPOINTS, MANIFEST, Manifest, step_name, step_of
from trainyard_storage.checkpoints import InvalidCheckpointError, newest_valid, steps, verify
from trainyard_trainer.checkpoint.publish import Fence, prepare_run_dir, publish
from trainyard_trainer.checkpoint.retention import Retention
from trainyard_trainer.errors import SupersededError


def put(run_dir: Path, fence: Fence, step: int, **metrics: float) -> Path:
    """Publish a checkpoint whose content follows from its step."""
    parent = run_dir / CHECKPOINTS
    temporary = parent / f".tmp-{step}-{fence.writer}"
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "deep").mkdir(parents=True)
    (temporary / "deep" / "data").write_bytes(step.to_bytes(4, "big") * 50)
    (temporary / "trainer.json").write_text(f'{{"step": {step}}}')
    manifest = Manifest(
        kind="checkpoint",
        run="r",
        attempt=fence.attempt,
        recipe="char-gpt",
        step=step,
        created=datetime.now(UTC),
        metrics=metrics,
        files={},
    )
    publish(temporary, parent / step_name(step), manifest, fence)
    return parent / step_name(step)


def retention(run_dir: Path, fence: Fence, last: int = 2, best: bool = True) -> Retention:
    return Retention(run_dir / CHECKPOINTS, last, best, fence)


def present(run_dir: Path) -> list[int]:
    return sorted(step_of(directory) for directory in steps(run_dir / CHECKPOINTS))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1
    path.write_bytes(content)


def test_the_last_and_the_best_stay(tmp_path: Path) -> None:
    fence = prepare_run_dir(tmp_path, 1)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, float("nan"))):
        newest = put(tmp_path, fence, step, eval_loss=loss)
    assert retention(tmp_path, fence).prune(newest) == [newest.with_name(step_name(1))]
    assert present(tmp_path) == [2, 3, 4]
    retention(tmp_path, fence, best=False).prune(newest)
    assert present(tmp_path) == [3, 4]


@pytest.mark.parametrize("name", ["deep/data", "trainer.json", MANIFEST])
def test_a_damaged_checkpoint_does_not_count_as_one_to_keep(tmp_path: Path, name: str) -> None:
    fence = prepare_run_dir(tmp_path, 1)
    for step in range(1, 6):
        newest = put(tmp_path, fence, step, eval_loss=float(step))
    parent = tmp_path / CHECKPOINTS
    flip(parent / step_name(4) / name, 100)
    flip(parent / step_name(1) / name, 100)  # it would be the best
    retention(tmp_path, fence).prune(newest)
    assert present(tmp_path) == [2, 3, 5]


def test_a_damaged_later_step_counts_for_nothing(tmp_path: Path) -> None:
    fence = prepare_run_dir(tmp_path, 1)
    damaged = put(tmp_path, fence, 8, eval_loss=0.1)
    flip(damaged / "deep" / "data", 7)
    good = put(tmp_path, fence, 5, eval_loss=1.0)  # of the attempt that skipped step 8
    retention(tmp_path, fence, last=1).prune(good)
    assert present(tmp_path) == [5]


def test_what_cannot_be_read_now_is_not_removed(tmp_path: Path) -> None:
    fence = prepare_run_dir(tmp_path, 1)
    for step in range(1, 5):
        newest = put(tmp_path, fence, step)
    manifest = tmp_path / CHECKPOINTS / step_name(2) / MANIFEST
    manifest.unlink()
    manifest.symlink_to(manifest.name)  # reading it fails as on a bad disk: not "no such file"
    retention(tmp_path, fence, best=False).prune(newest)
    assert present(tmp_path) == [2, 3, 4]


def test_what_a_user_keeps_beside_them_is_left_alone(tmp_path: Path) -> None:
    fence = prepare_run_dir(tmp_path, 1)
    first, newest = (put(tmp_path, fence, step) for step in (1, 2))
    mine = first.with_name(f"{first.name}-keep")
    shutil.copytree(first, mine)
    retention(tmp_path, fence, last=1).prune(newest)
    assert present(tmp_path) == [2]
    verify(mine)


def test_a_superseded_attempt_removes_nothing(tmp_path: Path) -> None:
    """It slept between publishing and pruning, and knows nothing of the newer one's checkpoints."""
    old = prepare_run_dir(tmp_path, 1)
    newest = put(tmp_path, old, 1)
    new = prepare_run_dir(tmp_path, 2)
    for step in (2, 3):
        put(tmp_path, new, step)
    with pytest.raises(SupersededError):
        retention(tmp_path, old, last=1).prune(newest)
    assert present(tmp_path) == [1, 2, 3]


@dataclass
class World:
    """A run that is saved, killed, damaged and started again, with what must be true of it."""

    run_dir: Path
    rng: random.Random
    last: int
    attempt: int = 0
    fences: list[Fence] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        """The next attempt resumes from the newest valid step and names every one it skips."""
        good = self.good()
        self.attempt += 1
        self.fences.append(prepare_run_dir(self.run_dir, self.attempt))
        assert self.good() == good
        directory, manifest, skipped = newest_valid(self.run_dir / CHECKPOINTS)
        self.step = manifest.step if manifest else 0
        assert self.step == max(good, default=0)
        assert len(skipped) == len([step for step in present(self.run_dir) if step > self.step])
        self.retention = retention(self.run_dir, self.fences[-1], self.last)
        if directory and manifest:
            self.retention.trust(directory, manifest)

    def save(self) -> None:
        """Publish the next step and prune; a kill anywhere in between loses nothing."""
        before, step = self.good(), self.step + 1
        loss = self.losses.setdefault(step, self.rng.random())

        def go() -> None:
            final = put(self.run_dir, self.fences[-1], step, eval_loss=loss)
            self.retention.trust(final, verify(final))
            self.retention.prune(final)

        if self.rng.random() < 0.5 and killed_before(self.rng.randrange(40), str(self.run_dir), go):
            assert max(self.good(), default=0) in {step, max(before, default=0)}
            self.start()
            return
        go()
        self.step = step
        after, possible = self.good(), sorted({*before, step})
        assert set(possible[-self.last :]) <= after
        assert min(possible, key=self.losses.__getitem__) in after
        assert len(present(self.run_dir)) <= self.last + 1

    def damage(self) -> None:
        """Anything may happen to the files of one checkpoint."""
        directories = list(steps(self.run_dir / CHECKPOINTS))
        if not directories:
            return
        files = [p for p in self.rng.choice(directories).rglob("*") if p.is_file()]
        if not files:
            return
        file = self.rng.choice(files)
        match self.rng.choice(["flip", "cut", "empty", "remove", "grow"]):
            case "flip" if file.stat().st_size:
                flip(file, self.rng.randrange(file.stat().st_size))
            case "cut" if file.stat().st_size:
                file.write_bytes(file.read_bytes()[:-1])
            case "empty":
                file.write_bytes(b"")
            case "remove":
                file.unlink()
            case _:
                file.write_bytes(file.read_bytes() + b"x")

    def wake(self) -> None:
        """An older attempt continues where it was stopped: it must not change anything."""
        if len(self.fences) < 2:
            return
        old, before = self.rng.choice(self.fences[:-1]), present(self.run_dir)
        with pytest.raises(SupersededError):
            put(self.run_dir, old, self.step + 1)
        if before:
            newest = self.run_dir / CHECKPOINTS / step_name(before[0])
            with pytest.raises(SupersededError):
                retention(self.run_dir, old, 1, best=False).prune(newest)
        assert present(self.run_dir) == before

    def good(self) -> set[int]:
        """Steps that can be resumed from, judged by their content and not by what we remember."""
        found = set()
        for directory in steps(self.run_dir / CHECKPOINTS):
            try:
                step = verify(directory).step
            except InvalidCheckpointError:
                continue
            data = (directory / "deep" / "data").read_bytes()
            assert data == step.to_bytes(4, "big") * 50, f"{directory} verifies, but is damaged"
            assert step == step_of(directory)
            found.add(step)
        return found


@pytest.mark.parametrize("seed", range(5))
def test_no_kill_or_damage_loses_a_valid_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a kill leaves the page cache as it is
    rng = random.Random(seed)
    world = World(tmp_path, rng, last=rng.choice([1, 2, 3]))
    world.start()
    actions = [world.start, world.save, world.damage, world.wake]
    for _ in range(60):
        rng.choices(actions, weights=[1, 5, 2, 1])[0]()
    assert world.step
