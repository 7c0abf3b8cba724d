"""Keeps work from crowding out the event loop: a gate for requests, threads of low priority."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

from trainyard_serving.errors import QueueFullError

NICENESS = 5  # under contention, a third of the CPU time of a thread of normal priority

P = ParamSpec("P")
T = TypeVar("T")


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


class ComputingThreads:
    """A few threads of low priority, and a bounded queue, for short work that requests await."""

    def __init__(self, num_threads: int, max_queue: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(num_threads, name, _lower_priority)
        self._max_admitted = num_threads + max_queue
        self._num_admitted = 0  # includes work whose client has left while it runs
        self._changing = threading.Lock()

    @property
    def alive(self) -> bool:
        return True

    def start(self) -> None:
        """Nothing: threads start with the first work."""

    def stop(self) -> None:
        """Drop what waits, and wait for what runs."""
        self._executor.shutdown(cancel_futures=True)

    async def run(self, compute: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `compute`. Cancelling the call drops it unless it runs already.

        Raises QueueFullError at once when too much waits.
        """
        with self._changing:
            if self._num_admitted >= self._max_admitted:
                raise QueueFullError("requests", 1)
            self._num_admitted += 1
        future = self._executor.submit(compute, *args, **kwargs)
        future.add_done_callback(self._ended)
        return await asyncio.wrap_future(future)

    async def finish(self, compute: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `compute`, the last work of a request: it is never refused."""
        return await asyncio.wrap_future(self._executor.submit(compute, *args, **kwargs))

    def _ended(self, future: Future[T]) -> None:
        with self._changing:
            self._num_admitted -= 1


def computing_thread(run: Callable[[], None], name: str) -> threading.Thread:
    """A thread of lower priority than the event loop, as are the threads that it starts.

    On a busy machine a batch takes hundreds of milliseconds; answering probes and refusing requests
    must not wait for it.
    """

    def run_lowered() -> None:
        _lower_priority()
        run()

    return threading.Thread(target=run_lowered, name=name)


def _lower_priority() -> None:
    if sys.platform == "linux":  # elsewhere the whole process has one priority
        nice = os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
