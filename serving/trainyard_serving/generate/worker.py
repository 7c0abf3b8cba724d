"""One thread that runs the model, behind a bounded queue: the event loop never computes."""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class QueueFullError(Exception):
    """No room for another request; `retry_after` is a guess in whole seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("the server is busy: too many requests are waiting")
        self.retry_after = retry_after


class JobFailedError(Exception):
    """The computation raised; the traceback is in the log."""


class Job(Generic[T]):
    """One request's work: an iterator the worker drains, and the results on their way back."""

    def __init__(self, produce: Callable[[], Iterator[T]], worker: "Worker") -> None:
        self.produce = produce
        self.cancelled = threading.Event()
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._results: asyncio.Queue[T | JobFailedError | None] = asyncio.Queue()

    def put(self, result: T | JobFailedError | None) -> None:
        """Called by the worker: a result, None at the end, or why there is none."""
        try:
            self._loop.call_soon_threadsafe(self._results.put_nowait, result)
        except RuntimeError:  # the event loop is closed: nobody waits any more
            self.cancelled.set()

    async def results(self) -> AsyncIterator[T]:
        """The results as they come. Whoever stops listening cancels the job.

        Raises JobFailedError.
        """
        while (result := await self._results.get()) is not None:
            if isinstance(result, JobFailedError):
                raise result
            yield result

    def cancel(self) -> None:
        """Stop before the next result, or give the place in the queue back. Harmless when done."""
        self.cancelled.set()
        self._worker.forget(self)


class Worker:
    """Runs jobs one after the other, first come first served."""

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self._queue: deque[Job[Any]] = deque()
        self._running: Job[Any] | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds_per_job = 1.0  # moving average
        self._thread = threading.Thread(target=self._run, name="model-worker")

    @property
    def depth(self) -> int:
        """Requests waiting; the one being computed is not among them."""
        return len(self._queue)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Cancel what is left and wait for the thread to end."""
        with self._changed:
            self._stopping = True
            for job in [*self._queue, *([self._running] if self._running else [])]:
                job.cancelled.set()
            self._changed.notify()
        self._thread.join()

    def submit(self, produce: Callable[[], Iterator[T]]) -> Job[T]:
        """Queue `produce`, whose iterator the worker's thread will drain.

        Raises QueueFullError when `max_queue` requests wait already.
        """
        job = Job(produce, self)
        with self._changed:
            if len(self._queue) >= self._max_queue:
                raise QueueFullError(self._retry_after())
            self._queue.append(job)
            self._changed.notify()
        return job

    def forget(self, job: Job[Any]) -> None:
        """Take `job` out of the queue, if it still waits there."""
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)

    def _retry_after(self) -> int:
        return min(60, max(1, math.ceil(self._seconds_per_job * len(self._queue))))

    def _run(self) -> None:
        while (job := self._take()) is not None:
            started = time.monotonic()
            self._drain(job)
            self._seconds_per_job += 0.2 * (time.monotonic() - started - self._seconds_per_job)

    def _take(self) -> Job[Any] | None:
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._queue or self._stopping)
            self._running = self._queue.popleft() if self._queue else None
            return self._running

    def _drain(self, job: Job[Any]) -> None:
        try:
            if not job.cancelled.is_set():
                for result in job.produce():
                    if job.cancelled.is_set():
                        break
                    job.put(result)
        except Exception:
            log.exception("a request failed inside the model")
            job.put(JobFailedError("the model failed on this request; the server's log says why"))
        else:
            job.put(None)
