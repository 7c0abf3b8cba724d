"""Scripts of others on this machine, unchanged: what the agent shows of them."""

import os
import signal
from pathlib import Path
from typing import Any

from tests.patience import until
from tests.support.local.ranks import ranks_of
from tests.support.trainer.checkpoint_tensors import digests

SCRIPT = Path(__file__).parents[2] / "support" / "scripts" / "transformers_trainer.py"
STEPS, EVAL_STEPS = 2000, 200


def test_transformers_trainer_shows_its_progress_and_names_a_killed_rank(box: Any) -> None:
    words = [str(SCRIPT), str(STEPS), str(EVAL_STEPS)]
    backoff = {"initialSeconds": 0, "maxSeconds": 0}
    command = box.start("run", box.manifest("hf", command=words, numProcPerNode=2, backoff=backoff))
    run = box.run_dir("hf")
    until((run / "run.json").exists, "the run is there")

    def has_reported() -> bool:
        return {"tokensPerSecond", "evalLoss", "etaSeconds"} <= set(box.status("hf"))

    until(has_reported, "the script's progress")
    assert box.status("hf")["totalSteps"] == STEPS
    os.kill(ranks_of(run, 1)[1], signal.SIGKILL)
    code, output = box.end(command)
    assert code == 0, output
    first, second = box.status("hf")["attempts"]
    assert (first["reason"], first["message"]) == ("Signal", "hf-1-0: rank 1: killed by SIGKILL")
    assert second["outcome"] == "Succeeded"
    assert box.status("hf")["progress"] == f"{STEPS}/{STEPS}"


TRAIN = Path(__file__).parents[2] / "support" / "sdk" / "train.py"


def test_a_script_continues_another_run_bitwise(box: Any) -> None:
    def run(name: str, steps: int, **spec: Any) -> tuple[int, str]:
        command = [str(TRAIN), "--model=ddp", f"--steps={steps}"]
        manifest = box.manifest(name, command=command, numProcPerNode=2, **spec)
        code, output = box.cli("run", manifest)
        return code, output

    for name, steps in (("whole", 12), ("a", 7)):
        code, output = run(name, steps)
        assert code == 0, output
    code, output = run("b", 12, startFrom={"run": "a"})
    assert code == 0, output
    status = box.status("b")
    assert (status["startedFrom"], status["resumedFromStep"]) == ("step 7 of run a", 7)
    assert status["progress"] == "12/12"
    code, output = box.cli("describe", "b")
    (line,) = (line for line in output.splitlines() if line.startswith("Branch of"))
    assert line.endswith(" step 7 of run a")
    whole, branch = (digests(box.run_dir(name) / "data", 12) for name in ("whole", "b"))
    assert branch == whole

    code, output = run("c", 12, startFrom={"run": "a", "step": 9}, maxRestarts=3)
    assert code != 0
    status = box.status("c")
    assert [each["reason"] for each in status["attempts"]] == ["ConfigError"], status["attempts"]
    assert status["message"].endswith(
        "startFrom.run: a: there is no checkpoint of step 9; set startFrom.step to one of"
        " 7, 6, 5, 4, 3, 2, 1"
    )


# As a user writes it: two lines of Trainyard, checkpoints of its own.
LOOP = """
import time
import torch, torch.distributed as dist
import trainyard

dist.init_process_group("gloo")
run = trainyard.init()
saved = run.directory / "step"
first = int(saved.read_text()) if saved.exists() else 0
steps = first + 200 if first else 100_000
for step in range(first + 1, steps + 1):
    time.sleep(0.005)
    run.report(step=step, total=steps, loss=torch.tensor(1 / step), tokens=step * 64)
    if run.should_stop():
        if run.rank == 0:
            saved.write_text(str(step))
        print("rank", run.rank, "stopped after", step, flush=True)
        break
else:
    run.log_sample("the end")
dist.destroy_process_group()
"""


def test_two_lines_show_progress_and_stop_all_ranks_at_one_step(box: Any) -> None:
    manifest = box.manifest("two", command=[box.script("two.py", LOOP)], numProcPerNode=2)
    command = box.start("run", manifest)
    run = box.run_dir("two")
    until((run / "run.json").exists, "the run is there")
    until(lambda: {"tokensPerSecond", "loss", "eta"} <= set(box.status("two")), "its progress")
    assert box.status("two")["totalSteps"] == 100_000
    command.send_signal(signal.SIGINT)
    box.end(command)
    assert box.status("two")["phase"] == "Suspended"
    step = int((run / "data" / "step").read_text())
    log = "".join(path.read_text() for path in (run / "logs").iterdir())
    assert {f"rank {rank} stopped after {step}" in log for rank in (0, 1)} == {True}, log
    code, output = box.cli("run", manifest)
    assert code == 0, output
    status = box.status("two")
    assert (status["phase"], status["progress"]) == ("Succeeded", f"{step + 200}/{step + 200}")
