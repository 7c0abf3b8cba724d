"""Which rank a hang is blamed on: the decision alone, and agents with real processes."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import trainyard_agent
from tests.patience import until
from tests.ports import free_port
from trainyard_agent import stacks
from trainyard_agent.hangs import RankState, find_hang, from_wire, to_wire
from trainyard_agent.stacks import parse

PROGRAM = Path(trainyard_agent.__file__).parent / "__main__.py"
AFTER = 60.0


def waits(rank: int, *frames: str, collective: bool = False, backward: bool = False) -> RankState:
    own = next((frame for frame in reversed(frames) if not frame.startswith("torch/")), "")
    return RankState(
        rank, "h", 100 + rank, "alive", 70.0, frames, "", own, collective or backward, backward
    )


def in_backward(rank: int) -> RankState:
    return waits(rank, "train.py:9 main", "torch/autograd/graph.py:1 run", backward=True)


def in_barrier(rank: int) -> RankState:
    return waits(rank, "train.py:20 main", "torch/distributed/c10d.py:7 barrier", collective=True)


def in_all_reduce(rank: int) -> RankState:
    return waits(
        rank, "train.py:12 main", "torch/distributed/c10d.py:3 all_reduce", collective=True
    )


def in_lock(rank: int) -> RankState:
    return waits(rank, "train.py:5 batch")


BACKWARD = "train.py:9 main (in torch/autograd/graph.py:1 run)"
BARRIER = "train.py:20 main (in torch/distributed/c10d.py:7 barrier)"


@pytest.mark.parametrize(
    ("ranks", "named", "text"),
    [
        (
            [in_backward(0), in_lock(1)],
            (1,),
            "rank 1 (h, pid 101) is not in a collective: it waits at train.py:5 batch; rank 0"
            f" waits at {BACKWARD}",
        ),
        (
            [in_backward(0), in_barrier(1)],
            (1,),
            f"rank 1 (h, pid 101) is not where the others are: it waits at {BARRIER}; rank 0 waits"
            f" at {BACKWARD}",
        ),
        (
            [in_barrier(0), in_all_reduce(1)],
            (0,),
            f"rank 0 (h, pid 100) is not where the others are: it waits at {BARRIER}; rank 1 waits"
            " at train.py:12 main (in torch/distributed/c10d.py:3 all_reduce)",
        ),
        (
            [in_barrier(0), in_backward(1), in_barrier(2)],
            (1,),
            f"rank 1 (h, pid 101) is not where the others are: it waits at {BACKWARD}; rank 0 waits"
            f" at {BARRIER}",
        ),
        (
            [in_backward(0), in_lock(1)._replace(state="stopped"), in_backward(2)],
            (1,),
            "rank 1 (h, pid 101) is stopped (SIGSTOP) at train.py:5 batch; rank 0 waits at"
            f" {BACKWARD}",
        ),
        (
            [in_barrier(0), RankState(1, "h", state="ended")],
            (1,),
            f"rank 1 (h, pid 0) has ended with exit code 0; rank 0 waits at {BARRIER}",
        ),
        (
            [in_lock(0), in_backward(1), in_lock(2), in_backward(3)],
            (0, 2),
            "rank 0 (h, pid 100) is not in a collective: it waits at train.py:5 batch, as is rank"
            f" 2; rank 1 waits at {BACKWARD}",
        ),
        (
            [in_backward(0), in_backward(1)],
            (),
            f"all 2 ranks wait at {BACKWARD}: a process outside the run, a disk or the network"
            " between them does not respond",
        ),
        ([in_lock(0)], (0,), "rank 0 (h, pid 100) waits at train.py:5 batch"),
        (
            [in_backward(0), RankState(1, "h", 7, waiting=70.0, why="the kernel forbids it")],
            (1,),
            "rank 1 (h, pid 7) waits: it waits at an unknown position (the kernel forbids it);"
            f" rank 0 waits at {BACKWARD}",
        ),
    ],
)
def test_the_rank_that_the_others_wait_for_is_named(
    ranks: list[RankState], named: tuple[int, ...], text: str
) -> None:
    hang = find_hang(ranks, len(ranks), AFTER)
    assert hang is not None
    assert hang.message == f"no progress for 70 s: {text}"
    assert (hang.ranks, hang.complete) == (named, True)


def test_while_one_rank_works_nothing_hangs() -> None:
    assert find_hang([in_backward(0), in_lock(1)._replace(waiting=59.0)], 2, AFTER) is None


def test_while_a_rank_has_not_been_seen_nothing_hangs() -> None:
    assert find_hang([in_backward(0)], 2, AFTER) is None
    assert find_hang([], 2, AFTER) is None


def test_a_node_whose_agent_does_not_answer_is_said() -> None:
    hang = find_hang([in_backward(0)], 2, AFTER, ["mine-1-1.mine:9400"])
    assert hang is not None
    assert not hang.complete
    assert hang.message.endswith("; not seen: mine-1-1.mine:9400")


def test_ranks_survive_the_way_between_agents() -> None:
    silent = in_lock(1)._replace(silent=True)
    ranks = [in_backward(0), silent, RankState(2, "h", state="ended")]
    assert from_wire(json.loads(json.dumps({"ranks": [to_wire(rank) for rank in ranks]}))) == ranks


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"ranks": 3},
        {"ranks": [3]},
        {"ranks": [{"rank": 0}]},
        {"ranks": [to_wire(in_lock(0)) | {"waiting": "soon"}]},
        {"ranks": [to_wire(in_lock(0)) | {"rank": float("inf")}]},
        {"ranks": [to_wire(in_lock(0)) | {"state": "dancing"}]},
        {"ranks": [to_wire(in_lock(0)) | {"frames": 3}]},
        {"ranks": [to_wire(in_lock(0))] * 5000},
    ],
)
def test_what_is_no_list_of_ranks_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match=r"rank|state|waiting|float"):
        from_wire(document)


def frame(name: str, filename: str, line: int) -> dict[str, Any]:
    short = filename.split("site-packages/")[-1].split("/app/")[-1]
    known = {"name": name, "filename": filename, "short_filename": short, "line": line}
    return {**known, "locals": [], "module": None}


PACKAGES = "/venv/lib/python3.11/site-packages"


def thread(*frames: dict[str, Any]) -> list[dict[str, Any]]:
    """py-spy's document; `frames`: innermost first."""
    other = {"os_thread_id": 8, "thread_name": "tqdm", "owns_gil": False, "frames": []}
    main = {"os_thread_id": 7, "thread_name": "Main", "owns_gil": False, "frames": list(frames)}
    return [other, main]


def test_a_call_of_a_collective_is_one_but_not_what_it_calls_back() -> None:
    collective = frame("all_reduce", f"{PACKAGES}/torch/distributed/c10d.py", 3)
    fsdp = frame("forward", f"{PACKAGES}/torch/distributed/fsdp/module.py", 5)
    module = frame("_call_impl", f"{PACKAGES}/torch/nn/modules/module.py", 6)
    own = frame("forward", "/app/model.py", 9)
    main = frame("main", "/app/train.py", 2)

    waiting = parse(thread(collective, module, main), 7)
    assert waiting.collective
    assert waiting.own == "train.py:2 main"
    assert waiting.frames[-1] == "torch/distributed/c10d.py:3 all_reduce"
    assert not parse(thread(own, module, fsdp, main), 7).collective


def native(name: str, library: str) -> dict[str, Any]:
    path = f"/usr/lib/{library}"
    return {**frame(name, path, 0), "short_filename": library, "module": path}


@pytest.mark.parametrize("library", ["libcuda.so.580.65", "libcudart.so.13", "libcudart-1a2b.so"])
def test_a_call_of_cuda_waits_for_the_gpu_and_a_call_of_others_does_not(library: str) -> None:
    """As for `.item()`, which has no Python frame of its own."""
    step = frame("step", "/app/train.py", 30)
    poll, cuda = native("poll", "libc.so.6"), native("cuStreamSynchronize", library)
    other = native("at::native::add", "libtorch_cuda.so")
    waiting = parse(thread(poll, cuda, other, step), 7)
    assert (waiting.collective, waiting.cuda, waiting.frames) == (True, True, ("train.py:30 step",))
    assert waiting.own == "train.py:30 step"
    assert not parse(thread(poll, other, step), 7).collective
    assert not parse(thread(poll, step, cuda), 7).collective  # Python, called back from CUDA


def test_a_rank_that_waits_for_its_gpu_is_not_the_one_that_others_wait_for() -> None:
    """Its collective is only launched: the GPU waits in it, and Python for the GPU."""

    def rank(number: int, *frames: dict[str, Any]) -> RankState:
        stack = parse(thread(*frames), 7)
        return waits(number, *stack.frames, collective=stack.collective)

    step = frame("step", "/app/train.py", 30)
    device = frame("synchronize", f"{PACKAGES}/torch/cuda/__init__.py", 1374)
    event = frame("synchronize", f"{PACKAGES}/torch/cuda/streams.py", 245)
    computing = frame("augment", "/app/train.py", 12)
    hang = find_hang([rank(0, device, step), rank(1, computing), rank(2, event, step)], 3, 60)
    assert hang is not None
    assert hang.ranks == (1,)
    starting = frame("_lazy_init", f"{PACKAGES}/torch/cuda/__init__.py", 430)
    assert not parse(thread(starting, step), 7).collective


# A stand-in for torch.distributed, whose frames have the same file names.
TRAINS = """
import os, sys, threading, time
sys.path.insert(0, {packages!r})
from torch.distributed import distributed_c10d
rank = int(os.environ["RANK"])

def beat():
    with open(os.environ["TRAINYARD_HEARTBEATS"] + f"/heartbeat-{{rank}}", "w") as file:
        file.write("1.5")

def beats():  # as a recipe's watcher does
    while True:
        beat()
        time.sleep(0.2)

if "TRAINYARD_TRAINER_PORT" in os.environ:
    beat()  # before the fault can stop the thread
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
def test_a_deadlocked_rank_is_named_with_its_line(tmp_path: Path, packages: Path) -> None:
    script = Script(tmp_path, packages, "batch()")
    try:
        until(script.hang, "the hang is reported")
        message = script.hang()
    finally:
        script.close()
    assert "rank 1 (" in message
    assert "is not in a collective: it waits at train.py:23 batch" in message
    assert "rank 0 waits at train.py:28 main (in torch/distributed/distributed_c10d.py" in message


@pytest.mark.skipif(stacks.py_spy() is None, reason="no py-spy for this system")
def test_a_stopped_rank_ends_the_attempt_where_that_is_asked_for(
    tmp_path: Path, packages: Path
) -> None:
    script = Script(tmp_path, packages, SLEEPS, action="restart")
    try:
        until(script.sleeps, "rank 1 sleeps")
        os.kill(script.pid(1), signal.SIGSTOP)
        script.agent.wait(60)
    finally:
        script.close()
    error = json.loads((script.directory / "error.json").read_text())["message"]
    assert error.startswith("HangError: no progress for ")
    assert "is stopped (SIGSTOP) at train.py:27 main; rank 0 waits at train.py:28 main" in error
    assert json.loads((script.directory / "exit.json").read_text())["exitCode"] == signal.SIGKILL


@pytest.mark.skipif(stacks.py_spy() is None, reason="no py-spy for this system")
def test_a_rank_that_sleeps_with_the_gil_does_not_work(tmp_path: Path, packages: Path) -> None:
    script = Script(tmp_path, packages, HOLDS_THE_GIL)
    try:
        until(script.hang, "the hang is reported")
        message = script.hang()
    finally:
        script.close()
    assert "rank 1 (" in message
    assert "is not in a collective: it waits at train.py:27 main" in message


@pytest.mark.skipif(stacks.py_spy() is None, reason="no py-spy for this system")
def test_a_recipe_s_rank_that_holds_the_gil_is_named_from_outside(
    tmp_path: Path, packages: Path
) -> None:
    """Its own watcher, a thread, is silent then."""
    script = Script(tmp_path, packages, HOLDS_THE_GIL, recipe=True)
    try:
        script.agent.wait(60)
    finally:
        script.close()
    error = json.loads((script.directory / "error.json").read_text())["message"]
    assert error.startswith("HangError: no progress for ")
    assert ": rank 1 (" in error
    assert "is not in a collective: it waits at train.py:27 main; rank 0 waits at" in error


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
        script.agent.wait(60)
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


@pytest.mark.skipif(stacks.py_spy() is None, reason="no py-spy for this system")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="py-spy reads no native frames")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler")
def test_a_process_in_a_call_of_cuda_is_seen(tmp_path: Path) -> None:
    """A library of that name, whose call never ends."""
    source, library = tmp_path / "wait.c", tmp_path / "libcudart.so.13"
    source.write_text("#include <unistd.h>\nvoid cudaMemcpy(void) { for (;;) pause(); }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    script = tmp_path / "train.py"
    script.write_text(f"import ctypes\nctypes.CDLL({str(library)!r}).cudaMemcpy()\n")
    rank = subprocess.Popen([sys.executable, str(script)])
    try:
        until(lambda: stacks.read(rank.pid, native=True).cuda, "the rank waits for its GPU")
        stack = stacks.read(rank.pid, native=True)
    finally:
        rank.kill()
        rank.wait()
    assert (stack.collective, stack.frames) == (True, ("train.py:2 <module>",))


@pytest.mark.parametrize("answer", ["[{}]", "3", '[{"os_thread_id": 7, "thread_name": ""}]'])
def test_an_answer_of_another_py_spy_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    program = tmp_path / "py-spy"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setattr(stacks, "py_spy", lambda: str(program))
    found = stacks.read(7)
    assert found.frames == ()
    assert found.why.startswith("py-spy's answer is not understood: ")
