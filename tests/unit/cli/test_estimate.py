"""`trainyard estimate`: what it can't estimate."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.refused import run, study
from trainyard_cli import main as cli
from trainyard_local import preflight


@pytest.mark.parametrize(
    ("manifest", "words", "line"),
    [
        (
            {"spec": {"command": ["x.py"]}},
            [],
            "x.yaml: the memory of a recipe can be estimated, not of a command",
        ),
        (
            study({"recipe": "char-gpt"}, {"numProcPerNode": [1, 2]}),
            [],
            "x.yaml: the memory of a TrainingRun can be estimated, not of a ScalingStudy: write",
        ),
        ({}, ["--gpu", "H10"], "--gpu: H10 is unknown; known: T4, V100-16GB,"),
        ({}, ["--memory", "80"], "--memory: 80 is no amount of memory; write for example 80GiB"),
        ({}, [], "trainyard estimate needs the trainer extra (torch missing): pip install"),
    ],
)
def test_what_cannot_be_estimated_is_one_line(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    manifest: dict[str, Any],
    words: list[str],
    line: str,
) -> None:
    monkeypatch.setattr(preflight, "missing_distributions", lambda _extra: ["torch"])
    Path("x.yaml").write_text(yaml.safe_dump(run("char-gpt", {"corpus": "text.txt"}) | manifest))
    assert cli.main(["estimate", "x.yaml", *words]) == cli.EXIT_REFUSED
    said = capsys.readouterr().err
    assert said.startswith(f"trainyard: {line}")
    assert said.count("\n") == 1
