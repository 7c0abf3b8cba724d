"""SIGTERM: all ranks stop after the same step and save it, even if only one got the signal."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType

import torch

from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.errors import StoppedError
from trainyard_trainer.reporting.liveness import Liveness, is_compiling

# Interval of the vote, which takes a few hundred microseconds.
VOTE_SECONDS = 1.0
# A rank that makes no progress for so long after the signal (a peer is dead, and the network has
# not noticed) can't save; it exits as without this handler. Longer where its progress takes longer
# (see Liveness.limit): torchrun kills at the end of the grace period what has not ended by then.
STUCK_SECONDS = 10.0
_CHECK_SECONDS = 0.1
EXIT_STATUS = 128 + signal.SIGTERM


class Stop:
    """Handles SIGTERM in a `with` block. Every rank calls `agreed` after every step.

    A rank can't stop alone: the others would wait for it in their next step. So the ranks vote, at
    a step that the previous vote determined, about VOTE_SECONDS later.
    """

    def __init__(self, group: Group, step: int, liveness: Liveness) -> None:
        self.group = group
        self.liveness = liveness
        self.requested = False
        self._step, self._since = step, time.perf_counter()  # of the last vote
        self._next = step + 1
        self._vote_passed = threading.Event()
        self._read, self._write = os.pipe()

    def __enter__(self) -> "Stop":
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        threading.Thread(target=self._exit_if_stuck, name="stop", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._vote_passed.set()
        if kind is None or not issubclass(kind, StoppedError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # After a StoppedError `exit_with` does, once it has printed: torchrun may repeat SIGTERM.
        signal.set_wakeup_fd(-1)
        os.close(self._write)

    def agreed(self, step: int) -> bool:
        """Whether all ranks stop now, after `step` steps. Only votes communicate."""
        stop = self.requested
        if self.group.world_size > 1:
            if step < self._next:
                return False
            now = time.perf_counter()
            seconds = (now - self._since) / max(1, step - self._step)
            votes, mean = self.group.mean(torch.tensor([float(self.requested), seconds])).tolist()
            self._step, self._since = step, now
            self._next = step + max(1, int(VOTE_SECONDS / max(mean, 1e-4)))
            stop = votes > 0
        if stop:
            self._vote_passed.set()
        return stop

    def error(self, outcome: str) -> StoppedError:
        """What ends every rank once they agreed; `outcome`: what became of its step."""
        signalled = [rank for rank, got in enumerate(self.group.gather(self.requested)) if got]
        if len(signalled) < self.group.world_size:
            names = ", ".join(map(str, signalled[:8])) + ("…" if signalled[8:] else "")
            ranks = "rank" if len(signalled) == 1 else "ranks"
            return StoppedError(
                f"SIGTERM: stopped {outcome}; only {ranks} {names} got the signal",
                alone=self.requested,
            )
        return StoppedError(
            f"SIGTERM: stopped {outcome}; start it again to resume from the newest checkpoint"
        )

    def _on_sigterm(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True

    def _exit_if_stuck(self) -> None:
        """Exit this process if SIGTERM came and its main thread is stuck."""
        while number := os.read(self._read, 1):
            if number[0] == signal.SIGTERM and not self._reaches_vote():
                os._exit(EXIT_STATUS)
        os.close(self._read)

    def _reaches_vote(self) -> bool:
        """Wait for the vote, as long as there is progress."""
        ticks, stalled = self.liveness.ticks, 0.0
        while not self._vote_passed.wait(_CHECK_SECONDS):
            # Not by a clock: the process may be stopped meanwhile.
            stalled = stalled + _CHECK_SECONDS if self.liveness.ticks == ticks else 0.0
            ticks = self.liveness.ticks
            if stalled > self.liveness.limit(STUCK_SECONDS, is_compiling()):
                return False
        return True
