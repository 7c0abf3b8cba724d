"""Which rank a hang is blamed on: the decision alone, from what is seen of each rank."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.patience import until
from trainyard_agent import stacks
from trainyard_agent.hangs import RankState, find_hang, from_wire, to_wire
from trainyard_agent.stacks import parse

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
