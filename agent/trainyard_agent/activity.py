"""Whether a rank works: its CPU time, reads and writes, and stack, from one look to the next."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

from trainyard_agent import procfs, stacks
from trainyard_agent.gpus import Gpu, Gpus
from trainyard_agent.ranks import Rank
from trainyard_agent.stacks import Stack

HEARTBEATS_ENV = "TRAINYARD_HEARTBEATS"  # the trainer's watchdog/watch.py reads it

# A rank that waits uses less: gloo's thread looks for messages about a hundred times a second.
_IDLE_CPUS = 0.05
_IDLE_BYTES_PER_SECOND = 32 * 1024
_UNKNOWN = Stack((), False, "")


class Usage(NamedTuple):
    """What a rank and the processes that it has started have used so far.

    Attributes:
        cpu_seconds: of those that are alive, and of the rank's own children that have ended.
        transferred: bytes read and written by system calls.
        memory: resident bytes; pages that processes share count for each of them.
    """

    cpu_seconds: float
    transferred: int
    memory: int


class Activity:
    """One rank, looked at every few seconds.

    Attributes:
        stopped: SIGSTOP or a debugger holds it.
        stack: of its main thread; read only while the rank is suspected to hang.
        usage: None before the first look.
        gpu: its GPU at the last look; None without one.
        peak: most bytes seen: on its GPU if it has one, else of the processes.
    """

    def __init__(self, rank: Rank, now: float, gpus: Gpus) -> None:
        self.rank = rank
        self.gpu: Gpu | None = None
        self.peak = 0
        self._gpus = gpus
        self._environment = procfs.environment(rank.pid)
        self.stopped = False
        self.stack = _UNKNOWN
        self.usage: Usage | None = None
        self._looked = now
        self._worked = now
        self._stack_at = now
        self._pids: dict[int, tuple[float, int]] = {}
        self._calls = 0
        self._on_gpu = False
        # Where a recipe's rank leaves its heartbeats, as watchdog/watch.py of the trainer does.
        directory = Path(self._environment.get(HEARTBEATS_ENV, ""))
        self._beat_file = directory / f"heartbeat-{rank.rank}"
        self._beat = 0
        self._beat_at = now
        self._limit = float("inf")  # until there is one

    def waiting(self, now: float) -> float:
        """Seconds without work."""
        return now - self._worked

    def look(self, now: float, suspicious: float) -> None:
        """Compare with the last look. Stacks are read after `suspicious` seconds without work.

        A rank on a GPU waits for its kernels by asking again and again, so there CPU time says
        nothing: it works if its GPU's memory is used, its stack changes, or it uses CPU time with
        the GIL and not in a call of CUDA. Not measured on a GPU.
        """
        tree = procfs.tree(self.rank.pid)
        usages = {pid: usage for pid in tree if (usage := _usage(pid)) is not None}
        cpu, transferred = self._since(usages)
        seconds = max(now - self._looked, 1e-3)
        self._looked = now
        self.stopped = procfs.state(self.rank.pid) in ("T", "t")
        busy = cpu > _IDLE_CPUS * seconds or transferred > _IDLE_BYTES_PER_SECOND * seconds
        runnable = not self.stopped and any(procfs.state(pid) == "R" for pid in tree)
        self.gpu = self._gpus.of_rank(self.rank.local_rank, self._environment)
        memory = self.usage.memory if self.usage else 0
        self.peak = max(self.peak, self.gpu.memory if self.gpu else memory)
        computes = self.gpu is not None and self.gpu.memory_active > 0
        calls = sum(map(procfs.main_thread_calls, procfs.programs(self.rank.pid)))
        if calls != self._calls or computes or ((busy or runnable) and not self._on_gpu):
            self._worked = now
            self._on_gpu = self._on_gpu or _uses_gpu(self.rank.pid)
        self._calls = calls
        if now - self._worked >= suspicious and now - self._stack_at >= suspicious / 4:
            self._stack_at = now
            stack = stacks.read(self.rank.pid, native=self._on_gpu)
            computes = busy and stack.holds_gil and not stack.cuda
            if not self.stopped and (computes or self._moved(stack)):
                self._worked = now
            self.stack = stack
        self._look_at_beat(time.monotonic())

    def progressed(self, now: float) -> None:
        """The run has taken a step, so this rank has worked."""
        self._worked = self._beat_at = now

    def silent(self, now: float) -> bool:
        """Whether its own watcher, as a recipe's rank has one, shows no life.

        It says in each heartbeat how long it may take to the next progress. Its thread needs the
        GIL, which a native call may hold: one that launches kernels while the GPU's queue is full.
        """
        self._look_at_beat(now)  # the last look may have been long ago, or have taken long
        return now - self._beat_at > self._limit

    def _look_at_beat(self, now: float) -> None:
        with contextlib.suppress(OSError, ValueError):
            beat = os.stat(self._beat_file).st_mtime_ns
            if beat != self._beat:
                self._limit = float(self._beat_file.read_text())  # of an empty file: not yet
                self._beat, self._beat_at = beat, now

    def _moved(self, stack: Stack) -> bool:
        """Whether the stack is one of a process that works."""
        before = self.stack
        differs = stack.frames != before.frames or stack.values != before.values
        return bool(stack.frames and before.frames and differs)

    def _since(self, usages: dict[int, Usage]) -> tuple[float, int]:
        """CPU seconds and bytes since the last look, over all processes of the rank."""
        before, self._pids = (
            self._pids,
            {pid: (usage.cpu_seconds, usage.transferred) for pid, usage in usages.items()},
        )
        self.usage = Usage(
            sum(usage.cpu_seconds for usage in usages.values()),
            sum(usage.transferred for usage in usages.values()),
            sum(usage.memory for usage in usages.values()),
        )
        cpu, transferred = 0.0, 0
        for pid, (cpu_now, bytes_now) in self._pids.items():
            cpu_before, bytes_before = before.get(pid, (0.0, 0))
            cpu += max(0.0, cpu_now - cpu_before)
            transferred += max(0, bytes_now - bytes_before)
        return cpu, transferred


def _usage(pid: int) -> Usage | None:
    """None if the process has exited."""
    cpu_seconds = procfs.cpu_seconds(pid)
    if cpu_seconds is None:
        return None
    return Usage(cpu_seconds, procfs.transferred(pid), procfs.memory(pid))


def _uses_gpu(pid: int) -> bool:
    """Whether it has opened an NVIDIA device."""
    if not os.path.exists("/dev/nvidiactl"):  # spares most machines the list of open files
        return False
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(entry.path).startswith("/dev/nvidia"):
                    return True
    return False
