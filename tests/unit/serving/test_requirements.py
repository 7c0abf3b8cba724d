"""A model is served only if its metrics and scores meet what is required of it."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.patience import until
from tests.support.serving.models import export_char_gpt, write_manifest
from tests.support.serving.servers import serving
from trainyard_api.checkpoint import MODELS, step_name
from trainyard_api.scores import TaskScores
from trainyard_serving.errors import ModelUnavailableError
from trainyard_serving.model_store.locations import first_verified, location_of
from trainyard_serving.requirements import parse_requirements
from trainyard_serving.settings import GenerateSettings, ModelSource, SettingsError, read_settings
from trainyard_storage.checkpoints import digest
from trainyard_storage.scores import add_scores, scores_file


def publish(run: Path, step: int, loss: float) -> Path:
    hidden, final = run / MODELS / f".tmp-{step}", run / MODELS / step_name(step)
    hidden.mkdir(parents=True)
    export_char_gpt(hidden, seed=step)
    created = datetime(2026, 1, 1, 0, step, tzinfo=UTC)
    write_manifest(hidden, step=step, created=created, metrics={"eval_loss": loss})
    hidden.rename(final)
    return final


def score(model: Path, accuracy: float, *, complete: bool = True) -> None:
    found = TaskScores(
        metrics={"acc": accuracy}, samples=9, complete=complete, time=datetime.now(UTC)
    )
    add_scores(model, 1, digest(model), "test", {"easy": found})


def served(run: Path, require: str) -> tuple[int | None, list[str]]:
    """The step that is served, and why others are not; no step if none is."""
    location = location_of(ModelSource(run_dir=str(run), require=require))
    try:
        model, refused = first_verified(location)
    except ModelUnavailableError as error:
        return None, [str(error)]
    return model.step, refused


def test_a_bound_on_a_metric_of_training(tmp_path: Path) -> None:
    publish(tmp_path, 1, loss=2.0)
    newer = publish(tmp_path, 2, loss=2.75)
    assert served(tmp_path, "") == (2, [])
    assert served(tmp_path, "eval_loss<=3") == (2, [])
    why = f"{newer}: eval_loss<=2.5 is required, and this model has 2.75"
    assert served(tmp_path, "eval_loss<=2.5") == (1, [why])
    step, refused = served(tmp_path, "eval_loss<=1")
    assert step is None
    assert "eval_loss<=1 is required, and this model has 2" in refused[0]


def test_a_bound_on_a_score_needs_all_samples_of_these_very_files(tmp_path: Path) -> None:
    model = publish(tmp_path, 1, loss=2.0)
    (before,) = location_of(ModelSource(run_dir=str(tmp_path))).candidates()
    step, refused = served(tmp_path, "easy/acc>=0.5")
    assert step is None
    assert "easy/acc>=0.5 is required, and this model has no easy/acc yet" in refused[0]
    score(model, 0.75, complete=False)
    assert served(tmp_path, "easy/acc>=0.5")[0] is None
    score(model, 0.75)
    assert served(tmp_path, "easy/acc>=0.5, eval_loss<=2") == (1, [])
    score(model, 0.25, complete=False)  # a trial of the command costs no complete scores
    assert served(tmp_path, "easy/acc>=0.5") == (1, [])
    assert served(tmp_path, "easy/acc>=0.8")[0] is None
    (after,) = location_of(ModelSource(run_dir=str(tmp_path))).candidates()
    assert after.stamp != before.stamp  # a server looks at the model again
    scores_file(model).write_text(scores_file(model).read_text().replace("sha256:", "sha256:0"))
    assert served(tmp_path, "easy/acc>=0.5")[0] is None
    scores_file(model).write_text("{")
    assert served(tmp_path, "easy/acc>=0.5")[0] is None


def test_a_better_model_is_swapped_in_once_its_scores_are_there(tmp_path: Path) -> None:
    """The one before answers until then."""
    first = publish(tmp_path, 1, loss=2.0)
    score(first, 0.5)
    with serving(run_dir=tmp_path, poll_seconds=0.02, require="easy/acc>=0.5") as client:

        def step() -> int | None:
            value: int | None = client.get("/health").json().get("step")
            return value

        def refused() -> list[str]:
            reasons: list[str] = client.get("/ready").json().get("refused")
            return reasons

        until(lambda: step() == 1)
        second = publish(tmp_path, 2, loss=2.0)
        until(refused)
        assert refused() == [
            f"{second}: easy/acc>=0.5 is required, and this model has no easy/acc yet"
        ]
        score(second, 0.25)
        until(lambda: any(each.endswith("required, and this model has 0.25") for each in refused()))
        assert step() == 1
        score(second, 0.5)
        until(lambda: step() == 2)
        assert refused() == []
        score(second, 0.125)  # what answers already goes on answering
        score(first, 0.625)
        assert step() == 2


@pytest.mark.parametrize("text", ["eval_loss", "eval_loss<2", "a<=b", "a<=nan", "<=2", "a>=1;b<=2"])
def test_another_form_is_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="is not of the form METRIC<=NUMBER or METRIC>=NUMBER"):
        parse_requirements(text)


def test_the_flag_is_named() -> None:
    from argparse import Namespace

    names = dict.fromkeys(GenerateSettings.model_fields)
    args = Namespace(**names | {"run_dir": "r", "require": "eval_loss<2"})
    with pytest.raises(SettingsError, match="--require: 'eval_loss<2' is not of the form"):
        read_settings(GenerateSettings, args)
