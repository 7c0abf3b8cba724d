"""Scripts of others on this machine, unchanged: what the agent shows of them."""

import os
import signal
from pathlib import Path
from typing import Any

from tests.patience import until
from tests.support.local.ranks import ranks_of

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
