"""`trainyard study` with real torchrun processes: figures, a failed cell, Ctrl-C, kill -9."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.patience import until
from trainyard_agent import procfs

TINY = {"batch_size": 4, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 8}

# Stands in for the trainer: reports steps of 0.1 s. With a batch of 2, the first time, it waits to
# be stopped.
STAND_IN = """
import json, os, pathlib, time
job = json.loads(os.environ["TRAINYARD_JOB"])
batch = job["config"]["batch_size"]
if batch == 2 and not pathlib.Path("waiting").exists():
    pathlib.Path("waiting").touch()
    time.sleep(600)
report = {"run": job["run"], "attempt": job.get("attempt", 1), "phase": "finished",
    "ranksJoined": 1, "worldSize": 1, "batchSize": batch, "time": "2026-01-01T00:00:00Z",
    "stepSeconds": {"mean": 0.1, "p50": 0.1, "p99": 0.2}}
pathlib.Path(os.environ["TRAINYARD_RESULT_FILE"]).write_text(json.dumps(report))
"""


def write(path: Path, **spec: Any) -> str:
    study = {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "ScalingStudy",
        "metadata": {"name": "tiny"},
        "spec": spec,
    }
    (path / "tiny.yaml").write_text(yaml.safe_dump(study))
    return "tiny.yaml"


def test_a_matrix_is_measured_and_a_failed_cell_is_reported(box: Any) -> None:
    (box.path / "corpus.txt").write_text("to be or not to be, that is the question\n" * 20)
    file = write(
        box.path,
        template={
            "spec": {
                "recipe": "char-gpt",
                "config": TINY | {"corpus": "corpus.txt", "sample_tokens": 1},
            }
        },
        matrix={"config.gradient_accumulation_steps": [2, 3]},
        cost={"perProcessHour": 3.6, "currency": "EUR"},
    )
    options = ("--repeats", "1", "--steps", "6", "--out", "out")
    code, output = box.cli("study", file, *options)
    assert code == 1, output
    cause = "config.batch_size: 4 samples can't be shared evenly by 1 process x 3 accumulation"
    failed = f"gradient_accumulation_steps=3; repeat 1 failed: ConfigError: {cause}"
    assert failed in output

    out = box.path / "out"
    names = ["lock", "logs", "study.json", "study.md", "study.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert not (box.home / "runs").exists()
    study = json.loads((out / "study.json").read_text())
    status = study["status"]
    assert (study["kind"], study["spec"]["steps"]) == ("ScalingStudy", 6)
    assert status["command"] == "trainyard study tiny.yaml --repeats 1 --steps 6"
    assert (status["phase"], status["reason"]) == ("Failed", "CellFailed")
    assert status["threadsPerProcess"] == 1
    assert status["machine"]["torch"]
    good, bad = status["cells"]
    (run,) = good["measurements"]
    assert run["samplesPerSecond"] == 4 / run["stepSeconds"]["mean"]
    assert run["tokensPerSecond"] == pytest.approx(run["samplesPerSecond"] * 8)
    assert run["peakMemoryBytes"] > 50 * 2**20
    assert (good["speedup"], good["efficiency"]) == (1, 1)
    assert good["costPerMillion"] == pytest.approx(0.001 * 1e6 / run["tokensPerSecond"])
    assert bad["measurements"] == []
    assert cause in (out / bad["failure"]["log"]).read_text()
    assert failed in (out / "study.md").read_text()

    code, output = box.cli("study", file, *options)
    assert code == 1
    assert "tiny is already measured, here are its results; use --again to re-measure" in output
    code, output = box.cli("study", file, "--repeats", "2", "--out", "out")
    assert code == 2
    assert "tiny was started with another template, matrix, or number of steps" in output


def test_a_killed_or_stopped_study_is_resumed(box: Any) -> None:
    box.script("trainyard_trainer.py", STAND_IN)
    template = {"spec": {"recipe": "char-gpt"}}
    file = write(box.path, template=template, matrix={"config.batch_size": [1, 2]}, repeats=1)
    path = {"PYTHONPATH": str(box.path)}
    directory = box.home / "studies" / "tiny"

    study = box.start("study", file, **path)
    until((box.path / "waiting").is_file, "the second cell runs")
    code, output = box.cli("study", file, **path)
    assert (code, "tiny is already being measured by process" in output) == (2, True)
    study.kill()
    study.wait()
    (worker,) = (directory / "work" / "runs" / "tiny-2-1" / "workers").iterdir()
    assert procfs.worker_processes(worker), "the run outlives its driver"
    (box.path / "waiting").unlink()

    study = box.start("study", file, **path)
    until((box.path / "waiting").is_file, "the second cell runs again")
    study.send_signal(signal.SIGINT)
    code, output = box.end(study)
    assert code == 130, output
    assert "resuming after 1 of 2 runs" in output
    assert not (directory / "work").exists()
    status = json.loads((directory / "study.json").read_text())["status"]
    assert (status["phase"], status["reason"]) == ("Suspended", "Interrupted")
    table = (directory / "study.md").read_text()
    assert "Unfinished: 1 run measured" in table
    assert "| 2 | 1 | not run |" in table

    code, output = box.cli("study", file, **path)
    assert code == 0, output
    assert "[2/2] batch_size=2; repeat 1: 20 samples/s, 100 ms per step" in output
    status = json.loads((directory / "study.json").read_text())["status"]
    assert (status["phase"], status["progress"]) == ("Succeeded", "2/2")
    repeats = [[m["repeat"] for m in cell["measurements"]] for cell in status["cells"]]
    assert repeats == [[1], [1]]
