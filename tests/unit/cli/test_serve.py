"""Which of a run's models `trainyard serve` and `describe` name, and the app that answers."""

import json
from pathlib import Path
from typing import get_args

import pytest

from tests.unit.cli.published_run import publish
from trainyard_api.recipe_packages import built_in_recipes
from trainyard_cli import main as cli
from trainyard_cli.serve import APPS, CLASSIFY, EMBED, GENERATE, App, app_of_model
from trainyard_local.store import HOME_ENV
from trainyard_trainer.recipes import ServingApp
from trainyard_trainer.registry import find_recipe


def test_the_command_knows_every_app_that_a_recipe_may_name() -> None:
    assert set(get_args(ServingApp)) == APPS.keys()
    named = {name: find_recipe(name).serving for name in built_in_recipes()}
    assert named == {
        "causal-lm-finetune": "generate",
        "char-gpt": "generate",
        "gpt": "generate",
        "image-classification": None,
        "text-classification": "classify",
    }


@pytest.mark.parametrize("name", APPS)
def test_apps_are_as_the_serving_part_has_them(name: str) -> None:
    programs = pytest.importorskip("trainyard_serving.__main__")
    app = APPS[name]
    fields = programs.APPS[name].settings.model_fields
    assert fields["port"].default == app.port
    assert fields["engine"].default == app.engines[0]
    assert set(get_args(fields["engine"].annotation)) == set(app.engines)


@pytest.mark.parametrize(("serving", "named"), [(None, "no app"), ("draw", "app draw")])
def test_a_model_without_an_app_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    serving: str | None,
    named: str,
) -> None:
    monkeypatch.setenv(HOME_ENV, str(tmp_path))
    publish(tmp_path, "image-classification", serving)
    assert cli.main(["serve", "done"]) == cli.EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert "done: models of recipe image-classification can't be served" in line
    assert f"their manifest names {named} (apps: generate, classify, embed)" in line


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("best", "done: no model has an evaluation loss; use --model last, or one of the steps 1"),
        ("7", "done: no model has the step 7; use --model last, or one of the steps 1"),
        ("newest", "--model newest: use last, best or the number of a step"),
    ],
)
def test_a_model_the_run_does_not_have_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    line: str,
) -> None:
    monkeypatch.setenv(HOME_ENV, str(tmp_path))
    publish(tmp_path)
    assert cli.main(["serve", "done", "--model", model]) == cli.EXIT_REFUSED
    assert capsys.readouterr().err == f"trainyard: {line}\n"


def test_describe_says_which_model_is_the_last_and_which_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_ENV, str(tmp_path))
    publish(tmp_path)

    def described(**models: object) -> list[str]:
        run = {"metadata": {"name": "done"}, "spec": {"recipe": "char-gpt"}, "status": models}
        (tmp_path / "runs" / "done" / "run.json").write_text(json.dumps(run))
        assert cli.main(["describe", "done"]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if " model:" in line]

    last = {"step": 8, "digest": "sha256:aa", "path": "models/step-00000008", "evalLoss": 1.9}
    best = {"step": 4, "digest": "sha256:bb", "path": "models/step-00000004", "evalLoss": 1.5}
    assert described(model=last, bestModel=best) == [
        "Last model:  step 8, evaluation 1.9000, sha256:aa",
        "Best model:  step 4, evaluation 1.5000, sha256:bb",
    ]
    assert described(model=last, bestModel=last)[1] == "Best model:  the last"
    del last["evalLoss"]  # as older versions have written it
    assert described(model=last) == ["Last model:  step 8, sha256:aa"]


def test_an_engine_the_app_does_not_have_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_ENV, str(tmp_path))
    publish(tmp_path, "of-another-package")
    assert cli.main(["serve", "done", "--engine", "onnx"]) == cli.EXIT_REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert "app generate has no engine onnx: use --engine torch or sglang" in line
    assert GENERATE.engines == ("torch", "sglang")


@pytest.mark.parametrize(
    ("name", "files", "app"),
    [
        ("GPT2LMHeadModel", ["tokenizer_config.json"], GENERATE),
        ("Qwen3ForCausalLM", ["tokenizer_config.json"], GENERATE),
        ("Qwen3ForCausalLM", ["modules.json"], EMBED),
        ("Qwen3ForCausalLM", ["1_Pooling/config.json"], EMBED),
        ("BertModel", ["tokenizer_config.json"], EMBED),
        ("RobertaForMaskedLM", ["tokenizer_config.json"], EMBED),
        ("ElectraForPreTraining", ["tokenizer_config.json"], EMBED),
        ("BertForPreTraining", ["tokenizer_config.json"], EMBED),
        ("BertForSequenceClassification", ["tokenizer_config.json"], CLASSIFY),
        ("ViTModel", [], None),
        ("T5EncoderModel", ["tokenizer_config.json"], None),
        ("BertForTokenClassification", ["tokenizer_config.json"], None),
    ],
)
def test_the_files_of_a_scripts_model_say_which_app_serves_it(
    tmp_path: Path, name: str, files: list[str], app: App | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("{}")
    assert app_of_model(tmp_path) == app


@pytest.mark.parametrize("file", ["tokenizer_config.json", "modules.json"])
def test_no_app_serves_the_embeddings_of_an_encoder_with_a_decoder(
    tmp_path: Path, file: str
) -> None:
    config = {"architectures": ["BartModel"], "is_encoder_decoder": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / file).write_text("{}")
    assert app_of_model(tmp_path) is None
    config["architectures"] = ["BartForSequenceClassification"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert app_of_model(tmp_path) == CLASSIFY


def test_an_app_that_does_not_exist_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_ENV, str(tmp_path))
    publish(tmp_path)
    assert cli.main(["serve", "done", "--app", "draw"]) == cli.EXIT_REFUSED
    line = "trainyard: --app draw: use generate, classify, embed\n"
    assert capsys.readouterr().err == line
