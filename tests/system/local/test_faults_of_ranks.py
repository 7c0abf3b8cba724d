"""Ranks that really die, stop, fail or lose their peers: each is named, and the run continues."""

import json
import socket
from typing import Any

import pytest

from tests.faults.corpus import Fault
from tests.system.local.life import SAVE_STEPS, Life, local_cases

CASES = local_cases("signal", "raises", "cut", "loader")
STOPPED = "rank-stopped"


def strike(life: Life, fault: Fault, attempt: int) -> None:
    """Plan the fault for that attempt, at a step that no earlier one came to.

    A save ends before the next one begins, and the second one of the first attempt has begun.
    """
    local, step = fault.case.local, SAVE_STEPS * (attempt + 1) + 2
    assert local
    if local.signal:
        # The ranks agree to stop after the first step, and then about every second.
        at = None if local.signal == "SIGTERM" else step
        life.strike(attempt, "signal", rank=local.rank, step=at, signal=local.signal)
    elif local.raises:
        message = local.raises.partition(": ")[2]
        life.strike(attempt, "raise", rank=local.rank, step=step, message=message)
    elif local.cut:
        life.strike(attempt, "cut", rank=local.rank, step=step)
    else:
        life.strike(attempt, "kill a loader worker", rank=local.rank, step=step)


@pytest.mark.parametrize("half", [0, 1])
def test_a_run_survives_one_fault_after_the_other(box: Any, half: int) -> None:
    cases = [fault for fault in CASES if fault.name != STOPPED][half::2]
    life = Life(box, "ranks", maxRestarts=100)
    for attempt, fault in enumerate(cases, start=1):
        strike(life, fault, attempt)
    workers = 1 if any(fault.case.local.loader for fault in cases if fault.case.local) else 0
    life.change({"max_steps": SAVE_STEPS * (len(cases) + 3), "dataloader_num_workers": workers})
    life.apply()
    life.has_succeeded()
    for attempt, fault in enumerate(cases, start=1):
        life.has_restarted_after(fault.name, attempt)
    attempts = life.status["attempts"]
    assert len(attempts) == len(cases) + 1
    # An attempt that ends within milliseconds of its first step may have reported nothing.
    resumed = [a["resumedFromStep"] for a in attempts if "resumedFromStep" in a]
    assert resumed == sorted(resumed), "no attempt began before the last one's checkpoint"
    assert resumed
    assert resumed[-1] > 0
    assert life.kept == life.status["step"]


def test_a_rendezvous_port_in_use_and_a_rank_that_is_stopped(box: Any) -> None:
    life = Life(box, "stuck")
    (stopped,) = [fault for fault in CASES if fault.name == STOPPED]
    strike(life, stopped, 2)
    life.change({"hang_timeout_seconds": 2})
    ports = box.run_dir("stuck") / "attempts" / "1.json"
    ports.parent.mkdir(parents=True)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ports.write_text(json.dumps({"rendezvous": other.getsockname()[1], "report": 0}))
        life.apply()
    life.has_succeeded()
    life.has_restarted_after("port-in-use", 1)
    life.has_restarted_after(STOPPED, 2)


def test_ranks_that_hold_the_gil_are_named_from_outside(
    box: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 judges, as long as it can."""
    monkeypatch.setenv("TRAINYARD_HANG_SECONDS", "6")  # the agent's own default is 40
    life = Life(box, "muted")
    for attempt, rank in enumerate((0, 1), start=1):
        life.strike(attempt, "hold the GIL", rank=rank, step=SAVE_STEPS * (attempt + 1) + 2)
    life.change({"hang_timeout_seconds": 2})
    life.apply()
    life.has_succeeded()
    for attempt, rank in enumerate((0, 1), start=1):
        life.has_restarted_after("rank-holds-the-gil", attempt)
        assert f" s: rank {rank} (" in life.status["attempts"][attempt - 1]["message"]
