"""Real trainer processes for the tests: as many gloo ranks as asked for."""

import argparse
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from tests.support.trainer.ranks import Launcher, RankServer, Run, tiny_job
from trainyard_api.job import TrainerJob


@pytest.fixture
def unused_port() -> int:
    """A free TCP port."""
    return free_port()


@pytest.fixture(scope="session")
def rank_server() -> Iterator[RankServer]:
    server = RankServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 20,000 characters."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(inspect.getsource(argparse)[:20_000])
    return path


@pytest.fixture
def make_job(tmp_path: Path, corpus: Path) -> Callable[..., TrainerJob]:
    """Builds a job of a tiny char-gpt; keyword arguments go into its config, `job` beside it."""

    def make(job: dict[str, Any] | None = None, **config: Any) -> TrainerJob:
        settings = {
            "corpus": str(corpus),
            "max_steps": 12,
            "batch_size": 8,
            "block_size": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_embd": 32,
            "dropout": 0.1,
            "learning_rate": 1e-2,
            "eval_steps": 4,
            "eval_batches": 2,
            "log_steps": 1,
            "sample_tokens": 20,
        }
        fields = {"checkpoint": {"everySteps": 4, "keepLast": 3}} | (job or {})
        return tiny_job(tmp_path, "char-gpt", settings | config, **fields)

    return make


@pytest.fixture
def launch(rank_server: RankServer, tmp_path: Path) -> Iterator[Launcher]:
    """Starts the ranks of a job and returns at once; what still runs at the end is killed."""
    launcher = Launcher(rank_server, tmp_path)
    yield launcher
    launcher.close()


@pytest.fixture
def train(launch: Callable[..., Run]) -> Callable[..., Run]:
    """Runs a job to its end and expects that all ranks succeed."""

    def go(job: TrainerJob | Sequence[TrainerJob], ranks: int = 1, **options: Any) -> Run:
        run = launch(job, ranks, **options)
        codes = run.wait()
        assert not any(codes), f"exit codes {codes}\n{run.out}\n{run.err}"
        return run

    return go
