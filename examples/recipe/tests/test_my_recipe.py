"""my-recipe trains: its loss falls with one process and with two, and its model is published."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MANIFEST = Path(__file__).parents[1] / "run.yaml"


@pytest.mark.parametrize("processes", [1, 2])
def test_the_loss_falls(tmp_path: Path, processes: int) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    trainer = ["-m", "trainyard_trainer", str(MANIFEST), "--run-dir", str(tmp_path)]
    done = subprocess.run(
        [*torchrun, f"--nproc-per-node={processes}", *trainer, "--report-port=0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] / 4
    (model,) = (tmp_path / "models").iterdir()
    assert (model / "model.safetensors").is_file()
