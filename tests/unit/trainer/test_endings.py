"""However a run ends, and whichever rank ends first, a pod prints the reason once, in one line."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer.ranks import Run
from trainyard_api.checkpoint import CHECKPOINTS
from trainyard_api.job import EXIT_CONFIG, TrainerJob

MakeJob = Callable[..., TrainerJob]
FOREVER = {"max_steps": 100_000, "eval_steps": 0}


@pytest.fixture(autouse=True, scope="module")
def _endings(rank_server: Any) -> None:
    rank_server.preload("tests.unit.trainer.endings")


@pytest.fixture(params=[0, 1], ids=["rank 0 first", "rank 1 first"])
def first(request: pytest.FixtureRequest) -> int:
    """The rank that ends first; rank 0 serves the store."""
    return int(request.param)


@pytest.fixture
def end_in_order(launch: Any, tmp_path: Path, first: int) -> Callable[..., Run]:
    """Run two ranks; `first` ends while the other one is about to, which then does, too.

    `terminate`: by SIGTERM, as torchrun ends it.
    """

    def go(jobs: Any, terminate: bool = False) -> Run:
        gone = tmp_path / "gone"
        run: Run = launch(jobs, ranks=2, env={"LAST": f"{1 - first}:{gone}"})
        run.wait_until(lambda: not run.running(run.pids[first]), "it ends")
        assert run.running(run.pids[1 - first])
        if not terminate:
            gone.touch()
        run.wait(terminate=terminate)
        return run

    return go


def typo(make_job: MakeJob, _: Any) -> TrainerJob:
    return make_job(n_layrs=3)


def uneven_batch(make_job: MakeJob, _: Any) -> TrainerJob:
    return make_job(batch_size=9)


def no_corpus(make_job: MakeJob, _: Any) -> TrainerJob:
    return make_job(corpus="/nowhere.txt")


def no_corpus_on_rank_1(make_job: MakeJob, _: Any) -> list[TrainerJob]:
    return [make_job(), make_job(corpus="/nowhere.txt")]


def no_directory(make_job: MakeJob, _: Any) -> TrainerJob:
    return make_job({"run_dir": "/dev/null/run"})


def no_valid_checkpoint(make_job: MakeJob, train: Any) -> TrainerJob:
    run = train(make_job(max_steps=4))
    (run.run_dir / CHECKPOINTS / "step-00000004" / "manifest.json").write_text("{")
    return make_job({"attempt": 2})


def superseded(make_job: MakeJob, train: Any) -> TrainerJob:
    train(make_job({"attempt": 3}, max_steps=2))
    return make_job({"attempt": 2})


def exploding(make_job: MakeJob, _: Any) -> TrainerJob:
    saves = {"checkpoint": {"everySteps": 100_000}}
    return make_job(saves, learning_rate=1e18, max_grad_norm=0, warmup_steps=0, eval_steps=0)


@pytest.mark.parametrize(
    ("mistake", "code", "message"),
    [
        (typo, EXIT_CONFIG, "ConfigError: config.n_layrs: unknown key; did you mean n_layer?"),
        (uneven_batch, EXIT_CONFIG, "ConfigError: config.batch_size: 9 samples can't be shared"),
        (no_corpus, EXIT_CONFIG, "ConfigError: config.corpus: /nowhere.txt does not exist"),
        (no_corpus_on_rank_1, EXIT_CONFIG, "ConfigError: config.corpus: /nowhere.txt does not"),
        (no_directory, EXIT_CONFIG, "ConfigError: the run directory /dev/null/run cannot be"),
        (no_valid_checkpoint, 1, "CheckpointError: none of the 1 checkpoints in "),
        (superseded, 1, "SupersededError: attempt 2 stops: attempt 3 of this run has started"),
        (exploding, 1, "NonFiniteLossError: the "),
    ],
)
def test_what_all_ranks_find_is_one_line(
    make_job: MakeJob,
    train: Any,
    end_in_order: Any,
    mistake: Callable[..., Any],
    code: int,
    message: str,
) -> None:
    run = end_in_order(mistake(make_job, train))
    (line,) = run.err.splitlines()
    assert line.startswith(message)
    assert line.endswith(" (on rank 1)") == (mistake is no_corpus_on_rank_1)
    assert list(run.codes.values()) == [code, code]
    assert run.error_message(0) == run.error_message(1) == line[:1200]


@pytest.mark.parametrize("mistake", [typo, no_corpus, exploding])
def test_a_rank_that_torchrun_ends_reports_nothing(
    make_job: MakeJob, train: Any, end_in_order: Any, first: int, mistake: Callable[..., Any]
) -> None:
    run = end_in_order(mistake(make_job, train), terminate=True)
    (line,) = run.err.splitlines()
    assert run.error_message(first) == line[:1200]
    assert run.codes[run.pids[1 - first]] == -signal.SIGTERM


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("memory", "OutOfMemoryError: the batch of step 5 doesn't fit into memory: raise "),
        ("a sample", "ConfigError: row 7 can't be decoded"),
        ("a step", "ValueError: a mistake of ours"),
    ],
)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_one_rank_finds_is_one_line(
    make_job: MakeJob, launch: Any, first: int, place: str, message: str, strategy: str
) -> None:
    """The other one waits in a collective, and only sees that its peer is gone."""
    job = make_job({"strategy": strategy}, **FOREVER)
    run = launch(job, ranks=2, env={"FAILS": f"{first}:{place}"})
    run.wait(terminate=False)
    *traceback, line = run.err.splitlines()
    who = f"rank {first}: " if first and place != "a step" else ""
    assert line.startswith(who + message)
    if place == "a step":
        assert traceback.pop(0).startswith("Traceback")
        assert all(frame.startswith("  ") for frame in traceback)
    else:
        assert not traceback
    # Whichever rank's file torchrun reads, it holds the cause.
    assert run.error_message(0) == run.error_message(1) == line.removeprefix(who)


def test_a_rank_that_waits_in_the_store_reports_nothing(make_job: MakeJob, launch: Any) -> None:
    """Rank 0 serves the store that rank 1 waits in: torch warns with its C++ frames."""
    run = launch(make_job(), ranks=2, env={"FAILS": "0:joining"})
    assert run.wait(terminate=False) == [EXIT_CONFIG, 1]
    assert run.err == "ConfigError: something is wrong here\n"


def test_a_rank_killed_while_the_other_waits_in_the_store(
    make_job: MakeJob, launch: Any, tmp_path: Path
) -> None:
    """Nobody has said anything yet: the rank that is left does, in one line."""
    never = tmp_path / "never"
    run = launch(make_job(), ranks=2, env={"FAILS": "0:joining", "LAST": f"0:{never}"})
    run.wait_until(Path(f"{never}.awaited").exists, "rank 1 has joined, and waits for rank 0")
    os.kill(run.pids[0], signal.SIGKILL)
    assert run.wait(terminate=False) == [-signal.SIGKILL, 1]
    (line,) = run.err.splitlines()
    assert line.startswith("rank 1: RankLostError: lost another rank while loading: ")


def test_a_stop_is_reported_although_the_signal_is_repeated(
    make_job: MakeJob, launch: Any, tmp_path: Path
) -> None:
    """torchrun sends it to every rank that is left, once one has ended."""
    gone = tmp_path / "gone"
    run = launch(make_job(**FOREVER), ranks=2, env={"LAST": f"0:{gone}"})
    run.wait_for_step(2)
    os.kill(run.pids[1], signal.SIGTERM)
    run.wait_until(lambda: not run.running(run.pids[1]), "rank 1 ends")
    run.wait_until(Path(f"{gone}.awaited").exists, "rank 0 is about to")
    os.kill(run.pids[0], signal.SIGTERM)
    gone.touch()
    assert run.wait(terminate=False) == [-signal.SIGTERM] * 2
    assert run.err == ""
    assert run.out.splitlines()[-1].startswith("SIGTERM: stopped after step ")


@pytest.mark.parametrize("torchrun", [True, False])
def test_ctrl_c_that_is_repeated(
    make_job: MakeJob, launch: Any, tmp_path: Path, torchrun: bool
) -> None:
    """torchrun repeats it to ranks that have it from the terminal; a user insists."""
    gone = tmp_path / "gone"
    env = {"TORCHELASTIC_RUN_ID": "it"} if torchrun else {}
    run = launch(make_job(**FOREVER), env={"LAST": f"0:{gone}"} | env)
    run.wait_for_step(2)
    os.kill(run.pids[0], signal.SIGINT)
    run.wait_until(Path(f"{gone}.awaited").exists, "it is about to end")
    os.kill(run.pids[0], signal.SIGINT)
    if torchrun:
        gone.touch()
    assert run.wait() == [130]
    assert run.err == ""
    assert run.out.splitlines()[-1].startswith("interrupted; ") == torchrun


def test_a_successful_run_prints_no_error(make_job: MakeJob, end_in_order: Any) -> None:
    run = end_in_order(make_job(max_steps=4))
    assert list(run.codes.values()) == [0, 0]
    assert run.err == ""
