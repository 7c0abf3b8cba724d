"""SIGTERM: all ranks stop after the same step."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
from typing import Any

VOTE_SECONDS = 1.0  # between two votes, which take a few hundred microseconds

# gloo's threads need Python to free the tensors of the last collective, and abort the process once
# Python finalizes. Whoever waits for Python gets it while this thread sleeps.
LAST_PAUSE = 0.02  # seconds


class Stop:
    """Notes SIGTERM, and has all ranks agree on when to stop.

    A rank can't stop alone: the others would wait for it in their next step. So the ranks vote, at
    a step that their previous vote determined, about VOTE_SECONDS after it.
    """

    def __init__(self) -> None:
        self.requested = False
        self._agreed = False
        self._pid = os.getpid()
        self._group: Any = None
        self._world: Any = None  # the process group that it was made for
        self._calls = 0
        self._next = 1  # call of the next vote
        self._voted, self._since = 0, time.perf_counter()  # call and time of the last one
        self.take_over()

    def take_over(self) -> None:
        """Handle SIGTERM in place of any other handler: a framework's handler may end one rank."""
        try:
            signal.signal(signal.SIGTERM, self._on_sigterm)
        except ValueError:
            why = "should_stop() sees no SIGTERM: call it in the main thread first"
            print(f"warning: trainyard: {why}", file=sys.stderr, flush=True)

    def agreed(self) -> bool:
        """Whether all ranks stop now. Called by every rank after every step."""
        self._calls += 1
        if self._agreed:
            return True
        torch_distributed = _initialised()
        if torch_distributed is None:
            self._agreed = self.requested
        elif self._calls >= self._next:
            self._agreed = self._vote(torch_distributed)
        return self._agreed

    def _vote(self, distributed: Any) -> bool:
        import torch

        if self._world is not distributed.group.WORLD:
            self._world = distributed.group.WORLD
            self._group = distributed.new_group(backend="gloo")
        now = time.perf_counter()
        seconds = (now - self._since) / max(1, self._calls - self._voted)
        votes = torch.tensor([float(self.requested), seconds], dtype=torch.float64)
        distributed.all_reduce(votes, group=self._group)
        requested, total = votes.tolist()
        mean = total / distributed.get_world_size()
        self._voted, self._since = self._calls, now
        self._next = self._calls + max(1, int(VOTE_SECONDS / max(mean, 1e-4)))
        return bool(requested > 0)

    def close(self) -> None:
        """End the threads of the group's votes, which Python would not survive while it finalizes.

        See Group.close of the trainer.
        """
        group, self._group, self._world = self._group, None, None
        distributed = _initialised()
        if group is not None and distributed is not None and os.getpid() == self._pid:
            with contextlib.suppress(RuntimeError):  # it was destroyed, with all groups
                distributed.destroy_process_group(group)

    def _on_sigterm(self, *_: object) -> None:
        self.requested = True

    @property
    def is_final(self) -> bool:
        """Whether `agreed` has returned True in this process."""
        return self._agreed and os.getpid() == self._pid


current: Stop | None = None


@atexit.register  # when this module is imported, so that it runs after what registers itself later
def _end() -> None:
    """A stopped run ends by SIGTERM: status 0 would mean that it is finished."""
    if current is None or not current.is_final:
        if current is not None:
            current.close()
        if "torch.distributed" in sys.modules:
            time.sleep(LAST_PAUSE)
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def should_stop() -> bool:
    """See Run.should_stop."""
    return (current or take_over()).agreed()


def take_over() -> Stop:
    """Have SIGTERM handled here from now on."""
    global current
    if current is None:
        current = Stop()
    else:
        current.take_over()
    return current


def _initialised() -> Any:
    """torch.distributed, if this process is one of several in its process group."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed if distributed.get_world_size() > 1 else None
