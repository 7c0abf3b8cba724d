"""`import trainyard` in a script of one's own: what it reports, and how all ranks stop together."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import until
from tests.support.pythons import interpreters
from tests.support.sdk.scripts import SDK, agent_server, start, variables
from trainyard_agent.server import ReportServer


@pytest.fixture
def server() -> Iterator[ReportServer]:
    yield from agent_server()


def test_it_reports_what_a_loop_knows(server: ReportServer, tmp_path: Path) -> None:
    program = """
import torch, trainyard
run = trainyard.init()
assert trainyard.init() is run
print(run.name, run.attempt, run.directory)
loss = torch.tensor(1.25, requires_grad=True)
run.report(step=20, total=50, loss=loss * 2, eval_loss=float("nan"), eval_accuracy=0.5, note="x")
run.report(tokens=1000)
run.log_sample("once upon a time")
"""
    child = start(program, variables(server, tmp_path) | {"http_proxy": "http://127.0.0.1:1"})
    out, errors = child.communicate()
    assert (child.returncode, out, errors) == (0, f"mine 3 {tmp_path}\n", "")
    document = server.report.document()
    assert document
    found = [document.get(key) for key in ("step", "totalSteps", "loss", "evaluation", "sample")]
    assert found == [20, 50, 2.5, {"eval_accuracy": 0.5}, "once upon a time"]


ANYWHERE = """
import sys, threading, trainyard
run = trainyard.init()
run.report(step=1, total=2, loss=object())
run.report(step="soon", total=float("nan"), tokens=[])
run.log_sample("x")
assert not run.should_stop()
print(run.name, run.attempt, run.rank, run.world_size, run.directory, threading.active_count())
assert "torch" not in sys.modules
assert not any(name.startswith("trainyard_") for name in sys.modules)
if sys.version_info < (3, 11):
    try:
        trainyard.Checkpointer
    except ImportError as error:
        assert "trainyard.Checkpointer needs Python 3.11 or newer; this is 3." in str(error), error
    else:
        raise AssertionError
"""


@pytest.mark.parametrize(
    "python", [path for path in interpreters() if "3.8" not in path and "python3.8" not in path]
)
def test_outside_a_run_it_does_nothing(python: str) -> None:
    child = start(ANYWHERE, {}, python)
    assert child.communicate() == (" 1 0 1 . 1\n", "")
    assert child.returncode == 0


def test_only_rank_0_reports(server: ReportServer, tmp_path: Path) -> None:
    program = "import trainyard; trainyard.init().report(step=7)"
    child = start(program, variables(server, tmp_path) | {"RANK": "1", "WORLD_SIZE": "2"})
    assert child.communicate() == ("", "")
    assert server.report.document() is None


def test_an_agent_that_never_answers_delays_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (tmp_path / "token").write_text("x")
        agent = {
            "TRAINYARD_RUN": "mine",
            "KUBEFLOW_TRAINER_SERVER_URL": f"http://127.0.0.1:{silent.getsockname()[1]}/status",
            "KUBEFLOW_TRAINER_SERVER_TOKEN": str(tmp_path / "token"),
        }
        program = """
import trainyard
run = trainyard.init()
for step in range(10_000):
    run.report(step=step)
"""
        child = start(program, agent)
        assert child.communicate() == ("", "")
        assert child.returncode == 0


def test_a_refused_report_is_logged_once(server: ReportServer, tmp_path: Path) -> None:
    wrong = variables(server, tmp_path)
    (tmp_path / "wrong").write_text("wrong")
    wrong["KUBEFLOW_TRAINER_SERVER_TOKEN"] = str(tmp_path / "wrong")
    program = """
import time, trainyard, trainyard.reporting
trainyard.reporting.INTERVAL_SECONDS = 0.01
run = trainyard.init()
for step in range(20):
    run.report(step=step)
    time.sleep(0.02)
"""
    child = start(program, wrong)
    _, errors = child.communicate()
    assert child.returncode == 0
    assert errors == "warning: trainyard: not reported: HTTP Error 401: Unauthorized\n"


LOOP = """
import os, sys, time, trainyard
if int(os.environ["WORLD_SIZE"]) > 1:
    import torch.distributed as dist
    dist.init_process_group("gloo")
run = trainyard.init()
step = 0
while not run.should_stop():
    step += 1
    if step == 5:
        print("started", flush=True)
    time.sleep(0.01 * (1 + run.rank))
print("stopped after", step, flush=True)
sys.exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "notified"), [(1, [0]), (2, [1]), (2, [0, 1])])
def test_all_ranks_stop_after_the_same_step_and_end_by_the_signal(
    ranks: int, notified: list[int]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
    children = [start(LOOP, store | {"RANK": str(rank)}) for rank in range(ranks)]
    for child in children:
        assert child.stdout
        assert child.stdout.readline() == "started\n"
    for rank in notified:
        children[rank].send_signal(signal.SIGTERM)
    said = {child.communicate()[0] for child in children}
    assert len(said) == 1, said
    assert said.pop().startswith("stopped after ")
    assert [child.returncode for child in children] == [-signal.SIGTERM] * ranks


def test_a_finished_script_is_not_taken_for_a_stopped_one() -> None:
    """The signal came, but the script had not asked again."""
    program = """
import os, signal, trainyard
run = trainyard.init()
assert not run.should_stop()
os.kill(os.getpid(), signal.SIGTERM)
"""
    child = start(program, {})
    assert child.communicate() == ("", "")
    assert child.returncode == 0


def test_threads_that_wait_for_python_get_it_before_it_ends() -> None:
    """As gloo's do, which abort the process otherwise."""
    program = """
import os, sys, threading, time, types, trainyard
sys.modules["torch.distributed"] = types.ModuleType("torch.distributed")
sys.setswitchinterval(60)
asleep = threading.Event()

def collective():
    asleep.set()
    time.sleep(0.01)
    os.write(1, b"freed")

threading.Thread(target=collective, daemon=True).start()
asleep.wait()
end = time.monotonic() + 1
while time.monotonic() < end:
    pass
"""
    child = start(program, {})
    assert child.communicate() == ("freed", "")


def test_reports_are_sent_while_the_script_runs(server: ReportServer, tmp_path: Path) -> None:
    program = """
import sys, trainyard
run = trainyard.init()
for line in sys.stdin:
    run.report(step=int(line), total=100)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(SDK), **variables(server, tmp_path)},
        stdin=subprocess.PIPE,
        text=True,
    )
    assert child.stdin

    def reported() -> int | None:
        return (server.report.document() or {}).get("step")

    for step in (1, 5):
        child.stdin.write(f"{step}\n")
        child.stdin.flush()
        until(lambda: reported() == step, "its step")  # noqa: B023 until() returns first
    assert (server.report.document() or {})["etaSeconds"] > 0
    child.stdin.close()
    assert child.wait() == 0


@pytest.mark.parametrize("name", ["Checkpointer", "StepSampler"])
def test_what_is_missing_for_a_checkpointer_is_one_line(name: str) -> None:
    program = f"""
import sys, trainyard
sys.modules["numpy"] = None
trainyard.{name}
"""
    _, errors = start(program, {}).communicate()
    needed = f"ImportError: trainyard.{name} needs numpy: pip install 'trainyard[checkpoint]'"
    assert errors.splitlines()[-1] == needed
