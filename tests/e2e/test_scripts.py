"""Scripts of others in pods, unchanged: what the agent shows of them, and how they fail."""

from pathlib import Path
from typing import Any

from tests.e2e.kube import LONG, Namespace, wait_until
from tests.e2e.runs import training_run

SCRIPT = Path(__file__).parents[1] / "support" / "scripts" / "transformers_trainer.py"
# Posts come every five seconds, so training must last for some.
STEPS, EVAL_STEPS = 2000, 200
KILL = """
import os, pathlib, signal
for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    parent = (path.parent / "stat").read_text().rpartition(")")[2].split()[1]
    if b"\\0RANK=1\\0" in path.read_bytes() and parent != str(os.getppid()):
        launcher = pathlib.Path("/proc", parent, "environ").read_bytes()
        if b"\\0RANK=" not in launcher:
            os.kill(int(path.parent.name), signal.SIGKILL)
"""


def has_reported(status: dict[str, Any]) -> bool:
    return status.get("step", 0) > 0 and "tokensPerSecond" in status and "evalLoss" in status


def test_transformers_trainer_shows_its_progress_and_names_a_killed_rank(space: Namespace) -> None:
    command = ["python3", "-c", SCRIPT.read_text(), str(STEPS), str(EVAL_STEPS)]
    backoff = {"initialSeconds": 0, "maxSeconds": 0}
    space.apply(training_run("hf", {"command": command, "numProcPerNode": 2, "backoff": backoff}))
    status = wait_until(
        "the script's progress",
        lambda: status if has_reported(status := space.status("hf")) else None,
        LONG,
    )
    assert status["phase"] == "Running"
    assert status["totalSteps"] == STEPS
    assert 0 < status["loss"] < 10
    assert status["etaSeconds"] > 0

    space.kubectl("exec", "hf-1-0", "-c", "trainer", "--", "python3", "-c", KILL)
    status = space.wait_phase("hf", "Succeeded")
    first, second = status["attempts"]
    assert (first["reason"], first["message"]) == ("Signal", "hf-1-0: rank 1: killed by SIGKILL")
    assert second["outcome"] == "Succeeded"
    # The last report comes with the agent's own end, however late the operator looks.
    assert status["progress"] == f"{STEPS}/{STEPS}"
