"""The agent as a program, under every Python that users' images may have."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trainyard_agent
from tests.patience import until
from tests.support.pythons import interpreters

PROGRAM = Path(trainyard_agent.__file__).parent / "__main__.py"
# As torchrun does: starts the ranks, waits for all, and then ends the others.
LAUNCHER = """
import os, subprocess, sys, time
ranks = []
for rank, program in enumerate(sys.argv[1:]):
    env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    ranks.append(subprocess.Popen([sys.executable, "-c", program], env=env))
while all(rank.poll() is None for rank in ranks):
    time.sleep(0.01)
for rank in ranks:
    rank.terminate()
for rank in ranks:
    rank.wait()
sys.exit(any(rank.returncode for rank in ranks))
"""
WAITS = "import time; time.sleep(600)"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    worker = tmp_path / "1-0"
    worker.mkdir()
    return worker


def start(directory: Path, *command: str, python: str = sys.executable) -> subprocess.Popen[str]:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT)
    try:
        return subprocess.Popen(
            [python, "-I", "-S", str(PROGRAM), str(directory), str(lock), *command],
            env={**os.environ, "TRAINYARD_WORKER_DIR": str(directory)},
            pass_fds=[lock],
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(lock)


def ending(directory: Path, agent: subprocess.Popen[str]) -> dict[str, Any]:
    _, errors = agent.communicate(timeout=60)
    assert agent.returncode == 0, errors
    found: dict[str, Any] = json.loads((directory / "exit.json").read_text())
    return found


def ranks(ending: dict[str, Any]) -> list[tuple[int, int]]:
    return [(rank["rank"], rank["exitCode"]) for rank in ending["ranks"]]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("python", interpreters())
def test_the_end_of_every_rank_is_seen(directory: Path, python: str) -> None:
    """A second is enough to find a rank: one that ends sooner is known from torchrun's table."""
    dies = "import os, signal, time; time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)"
    agent = start(directory, python, "-c", LAUNCHER, WAITS, dies, python=python)
    found = ending(directory, agent)
    assert found["exitCode"] == 1
    assert ranks(found) == [(1, -signal.SIGKILL), (0, -signal.SIGTERM)]


@pytest.mark.parametrize(
    ("program", "code"),
    [("raise SystemExit(3)", 3), ("import os; os.abort()", -signal.SIGABRT), ("pass", 0)],
)
def test_codes_and_signals_are_distinguished(directory: Path, program: str, code: int) -> None:
    late = f"import time; time.sleep(1); {program}"
    found = ending(directory, start(directory, sys.executable, "-c", LAUNCHER, WAITS, late))
    assert ranks(found)[0] == (1, code)


def test_a_child_of_a_rank_is_not_a_rank(directory: Path) -> None:
    child = "import subprocess; subprocess.run(['sleep', '1'])"
    found = ending(directory, start(directory, sys.executable, "-c", LAUNCHER, child, WAITS))
    assert [rank for rank, _ in ranks(found)] == [0, 1]


def test_ranks_that_outlive_their_launcher_have_not_failed(directory: Path) -> None:
    agent = start(directory, sys.executable, "-c", LAUNCHER, WAITS, WAITS)
    until(lambda: len(family(agent.pid)) == 3, "the ranks start")
    (launcher, *_) = family(agent.pid)
    os.kill(launcher, signal.SIGKILL)
    found = ending(directory, agent)
    assert found["exitCode"] == 128 + signal.SIGKILL
    assert ranks(found) == []


def family(pid: int) -> list[int]:
    """Ids of the descendants, parents first."""
    import psutil

    return [process.pid for process in psutil.Process(pid).children(recursive=True)]


def test_what_the_command_leaves_behind_is_reaped_meanwhile(directory: Path) -> None:
    """The agent is the first process of its container."""
    orphan = "sh -c 'sleep 0.1 & echo $! >&2'; sleep 600"
    agent = start(directory, "sh", "-c", orphan)
    assert agent.stderr
    pid = int(agent.stderr.readline())
    until(lambda: not Path(f"/proc/{pid}").exists(), "it is reaped")
    assert agent.poll() is None
    agent.terminate()
    assert ending(directory, agent)["exitCode"] == 128 + signal.SIGTERM


def test_only_its_own_processes_are_ended(directory: Path, tmp_path: Path) -> None:
    """Two pods that share a process namespace have the same environment."""
    stranger = subprocess.Popen(
        ["sleep", "600"], env={**os.environ, "TRAINYARD_WORKER_DIR": str(directory)}
    )
    try:
        leaves = "setsid sleep 600 & echo $! >&2"
        agent = start(directory, "sh", "-c", leaves)
        assert agent.stderr
        pid = int(agent.stderr.readline())
        assert ending(directory, agent)["exitCode"] == 0
        assert not Path(f"/proc/{pid}").exists()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_sigterm_is_passed_on_and_sigint_is_not(tmp_path: Path) -> None:
    """However close the signals are: Linux gives the later ones to another thread of the agent."""
    agents: dict[Path, subprocess.Popen[str]] = {}
    for number in range(8):
        directory = tmp_path / f"1-{number}"
        directory.mkdir()
        agents[directory] = start(directory, "sh", "-c", "echo ready >&2; exec sleep 600")
    for agent in agents.values():
        assert agent.stderr
        assert agent.stderr.readline() == "ready\n"
        for each in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            agent.send_signal(each)
    codes = {ending(directory, agent)["exitCode"] for directory, agent in agents.items()}
    assert codes == {128 + signal.SIGTERM}


def test_the_command_meets_the_usual_signals(directory: Path) -> None:
    """An ignored signal would be inherited."""
    asks = (
        "import signal as s, sys; sys.exit(s.getsignal(s.SIGINT) is not s.default_int_handler"
        " or s.getsignal(s.SIGHUP) is not s.SIG_DFL)"
    )
    assert ending(directory, start(directory, sys.executable, "-c", asks))["exitCode"] == 0


def test_a_command_that_is_missing_is_one_line(directory: Path) -> None:
    agent = start(directory, "/no/such/program")
    _, errors = agent.communicate(timeout=60)
    assert errors == "cannot start /no/such/program: No such file or directory\n"
    assert json.loads((directory / "exit.json").read_text())["exitCode"] == 127


def test_only_the_standard_library_is_needed() -> None:
    """-I -S hides everything else, so a start shows it; this names the module at fault."""
    program = f"""
import sys, runpy
runpy.run_path({str(PROGRAM)!r}, run_name="agent")
print(*sorted(name for name in sys.modules if "." not in name))
"""
    path = {"PYTHONPATH": str(PROGRAM.parents[1])}
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", program], env=path, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(loaded) - sys.stdlib_module_names <= {"__main__", "trainyard_agent", "__mp_main__"}
