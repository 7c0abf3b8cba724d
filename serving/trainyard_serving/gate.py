"""Lets so many requests work at a time and so many wait; refuses the rest with 429."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from trainyard_serving.errors import QueueFullError


class Gate:
    """For work that is done elsewhere, such as on a server behind this one."""

    def __init__(self, max_running: int, max_queue: int) -> None:
        self._max_running = max_running
        self._max_inside = max_running + max_queue
        self._inside = 0
        self._running = 0
        self._free = asyncio.Semaphore(max_running)
        self._seconds = 1.0  # moving average of a request's time

    @property
    def depth(self) -> int:
        """Requests waiting."""
        return self._inside - self._running

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place inside: working or waiting.

        Raises QueueFullError at once when there is none.
        """
        if self._inside >= self._max_inside:
            raise QueueFullError("requests", self._seconds * self.depth / self._max_running)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The right to work, first come first served, for one who has a place."""
        async with self._free:
            self._running += 1
            started = time.monotonic()
            try:
                yield
            finally:
                self._running -= 1
                self._seconds += 0.2 * (time.monotonic() - started - self._seconds)
