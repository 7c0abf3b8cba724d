"""Detects hangs: a thread per rank sends heartbeats and checks those of others.

Rank 0 checks all ranks; the others check rank 0. The rank that detects a hang reports it and writes
the error file, and all ranks exit, so that the run resumes from its newest checkpoint.
"""

import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from trainyard_api.job import HEARTBEATS_ENV
from trainyard_trainer.config import TrainConfig
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.errors import HangError, report_error, write_error_file
from trainyard_trainer.reporting.liveness import is_compiling
from trainyard_trainer.reporting.reporter import RunReporter
from trainyard_trainer.watchdog.board import Board, open_board
from trainyard_trainer.watchdog.hangs import (
    Hang,
    Heartbeat,
    ObservedRank,
    find_hang,
    is_lost,
    report_silence,
)
from trainyard_trainer.watchdog.process_state import (
    State,
    kill_stopped_sibling,
    pid_namespace,
    state_of_pid,
)
from trainyard_trainer.watchdog.stacks import main_stack

MAX_INTERVAL = 2.0  # seconds between two heartbeats
BEATS_PER_TIMEOUT = 10
EXIT_TIMEOUT = 5.0
# For the agents to name the rank, from outside, if one sends no heartbeats and isn't stopped.
AGENT_SECONDS = 60.0
BEAT_WIDTH = 32


def watching(
    group: Group, config: TrainConfig, reporter: RunReporter
) -> contextlib.AbstractContextManager[Any]:
    """Watch this rank and the others for a `with` block."""
    if config.hang_timeout_seconds == 0:
        return contextlib.nullcontext()
    return Watchdog(open_board(group), group, config, reporter)


class Watchdog:
    """The watchdog threads of one rank.

    A late check counts as at most two intervals, so that a pause of the whole machine, or of this
    process, does not look like a hang of the others.
    """

    def __init__(
        self, board: Board, group: Group, config: TrainConfig, reporter: RunReporter
    ) -> None:
        self.board = board
        self.rank = group.rank
        self.timeout = config.hang_timeout_seconds
        self.reporter = reporter
        self.interval = min(MAX_INTERVAL, self.timeout / BEATS_PER_TIMEOUT)
        self._observed = [
            ObservedRank(Heartbeat(rank))
            for rank in range(group.world_size if group.is_main else 1)
        ]
        self._own = ObservedRank(Heartbeat(group.rank))
        self._count = 0
        directory = os.environ.get(HEARTBEATS_ENV)
        self._beat_file = -1
        if directory:
            path = Path(directory) / f"heartbeat-{group.rank}"
            with contextlib.suppress(OSError):
                self._beat_file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._patience = AGENT_SECONDS if self._beat_file >= 0 else 0.0
        self._exiting = threading.Event()
        self._outcome = ""
        self._exit_lock = threading.Lock()
        self._threads = [threading.Thread(target=self._watch, name="watch", daemon=True)]
        if not group.is_main:
            store_thread = threading.Thread(
                target=self._watch_store, name="watch-store", daemon=True
            )
            self._threads.append(store_thread)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._outcome = "failed" if kind else "done"
        self._exiting.set()
        self._threads[0].join(EXIT_TIMEOUT)
        self._exit_lock.acquire()  # never released: no thread may exit the process from here on

    def _beat(self, count: int) -> Heartbeat:
        liveness = self.reporter.liveness
        return Heartbeat(
            rank=self.rank,
            count=count,
            host=socket.gethostname(),
            pid_namespace=pid_namespace(),
            pid=os.getpid(),
            phase=liveness.phase,
            step=liveness.step,
            ticks=liveness.ticks,
            activity=str(liveness),
            limit=liveness.limit(self.timeout, is_compiling()),
            stack=main_stack(),
            outcome=self._outcome,
        )

    def _watch(self) -> None:
        """Send heartbeats and check those of others."""
        clock = _Clock(self.interval)
        wait = 0.0  # the first heartbeat at once, so that the others know this process
        try:
            while not self._exiting.wait(wait):
                wait = self.interval
                self._count += 1
                own = self._beat(self._count)
                beats, verdict = self.board.exchange(own)
                self._tell_agent(own.limit)
                if verdict:
                    self._exit(verdict, reports=False)
                seconds = clock.elapsed()
                self._own.update(own, seconds)
                for rank, beat in zip(self._observed, beats, strict=True):
                    rank.update(beat, seconds)
                hang = self._check()
                if hang and self.board.claim():
                    self._exit(hang, reports=True)
            self.board.publish(self._beat(self._count + 1))
        except RuntimeError:
            pass  # the store is gone, with rank 0 or torchrun's agent: others report that
        finally:
            self._exiting.set()
            self._tell_agent(float("inf"))

    def _tell_agent(self, limit: float) -> None:
        """Leave a sign of life, and how long this rank may take until the next one."""
        if self._beat_file >= 0:
            with contextlib.suppress(OSError):  # in place, so that it is never read half-written
                os.pwrite(self._beat_file, f"{limit:<{BEAT_WIDTH}}".encode(), 0)

    def _check(self) -> Hang | None:
        if self.rank == 0:
            self.reporter.stalled(max(rank.stalled for rank in self._observed))
            interval = 3 * self.interval
            return find_hang(self._observed, self.timeout, interval, _process_state, self._patience)
        main, both = self._observed[0], [self._observed[0], self._own]
        if main.beat.outcome or not is_lost(
            main, self.timeout, _process_state, both, self._patience
        ):
            return None
        return report_silence([main], [main, self._own], _process_state)

    def _watch_store(self) -> None:
        """Detect that the store, which rank 0's process may serve, does not respond."""
        clock = _Clock(self.interval)
        main, liveness = self._observed[0], self.reporter.liveness
        count, silent = 0, 0.0
        ticks, stalled = 0, 0.0
        while not self._exiting.wait(self.interval):
            seconds = clock.elapsed()
            silent = silent + seconds if self._count == count else 0.0
            stalled = stalled + seconds if liveness.ticks == ticks else 0.0
            count, ticks = self._count, liveness.ticks
            if silent <= self.timeout or stalled <= liveness.limit(self.timeout, is_compiling()):
                continue
            if _process_state(main.beat) not in ("stopped", "unknown"):
                continue
            main.silent = silent
            own = ObservedRank(self._beat(count))
            # Without the store the ranks can't elect one to report: one rank per node does.
            reports = os.environ.get("LOCAL_RANK", "0") == "0" or self.rank == 1
            if not reports:
                time.sleep(2 * self.interval)
            self._exit(report_silence([main], [main, own], _process_state), reports)

    def _exit(self, hang: Hang, reports: bool) -> None:
        """Exit this process, and with it the run's attempt."""
        with self._exit_lock:
            error = HangError(hang.message, hang.stacks)
            if reports:
                report_error(error, self.rank)
                self.reporter.update(phase="failed", message=str(error))
                with contextlib.suppress(RuntimeError):
                    publish = self.board.publish_verdict
                    threading.Thread(target=publish, args=(hang,), daemon=True).start()
                # Time for the others to read it, so that they exit without a report of their own.
                time.sleep(2 * self.interval)
            else:
                write_error_file(error)
            self.reporter.end("FAILED")
            for pid, namespace in hang.silent:
                kill_stopped_sibling(pid, namespace)
            os._exit(error.exit_code)


class _Clock:
    """Time between calls, at most two intervals."""

    def __init__(self, interval: float) -> None:
        self._limit = 2 * interval
        self._last = time.monotonic()

    def elapsed(self) -> float:
        """Seconds since the last call."""
        before, self._last = self._last, time.monotonic()
        return min(self._last - before, self._limit)


def _process_state(beat: Heartbeat) -> State:
    return state_of_pid(beat.pid, beat.pid_namespace)
