"""Models from a bucket of a real S3-compatible server: found, copied, verified, or explained."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.patience import until
from tests.ports import free_port
from tests.unit.serving.test_follower import Followed, publish
from trainyard_api.checkpoint import MANIFEST, MODELS, step_name
from trainyard_api.scores import TaskScores
from trainyard_serving.errors import ModelUnavailableError
from trainyard_serving.model_store.locations import first_verified, location_of
from trainyard_serving.model_store.verified import VerifiedModel
from trainyard_serving.settings import ModelSource
from trainyard_storage.checkpoints import digest
from trainyard_storage.scores import add_scores

moto_server = pytest.importorskip("moto.server", reason="the dev extra is not installed")

KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Bucket:
    """A bucket and a client of the test's own for it."""

    def __init__(self, endpoint: str) -> None:
        import s3fs  # type: ignore[import-untyped]

        self.fs = s3fs.S3FileSystem(
            key="test", secret="test", endpoint_url=endpoint, use_listings_cache=False
        )

    def upload(self, directory: Path, path: str, names: list[str] | None = None) -> None:
        for file in sorted(directory.rglob("*")):
            name = file.relative_to(directory).as_posix()
            if file.is_file() and (names is None or name in names):
                self.fs.put_file(str(file), f"models/{path}/{name}")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def shared_bucket(endpoint: str) -> Bucket:
    return Bucket(endpoint)


@pytest.fixture
def bucket(
    endpoint: str, shared_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bucket]:
    """An empty bucket, and the variables that lead serving to it."""
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    bucket = shared_bucket
    bucket.fs.mkdir("models")
    yield bucket
    bucket.fs.rm("models", recursive=True)


def found(tmp_path: Path, **source: Any) -> tuple[VerifiedModel, list[str]]:
    settings = ModelSource.model_validate({"cache_dir": str(tmp_path / "cache"), **source})
    return first_verified(location_of(settings))


def reason(tmp_path: Path, **source: Any) -> str:
    with pytest.raises(ModelUnavailableError) as error:
        found(tmp_path, **source)
    assert "\n" not in str(error.value)
    return str(error.value)


def model(tmp_path: Path, step: int, weights: str = "weights") -> Path:
    return publish(tmp_path / "run", step, weights)


def test_the_newest_complete_model_is_copied_and_verified(bucket: Bucket, tmp_path: Path) -> None:
    whole, partial = model(tmp_path, 100), model(tmp_path, 200)
    bucket.upload(whole, f"run/{MODELS}/{step_name(100)}")
    bucket.upload(partial, f"run/{MODELS}/{step_name(200)}", ["model.safetensors"])
    source = {"run_dir": "s3://models/run"}
    got, refused = found(tmp_path, **source)
    assert (got.step, got.digest) == (100, digest(whole))
    assert got.path.is_relative_to(tmp_path / "cache")
    url = f"s3://models/run/{MODELS}/{step_name(200)}"
    assert refused == [f"{url}: no {MANIFEST}: upload not complete?"]

    bucket.upload(partial, f"run/{MODELS}/{step_name(200)}", [MANIFEST])
    assert found(tmp_path, **source)[0].step == 200
    assert found(tmp_path, step=100, **source)[0].step == 100
    assert "no model of step 7; there are those of 200, 100" in reason(tmp_path, step=7, **source)
    assert "no model has an evaluation loss" in reason(tmp_path, step="best", **source)
    bucket.upload(publish(tmp_path, 50, "x", loss=1.5), f"run/{MODELS}/{step_name(50)}")
    bucket.upload(publish(tmp_path, 60, "y", loss=1.6), f"run/{MODELS}/{step_name(60)}")
    assert found(tmp_path, step="best", **source)[0].step == 50
    one, _ = found(tmp_path, model=f"s3://models/run/{MODELS}/{step_name(100)}/")
    assert one.digest == digest(whole)
    assert "no such model" in reason(tmp_path, model="s3://models/gone")
    assert "names no bucket" in reason(tmp_path, model="s3://")
    other = "sha256:" + "0" * 64
    assert f"not {other}" in reason(tmp_path, digest=other, **source)


def test_a_models_scores_are_read_where_they_are_required(bucket: Bucket, tmp_path: Path) -> None:
    made = model(tmp_path, 100)
    bucket.upload(made, f"run/{MODELS}/{step_name(100)}")
    source = {"run_dir": "s3://models/run", "require": "easy/acc>=0.5"}
    assert "this model has no easy/acc yet" in reason(tmp_path, **source)
    scores = TaskScores(metrics={"acc": 0.5}, samples=1, time=datetime.now(UTC))
    file = add_scores(made, 100, digest(made), "test", {"easy": scores})
    bucket.upload(file.parent, "run/scores")
    assert found(tmp_path, **source)[0].step == 100
    alone = {"model": f"s3://models/run/{MODELS}/{step_name(100)}", "require": "easy/acc>=0.5"}
    assert found(tmp_path, **alone)[0].scores == {"easy/acc": 0.5}
    # A model at the top of a bucket has none; their place would be in another bucket.
    bucket.upload(made, "top")
    top = {"model": "s3://models/top", "require": "easy/acc>=0.5"}
    assert "this model has no easy/acc yet" in reason(tmp_path, **top)


def test_a_model_that_differs_from_its_manifest_is_refused_by_its_url(
    bucket: Bucket, tmp_path: Path
) -> None:
    path = f"run/{MODELS}/{step_name(1)}"
    whole = model(tmp_path, 1)
    url = f"s3://models/{path}"
    bucket.upload(whole, path, [MANIFEST])
    assert f"{url}/model.safetensors: missing" in reason(tmp_path, run_dir="s3://models/run")
    for content, words in ((b"cut", "3 bytes, the manifest says 7"), (b"weightX", "sha256")):
        bucket.fs.pipe_file(f"models/{path}/model.safetensors", content)
        why = reason(tmp_path, run_dir="s3://models/run")
        assert f"{url}/model.safetensors: {words}" in why
        assert str(tmp_path) not in why
    bucket.upload(whole, path)
    bucket.fs.pipe_file(f"models/{path}/adapter_config.json", b"{}")
    assert "is not in the manifest" in reason(tmp_path, run_dir="s3://models/run")
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_a_plain_model_needs_no_manifest(bucket: Bucket, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text("{}")
    (plain / "model.safetensors").write_text("weights")
    bucket.upload(plain, "hub/distil")
    got, _ = found(tmp_path, model="s3://models/hub/distil")
    assert (got.run, got.step) == ("distil", None)
    assert (got.path / "config.json").read_text() == "{}"


def test_an_intact_copy_is_reused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.upload(model(tmp_path, 1), f"run/{MODELS}/{step_name(1)}")
    first, _ = found(tmp_path, run_dir="s3://models/run")
    inode = (first.path / "model.safetensors").stat().st_ino
    again, _ = found(tmp_path, run_dir="s3://models/run")
    assert (again.path / "model.safetensors").stat().st_ino == inode
    (first.path / "model.safetensors").write_text("damaged")
    repaired, _ = found(tmp_path, run_dir="s3://models/run")
    assert (repaired.path / "model.safetensors").read_text() == "weights"


def test_a_run_is_followed_and_old_copies_are_removed(bucket: Bucket, tmp_path: Path) -> None:
    bucket.upload(model(tmp_path, 1, "one"), f"run/{MODELS}/{step_name(1)}")
    followed = Followed(run_dir="s3://models/run", cache_dir=str(tmp_path / "cache"))
    followed.follower.start()
    try:
        for step, weights in ((1, "one"), (2, "two"), (3, "three")):
            bucket.upload(model(tmp_path, step, weights), f"run/{MODELS}/{step_name(step)}")
            followed.serves(weights)
        until(lambda: len(list((tmp_path / "cache").glob("*/*"))) == 2)
        bucket.fs.rm(f"models/run/{MODELS}", recursive=True)
        until(lambda: "no model yet" in followed.follower.reason)
        assert followed.weights == "three"
    finally:
        followed.follower.stop()


def no_keys(patch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.delenv(name)
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


def unreachable(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("url", "change", "words"),
    [
        ("s3://models/run", lambda patch: None, "no model yet under models/"),
        ("s3://nowhere/run", lambda patch: None, "no such bucket"),
        ("s3://models/run", no_keys, "no AWS credentials: set AWS_ACCESS_KEY_ID"),
        ("s3://models/run", unreachable, "cannot be reached"),
    ],
)
def test_errors_are_one_line(
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    change: Callable[[pytest.MonkeyPatch], None],
    words: str,
) -> None:
    with monkeypatch.context() as patch:
        change(patch)
        why = reason(tmp_path, run_dir=url)
    assert why.startswith(url)
    assert words in why


def test_a_shared_cache_directory_is_not_trusted(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"trainyard-models-{os.getuid()}").mkdir()
    (tmp_path / f"trainyard-models-{os.getuid()}").chmod(0o777)
    bucket.upload(model(tmp_path, 1), f"run/{MODELS}/{step_name(1)}")
    with pytest.raises(ModelUnavailableError, match="other users may change it"):
        first_verified(location_of(ModelSource(run_dir="s3://models/run")))


def test_the_directory_of_trainyard_run_leads_to_its_data(bucket: Bucket, tmp_path: Path) -> None:
    bucket.fs.pipe_file("models/kept/run.json", b"{}")
    bucket.fs.pipe_file("models/kept/data/attempt", b"1")
    assert "no model yet under models/" in reason(tmp_path, run_dir="s3://models/kept")
    whole = model(tmp_path, 100)
    bucket.upload(whole, f"kept/data/{MODELS}/{step_name(100)}")
    assert found(tmp_path, run_dir="s3://models/kept")[0].digest == digest(whole)


def test_what_is_not_a_runs_directory_is_said_with_what_to_give(
    bucket: Bucket, tmp_path: Path
) -> None:
    bucket.upload(model(tmp_path, 100), f"a/{MODELS}/{step_name(100)}")
    one = f"s3://models/a/{MODELS}/{step_name(100)}"
    assert reason(tmp_path, run_dir=one) == f"{one}: holds one model: use --model {one}"
    folder = f"s3://models/a/{MODELS}"
    assert reason(tmp_path, run_dir=folder).endswith("use --run-dir s3://models/a")
    assert "not a run's directory" in reason(tmp_path, run_dir="s3://models")


def test_a_plain_model_may_lie_in_a_folder_called_models(bucket: Bucket, tmp_path: Path) -> None:
    path = f"models/{MODELS}/plain"
    bucket.fs.pipe_file(f"{path}/config.json", b"{}")
    bucket.fs.pipe_file(f"{path}/model.safetensors", b"weights")
    assert found(tmp_path, model=f"s3://{path}")[0].step is None
    bucket.fs.pipe_file(f"{path}/golden.json", b"{}")
    assert "upload not complete?" in reason(tmp_path, model=f"s3://{path}")
