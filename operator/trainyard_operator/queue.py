"""A queue of keys: one worker per key at a time, a bounded number of workers, delays, backoff.

What client-go's workqueue is for Go; kopf and asyncio have queues of events, which neither merge
those of one object nor delay them.
"""

import asyncio
import contextlib
import heapq
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from trainyard_operator.client import ExpectedError

K = TypeVar("K", bound=Hashable)

logger = logging.getLogger(__name__)

FIRST_BACKOFF = 0.5
MAX_BACKOFF = 60.0
HANDLER_SECONDS = 120.0
# When work is this late, workers are stuck, not busy.
STALLED_SECONDS = 2 * HANDLER_SECONDS


class Queue(Generic[K]):
    """Calls `handle` for every key added, soon and at least once after each `add`.

    `handle` returns the seconds after which it wants the key again, or None. An error that it
    raises is logged in one line, and the key is retried with exponential backoff.
    """

    def __init__(self, handle: Callable[[K], Awaitable[float | None]], workers: int = 16) -> None:
        self._handle = handle
        self._num_workers = workers
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = 0
        self._running: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()

    def add(self, key: K, delay: float = 0.0) -> None:
        """Handle `key` in `delay` seconds, or earlier if that is already scheduled."""
        when = time.monotonic() + delay
        if self._due.get(key, float("inf")) <= when:
            return
        self._due[key] = when
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, key))
        self._changed.set()

    @property
    def depth(self) -> int:
        """Keys that are due and wait for a worker."""
        now = time.monotonic()
        return sum(when <= now for when in self._due.values())

    @property
    def failing(self) -> int:
        """Keys whose newest handling has failed."""
        return len(self._failures)

    def is_stalled(self) -> bool:
        """Whether a handler hangs, or keys that are due aren't handled."""
        limit = time.monotonic() - STALLED_SECONDS
        return any(since < limit for since in (*self._running.values(), *self._due.values()))

    async def run(self) -> None:
        """Work until cancelled; running handlers are cancelled too."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(self._num_workers):
                workers.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self._next()
            self._running[key] = time.monotonic()
            try:
                await self._handle_once(key)
            finally:
                del self._running[key]
                self._changed.set()

    async def _handle_once(self, key: K) -> None:
        try:
            async with asyncio.timeout(HANDLER_SECONDS):
                requeue_after = await self._handle(key)
        except Exception as error:
            count = self._failures[key] = self._failures.get(key, 0) + 1
            delay = min(MAX_BACKOFF, FIRST_BACKOFF * 2 ** (count - 1))
            is_expected = isinstance(error, ExpectedError)
            text = str(error) if is_expected else f"{type(error).__name__}: {error}"
            logger.warning(
                "%s: %s; retrying in %.3g s",
                key,
                text.removesuffix(": "),
                delay,
                exc_info=None if is_expected else error,
                extra={"run": str(key)},
            )
            self.add(key, delay)
        else:
            self._failures.pop(key, None)
            if requeue_after is not None:
                self.add(key, requeue_after)

    async def _next(self) -> K:
        """The next key that is due and not being handled."""
        while True:
            self._changed.clear()
            key, wait = self._take()
            if key is not None:
                return key
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def _take(self) -> tuple[K | None, float | None]:
        """A key to handle, or None and the seconds until one may be due."""
        now = time.monotonic()
        busy: list[tuple[float, int, K]] = []
        taken: K | None = None
        wait: float | None = None
        while self._heap:
            entry = heapq.heappop(self._heap)
            when, _, key = entry
            if self._due.get(key) != when:
                continue  # outdated: an earlier time was set, and has been used
            if when > now:
                heapq.heappush(self._heap, entry)
                wait = when - now
                break
            if key in self._running:
                busy.append(entry)
                continue
            del self._due[key]
            taken = key
            break
        for entry in busy:
            heapq.heappush(self._heap, entry)
        return taken, wait
