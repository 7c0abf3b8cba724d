"""Commands that end at once: refusals, `get`, `describe`, `delete`; each mistake is one line."""

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.dashboard.home import write_run
from tests.unit.cli.published_run import publish
from trainyard_cli import main as cli

HEAD = "apiVersion: trainyard.dev/v1alpha1\nkind: TrainingRun\nmetadata: {name: x}\n"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("spec: {command: [a.py], numNodes: 0}", 4, "spec.numNodes: "),
        ("spec: {command: [a.py], recipe: b}", 4, "exactly one of recipe"),
        ("spec:\n  command: [a.py]\n  sed: 1", 6, "spec.sed: unknown key"),
        ("spec:\n  command: [a.py]\n  seed: '1'", 6, "spec.seed: "),
        ("spec:\n  command: [a.py]\n  seed: 1\n  seed: 2", 7, "duplicate key seed"),
        ("spec:\n  command: [a.py\n", 6, "invalid YAML"),
        ("spec: {command: [a.py]}\n---\nspec: {}", 6, "a second document"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_line(
    here: Path, capsys: pytest.CaptureFixture[str], text: str, line: int, said: str
) -> None:
    Path("x.yaml").write_text(HEAD + text)
    for command in ("run", "validate"):
        assert cli.main([command, "x.yaml"]) == cli.EXIT_REFUSED
        error = capsys.readouterr().err
        assert error.startswith(f"trainyard: x.yaml:{line}: ")
        assert said in error
        assert len(error.splitlines()) == 1
    assert not (here / "home").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"- a", "a TrainingRun is expected, not a list"),
        (b"apiVersion: v1\nkind: Pod", "not apiVersion: v1 and kind: Pod"),
    ],
)
def test_a_file_that_is_not_a_manifest_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, said: str
) -> None:
    if content is not None:
        Path("x.yaml").write_bytes(content)
    assert cli.main(["run", "x.yaml"]) == cli.EXIT_REFUSED
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_every_problem_has_its_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text(HEAD + "spec:\n  numNodes: 0\n  command: [a.py]\n  speed: 9\n")
    assert cli.main(["validate", "x.yaml"]) == cli.EXIT_REFUSED
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[2] for line in lines] == ["5", "7"]


def test_requesting_gpus_on_a_machine_without_is_a_config_error(box: Any) -> None:
    if list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    limits = {"limits": {"nvidia.com/gpu": "2"}}
    manifest = box.manifest("gpu", recipe="char-gpt", resourcesPerNode=limits)
    code, output = box.cli("run", manifest)
    assert code == 1
    assert "gpu failed: ConfigError: " in output
    assert "requests 2 nvidia.com/gpu per node, but this machine has none" in output
    status = box.status("gpu")
    assert (status["attempt"], status["reason"]) == (1, "ConfigError")


def test_describe_shows_every_metric_of_the_newest_evaluation(box: Any) -> None:
    write_run(box.home, "bard", points=3)
    history = box.home / "runs" / "bard" / "data" / "metrics.jsonl"

    def evaluation() -> list[str]:
        lines = box.cli("describe", "bard")[1].splitlines()
        return [line.split(maxsplit=1)[1] for line in lines if line.startswith("Evaluation:")]

    assert evaluation() == ["step 30: eval_loss 1.6000"]
    with history.open("a") as file:
        file.write('{"time": 1.5, "step": 40, "eval_loss": 0.25, "accuracy": 0.91, "x": NaN}\n')
        file.write('{"step": 50, "loss": 2.0}\n[1, "eval_loss"]\n{"step": 60, "eval_lo')
    assert evaluation() == ["step 40: eval_loss 0.2500, accuracy 0.9100"]
    history.unlink()
    assert evaluation() == []


def test_suspend_in_the_manifest_starts_nothing_and_fields_change_as_allowed(box: Any) -> None:
    base = {"command": [box.script("torchrun", "#!/bin/sh\necho hello\n")]}
    code, output = box.cli("run", box.manifest("run", **base, suspend=True))
    assert code == 1
    assert "set spec.suspend to false" in output
    assert not (box.run_dir("run") / "workers").exists()

    code, output = box.cli("run", box.manifest("run", **base, seed=5, strategy="fsdp"))
    assert code == cli.EXIT_REFUSED
    assert "run exists with another strategy, seed, which can't be changed" in output
    assert len(output.splitlines()) == 1

    code, output = box.cli("run", box.manifest("run", **base, maxRestarts=7))
    assert code == 0, output
    run = json.loads(box.cli("get", "run", "-o", "json")[1])
    assert run["spec"]["maxRestarts"] == 7
    assert run["metadata"]["generation"] == run["status"]["observedGeneration"] == 2
    assert yaml.safe_load(box.cli("get", "run", "-o", "yaml")[1]) == run

    head, row = box.cli("get", "-o", "wide")[1].splitlines()
    assert head.split()[:4] == ["NAME", "PHASE", "PROGRESS", "LOSS"]
    assert row.split()[:2] == ["run", "Succeeded"]
    described = box.cli("describe", "run")[1]
    for words in ("Succeeded (Succeeded)", "AttemptStarted", "Manifest:    run.yaml"):
        assert words in described
    code, output = box.cli("logs", "run", "--node", "3")
    assert code == cli.EXIT_REFUSED
    assert "1-0" in output


def test_a_deadline_stops_the_run_and_its_worker(box: Any) -> None:
    command = [box.script("torchrun", "#!/bin/sh\nexec sleep 600\n")]
    manifest = box.manifest("late", command=command, activeDeadlineSeconds=1)
    code, output = box.cli("run", manifest)
    assert code == 1
    assert "late failed: DeadlineExceeded" in output
    assert box.processes("late") == []


def test_a_finished_run_is_deleted_after_its_ttl(box: Any) -> None:
    command = [box.script("torchrun", '#!/bin/sh\necho kept > "$TRAINYARD_RUN_DIR/file"\n')]
    manifest = box.manifest(
        "short",
        command=command,
        ttlSecondsAfterFinished=60,
        storage={"whenDeleted": "Retain"},
    )
    assert box.cli("run", manifest)[0] == 0
    assert "short" in box.cli("get")[1]
    path = box.run_dir("short") / "run.json"
    run = json.loads(path.read_text())
    run["status"]["completionTime"] = (datetime.now(UTC) - timedelta(seconds=61)).isoformat()
    path.write_text(json.dumps(run))
    assert "no runs" in box.cli("get")[1]
    assert [file.name for file in box.run_dir("short").rglob("*")] == ["data", "file"]


def test_data_is_kept_once_the_manifest_says_so(box: Any) -> None:
    def manifest(**storage: str) -> str:
        text = '#!/bin/sh\necho kept > "$TRAINYARD_RUN_DIR/file"\n'
        command = [box.script("torchrun", text)]
        name: str = box.manifest("late", command=command, storage=storage)
        return name

    assert box.cli("run", manifest(size="1Gi"))[0] == 0
    code, output = box.cli("run", manifest(size="2Gi", whenDeleted="Retain"))
    assert code == cli.EXIT_REFUSED
    assert "late exists with another storage.size, which can't be changed" in output
    code, output = box.cli("run", manifest(size="1Gi", whenDeleted="Retain"))
    assert (code, box.status("late")["attempt"]) == (0, 1), output
    assert "its data is kept in" in box.cli("delete", "late")[1]
    assert [file.name for file in box.run_dir("late").rglob("*")] == ["data", "file"]


def test_an_unknown_name_lists_the_known_ones(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "home" / "runs" / "known").mkdir(parents=True)
    (here / "home" / "runs" / "known" / "run.json").write_text(
        json.dumps({"metadata": {"name": "known"}, "spec": {}, "status": {"phase": "Running"}})
    )
    for command in ("get", "describe", "logs", "delete", "suspend", "serve"):
        assert cli.main([command, "../known"]) == cli.EXIT_REFUSED
        assert "(known: known)" in capsys.readouterr().err
    assert cli.main(["delete", "nobody", "--ignore-not-found"]) == 0
    assert cli.main(["serve", "known"]) == cli.EXIT_REFUSED
    assert "known has no model yet (phase Running)" in capsys.readouterr().err


@pytest.fixture
def model(here: Path) -> Path:
    """The model directory of a run named done; it verifies."""
    return publish(here / "home")


def test_serve_says_that_the_port_is_taken(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", "done", "--port", port]) == cli.EXIT_REFUSED
        assert f"port {port} can't be used" in capsys.readouterr().err


def test_serve_refuses_a_damaged_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "config.json").write_text("[]")
    assert cli.main(["serve", "done"]) == cli.EXIT_REFUSED
    assert "config.json: sha256 differs" in capsys.readouterr().err


def test_a_home_that_is_not_a_directory_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "home").write_text("")
    Path("x.yaml").write_text(HEAD + "spec: {command: [a.py]}")
    assert cli.main(["run", "x.yaml"]) == 1
    error = capsys.readouterr().err
    assert "Not a directory" in error
    assert len(error.splitlines()) == 1


def test_get_is_light_and_nothing_here_needs_torch_or_kubernetes(here: Path) -> None:
    Path("x.yaml").write_text(HEAD + "spec: {command: [a.py]}")
    code = "\n".join(
        [
            "import sys",
            "from trainyard_cli.main import main",
            "main(['get'])",
            "assert not {'pydantic', 'rich', 'yaml'} & sys.modules.keys()",
            "assert main(['validate', 'x.yaml']) == 0",
            "assert not {'torch', 'kubernetes', 'kopf', 'numpy'} & sys.modules.keys()",
        ]
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


def test_what_a_newer_version_has_stored_is_refused_by_name_and_kept(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.yaml").write_text(HEAD + "spec: {command: ['true']}")
    file = here / "home" / "runs" / "x" / "run.json"
    file.parent.mkdir(parents=True)
    run = yaml.safe_load(Path("x.yaml").read_text())
    run["spec"]["novelty"] = 1
    file.write_text(json.dumps(run))
    assert cli.main(["run", "x.yaml"]) == cli.EXIT_REFUSED
    error = capsys.readouterr().err
    assert "spec.novelty: unknown key (got 1): use the newer version of trainyard" in error
    assert json.loads(file.read_text()) == run
