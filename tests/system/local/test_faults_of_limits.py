"""A run at a limit of its spec: the message says which, and a higher limit lets it continue."""

from pathlib import Path
from typing import Any

from tests.patience import until
from tests.system.local.life import Life

STEP = 11


def is_seen_at(step: int, status: dict[str, Any]) -> bool:
    """Whether this attempt reports the step: it has a throughput, which ends with an attempt."""
    return bool(status["throughput"]) and status.get("step") == step


def test_limits_are_raised_one_after_the_other(box: Any) -> None:
    life = Life(box, "limits", maxRestarts=0, activeDeadlineSeconds=1)
    life.apply()
    life.has_stopped_by("active-deadline")

    life.strike(2, "signal", step=6, signal="SIGKILL")
    # In three more attempts rank 1 is killed once it was seen how many steps were done.
    gates = [box.path / f"go-{attempt}" for attempt in (3, 4, 5)]
    for attempt, gate in enumerate(gates, start=3):
        life.strike(attempt, "wait", step=STEP, until=str(gate))
        life.strike(attempt, "signal", step=STEP, signal="SIGKILL")
    life.change(activeDeadlineSeconds=None)
    life.apply()
    life.has_stopped_by("restarts-used-up")

    life.change(maxRestarts=100)
    command = box.start("run", life.manifest())
    for gate in gates:
        until(Path(f"{gate}.awaited").exists, "the attempt has come to the step")
        until(lambda: is_seen_at(STEP, life.status), "it is seen there")
        gate.touch()
    life.said = box.end(command)[1]
    life.has_stopped_by("same-failure-three-times")
    saved = life.kept
    assert saved >= 4
    life.retry()
    life.has_succeeded()
    assert life.status["attempts"][-1]["resumedFromStep"] == saved
