"""Names the rank that hangs: a thread per rank tells the others where it is; rank 0's judges.

Rank 0 reads what all ranks say; the others watch that rank 0 speaks. Whoever finds a hang says so
and leaves last words, and all ranks end, so that the run goes on from its newest checkpoint.
"""

import contextlib
import os
import socket
import threading
import time
from types import TracebackType
from typing import Any

from trainyard_trainer.config import TrainConfig
from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.errors import HangError, speak, write_last_words
from trainyard_trainer.reporting.reporter import RunReporter
from trainyard_trainer.watchdog.board import Board, open_board
from trainyard_trainer.watchdog.hangs import Beat, Hang, Seen, find_hang, is_lost, silence
from trainyard_trainer.watchdog.processes import State, kill_stopped_sibling, place, state_of
from trainyard_trainer.watchdog.stacks import is_compiling, main_stack

MAX_INTERVAL = 2.0  # seconds between two beats
BEATS_PER_TIMEOUT = 10
LEAVE_SECONDS = 5.0


def watching(
    group: Group, config: TrainConfig, reporter: RunReporter
) -> contextlib.AbstractContextManager[Any]:
    """Watch this rank and the others, until it ends."""
    if config.hang_timeout_seconds == 0:
        return contextlib.nullcontext()
    return Watch(open_board(group), group, config, reporter)


class Watch:
    """The threads of one rank.

    Time is counted in looks: one that comes late counts as two intervals, no more. So a pause of
    the whole machine, or of this process, isn't held against the others.
    """

    def __init__(
        self, board: Board, group: Group, config: TrainConfig, reporter: RunReporter
    ) -> None:
        self.board = board
        self.rank = group.rank
        self.timeout = config.hang_timeout_seconds
        self.reporter = reporter
        self.interval = min(MAX_INTERVAL, self.timeout / BEATS_PER_TIMEOUT)
        self._seen = [Seen(Beat(rank)) for rank in range(group.world_size if group.is_main else 1)]
        self._own = Seen(Beat(group.rank))
        self._looks = 0
        self._leaving = threading.Event()
        self._left = ""
        self._ending = threading.Lock()
        self._threads = [threading.Thread(target=self._watch, name="watch", daemon=True)]
        if not group.is_main:
            guard = threading.Thread(target=self._guard, name="watch-store", daemon=True)
            self._threads.append(guard)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._left = "failed" if kind else "done"
        self._leaving.set()
        self._threads[0].join(LEAVE_SECONDS)
        self._ending.acquire()  # for ever: from here on nobody else ends this process

    def _beat(self, count: int) -> Beat:
        liveness = self.reporter.liveness
        return Beat(
            rank=self.rank,
            count=count,
            host=socket.gethostname(),
            place=place(),
            pid=os.getpid(),
            phase=liveness.phase,
            step=liveness.step,
            ticks=liveness.ticks,
            doing=str(liveness),
            limit=liveness.limit(self.timeout, is_compiling()),
            stack=main_stack(),
            left=self._left,
        )

    def _watch(self) -> None:
        """Leave beats and look at the others'."""
        clock = _Clock(self.interval)
        wait = 0.0  # at once, so that the others know whom they wait for
        try:
            while not self._leaving.wait(wait):
                wait = self.interval
                self._looks += 1
                own = self._beat(self._looks)
                beats, verdict = self.board.exchange(own)
                if verdict:
                    self._end(verdict, speaks=False)
                seconds = clock.passed()
                self._own.hear(own, seconds)
                for seen, beat in zip(self._seen, beats, strict=True):
                    seen.hear(beat, seconds)
                hang = self._judge()
                if hang and self.board.claim():
                    self._end(hang, speaks=True)
            self.board.leave(self._beat(self._looks + 1))
        except RuntimeError:
            pass  # the store has gone: so has rank 0 or torchrun's agent, which is told elsewhere
        finally:
            self._leaving.set()

    def _judge(self) -> Hang | None:
        if self.rank == 0:
            self.reporter.stalled(max(seen.stalled for seen in self._seen))
            return find_hang(self._seen, self.timeout, 3 * self.interval, _look)
        main = self._seen[0]
        if main.beat.left or not is_lost(main, self.timeout, _look, [main, self._own]):
            return None
        return silence([main], [main, self._own], _look)

    def _guard(self) -> None:
        """Find out that the store doesn't answer: it may be rank 0's process that serves it."""
        clock = _Clock(self.interval)
        main, liveness = self._seen[0], self.reporter.liveness
        looks, silent = 0, 0.0
        ticks, stalled = 0, 0.0
        while not self._leaving.wait(self.interval):
            seconds = clock.passed()
            silent = silent + seconds if self._looks == looks else 0.0
            stalled = stalled + seconds if liveness.ticks == ticks else 0.0
            looks, ticks = self._looks, liveness.ticks
            if silent <= self.timeout or stalled <= liveness.limit(self.timeout, is_compiling()):
                continue
            if _look(main.beat) not in ("stopped", "unknown"):
                continue
            main.silent = silent
            own = Seen(self._beat(looks))
            # Nobody can be asked who speaks: one rank of every node does.
            speaks = os.environ.get("LOCAL_RANK", "0") == "0" or self.rank == 1
            if not speaks:
                time.sleep(2 * self.interval)
            self._end(silence([main], [main, own], _look), speaks)

    def _end(self, hang: Hang, speaks: bool) -> None:
        """End this process, and with it the run's attempt."""
        with self._ending:
            error = HangError(hang.message, hang.stacks)
            if speaks:
                speak(error, self.rank)
                self.reporter.update(phase="failed", message=str(error))
                with contextlib.suppress(RuntimeError):
                    threading.Thread(target=self.board.pronounce, args=(hang,), daemon=True).start()
                time.sleep(2 * self.interval)  # the others leave without a word of their own
            else:
                write_last_words(error)
            self.reporter.end("FAILED")
            for pid, where in hang.silent:
                kill_stopped_sibling(pid, where)
            os._exit(error.exit_code)


class _Clock:
    """Time between looks, of which no more than two intervals count."""

    def __init__(self, interval: float) -> None:
        self._most = 2 * interval
        self._looked = time.monotonic()

    def passed(self) -> float:
        """Seconds since the last call."""
        before, self._looked = self._looked, time.monotonic()
        return min(self._looked - before, self._most)


def _look(beat: Beat) -> State:
    return state_of(beat.pid, beat.place)
