"""Checkpoints of transformers' Trainer and Lightning: the newest complete one, and torn ones."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.patience import until
from tests.support.serving.models import export_char_gpt
from trainyard_agent import foreign
from trainyard_agent.foreign import survey
from trainyard_agent.report import Report
from trainyard_api.base import parse_known
from trainyard_api.progress import ProgressReport

AGENT = Path(__file__).parents[3] / "agent" / "trainyard_agent" / "__main__.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory in which a real Trainer has saved steps 1 and 2 in `out`."""
    import torch
    from transformers import GPT2LMHeadModel, Trainer, TrainingArguments

    directory = tmp_path_factory.mktemp("run")
    export_char_gpt(directory / "model")
    ids = torch.arange(8)
    arguments = TrainingArguments(
        output_dir=str(directory / "out"),
        max_steps=2,
        save_steps=1,
        per_device_train_batch_size=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    data: Any = [{"input_ids": ids, "labels": ids}] * 2
    Trainer(GPT2LMHeadModel.from_pretrained(directory / "model"), arguments, None, data).train()
    return directory


def copy(trained: Path, to: Path) -> Path:
    subprocess.run(["cp", "-r", trained / "out", to / "out"], check=True)
    return to


def test_the_newest_complete_one_is_found(trained: Path) -> None:
    found = survey(trained)
    assert found.torn == []
    assert found.newest
    assert (found.newest.step, found.newest.path) == (2, trained / "out" / "checkpoint-2")
    assert found.newest.time == (found.newest.path / "trainer_state.json").stat().st_mtime


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("model.safetensors", "model.safetensors is cut short"),
        ("optimizer.pt", "optimizer.pt is cut short"),
        ("rng_state.pth", "rng_state.pth is cut short"),
        ("trainer_state.json", "trainer_state.json is cut short"),
    ],
)
def test_a_file_that_is_cut_short_is_named(
    trained: Path, tmp_path: Path, name: str, why: str
) -> None:
    file = copy(trained, tmp_path) / "out" / "checkpoint-2" / name
    os.truncate(file, file.stat().st_size - 30)
    found = survey(tmp_path)
    assert found.torn == [f"out/checkpoint-2: {why}"]
    assert found.newest
    assert found.newest.step == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("model.safetensors", "the weights are missing"),
        ("trainer_state.json", "trainer_state.json is missing"),
    ],
)
def test_a_missing_file_is_named(trained: Path, tmp_path: Path, name: str, why: str) -> None:
    (copy(trained, tmp_path) / "out" / "checkpoint-2" / name).unlink()
    assert survey(tmp_path).torn == [f"out/checkpoint-2: {why}"]


class _RunsCode:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_a_lightning_checkpoint_has_a_step_and_its_code_never_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    content = {"epoch": 3, "global_step": 1234, "state_dict": {"w": torch.ones(50)}}
    torch.save({**content, "x": _RunsCode()}, tmp_path / "last.ckpt")
    found = survey(tmp_path)
    assert found.newest
    assert (found.newest.step, found.torn) == (1234, [])
    assert not (tmp_path / "ran").exists()
    os.truncate(tmp_path / "last.ckpt", (tmp_path / "last.ckpt").stat().st_size - 30)
    assert survey(tmp_path) == (None, ["last.ckpt: last.ckpt is cut short"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("checkpoint-3/model.safetensors", b"\x10\0\0\0\0\0\0\0" + b'{"a": {"b": 3}} '),
        ("checkpoint-3/model.safetensors.index.json", b'{"weight_map": 3}'),
        ("checkpoint-3/trainer_state.json", b"[" * 100_000),
        ("checkpoint-3/optimizer.pt", b"PK\x05\x06"),
        ("checkpoint-9/trainer_state.json", b'{"global_step": "x"}'),
        ("step=7.ckpt", b"\x80\x02."),
        ("step=7.ckpt/x", b""),
    ],
)
def test_files_that_are_something_else_do_no_harm(
    trained: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    file = copy(trained, tmp_path) / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    newest = survey(tmp_path).newest
    assert newest
    assert newest.step == (7 if name == "step=7.ckpt" else 2)


def test_the_report_has_it_unless_the_script_reports_its_own(trained: Path) -> None:
    report = Report("mine", 1)
    report.checkpoint = survey(trained).newest
    document = report.document()  # of a script that reports nothing
    assert document
    assert (document["lastCheckpoint"]["step"], "step" in document) == (2, False)
    report.update({"trainerStatus": {"metrics": [{"name": "step", "value": "2"}]}}, 1)
    found = parse_known(ProgressReport, report.document())
    assert found
    assert found.last_checkpoint
    assert (found.last_checkpoint.step, found.last_checkpoint.digest) == (2, "")
    own = {"step": 9, "digest": f"sha256:{'a' * 64}", "time": "2026-01-02T03:04:05+00:00"}
    report.update({"trainerStatus": {}, "checkpoint": own}, 1)
    assert (report.document() or {})["lastCheckpoint"] == own


def test_an_attempt_begins_with_what_is_torn(trained: Path, tmp_path: Path) -> None:
    copy(trained, tmp_path)
    (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").unlink()
    run = {"TRAINYARD_RUN": "mine", "TRAINYARD_ATTEMPT": "2", "TRAINYARD_RUN_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-I", "-S", AGENT, tmp_path / "worker", "-", "true"],
        env={**os.environ, **run, "TRAINYARD_REPORT_PORT": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == (
        "warning: torn checkpoint out/checkpoint-2: trainer_state.json is missing; the newest"
        " complete one is of step 1\n"
    )


def test_a_disk_that_does_not_answer_holds_up_nothing(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()

    def late(directory: Path) -> Any:
        answers.wait()
        return survey(directory)

    monkeypatch.setattr(foreign, "survey", late)
    monkeypatch.setattr(foreign, "END_SECONDS", 0.1)
    seen: list[foreign.Found] = []
    follower = foreign.Follower(trained, seen.append)
    follower.end()
    assert seen == []
    answers.set()
    until(lambda: seen, "it is found once the disk answers")
    assert seen[0].step == 2
