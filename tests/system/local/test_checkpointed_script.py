"""A script with trainyard.Checkpointer under torchrun: a killed rank costs it no bit."""

import os
import signal
from pathlib import Path
from typing import Any

from tests.patience import until
from tests.support.frameworks import SCRIPTS
from tests.support.local.ranks import ranks_of
from tests.support.trainer.checkpoint_tensors import digests
from trainyard_api.checkpoint import CHECKPOINTS, MODELS, step_name
from trainyard_storage.checkpoints import verify

SCRIPT = str(SCRIPTS / "checkpointed.py")
STEPS, EVERY = 300, 40
KILLED, SAVED = 150, 120


def model_files(data: Path) -> dict[str, str]:
    """The sha256 of every file of the run's last model."""
    manifest = verify(data / MODELS / step_name(STEPS))
    return {name: entry.sha256 for name, entry in manifest.files.items()}


def test_a_killed_rank_is_named_and_the_resumed_model_is_the_undisturbed_one_byte_for_byte(
    box: Any,
) -> None:
    hold = box.path / "hold"
    hold.touch()
    words = [SCRIPT, str(STEPS), str(EVERY)]
    manifest = box.manifest("mine", command=[*words, str(hold)], numProcPerNode=2)
    command = box.start("run", manifest)
    run = box.run_dir("mine")
    saved = run / "data" / CHECKPOINTS / step_name(SAVED)
    until(saved.exists, "the checkpoint before")
    until(lambda: box.status("mine").get("step") == KILLED, "rank 1 waits")
    os.kill(ranks_of(run, 1)[1], signal.SIGKILL)
    hold.unlink()
    code, output = box.end(command)
    assert code == 0, output

    status = box.status("mine")
    first, second = status["attempts"]
    assert (first["outcome"], first["reason"]) == ("Failed", "Signal")
    assert first["message"] == "mine-1-0: rank 1: killed by SIGKILL"
    assert (second["outcome"], second["resumedFromStep"]) == ("Succeeded", SAVED)
    assert (status["phase"], status["progress"]) == ("Succeeded", f"{STEPS}/{STEPS}")
    assert status["lastCheckpoint"]["step"] == status["model"]["step"] == STEPS

    code, output = box.cli("run", box.manifest("calm", command=words, numProcPerNode=2))
    assert code == 0, output
    assert len(box.status("calm")["attempts"]) == 1
    disturbed, calm = (box.run_dir(name) / "data" for name in ("mine", "calm"))
    assert model_files(disturbed) == model_files(calm)
    assert digests(disturbed, STEPS) == digests(calm, STEPS)
