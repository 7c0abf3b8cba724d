"""A model is published only if it computes what the trained one does."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.trainer.ranks import RankServer
from trainyard_api.checkpoint import MODELS
from trainyard_api.job import TrainerJob
from trainyard_storage.checkpoints import steps

MakeJob = Callable[..., TrainerJob]


@pytest.fixture(scope="module", autouse=True)
def preload(rank_server: RankServer) -> None:
    rank_server.preload("tests.unit.trainer.wrong_export")


def models(run: Any) -> list[str]:
    return sorted(os.listdir(run.run_dir / MODELS))


@pytest.mark.parametrize(
    ("fault", "ranks", "job"),
    [
        ("token", 1, {}),
        ("nan", 1, {}),
        ("tokens", 2, {"precision": "bf16"}),
        ("tokens", 2, {"precision": "bf16", "strategy": "fsdp"}),
        ("tokens", 1, {"precision": "fp16", "strategy": "fsdp"}),
    ],
)
def test_another_model_is_not_published_and_ends_the_run(
    make_job: MakeJob, launch: Any, train: Any, fault: str, ranks: int, job: dict[str, Any]
) -> None:
    config = {"max_steps": 8, "export_steps": 2}
    run = launch(make_job(job, **config), ranks, env={"EXPORT_FAULT": fault})
    assert set(run.wait(terminate=False)) == {1}, run.out + run.err
    message = run.error_message()
    assert message.startswith("ExportError: the exported model is not the trained one: its outputs")
    assert " differ by " in message
    assert "at most where the trained model's is " in message
    assert message.endswith("; it is not published")
    assert run.err.count("ExportError") == 1, "one line, from one rank"
    assert "Traceback" not in run.err
    assert models(run) == ["step-00000002", "step-00000004"]

    again = train(make_job(job | {"attempt": 2}, **config), ranks)
    assert again.result["resumedFromStep"] == 4
    assert models(again)[-1] == "step-00000008"


def test_the_last_model_is_checked_as_well(make_job: MakeJob, launch: Any) -> None:
    """The last export of a run is checked, too; its checkpoint stays, so that nothing is lost."""
    run = launch(make_job(max_steps=8), 2, env={"EXPORT_FAULT": "tokens"})
    assert set(run.wait(terminate=False)) == {1}, run.out + run.err
    assert run.error_message().startswith("ExportError: ")
    assert models(run) == []
    assert next(steps(run.run_dir / "checkpoints")).name == "step-00000008"
