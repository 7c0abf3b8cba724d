"""`trainyard validate` and `run` refuse what a built-in recipe doesn't know, with its line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.refused import UNCHECKED_KEYS, UNKNOWN_KEYS, run, study
from trainyard_api.run import TrainingRun
from trainyard_api.study import STUDY_KIND
from trainyard_cli import main as cli
from trainyard_local.manifest import load_run, load_study
from trainyard_local.preflight import wrong_settings


def write(manifest: dict[str, Any]) -> list[str]:
    """Write x.yaml; its lines."""
    text = yaml.safe_dump(manifest, sort_keys=False)
    Path("x.yaml").write_text(text)
    return text.splitlines()


@pytest.mark.parametrize(
    ("manifest", "lines"),
    [case[1:] for case in UNKNOWN_KEYS],
    ids=[case[0] for case in UNKNOWN_KEYS],
)
def test_unknown_keys_are_refused_before_anything_starts(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    manifest: dict[str, Any],
    lines: tuple[str, ...],
) -> None:
    text = write(manifest)
    command = "study" if manifest["kind"] == STUDY_KIND else "run"
    for words in (("validate", "x.yaml"), (command, "x.yaml")):
        assert cli.main(words) == cli.EXIT_REFUSED
        found = capsys.readouterr().err.splitlines()
        assert sorted(line.split(": ", 2)[2] for line in found) == sorted(lines)
        for line in found:
            number = int(line.split(":")[2])
            assert line.split(": ")[2].rpartition(".")[2] in text[number - 1], "the file's line"
    assert not (here / "home").exists()


@pytest.mark.parametrize(
    "manifest", [case[1] for case in UNCHECKED_KEYS], ids=[case[0] for case in UNCHECKED_KEYS]
)
def test_settings_of_unknown_recipes_are_not_refused(
    here: Path, capsys: pytest.CaptureFixture[str], manifest: dict[str, Any]
) -> None:
    write(manifest)
    assert cli.main(["validate", "x.yaml"]) == 0
    assert "is valid" in (said := capsys.readouterr().out)
    assert "its config was not checked: " in said


def test_wrong_values_are_refused_by_the_recipes_own_models(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"learning_rate": -1, "n_embd": "wide", "report_to": ["paper"], "batch_size": 8}
    text = write(run("char-gpt", config, numProcPerNode=3))
    assert cli.main(["validate", "x.yaml"]) == cli.EXIT_REFUSED
    found = capsys.readouterr().err.splitlines()
    assert [line.partition("config.")[2] for line in found] == [
        "learning_rate: input should be greater than or equal to 0 (got -1)",
        "n_embd: input should be a valid integer, unable to parse string as an integer"
        " (got 'wide')",
        "report_to.0: input should be 'mlflow' or 'tensorboard' (got 'paper')",
    ]
    for line, key in zip(found, ("learning_rate: -1", "n_embd: wide", "- paper"), strict=True):
        assert text[int(line.split(":")[2]) - 1].strip() == key


def test_what_is_wrong_between_settings_is_found_and_the_examples_are_right() -> None:
    wrong = (
        run("char-gpt", {"n_embd": 10, "n_head": 4}),
        run("char-gpt", {"batch_size": 8}, numNodes=3),
        run("my-recipe", {"batch_size": "eight"}),
        run("char-gpt", {"batch_size": 9}, numNodes=3),
    )
    runs = [TrainingRun.model_validate(manifest) for manifest in wrong]
    for path in sorted((Path(__file__).parents[3] / "examples").glob("*.yaml")):
        if "kind: TrainingRun" in path.read_text():
            runs.append(load_run(path))
        elif "kind: ScalingStudy" in path.read_text():
            runs += [cell.run for cell in load_study(path)[1]]
    found, unchecked = wrong_settings(runs)
    assert unchecked == "its config was not checked: no package here has the recipe my-recipe"
    (heads,), (batch,), *right = found
    assert heads == (("spec", "config"), "config: n_head (4) must divide n_embd (10)")
    assert batch[0] == ("spec", "config", "batch_size")
    assert "8 samples can't be shared evenly by 3 processes" in batch[1]
    assert len(right) > 30
    assert not any(right)


def test_wrong_values_in_cells_are_reported_once(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix: dict[str, list[Any]] = {"config.dropout": [0.1, 2], "numProcPerNode": [1, 2]}
    text = write(study({"recipe": "gpt", "config": {"optimizer": "lion"}}, matrix))
    assert cli.main(["validate", "x.yaml"]) == cli.EXIT_REFUSED
    optimizer, dropout = capsys.readouterr().err.splitlines()
    assert optimizer.endswith(": config.optimizer: input should be 'adamw' or 'sgd' (got 'lion')")
    assert "cell dropout=2, numProcPerNode=1 (and 1 more): config.dropout: input" in dropout
    assert text[int(dropout.split(":")[2]) - 1].strip() == "config.dropout:"
