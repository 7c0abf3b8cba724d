"""Faults inside the ranks of a recipe: Python imports this by itself where it is on PYTHONPATH.

FAULTS: a JSON list of {"attempt", "rank", "step", "do", ...}; `step` is the number of steps done
when it strikes, null: in the attempt's first step. `do` is one of ACTIONS. Every other process, and
every other attempt, is left as it is. With a null `attempt` it strikes in the first one that gets
there; `once` is the file that remembers it.
"""

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS_OF_STEPS = 60.0  # a limit below it is one of steps


def send(fault: dict[str, Any]) -> None:
    """The rank gets a signal."""
    os.kill(os.getpid(), getattr(signal, fault["signal"]))


def fail(fault: dict[str, Any]) -> None:
    """The rank raises what a library would."""
    raise RuntimeError(fault["message"])


def cut(_: dict[str, Any]) -> None:
    """Every connection of the rank breaks."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if os.readlink(link).startswith("socket:"):
                connection = socket.socket(fileno=os.dup(int(link.name)))
                connection.getpeername()  # those that listen stay
                connection.shutdown(socket.SHUT_RDWR)


def kill_loader(_: dict[str, Any]) -> None:
    """One of the rank's loader workers is killed."""
    pid = multiprocessing.active_children()[0].pid
    assert pid
    os.kill(pid, signal.SIGKILL)


def hold_the_gil(_: dict[str, Any]) -> None:
    """The rank waits in native code that keeps Python's global lock, until a signal comes.

    First its watchdog says that it trains: the steps before take less than an interval, and until
    then the last heartbeat is of a phase that may take half an hour.
    """
    beats = Path(os.environ["TRAINYARD_HEARTBEATS"], f"heartbeat-{os.environ['RANK']}")
    while not 0 < float(beats.read_text() or 0) < SECONDS_OF_STEPS:
        time.sleep(0.02)
    ctypes.PyDLL(None).pause()


def limit(fault: dict[str, Any]) -> None:
    """Files may not become larger than `bytes`, as on a full disk; null: they may again."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    soft = hard if fault["bytes"] is None else fault["bytes"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def wait(fault: dict[str, Any]) -> None:
    """The rank reports that it is here, and waits until the file `until` exists."""
    Path(f"{fault['until']}.awaited").touch()
    while not Path(fault["until"]).exists():
        time.sleep(0.02)


ACTIONS = {
    "signal": send,
    "raise": fail,
    "cut": cut,
    "kill a loader worker": kill_loader,
    "hold the GIL": hold_the_gil,
    "limit": limit,
    "wait": wait,
}


def is_first(fault: dict[str, Any]) -> bool:
    """Whether it may strike: in the attempt that it names, or nowhere before."""
    if "once" not in fault:
        return True
    try:
        Path(fault["once"]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def install(faults: list[dict[str, Any]]) -> None:
    # What torch reads when it is imported, as the trainer itself sets it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from trainyard_trainer.loop import Loop

    train_step = Loop._train_step

    def faulty_step(loop: Loop) -> Any:
        for fault in faults:
            here = loop.step == (loop.start if fault["step"] is None else fault["step"])
            if here and is_first(fault):
                ACTIONS[fault["do"]](fault)
        return train_step(loop)

    Loop._train_step = faulty_step  # type: ignore[method-assign, assignment]


# Not in the processes that Python itself starts beside a rank, which have its environment, too.
if "FAULTS" in os.environ and "RANK" in os.environ and "trainyard_trainer" in sys.orig_argv:
    _attempt = json.loads(os.environ["TRAINYARD_JOB"]).get("attempt", 1)  # defaults are left out
    _here = [
        fault
        for fault in json.loads(os.environ["FAULTS"])
        if fault["attempt"] in (None, _attempt) and fault["rank"] == int(os.environ["RANK"])
    ]
    if _here:
        install(_here)
