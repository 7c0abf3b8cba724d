"""The real launcher: SIGKILL a worker, start the next attempt, end with the very same weights."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import patience
from tests.patience import until
from trainyard_api.checkpoint import CHECKPOINTS, MODELS
from trainyard_api.job import JOB_ENV, TrainerJob
from trainyard_storage.checkpoints import file_sha256

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TORCHRUN += ["-m", "trainyard_trainer"]


def worker_of_rank(launcher: int, rank: int) -> int:
    """Process id of a torchrun's worker."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == launcher and f"\0RANK={rank}\0" in (folder / "environ").read_text():
                return int(folder.name)
        except OSError:
            continue  # ended meanwhile
    raise AssertionError(f"no worker of rank {rank}")


def test_a_worker_killed_under_torchrun(
    make_job: Callable[..., TrainerJob], train: Any, tmp_path: Path
) -> None:
    settings = {"max_steps": 120, "eval_steps": 0, "log_steps": 20}
    saves = {"checkpoint": {"everySteps": 20}}
    whole = train(make_job({**saves, "run_dir": str(tmp_path / "whole")}, **settings), ranks=2)

    def torchrun(job: TrainerJob) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            TORCHRUN,
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                JOB_ENV: job.model_dump_json(by_alias=True),
                "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json"),
            },
            stdout=(tmp_path / f"out-{job.attempt}").open("wb"),
            stderr=subprocess.STDOUT,
        )

    job = make_job(saves, **settings)
    killed = torchrun(job)
    first_checkpoint = Path(job.run_dir) / CHECKPOINTS / "step-00000020"
    said = (tmp_path / "out-1").read_text
    until(lambda: first_checkpoint.exists() or killed.poll() is not None, context=said)
    assert killed.poll() is None, said()
    os.kill(worker_of_rank(killed.pid, 1), signal.SIGKILL)
    assert killed.wait(timeout=patience.SECONDS) != 0
    assert not (Path(job.run_dir) / MODELS / "step-00000120").exists()

    resumed = train(make_job({**saves, "attempt": 2}, **settings), ranks=2)
    assert resumed.result["resumedFromStep"] >= 20
    weights = "models/step-00000120/model.safetensors"
    assert file_sha256(resumed.run_dir / weights) == file_sha256(whole.run_dir / weights)


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ({"n_layrs": 1}, "ConfigError: config.n_layrs: unknown key; did you mean n_layer?"),
        (
            {"batch_size": 9},
            "ConfigError: config.batch_size: 9 samples can't be shared evenly by 2 processes x 1"
            " accumulation steps; use 8 or 10",
        ),
    ],
)
def test_a_user_mistake_under_torchrun(
    make_job: Callable[..., TrainerJob], tmp_path: Path, mistake: dict[str, int], said: str
) -> None:
    job = make_job(**mistake)
    ended = subprocess.run(
        TORCHRUN,
        env=os.environ
        | {
            JOB_ENV: job.model_dump_json(by_alias=True),
            "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json"),
        },
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
    )
    assert ended.returncode != 0
    assert ended.stderr.splitlines().count(said) == 1
    assert ended.stderr.count("Error: ") == 2  # and torchrun's own ChildFailedError
    assert "[c10d]" not in ended.stderr
    record = json.loads((tmp_path / "error.json").read_text())
    assert record["message"]["message"] == said
    assert (tmp_path / "error.json").stat().st_size < 4096
