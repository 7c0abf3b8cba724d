"""Processes of `trainyard run`: kept, ended and found again. Its torchrun is a user's own."""

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.patience import until

# Sleeps in the first attempt, with a child in a session of its own as torchrun's ranks are.
SLEEPER = """#!/bin/sh
echo "attempt of $PET_RDZV_ID"
if [ "$PET_RDZV_ID" = run-1 ]; then
    setsid sleep 600 &
    touch "$TRAINYARD_RUN_DIR/started"
    wait
fi
"""


@pytest.fixture
def sleeper(box: Any) -> str:
    """Manifest of a run whose first attempt never ends by itself."""
    manifest: str = box.manifest("run", command=[box.script("torchrun", SLEEPER)])
    return manifest


@pytest.fixture
def started(box: Any) -> Callable[[], None]:
    return lambda: until((box.run_dir("run") / "data" / "started").is_file, "the worker starts")


def test_ctrl_c_suspends_and_run_resumes(
    box: Any, sleeper: str, started: Callable[[], None]
) -> None:
    command = box.start("run", sleeper)
    started()
    command.send_signal(signal.SIGINT)
    code, output = box.end(command)
    assert code == 130
    assert "resume  trainyard run run.yaml" in output
    assert box.status("run")["phase"] == "Suspended"
    assert box.processes("run") == []

    code, output = box.cli("run", sleeper)
    assert code == 0, output
    outcomes = [attempt["outcome"] for attempt in box.status("run")["attempts"]]
    assert outcomes == ["Suspended", "Succeeded"]
    assert box.status("run")["restarts"] == 0
    assert box.cli("logs", "run")[1] == "attempt of run-2\n"


@pytest.mark.parametrize("victim", ["torchrun", "agent"])
def test_a_killed_torchrun_or_agent_costs_one_restart(
    box: Any, sleeper: str, started: Callable[[], None], victim: str
) -> None:
    command = box.start("run", sleeper)
    started()
    agent = box.agent_pid("run")
    until(lambda: len(box.processes("run")) == 3)
    before = box.processes("run")
    torchrun = next(pid for pid in before if _parent(pid) == agent)
    os.kill(agent if victim == "agent" else torchrun, signal.SIGKILL)
    code, output = box.end(command)
    assert code == 0, output
    first, second = box.status("run")["attempts"]
    assert (first["outcome"], first["reason"], first["exitCode"]) == ("Failed", "Signal", 137)
    assert second["outcome"] == "Succeeded"
    assert all(_gone(pid) for pid in before)


def test_a_reboot_is_a_lost_node(box: Any, sleeper: str, started: Callable[[], None]) -> None:
    command = box.start("run", sleeper)
    started()
    command.kill()
    box.end(command)
    for pid in box.processes("run"):
        os.kill(pid, signal.SIGKILL)
    lock = box.run_dir("run") / "workers" / "1-0" / "lock"
    lock.write_text(json.dumps({"pid": os.getpid(), "boot": "another"}))  # the id lives again
    code, output = box.cli("run", sleeper)
    assert code == 0, output
    assert box.status("run")["attempts"][0]["reason"] == "NodeLost"


def test_a_worker_that_exits_without_a_driver_is_noticed(box: Any) -> None:
    text = '#!/bin/sh\necho here\nwhile [ ! -e "$TRAINYARD_RUN_DIR/go" ]; do sleep 0.05; done\n'
    manifest = box.manifest("run", command=[box.script("torchrun", text)])
    command = box.start("run", manifest)
    log = box.run_dir("run") / "logs" / "1-0.log"
    until(lambda: log.is_file() and log.read_text())
    command.kill()
    box.end(command)
    (box.run_dir("run") / "data" / "go").touch()
    until((box.run_dir("run") / "workers" / "1-0" / "exit.json").is_file)
    code, output = box.cli("run", manifest)
    assert code == 0, output
    assert len(box.status("run")["attempts"]) == 1


def test_suspend_and_delete_stop_the_driver_and_the_workers(
    box: Any, sleeper: str, started: Callable[[], None]
) -> None:
    driver = box.start("run", sleeper)
    started()
    code, output = box.cli("suspend", "run")
    assert (code, box.end(driver)[0]) == (0, 130)
    assert "run is suspended" in output
    assert box.processes("run") == []

    (box.run_dir("run") / "data" / "started").unlink()
    box.script("torchrun", SLEEPER.replace("run-1", "run-2"))
    driver = box.start("run", sleeper)
    started()
    before = box.processes("run")
    code, output = box.cli("delete", "run")
    assert (code, box.run_dir("run").exists()) == (2, True)
    assert "1 file (0 bytes)" in output, "what a script has written is named, and kept"
    code, output = box.cli("delete", "run", "--yes")
    assert code == 0
    assert output.startswith("deleted run: ")
    assert box.end(driver)[0] == 130
    assert all(_gone(pid) for pid in before)
    assert list((box.home / "runs").iterdir()) == []


def test_an_agent_that_ignores_sigterm_is_killed_by_a_second_ctrl_c(box: Any) -> None:
    text = "#!/bin/sh\ntrap 'touch $TRAINYARD_RUN_DIR/asked' TERM\necho here\n"
    manifest = box.manifest(
        "run", command=[box.script("torchrun", text + "while :; do sleep 0.1; done\n")]
    )
    command = box.start("run", manifest)
    log = box.run_dir("run") / "logs" / "1-0.log"
    until(lambda: log.is_file() and log.read_text())
    command.send_signal(signal.SIGINT)
    until((box.run_dir("run") / "data" / "asked").is_file)
    command.send_signal(signal.SIGINT)
    code, _ = box.end(command)
    assert code == 130
    assert box.processes("run") == []
    assert box.status("run")["phase"] == "Suspended"


def test_logs_follow_until_the_run_ends(
    box: Any, sleeper: str, started: Callable[[], None]
) -> None:
    driver = box.start("run", sleeper)
    started()
    follower = box.start("logs", "-f", "run")
    assert follower.stdout.readline() == "attempt of run-1\n"
    os.kill(box.agent_pid("run"), signal.SIGKILL)
    assert box.end(driver)[0] == 0
    code, output = box.end(follower)
    assert code == 0
    assert output.splitlines() == ["--- attempt 2", "attempt of run-2"]


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def _gone(pid: int) -> bool:
    """Whether the process is dead (a zombie counts: nobody may be there to collect it)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_corrupt_record_of_a_run_can_be_set_aside(box: Any) -> None:
    """The advice of the error keeps what the run has saved, and following it works."""
    saves = '#!/bin/sh\necho "$PET_RDZV_ID" >> "$TRAINYARD_RUN_DIR/saved"\n'
    manifest = box.manifest("run", command=[box.script("torchrun", saves)])
    assert box.cli("run", manifest)[0] == 0
    run = box.run_dir("run")
    (run / "run.json").write_text("{")
    code, output = box.cli("run", manifest)
    assert code == 2
    assert "move run.json, workers and attempts out of" in output
    for name in ("run.json", "workers", "attempts"):
        if (run / name).exists():
            (run / name).rename(box.path / f"old-{name}")
    assert box.cli("run", manifest)[0] == 0
    assert (run / "data" / "saved").read_text() == "run-1\nrun-1\n"
