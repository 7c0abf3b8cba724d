"""Keeps work from crowding out the event loop: a gate for requests, threads of low priority."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from trainyard_serving.errors import QueueFullError

NICENESS = 5  # under contention, a third of the CPU time of a thread of normal priority


class Gate:
    """Limits how many requests run and how many wait, for work that another server does.

    Like an asyncio.Semaphore, with a bounded queue and an estimate of the waiting time.
    """

    def __init__(self, max_running: int, max_queue: int) -> None:
        self._max_running = max_running
        self._max_admitted = max_running + max_queue
        self._num_admitted = 0
        self._num_running = 0
        self._free = asyncio.Semaphore(max_running)
        self._seconds = 1.0  # moving average of a request's duration

    @property
    def depth(self) -> int:
        """Number of waiting requests."""
        return self._num_admitted - self._num_running

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Admission to wait and to run.

        Raises QueueFullError at once when too many requests are admitted.
        """
        if self._num_admitted >= self._max_admitted:
            raise QueueFullError("requests", self._seconds * self.depth / self._max_running)
        self._num_admitted += 1
        try:
            yield
        finally:
            self._num_admitted -= 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The right to run, first come first served, for an admitted request."""
        async with self._free:
            self._num_running += 1
            started = time.monotonic()
            try:
                yield
            finally:
                self._num_running -= 1
                self._seconds += 0.2 * (time.monotonic() - started - self._seconds)


def computing_thread(run: Callable[[], None], name: str) -> threading.Thread:
    """A thread of lower priority than the event loop, as are the threads that it starts.

    On a busy machine a batch takes hundreds of milliseconds; answering probes and refusing requests
    must not wait for it.
    """

    def lower_priority() -> None:
        if sys.platform == "linux":  # elsewhere the whole process has one priority
            nice = os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        run()

    return threading.Thread(target=lower_priority, name=name)
