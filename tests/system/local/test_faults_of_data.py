"""Settings and data that are wrong: each stops the run, and it resumes once they are fixed."""

import json
import shutil
from typing import Any

from tests.system.local.life import Life, local_cases


def test_settings_and_data_are_fixed_one_after_the_other(box: Any) -> None:
    """Ten attempts of one run, and no checkpoint is lost on the way."""
    # With an image of the user's own, unknown keys are for its trainer to find.
    life = Life(box, "data", numProcPerNode=1, image="example.com/own:1")
    right = life.spec["config"]
    for fault in local_cases("config"):
        assert fault.case.local
        life.spec["config"] = right | fault.case.local.config
        life.apply()
        life.has_stopped_by(fault.name)
    attempt = life.status["attempt"]

    text = life.corpus.read_text()
    life.corpus = box.path / "later.txt"
    life.spec["config"] = right | {"corpus": "later.txt"}
    # The next attempt but one finds the file, and PyTorch has no memory for its eleventh step.
    life.strike(
        attempt + 2, "raise", rank=0, step=10, message="CUDA out of memory. Tried to allocate"
    )
    life.apply()
    life.has_stopped_by("corpus-missing")
    life.corpus.write_text(text)
    life.retry()
    life.has_stopped_by("step-out-of-memory")
    saved = life.kept
    assert saved > 0

    life.corpus.write_text(text + "!")
    life.change({"gradient_accumulation_steps": 2})
    life.apply()
    life.has_stopped_by("corpus-changed")
    life.corpus.write_text(text)

    life.change({"batch_size": 16})
    life.apply()
    life.has_stopped_by("setting-changed-on-resume")
    life.change({"batch_size": 8, "max_steps": 4})
    life.apply()
    life.has_stopped_by("fewer-steps-than-done")
    life.change({"max_steps": right["max_steps"]}, numNodes=3)
    life.apply()
    life.has_stopped_by("batch-not-divisible")
    life.change(numNodes=1)
    life.apply()
    life.has_succeeded()
    assert life.status["attempts"][-1]["resumedFromStep"] == saved


def test_a_diverged_loss_is_fixed_by_a_lower_rate(box: Any) -> None:
    life = Life(box, "calm", numProcPerNode=1)
    life.change({"max_steps": 4})
    life.apply()
    life.has_succeeded()
    life.change({"max_steps": 12, "learning_rate": 1e18, "max_grad_norm": 0})
    life.apply()
    life.has_stopped_by("loss-not-finite")
    life.change({"learning_rate": 5e-4, "max_grad_norm": 1})
    life.apply()
    life.has_succeeded()
    assert life.status["attempts"][-1]["resumedFromStep"] == 4
    described = box.cli("describe", "calm")[1]
    _, changed = described.split("Changed settings:")
    assert "learning_rate" in changed.split("Events:")[0]
    records = [json.loads(line) for line in (life.data / "metrics.jsonl").read_text().splitlines()]
    assert any("learning_rate" in str(record.get("changed")) for record in records)


def test_missing_gpus_and_a_missing_directory_are_named(box: Any) -> None:
    """More GPUs than there are, then the directory that the run was started in."""
    folder = box.path / "work"
    folder.mkdir()
    life = Life(box, "machine", recipe=None, config=None, command=["true"], numProcPerNode=1)
    life.change(resourcesPerNode={"limits": {"nvidia.com/gpu": 64}})
    box.folder = folder
    life.apply()
    life.has_stopped_by("too-few-gpus")
    box.folder = box.path
    shutil.rmtree(folder)
    life.change(resourcesPerNode=None)
    life.apply()
    life.has_stopped_by("working-directory-gone")
    folder.mkdir()
    life.retry()
    assert life.status["phase"] == "Succeeded", life.said


def test_an_unknown_recipe_is_replaced(box: Any) -> None:
    life = Life(box, "typo", recipe="chat-gpt", numProcPerNode=1)
    life.apply()
    life.has_stopped_by("unknown-recipe")
    life.change(recipe="char-gpt")
    life.apply()
    assert "can't be changed" in life.said
    assert box.cli("delete", "typo")[0] == 0, "there is nothing to lose yet, so it does not ask"
    life.apply()
    life.has_succeeded()
