"""Processes are found again by pid and start time, restarted when changed, and ended surely."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.cluster.processes import Identity, Processes
from dev.cluster.settings import Settings
from tests.patience import until

STUBBORN = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=1)"
STUBBORN += "; time.sleep(600)"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(Settings(state=tmp_path))
    yield made
    made.kill(made.names())


def test_the_same_command_is_started_once(processes: Processes) -> None:
    assert processes.ensure("sleeper", ["sleep", "600"])
    first = processes.identity("sleeper")
    assert not processes.ensure("sleeper", ["sleep", "600"])
    assert processes.identity("sleeper") == first


@pytest.mark.parametrize(
    ("command", "stamp"), [(["sleep", "601"], ""), (["sleep", "600"], "other file")]
)
def test_a_changed_command_or_configuration_restarts_it(
    processes: Processes, command: list[str | Path], stamp: str
) -> None:
    processes.ensure("sleeper", ["sleep", "600"])
    first = processes.identity("sleeper")
    assert first is not None
    assert processes.ensure("sleeper", command, stamp)
    assert not first.alive()
    assert processes.identity("sleeper") != first


def test_another_process_with_the_same_pid_is_ignored(processes: Processes) -> None:
    processes.ensure("sleeper", ["sleep", "600"])
    (record,) = processes._records.glob("*.json")
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"started": content["started"] + 1}))
    assert processes.identity("sleeper") is None
    processes.stop(["sleeper"])
    survivor = Identity(content["pid"], content["started"])
    assert survivor.alive()
    record.write_text(json.dumps(content))  # for the clean-up


def test_a_process_id_of_an_earlier_boot_is_ignored(processes: Processes) -> None:
    processes.ensure("sleeper", ["sleep", "600"])
    (record,) = processes._records.glob("*.json")
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"boot": "another"}))
    assert processes.identity("sleeper") is None
    record.write_text(json.dumps(content))


def test_one_that_ignores_sigterm_is_killed(processes: Processes) -> None:
    processes.ensure("stubborn", [sys.executable, "-c", STUBBORN])
    until(lambda: "up" in processes.log("stubborn").read_text())
    found = processes.identity("stubborn")
    assert found is not None
    processes.stop(["stubborn"], grace=0.2)
    assert not found.alive()
    assert processes.names() == []


def test_a_dead_process_is_started_again(processes: Processes) -> None:
    processes.ensure("sleeper", ["sleep", "600"])
    processes.kill(["sleeper"])
    assert not processes.alive("sleeper")
    assert processes.ensure("sleeper", ["sleep", "600"])
