"""Agents with real processes: scripts, and recipes, of which a rank waits for something else."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import trainyard_agent
from tests.patience import SECONDS, until
from tests.ports import free_port
from trainyard_agent import stacks
from trainyard_agent.hangs import from_wire

PROGRAM = Path(trainyard_agent.__file__).parent / "__main__.py"
TRAINS = """
import os, sys, threading, time
sys.path.insert(0, {packages!r})
from torch.distributed import distributed_c10d
rank = int(os.environ["RANK"])

def beats():  # as a recipe's watcher does: in place, for the fault may stop it at any moment
    while True:
        os.pwrite(heartbeats, b"1.5", 0)
        time.sleep(0.2)

if "TRAINYARD_TRAINER_PORT" in os.environ:
    path = os.environ["TRAINYARD_HEARTBEATS"] + f"/heartbeat-{{rank}}"
    heartbeats = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.pwrite(heartbeats, b"1.5", 0)
    threading.Thread(target=beats, daemon=True).start()

def batch():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

def main():
    if rank == 1:
        {fault}
    distributed_c10d.all_reduce()

main()
"""
HOLDS_THE_GIL = "import ctypes; ctypes.PyDLL(None).pause()"
SLEEPS = "open(os.environ['TRAINYARD_WORKER_DIR'] + '/sleeps', 'w'); time.sleep(600)"
LAUNCHER = """
import os, subprocess, sys
ranks = []
for rank in range(2):
    env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    ranks.append(subprocess.Popen([sys.executable, sys.argv[1]], env=env))
sys.exit(max(abs(rank.wait()) for rank in ranks))
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "site-packages" / "torch" / "distributed"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    text = "import threading\n\ndef all_reduce():\n    threading.Event().wait()\n"
    # `wait` of the standard library would be the innermost frame: C code has none.
    text = text.replace("threading.Event().wait()", "lock.acquire(); lock.acquire()")
    (folder / "distributed_c10d.py").write_text(
        text.replace("\n\n", "\nlock = threading.Lock()\n\n")
    )
    return tmp_path / "site-packages"


class Script:
    """Two ranks under an agent that watches for hangs."""

    def __init__(
        self, path: Path, packages: Path, fault: str, action: str = "warn", recipe: bool = False
    ) -> None:
        self.directory = path / "worker"
        self.directory.mkdir()
        script = path / "train.py"
        script.write_text(TRAINS.format(packages=str(packages), fault=fault))
        self.port = free_port()
        environment = {
            "TRAINYARD_RUN": "mine",
            "TRAINYARD_ATTEMPT": "1",
            "TRAINYARD_WORKER_DIR": str(self.directory),
            "TRAINYARD_REPORT_PORT": str(self.port),
            "TRAINYARD_HANG_SECONDS": "2",
            "TRAINYARD_HANG_ACTION": action,
        }
        if recipe:
            environment["TRAINYARD_TRAINER_PORT"] = str(free_port())
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT)
        self.agent = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(PROGRAM), str(self.directory), str(lock)),
                *(sys.executable, "-c", LAUNCHER, str(script)),
            ],
            env={**os.environ, **environment},
            pass_fds=[lock],
        )
        os.close(lock)

    def get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}") as answer:
                return json.load(answer)
        except OSError:
            return None

    def hang(self) -> str:
        return str((self.get("/progress") or {}).get("hang", ""))

    def pid(self, rank: int) -> int:
        listed = {each.rank: each.pid for each in from_wire(self.get("/ranks"))}
        return listed[rank]

    def sleeps(self) -> bool:
        """Whether rank 1 is where it stays, and the agent knows both ranks."""
        document = self.get("/ranks")
        known = bool(document) and len(document["ranks"]) == 2
        return known and (self.directory / "sleeps").exists()

    def close(self) -> None:
        self.agent.terminate()
        self.agent.wait()


@pytest.mark.skipif(stacks.py_spy() is None, reason="no py-spy for this system")
@pytest.mark.parametrize(
    ("fault", "where"), [("batch()", "train.py:21 batch"), (HOLDS_THE_GIL, "train.py:25 main")]
)
def test_a_rank_that_waits_elsewhere_is_named_with_its_line(
    tmp_path: Path, packages: Path, fault: str, where: str
) -> None:
    """In a lock, or in native code, where it keeps Python's global lock."""
    script = Script(tmp_path, packages, fault)
    try:
        until(script.hang, "the hang is reported")
        message = script.hang()
    finally:
        script.close()
    assert "rank 1 (" in message
    assert f"is not in a collective: it waits at {where}" in message
    assert "rank 0 waits at train.py:26 main (in torch/distributed/distributed_c10d.py" in message


@pytest.mark.skipif(stacks.py_spy() is None, reason="no py-spy for this system")
def test_a_stopped_rank_ends_the_attempt_where_that_is_asked_for(
    tmp_path: Path, packages: Path
) -> None:
    script = Script(tmp_path, packages, SLEEPS, action="restart")
    try:
        until(script.sleeps, "rank 1 sleeps")
        os.kill(script.pid(1), signal.SIGSTOP)
        script.agent.wait(SECONDS)
    finally:
        script.close()
    error = json.loads((script.directory / "error.json").read_text())["message"]
    assert error.startswith("HangError: no progress for ")
    assert "is stopped (SIGSTOP) at train.py:25 main; rank 0 waits at train.py:26 main" in error
    assert json.loads((script.directory / "exit.json").read_text())["exitCode"] == signal.SIGKILL


@pytest.mark.skipif(stacks.py_spy() is None, reason="no py-spy for this system")
def test_a_recipe_s_rank_that_holds_the_gil_is_named_from_outside(
    tmp_path: Path, packages: Path
) -> None:
    """Its own watcher, a thread, is silent then."""
    script = Script(tmp_path, packages, HOLDS_THE_GIL, recipe=True)
    try:
        script.agent.wait(SECONDS)
    finally:
        script.close()
    error = json.loads((script.directory / "error.json").read_text())["message"]
    assert error.startswith("HangError: no progress for ")
    assert ": rank 1 (" in error
    assert "is not in a collective: it waits at train.py:25 main; rank 0 waits at" in error


def test_as_long_as_a_recipe_s_watchers_live_only_they_judge(
    tmp_path: Path, packages: Path
) -> None:
    """Rank 1 waits four times as long as a hang takes; then it ends, and with it the others."""
    waits = (
        "lock = threading.Lock()\n        lock.acquire()\n        lock.acquire(timeout=8)\n"
        "        os.kill(os.getppid(), 9)"
    )
    script = Script(tmp_path, packages, waits, recipe=True)
    try:
        script.agent.wait(SECONDS)
    finally:
        script.close()
    assert not (script.directory / "error.json").exists()


def test_a_rank_that_computes_is_no_hang(tmp_path: Path, packages: Path) -> None:
    """Rank 0 waits five times as long as a hang takes; then rank 1 ends, and with it the others."""
    computes = (
        "end = time.monotonic() + 10\n"
        "        while time.monotonic() < end: sum(range(10**6))\n"
        "        os.kill(os.getppid(), 9)"
    )
    script = Script(tmp_path, packages, computes)
    seen: set[str] = set()

    def ended() -> bool:
        seen.add(script.hang())
        return script.agent.poll() is not None

    try:
        until(ended, "the script ends")
    finally:
        script.close()
    assert seen == {""}


def test_a_stopped_rank_acts_on_sigterm(tmp_path: Path, packages: Path) -> None:
    script = Script(tmp_path, packages, SLEEPS)
    until(script.sleeps, "rank 1 sleeps")
    os.kill(script.pid(1), signal.SIGSTOP)
    script.agent.terminate()
    script.agent.wait(20)  # less than the grace period
    ranks = json.loads((script.directory / "exit.json").read_text())["ranks"]
    assert -signal.SIGKILL not in [rank["exitCode"] for rank in ranks]
