"""Which model of a location is found, and why others are refused."""

import shutil
from pathlib import Path

import pytest

from tests.support.serving.models import write_manifest
from trainyard_api.checkpoint import CHECKPOINTS, MANIFEST, MODELS, step_name
from trainyard_api.golden import EVALUATION, GOLDEN
from trainyard_local.store import RunDir
from trainyard_serving.errors import ModelUnavailableError
from trainyard_serving.model_store.locations import first_verified, location_of
from trainyard_serving.model_store.verified import VerifiedModel
from trainyard_serving.settings import ModelSource
from trainyard_storage.checkpoints import digest


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the models of steps 100 and 200."""
    for step in (100, 200):
        directory = tmp_path / MODELS / step_name(step)
        directory.mkdir(parents=True)
        (directory / "model.safetensors").write_bytes(b"weights" * step)
        write_manifest(directory, step=step)
    return tmp_path


def found(**source: object) -> tuple[VerifiedModel, list[str]]:
    return first_verified(
        location_of(ModelSource.model_validate({k: str(v) for k, v in source.items()}))
    )


def reason(**source: object) -> str:
    with pytest.raises(ModelUnavailableError) as error:
        found(**source)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_newest_model_is_found(run: Path) -> None:
    model, refused = found(run_dir=run)
    assert model.step == 200
    assert model.digest == digest(run / MODELS / step_name(200))
    assert refused == []


def test_the_best_model_is_the_one_with_the_lowest_evaluation_loss(run: Path) -> None:
    assert "no model has an evaluation loss" in reason(run_dir=run, step="best")
    for step, loss in ((200, 1.5), (100, 1.5), (200, 1.6)):
        directory = run / MODELS / step_name(step)
        (directory / MANIFEST).unlink()
        write_manifest(directory, step=step, metrics={"eval_loss": loss})
        if step == 100:
            assert found(run_dir=run, step="best")[0].step == 200, "of equal ones the newest"
    assert found(run_dir=run, step="best")[0].step == 100
    assert found(run_dir=run, step="last")[0].step == 200
    (run / MODELS / step_name(100) / MANIFEST).write_text("{}")
    model, refused = found(run_dir=run, step="best")
    assert (model.step, len(refused)) == (200, 1)
    assert step_name(100) in refused[0], "it may have been the best"


def test_a_step_that_is_not_there_is_named_with_those_that_are(run: Path) -> None:
    assert reason(run_dir=run, step=7).endswith("no model of step 7; there are those of 200, 100")


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "remove", "add", "no manifest", "invalid manifest"]
)
def test_a_damaged_model_is_skipped_and_named(run: Path, damage: str) -> None:
    newest = run / MODELS / step_name(200)
    weights = newest / "model.safetensors"
    content = weights.read_bytes()
    match damage:
        case "flip":
            weights.write_bytes(content[:-1] + b"X")
        case "cut":
            weights.write_bytes(content[:-1])
        case "remove":
            weights.unlink()
        case "add":
            (newest / "adapter_config.json").write_text("{}")
        case "no manifest":
            (newest / MANIFEST).unlink()
        case "invalid manifest":
            (newest / MANIFEST).write_text('{"format": 9}')
    model, refused = found(run_dir=run)
    assert model.step == 100
    assert len(refused) == 1
    assert step_name(200) in refused[0]
    assert step_name(200) in reason(model=newest)


def test_when_every_model_is_damaged_each_is_named(run: Path) -> None:
    for directory in (run / MODELS).iterdir():
        (directory / "model.safetensors").unlink()
    why = reason(run_dir=run)
    assert why.startswith("no model verifies: ")
    assert step_name(100) in why
    assert step_name(200) in why


def test_for_an_unfinished_run_the_message_has_its_progress(run: Path) -> None:
    shutil.rmtree(run / MODELS)
    assert reason(run_dir=run).endswith("no model yet: the run has not finished")
    checkpoint = run / CHECKPOINTS / step_name(40)
    checkpoint.mkdir(parents=True)
    write_manifest(checkpoint, kind="checkpoint", step=40, total_steps=500)
    assert reason(run_dir=run).endswith("(newest checkpoint: step 40 of 500)")
    assert "training state, not a model" in reason(model=checkpoint)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    assert reason(run_dir=tmp_path / "gone") == f"{tmp_path / 'gone'}: no such run directory"
    assert reason(model=tmp_path / "gone") == f"{tmp_path / 'gone'}: no such directory"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A model in Hugging Face format, in a folder with the name of a run's."""
    directory = tmp_path / "home" / MODELS / step_name(7)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


def test_a_plain_model_may_lie_in_a_folder_called_models(plain: Path) -> None:
    model, refused = found(model=plain)
    assert (model.step, model.manifest, refused) == (None, None, [])


@pytest.mark.parametrize("name", [GOLDEN, EVALUATION])
def test_a_runs_model_without_its_manifest_is_not_a_plain_one(plain: Path, name: str) -> None:
    (plain / name).write_text("{}")
    assert reason(model=plain).endswith(f"no {MANIFEST}")


def local_run(home: Path, claim: str | None = None) -> Path:
    """A run as `trainyard run` keeps it; returns its directory, whose data are elsewhere."""
    run = RunDir("shakespeare", home)
    run.path.mkdir(parents=True)
    run.write({"spec": {"storage": {"claimName": claim}} if claim else {}})
    return run.path


@pytest.mark.parametrize("claim", [None, "shared"])
def test_the_directory_of_trainyard_run_leads_to_its_data(
    run: Path, tmp_path_factory: pytest.TempPathFactory, claim: str | None
) -> None:
    home = tmp_path_factory.mktemp("home")
    directory = local_run(home, claim)
    data = RunDir("shakespeare", home).data({"spec": {"storage": {"claimName": claim}}})
    data.mkdir(parents=True)
    assert reason(run_dir=directory) == f"{data}: no model yet: the run has not finished"
    shutil.copytree(run / MODELS, data / MODELS)
    assert found(run_dir=directory)[0].path == data / MODELS / step_name(200)
    if claim is None:
        assert reason(model=directory).endswith(f"for a run, use --run-dir {directory}")


def test_data_without_its_run_is_found(run: Path, tmp_path: Path) -> None:
    """What `trainyard delete --keep-data` leaves."""
    kept = tmp_path / "kept"
    kept.mkdir()
    shutil.move(run / MODELS, kept / "data" / MODELS)
    assert found(run_dir=kept)[0].step == 200


def test_what_is_not_a_runs_directory_is_said_with_what_to_give(run: Path, tmp_path: Path) -> None:
    volume = tmp_path.parent / f"{tmp_path.name}-volume"
    volume.mkdir()
    run.rename(volume / "a")
    assert reason(run_dir=volume) == (
        f"{volume}: not a run's directory: it has neither models/ nor checkpoints/;"
        f" of the runs in it, use --run-dir {volume / 'a'}"
    )
    models = volume / "a" / MODELS
    assert reason(run_dir=models) == (
        f"{models}: a folder in a run's directory: use --run-dir {volume / 'a'}"
    )
    model = models / step_name(100)
    assert reason(run_dir=model) == f"{model}: holds one model: use --model {model}"
