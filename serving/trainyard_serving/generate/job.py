"""One request on its way through the worker, and what comes back from the worker's thread."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from trainyard_serving.generate.completion import Chunk, Sampling

if TYPE_CHECKING:  # importing torch takes seconds; the server must answer before that
    from trainyard_serving.generate.language_model import LanguageModel


class JobFailedError(Exception):
    """The computation raised; the traceback is in the log."""


class Job:
    """One request: prompts for one model, and the chunks of their texts on their way back.

    Attributes:
        unbegun: prompts whose texts are not under way, with their places in the request.
        num_left: texts that have not ended.
        begun: when the first of them was begun.
    """

    def __init__(
        self,
        model: "LanguageModel",
        prompts: list[list[int]],
        sampling: Sampling,
        forget: Callable[["Job"], None],
    ) -> None:
        """`forget` takes a job that nobody waits for any more out of the queue."""
        self.model = model
        self.sampling = sampling
        self.unbegun = deque(enumerate(prompts))
        self.num_left = len(prompts)
        self.begun: float | None = None
        self.cancelled = threading.Event()
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._results: asyncio.Queue[Chunk | JobFailedError | None] = asyncio.Queue()

    def put(self, result: Chunk | JobFailedError | None) -> None:
        """Called by the worker: a chunk, None at the end, or why there is none."""
        try:
            self._loop.call_soon_threadsafe(self._results.put_nowait, result)
        except RuntimeError:  # the event loop is closed: nobody waits any more
            self.cancelled.set()

    def fail(self, message: str) -> None:
        """Called by the worker: no more will come, of none of its texts."""
        self.put(JobFailedError(message))
        self.cancel()

    async def results(self) -> AsyncIterator[Chunk]:
        """The chunks as they come, those of several texts mixed. Whoever stops listening cancels
        the job.

        Raises JobFailedError.
        """
        while (result := await self._results.get()) is not None:
            if isinstance(result, JobFailedError):
                raise result
            yield result

    def cancel(self) -> None:
        """Stop before the next token, or give the place in the queue back. Harmless when done."""
        self.cancelled.set()
        self._forget(self)
