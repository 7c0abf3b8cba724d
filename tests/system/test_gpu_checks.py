"""`make gpu` works the day that a GPU is there: the same program, with small models on the CPU."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import __main__ as program
from tests.gpu import serving

ROOT = Path(__file__).parents[2]


def test_all_checks_pass_on_a_cpu(tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    command = ["-m", "tests.gpu", "--device", "cpu", "--small", "--output", str(output)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads(output.read_text())["table"]
    assert {row["check"] for row in table} == set(program.checks())
    skipped = {row["what"] for row in table if row["result"] == "not measured here"}
    assert {row["what"] for row in table if row["result"] != "pass"} == skipped
    assert skipped == {
        "checkpoints between CPU and GPU",
        "an index outside its tensor",
        "two ranks on one GPU",
        "more ranks than GPUs",
        "the quickstart with a GPU",
        *(row["what"] for row in table if row["what"].endswith(": MFU")),
    }


def test_an_answer_beyond_the_tolerance_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "PROBABILITY", -1)
    output = tmp_path / "table.json"
    options = argparse.Namespace(device="cpu", small=True, only=["classify"], output=output)
    assert program.run(options, tmp_path) == 1
    (row,) = json.loads(output.read_text())["table"]
    assert (row["check"], row["result"], row["expected"]) == ("classify", "FAIL", "within -1")
