"""SIGTERM: all ranks stop after the same step and save it, however few of them got the signal."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType

import torch

from trainyard_trainer.distributed.process_group import Group
from trainyard_trainer.errors import StoppedError

# The ranks ask each other this often: a few hundred microseconds. torchrun kills after 25 s.
VOTE_SECONDS = 1.0
# A rank that gets no further than this after the signal (its peer is dead, and the network hasn't
# noticed) has nothing to save with; it ends as it would have without us.
PATIENCE_SECONDS = 10.0
EXIT_STATUS = 128 + signal.SIGTERM


class Stop:
    """Hears SIGTERM while it is entered. Every rank asks `agreed` after every step.

    A rank alone can't stop: the others would wait for it in their next step. So they vote, after a
    number of steps that all know from the vote before: about one second's worth.
    """

    def __init__(self, group: Group, step: int) -> None:
        self.group = group
        self.asked = False
        self._before = signal.SIG_DFL
        self._step, self._since = step, time.perf_counter()  # of the last vote
        self._next = step + 1
        self._got_on = threading.Event()
        self._read, self._write = os.pipe()

    def __enter__(self) -> "Stop":
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._hear)
        threading.Thread(target=self._lose_patience, name="stop", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._got_on.set()
        if kind is None or not issubclass(kind, StoppedError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # Else `exit_with` does, once it has spoken: torchrun may repeat the signal before that.
        signal.set_wakeup_fd(-1)
        os.close(self._write)

    def agreed(self, step: int) -> bool:
        """Whether all ranks stop now, `step` steps done. Most answers cost nothing."""
        stop = self.asked
        if self.group.world_size > 1:
            if step < self._next:
                return False
            now = time.perf_counter()
            seconds = (now - self._since) / max(1, step - self._step)
            votes, mean = self.group.mean(torch.tensor([float(self.asked), seconds])).tolist()
            self._step, self._since = step, now
            self._next = step + max(1, int(VOTE_SECONDS / max(mean, 1e-4)))
            stop = votes > 0
        if stop:
            self._got_on.set()
        return stop

    def _hear(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = True

    def _lose_patience(self) -> None:
        """End this process if the signal came and its main thread, stuck, doesn't get on."""
        while number := os.read(self._read, 1):
            if number[0] == signal.SIGTERM and not self._got_on.wait(PATIENCE_SECONDS):
                os._exit(EXIT_STATUS)
        os.close(self._read)
