"""Following a location: what is swapped in, what is refused, and what can be rolled back to."""

import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.patience import until
from tests.support.serving.models import write_manifest
from trainyard_api.checkpoint import MANIFEST, MODELS, step_name
from trainyard_api.golden import GOLDEN
from trainyard_serving.errors import BadModelError
from trainyard_serving.metrics import Metrics
from trainyard_serving.model_store import locations
from trainyard_serving.model_store.follower import Follower
from trainyard_serving.model_store.locations import location_of
from trainyard_serving.model_store.verified import VerifiedModel, verify_model
from trainyard_serving.settings import ModelSource
from trainyard_storage.checkpoints import UnreadableCheckpointError, digest

WEIGHTS = "model.safetensors"


class Model:
    """Loads as a real one does: from its files, once they are verified."""

    def __init__(self, source: VerifiedModel) -> None:
        self.source = source
        self.details: dict[str, Any] = {}
        self.weights = (source.path / WEIGHTS).read_text()
        if self.weights == "unloadable":
            raise BadModelError(f"{source.path}: cannot be loaded")

    def check(self) -> None:
        if self.weights == "nan":
            raise BadModelError(f"{self.source.path}: the model computes NaN")


class Followed:
    """A running follower and its metrics."""

    def __init__(self, **source: Any) -> None:
        self.metrics = Metrics()
        self.loads: list[str] = []
        settings = ModelSource.model_validate({k: _plain(v) for k, v in source.items()})
        self.follower = Follower(location_of(settings), self._load, 0.01, self.metrics)

    def _load(self, source: VerifiedModel) -> Model:
        model = Model(source)
        self.loads.append(model.weights)
        return model

    @property
    def weights(self) -> str | None:
        model = self.follower.model
        return model.weights if model else None

    def serves(self, weights: str) -> None:
        until(lambda: self.weights == weights)

    def refuses(self, what: str) -> None:
        until(lambda: any(what in why for why in self.follower.refused))

    def polls_again(self) -> None:
        """Wait for two complete polls."""
        for _ in range(2):
            before = self._polls
            until(lambda before=before: self._polls > before)  # type: ignore[misc]

    _polls = 0

    def swaps(self, result: str) -> float:
        text = self.metrics.exposition().decode()
        name = f'trainyard_serving_model_swaps_total{{result="{result}"}}'
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.M)
        return float(found[1]) if found else 0


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


@pytest.fixture
def follow() -> Iterator[Callable[..., Followed]]:
    """Starts followers; they are stopped at the end."""
    started: list[Followed] = []

    def start(**source: Any) -> Followed:
        followed = Followed(**source)
        poll = followed.follower._poll

        def counted() -> None:
            try:
                poll()
            finally:
                followed._polls += 1

        followed.follower._poll = counted  # type: ignore[method-assign]
        started.append(followed)
        followed.follower.start()
        return followed

    yield start
    for followed in started:
        followed.follower.stop()
        assert not followed.follower.alive


def publish(
    run: Path, step: int, weights: str, minutes: int | None = None, loss: float | None = None
) -> Path:
    """A model of `step`, made so many minutes after the run began (default: as its step says)."""
    hidden, final = run / MODELS / f".tmp-{step}", run / MODELS / step_name(step)
    hidden.mkdir(parents=True)
    (hidden / WEIGHTS).write_text(weights)
    created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes or step)
    metrics = {} if loss is None else {"eval_loss": loss}
    write_manifest(hidden, step=step, created=created, metrics=metrics)
    replaced = final.with_name(f".old-{step}")
    if final.exists():  # a follower must not see it while it is deleted file by file
        final.rename(replaced)
    hidden.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def plain(directory: Path, weights: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text("{}")
    (directory / WEIGHTS).write_text(weights)


def test_newer_models_of_a_run_are_swapped_in(tmp_path: Path, follow: Any) -> None:
    followed = follow(run_dir=tmp_path)
    until(lambda: "no model yet" in followed.follower.reason)
    for step in (1, 2, 3):
        publish(tmp_path, step, f"weights {step}")
        followed.serves(f"weights {step}")
    assert followed.follower.served.step == 3
    assert followed.swaps("loaded") == 3
    followed.polls_again()
    assert followed.loads == ["weights 1", "weights 2", "weights 3"]


def test_a_fixed_step_is_not_replaced_by_newer_models(tmp_path: Path, follow: Any) -> None:
    publish(tmp_path, 1, "one")
    publish(tmp_path, 2, "two")
    followed = follow(run_dir=tmp_path, step=1)
    followed.serves("one")
    publish(tmp_path, 3, "three")
    followed.polls_again()
    assert followed.weights == "one"


def test_the_best_model_is_replaced_by_better_ones_only(tmp_path: Path, follow: Any) -> None:
    publish(tmp_path, 10, "unknown")
    followed = follow(run_dir=tmp_path, step="best")
    until(lambda: "no model has an evaluation loss" in followed.follower.reason)
    publish(tmp_path, 20, "fair", loss=1.9)
    followed.serves("fair")
    publish(tmp_path, 30, "worse", loss=2.5)
    publish(tmp_path, 40, "invalid", loss=float("nan"))
    followed.polls_again()
    publish(tmp_path, 50, "good", loss=1.5)
    followed.serves("good")
    # Copied out of order: older than what is served, and better than all that was.
    publish(tmp_path, 15, "best", loss=1.1)
    followed.serves("best")
    # Older than what was served, and better than the model to which the server goes back.
    publish(tmp_path, 12, "passed over", loss=1.3)
    followed.polls_again()
    assert followed.follower.roll_back().step == 50
    followed.polls_again()
    assert followed.weights == "good"
    publish(tmp_path, 60, "nan", loss=0.9)
    followed.refuses("computes NaN")
    publish(tmp_path, 70, "newer", loss=1.4)
    followed.serves("newer")
    assert followed.loads == ["fair", "good", "best", "nan", "newer"]


def test_a_server_of_the_last_model_does_not_change_to_a_better_one(
    tmp_path: Path, follow: Any
) -> None:
    """As at the end of a run: the best is exported after the last."""
    publish(tmp_path, 50, "last", loss=1.9)
    followed = follow(run_dir=tmp_path)
    followed.serves("last")
    publish(tmp_path, 20, "best", minutes=51, loss=1.5)
    followed.polls_again()
    assert followed.loads == ["last"]


def test_only_the_model_with_the_pinned_digest_is_served(tmp_path: Path, follow: Any) -> None:
    wanted = digest(publish(tmp_path, 1, "one"))
    newer = publish(tmp_path, 2, "two")
    followed = follow(run_dir=tmp_path, digest=wanted)
    followed.serves("one")
    assert followed.follower.refused == [f"{newer}: its digest is {digest(newer)}, not {wanted}"]


@pytest.mark.parametrize("damage", ["flip", "cut", "nan", "unloadable"])
def test_an_invalid_newer_model_is_refused_until_it_is_repaired(
    tmp_path: Path, follow: Any, damage: str
) -> None:
    publish(tmp_path, 1, "one")
    followed = follow(run_dir=tmp_path)
    followed.serves("one")
    damaged = publish(tmp_path, 2, "two" if damage in ("flip", "cut") else damage)
    if damage in ("flip", "cut"):
        # Published whole, damaged at once: what is served in between does not matter here.
        (damaged / WEIGHTS).write_text("twX" if damage == "flip" else "tw")
    followed.refuses(step_name(2))
    followed.polls_again()
    assert followed.swaps("refused") >= 1
    publish(tmp_path, 2, "repaired", minutes=3)
    followed.serves("repaired")
    until(lambda: followed.follower.refused == [])


def test_the_current_model_is_still_served_after_its_files_are_removed_or_damaged(
    tmp_path: Path, follow: Any
) -> None:
    publish(tmp_path, 1, "one")
    newest = publish(tmp_path, 2, "two")
    followed = follow(run_dir=tmp_path)
    followed.serves("two")
    (newest / WEIGHTS).write_text("twX")
    followed.refuses("sha256 differs")
    shutil.rmtree(newest)
    until(lambda: followed.follower.refused == [])
    followed.polls_again()
    assert followed.weights == "two"
    assert followed.loads == ["two"]
    shutil.rmtree(tmp_path / MODELS)
    followed.polls_again()
    assert followed.follower.ready
    assert followed.weights == "two"


def test_touched_files_are_verified_once_and_do_not_swap_the_model(
    tmp_path: Path, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[Path] = []

    def verify(directory: Path) -> VerifiedModel:
        verified.append(directory)
        return verify_model(directory)

    monkeypatch.setattr(locations, "verify_model", verify)
    newest = publish(tmp_path, 1, "one")
    followed = follow(run_dir=tmp_path)
    followed.serves("one")
    publish(tmp_path, 1, "one")  # another inode, the same bytes
    until(lambda: len(verified) == 2)
    followed.polls_again()
    assert verified == [newest, newest]
    assert followed.loads == ["one"]


def test_a_directory_that_is_replaced_by_an_older_model_is_followed(
    tmp_path: Path, follow: Any
) -> None:
    """A model named by --model is served even if it is older."""
    newer = publish(tmp_path, 2, "two")
    older = publish(tmp_path, 1, "one")
    link = tmp_path / "wanted"
    link.symlink_to(newer)
    followed = follow(model=link)
    followed.serves("two")
    (tmp_path / "next").symlink_to(older)
    (tmp_path / "next").rename(link)
    followed.serves("one")


def test_a_plain_directory_is_served_and_pinned_by_its_digest(tmp_path: Path, follow: Any) -> None:
    plain(tmp_path / "hf", "plain")
    followed = follow(model=tmp_path / "hf")
    followed.serves("plain")
    served = followed.follower.served
    assert (served.run, served.step) == ("hf", None)
    plain(tmp_path / "hf", "other")
    followed.serves("other")
    pinned = follow(model=tmp_path / "hf", digest=served.digest)
    pinned.refuses("its digest is")
    assert "no model verifies" in pinned.follower.reason
    plain(tmp_path / "hf", "plain")
    pinned.serves("plain")


def test_an_unreadable_model_is_not_refused_but_tried_again(
    tmp_path: Path, follow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, 1, "one")
    with monkeypatch.context() as patch:

        def fail(directory: Path) -> VerifiedModel:
            raise UnreadableCheckpointError(f"{directory}: cannot be read: Stale file handle")

        patch.setattr(locations, "verify_model", fail)
        followed = follow(run_dir=tmp_path)
        until(lambda: "Stale file handle" in followed.follower.reason)
        assert followed.follower.refused == []
        patch.setattr(locations, "verify_model", verify_model)
        followed.serves("one")

        def broken(self: Path) -> bool:
            raise OSError(116, "Stale file handle", str(self))

        patch.setattr(Path, "is_dir", broken)
        until(lambda: "Stale file handle" in followed.follower.reason)
        assert followed.follower.ready
    followed.polls_again()
    assert followed.weights == "one"


def test_rollback_serves_the_previous_model(tmp_path: Path, follow: Any) -> None:
    publish(tmp_path, 1, "one")
    followed = follow(run_dir=tmp_path)
    followed.serves("one")
    assert followed.follower.roll_back() is None
    publish(tmp_path, 3, "three")
    followed.serves("three")
    publish(tmp_path, 2, "two")  # came late: an older step was never wanted
    followed.polls_again()
    assert followed.follower.roll_back().step == 1
    assert followed.weights == "one"
    assert followed.swaps("rolled_back") == 1
    followed.polls_again()
    assert followed.weights == "one"
    assert "rolled back by request" in followed.follower.refused[0]
    assert followed.follower.roll_back() is None
    publish(tmp_path, 4, "four")
    followed.serves("four")
    assert followed.follower.roll_back().step == 1


def test_a_rolled_back_model_is_not_served_again_after_its_files_are_touched(
    tmp_path: Path, follow: Any
) -> None:
    plain(tmp_path / "hf", "one")
    followed = follow(model=tmp_path / "hf")
    followed.serves("one")
    plain(tmp_path / "hf", "two")
    followed.serves("two")
    assert followed.follower.roll_back()
    (tmp_path / "hf" / WEIGHTS).touch()
    followed.polls_again()
    followed.refuses("rolled back by request")
    assert followed.weights == "one"
    plain(tmp_path / "hf", "three")
    followed.serves("three")


def test_an_invalid_newer_model_does_not_prevent_a_rollback(tmp_path: Path, follow: Any) -> None:
    publish(tmp_path, 1, "one")
    followed = follow(run_dir=tmp_path)
    followed.serves("one")
    publish(tmp_path, 2, "two")
    followed.serves("two")
    publish(tmp_path, 3, "nan")
    followed.refuses("computes NaN")
    followed.polls_again()
    assert followed.follower.roll_back().step == 1


def test_requests_in_progress_keep_their_model(tmp_path: Path, follow: Any) -> None:
    publish(tmp_path, 1, "one")
    followed = follow(run_dir=tmp_path)
    followed.serves("one")
    under_way = followed.follower.model
    publish(tmp_path, 2, "two")
    followed.serves("two")
    assert under_way.weights == "one"


def test_a_model_without_its_manifest_is_refused(tmp_path: Path, follow: Any) -> None:
    directory = publish(tmp_path, 1, "one")
    (directory / MANIFEST).unlink()
    (directory / GOLDEN).write_text("{}")  # what a plain directory has not
    followed = follow(model=directory)  # not taken for a plain directory
    until(lambda: f"no {MANIFEST}" in followed.follower.reason)
    assert not followed.follower.ready
