"""Traces of steps: what they contain, when they are recorded, and that they change nothing."""

import gzip
import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer.ranks import RankServer
from trainyard_api.checkpoint import MODELS
from trainyard_api.job import TrainerJob
from trainyard_api.profile import REQUEST, trace_path
from trainyard_storage.checkpoints import file_sha256
from trainyard_trainer.config import TrainConfig, parse_config
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.reporting.timing import Throughput

MakeJob = Callable[..., TrainerJob]
TRAINED = {"data", "forward", "backward", "clipping", "optimizer"}


@pytest.fixture(autouse=True)
def compiler(rank_server: RankServer) -> None:
    """torch.profiler imports it, which takes longer than these runs."""
    rank_server.preload("torch._inductor.config")


def events(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file) as opened:
        found: list[dict[str, Any]] = json.load(opened)["traceEvents"]
    return found


def ranges(file: Path) -> dict[str, int]:
    """How often each named range is in a trace."""
    return Counter(e["name"] for e in events(file) if e.get("cat") == "user_annotation")


def steps(found: dict[str, int]) -> list[int]:
    return [int(name.partition("#")[2]) for name in found if name.startswith("ProfilerStep#")]


def weights(run_dir: Path) -> str:
    (model,) = (run_dir / MODELS).iterdir()
    return file_sha256(model / "model.safetensors")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_each_rank_records_the_asked_steps_and_the_weights_are_the_same(
    make_job: MakeJob, train: Any, tmp_path: Path, strategy: str
) -> None:
    job = {"strategy": strategy}
    settings: dict[str, Any] = {"max_steps": 6, "gradient_accumulation_steps": 2}
    plain = train(make_job(job | {"run_dir": str(tmp_path / "plain")}, **settings), ranks=2)
    settings["profile"] = {"steps": [4, 5], "ranks": [0, 1]}
    run = train(make_job(job, **settings), ranks=2)
    assert weights(run.run_dir) == weights(plain.run_dir)
    assert run.losses() == plain.losses()
    for rank in (0, 1):
        found = ranges(run.run_dir / trace_path(4, 5, rank))
        assert steps(found) == [4, 5]
        assert {name: found[name] for name in TRAINED} == {
            "data": 4,
            "forward": 4,
            "backward": 4,
            "clipping": 2,
            "optimizer": 2,
        }
        # After step 4; the optimizer of step 5 waits until the state is copied.
        assert [found[n] for n in ("evaluating", "checkpointing", "copying")] == [1, 1, 1]
    assert {path.name for path in (run.run_dir / "profiles").rglob("*")} == {
        "step-4-5",
        "rank-0.json.gz",
        "rank-1.json.gz",
    }
    assert run.result["profile"] == "profiles/step-4-5/rank-0.json.gz"
    assert re.search(r"steps 4 to 5 recorded in \S+/rank-1\.json\.gz .* at https://ui", run.out)
    lines = {line["step"]: line for line in run.history() if "loss" in line}
    assert [step for step in lines if "slowed_steps" in lines[step]] == [3, 4, 5, 6]
    assert not any("slowed_steps" in line for line in plain.history())


def test_the_first_step_and_a_shorter_run_are_recorded_as_far_as_they_go(
    make_job: MakeJob, train: Any
) -> None:
    run = train(make_job(max_steps=2, profile={"steps": [1, 8]}))
    assert steps(ranges(run.run_dir / trace_path(1, 2, 0))) == [1, 2]


def test_steps_that_an_attempt_does_not_train_are_one_line(make_job: MakeJob, train: Any) -> None:
    first = train(make_job(max_steps=4, profile={"steps": [20, 21], "ranks": [0, 3]}))
    assert first.err.splitlines() == [
        "warning: config.profile.ranks: 3 is not a rank of this attempt (only 0)",
        "warning: config.profile.steps: steps 20 to 21 won't be recorded: step 4 is the last",
    ]
    resumed = train(make_job(max_steps=5, profile={"steps": [3, 3]}))
    assert resumed.err.splitlines() == [
        "warning: config.profile.steps: step 3 won't be recorded: this attempt begins after step 4"
    ]
    assert not (resumed.run_dir / "profiles").exists()
    rest = train(make_job(max_steps=8, profile={"steps": [3, 7]}))
    assert steps(ranges(rest.run_dir / trace_path(6, 7, 0))) == [6, 7]


def test_a_full_disk_costs_the_trace_only(make_job: MakeJob, train: Any) -> None:
    job = make_job(max_steps=8, eval_steps=0, profile={"steps": [2, 5]})
    run = train(job, max_file_bytes=400_000)
    assert [line for line in run.err.splitlines() if "trace" in line] == [
        f"warning: no trace of steps 2 to 5: {os.strerror(28)}; training continues"
    ]
    assert run.result["step"] == 8
    assert "profile" not in run.result
    assert [path for path in (run.run_dir / "profiles").rglob("*") if path.is_file()] == []


def test_rank_0_records_on_request(make_job: MakeJob, launch: Any) -> None:
    run = launch(make_job(max_steps=1_000_000, eval_steps=0, log_steps=10))
    run.wait_for_step(10)
    request = run.run_dir / REQUEST
    request.write_text("99\n")
    run.wait_until(lambda: "is no number of steps from 1 to 10" in run.err, "it is refused")
    request.write_text("2\n")
    report = run.wait_for_report(lambda report: report.profile is not None)
    found = ranges(run.run_dir / report.profile)
    first, last = steps(found)
    assert report.profile == trace_path(first, last, 0)
    assert last == first + 1
    assert not request.exists()
    assert {name: found[name] for name in TRAINED} == dict.fromkeys(TRAINED, 2)
    run.kill()


def test_a_run_stops_while_it_records(make_job: MakeJob, launch: Any) -> None:
    slow = {"batch_size": 64, "block_size": 128, "gradient_accumulation_steps": 16}
    run = launch(make_job(max_steps=50, eval_steps=0, profile={"steps": [3, 12]}, **slow))
    run.wait_until(lambda: "step  3/50" in run.out, "it has recorded a step")
    os.kill(run.pids[0], signal.SIGTERM)
    assert run.wait() == [-signal.SIGTERM]
    assert "SIGTERM: stopped after step" in run.out
    assert "Traceback" not in run.err
    assert not (run.run_dir / "profiles").exists()


@pytest.mark.slow
def test_compiled_steps_are_recorded(make_job: MakeJob, train: Any) -> None:
    run = train(make_job(max_steps=3, eval_steps=0, compile=True, profile={"steps": [3, 3]}))
    trace = run.run_dir / trace_path(3, 3, 0)
    found = ranges(trace)
    assert steps(found) == [3]
    assert found.keys() >= TRAINED
    assert any("CompiledFunction" in event["name"] for event in events(trace))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"steps": [3]}, "config.profile.steps: give the first and the last step, such as"),
        ({"steps": [0, 1]}, "config.profile.steps: give the first step, from 1 on, and then the"),
        ({"steps": [5, 3]}, r"then the last, not \[5, 3\]"),
        ({"steps": [1, 11]}, r"config.profile.steps: \[1, 11\] are 11 steps; record at most 10"),
        ({"steps": [1, 2.5]}, "config.profile.steps.1: input should be a valid integer"),
        ({"steps": [1, 2], "ranks": [-1]}, "config.profile.ranks: name one rank at least, counted"),
        ({"steps": [1, 2], "ranks": []}, r"config.profile.ranks: name one rank .* not \[\]"),
        ({"step": [1, 2]}, r"config.profile.step: unknown key; did you mean steps\?"),
        ({}, "config.profile.steps: field required"),
    ],
)
def test_a_wrong_setting_is_one_line(value: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(TrainConfig, {"profile": value})
    assert "\n" not in str(caught.value)


def test_slowed_steps_are_left_out_of_rates_and_statistics() -> None:
    throughput = Throughput(batch_size=8, tokens_per_sample=2, warmup_steps=0)
    throughput.add(1.0)
    throughput.add(9.0, slowed=True)
    assert throughput.rates() == (8, 16)
    throughput.add(4.0, slowed=True)
    assert throughput.rates() == (2, 4)  # there is no other
    measured = throughput.step_seconds()
    assert measured is not None
    assert measured.mean == 1.0
