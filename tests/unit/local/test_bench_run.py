"""`trainyard bench` with real torchrun processes: figures, a failed cell, Ctrl-C."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.system

TINY = {"batch_size": 4, "block_size": 8, "n_layer": 1, "n_head": 1, "n_embd": 8}

# Stands in for the trainer: reports steps of 0.1 s, or waits to be stopped with a batch of 2.
STAND_IN = """
import json, os, pathlib, time
job = json.loads(os.environ["TRAINYARD_JOB"])
batch = job["config"]["batch_size"]
if batch == 2:
    pathlib.Path("waiting").touch()
    time.sleep(600)
report = {"run": job["run"], "attempt": job["attempt"], "phase": "finished", "ranksJoined": 1,
    "worldSize": 1, "batchSize": batch, "time": "2026-01-01T00:00:00Z",
    "stepSeconds": {"mean": 0.1, "p50": 0.1, "p99": 0.2}}
pathlib.Path(os.environ["TRAINYARD_RESULT_FILE"]).write_text(json.dumps(report))
"""


def write(path: Path, **bench: Any) -> str:
    (path / "tiny.yaml").write_text(yaml.safe_dump(bench))
    return "tiny.yaml"


def test_a_matrix_is_measured_and_a_failed_cell_is_told(box: Any) -> None:
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
    )
    options = ("--repeats", "1", "--steps", "6", "--out", "out")
    code, output = box.cli("bench", file, *options)
    assert code == 1, output
    cause = "config.batch_size: 4 samples can't be shared evenly by 1 process x 3 accumulation"
    failed = f"gradient_accumulation_steps=3; repeat 1 failed: ConfigError: {cause}"
    assert failed in output

    out = box.path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "bench.json",
        "bench.md",
        "bench.png",
        "logs",
    ]
    assert not (box.home / "runs").exists()
    report = json.loads((out / "bench.json").read_text())
    assert report["command"] == "trainyard bench tiny.yaml --repeats 1 --steps 6"
    assert (report["spec"]["steps"], report["threadsPerProcess"]) == (6, "1")
    assert report["machine"]["torch"]
    good, bad = report["cells"]
    (run,) = good["measurements"]
    assert run["samplesPerSecond"] == 4 / run["stepSeconds"]["mean"]
    assert run["tokensPerSecond"] == pytest.approx(run["samplesPerSecond"] * 8)  # rounding
    assert run["peakMemoryBytes"] > 50 * 2**20
    assert (good["speedup"], good["efficiency"]) == (1, 1)
    assert bad["measurements"] == []
    assert cause in (out / bad["failure"]["log"]).read_text()
    assert failed in (out / "bench.md").read_text()

    code, output = box.cli("bench", file, *options)
    assert (code, output) == (
        2,
        "trainyard: out already holds a bench: give --out another directory\n",
    )


def test_ctrl_c_leaves_a_table_of_what_is_done(box: Any, until: Callable[..., None]) -> None:
    box.script("trainyard_trainer.py", STAND_IN)
    template = {"spec": {"recipe": "char-gpt"}}
    file = write(box.path, template=template, matrix={"config.batch_size": [1, 2]})
    bench = box.start("bench", file, "--out", "out", PYTHONPATH=str(box.path))
    until((box.path / "waiting").is_file, "for the second cell to run")
    bench.send_signal(signal.SIGINT)
    code, output = box.end(bench)
    assert code == 130, output
    assert "[1/6] batch_size=1; repeat 1: 10.0 samples/s, 100 ms a step" in output
    table = (box.path / "out" / "bench.md").read_text()
    assert "Interrupted after 1 run:" in table
    assert "| 1 | 10.0 | 1.00x | 100 | 200 |" in table
    assert "| 2 | not run |" in table
    assert not (box.path / "out" / "work").exists()
    report = json.loads((box.path / "out" / "bench.json").read_text())
    assert (report["endTime"], report["cells"][1]["failure"]) == (None, None)
