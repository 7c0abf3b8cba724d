"""Scripts of frameworks, unchanged: their progress, a stopped and a killed rank in the status."""

import os
import signal
from typing import Any

import pytest

from tests.patience import until
from tests.support.frameworks import (
    REPORTING,
    SCRIPTS,
    SILENT,
    hanging,
    shows_what_it_reports,
)
from tests.support.local.ranks import ranks_of

# Nobody waits for the end: the ranks train until the test has seen enough.
STEPS, EVAL_STEPS = "1000000", "200"
HANG = {"afterSeconds": 6}


@pytest.mark.parametrize("script", [*REPORTING, *SILENT])
def test_an_unchanged_script_shows_progress_a_stopped_and_a_killed_rank(
    box: Any, script: str
) -> None:
    words = [str(SCRIPTS / script), STEPS, *([EVAL_STEPS] if script in REPORTING else [])]
    manifest = box.manifest("mine", command=words, numProcPerNode=2, hang=HANG)
    box.start("run", manifest)
    run = box.run_dir("mine")
    until((run / "run.json").exists, "the run is there")

    def log() -> str:
        return "".join(path.read_text(errors="replace") for path in (run / "logs").glob("*"))

    def context() -> str:
        return f"{box.status('mine')}\n{log()[-3000:]}"

    until(lambda: shows_what_it_reports(box.status("mine"), script), "its progress", context)
    if script in SILENT:
        until(lambda: SILENT[script] in log(), "that it trains", context)
        assert {"step", "loss", "etaSeconds"}.isdisjoint(box.status("mine"))
    else:
        assert box.status("mine")["totalSteps"] == int(STEPS)

    rank = ranks_of(run, 1)[1]
    os.kill(rank, signal.SIGSTOP)
    until(lambda: hanging(box.status("mine"))[0] == "True", "the hang", context)
    message = hanging(box.status("mine"))[1]
    assert message.startswith("no progress for "), message
    assert ": rank 1 (" in message, message
    assert f"pid {rank}) is stopped (SIGSTOP)" in message, message
    os.kill(rank, signal.SIGCONT)
    until(lambda: hanging(box.status("mine"))[0] == "False", "that it works again", context)

    os.kill(rank, signal.SIGKILL)
    until(lambda: len(box.status("mine")["attempts"]) == 2, "the next attempt", context)
    first = box.status("mine")["attempts"][0]
    assert (first["outcome"], first["reason"]) == ("Failed", "Signal")
    assert first["message"] == "mine-1-0: rank 1: killed by SIGKILL"
