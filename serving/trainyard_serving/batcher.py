"""Dynamic batching: one thread computes the texts that wait, up to a limit, together.

A batch is not held back until it is full: an idle thread computes a single text at once, and while
it computes, the next batch collects. The event loop never computes. (Libraries for this, such as
Ray Serve, are servers of their own.)
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt

from trainyard_serving.concurrency import computing_thread
from trainyard_serving.errors import QueueFullError
from trainyard_serving.metrics import Metrics

log = logging.getLogger(__name__)

M = TypeVar("M")  # a loaded model
T = TypeVar("T")  # a text, or its token ids
Row = npt.NDArray[np.float32]  # what a model computes of one text
EncodedText = Sequence[int] | npt.NDArray[np.int32]

# Padding costs as much as text: texts longer than this go into another group.
LENGTH_RATIO = 1.5
LENGTH_SLACK = 8  # tokens


class BatchFailedError(Exception):
    """The computation raised; the traceback is in the log."""


@dataclass(eq=False)
class Request(Generic[M, T]):
    """The texts of one request and their results.

    Attributes:
        model: the current one when the request came; a batch never mixes models.
        num_left: texts without a result.
    """

    model: M
    texts: Sequence[T]
    loop: asyncio.AbstractEventLoop
    done: "asyncio.Future[list[Row]]"
    results: list[Row | None]
    num_left: int
    queued: float = field(default_factory=time.monotonic)

    @property
    def ended(self) -> bool:
        """Whether the client has disconnected, or an earlier batch failed."""
        return self.done.done()


class Batcher(Generic[M, T]):
    """Computes texts in the order in which they arrived."""

    def __init__(
        self,
        compute: Callable[[M, list[EncodedText]], Iterable[Row]],
        max_batch_size: int,
        max_queue: int,
        metrics: Metrics,
        *,
        encode: Callable[[M, list[T]], Sequence[EncodedText]] | None = None,
        max_batch_tokens: int | None = None,
    ) -> None:
        """
        Args:
            compute: a row for each of one or more encoded texts.
            encode: the token ids of texts; None: what waits are token ids.
            max_batch_tokens: computed together, padding included; a longer text is computed alone.
                None: any number.
        """
        self._compute = compute
        self._encode = encode
        self._max_batch_size = max_batch_size
        self._max_batch_tokens = max_batch_tokens
        self._max_queue = max_queue
        self._metrics = metrics
        self._queue: deque[tuple[Request[M, T], int]] = deque()  # a request and one of its texts
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds_per_text = 0.05  # moving average
        self._thread = computing_thread(self._run, "model-batcher")

    @property
    def depth(self) -> int:
        """Number of waiting texts."""
        return len(self._queue)

    def full(self, num_texts: int = 1) -> QueueFullError | None:
        """Why so many more texts are refused now; None when they would be accepted."""
        if len(self._queue) + num_texts <= self._max_queue:
            return None
        return QueueFullError("texts", self._seconds_per_text * len(self._queue))

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread after the current batch; texts that wait get no result."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    async def compute(self, model: M, texts: Sequence[T]) -> list[Row]:
        """The model's row of each text, in the texts' order.

        Cancelling the call removes its texts from the queue. Raises QueueFullError at once when
        they do not fit into the queue, and BatchFailedError.
        """
        loop = asyncio.get_running_loop()
        request = Request(model, texts, loop, loop.create_future(), [None] * len(texts), len(texts))
        with self._changed:
            if error := self.full(len(texts)):
                raise error
            self._queue.extend((request, number) for number in range(len(texts)))
            self._changed.notify()
        try:
            return await request.done
        except asyncio.CancelledError:
            self._remove(request)
            raise

    def _remove(self, request: Request[M, T]) -> None:
        with self._changed:
            self._queue = deque(item for item in self._queue if item[0] is not request)

    def _run(self) -> None:
        while batch := self._take():
            started = time.monotonic()
            try:
                self._compute_batch(batch)
            except Exception:
                log.exception("a batch failed inside the model")
                error = BatchFailedError("the model failed on this; the server's log says why")
                for request in {request for request, _ in batch}:
                    _finish(request, error)
            spent = (time.monotonic() - started) / len(batch)
            self._seconds_per_text += 0.2 * (spent - self._seconds_per_text)

    def _take(self) -> list[tuple[Request[M, T], int]]:
        """Wait for texts; returns the next ones of the same model, or none when stopping."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            if self._stopping:
                return []
            model = self._queue[0][0].model
            waiting = islice(self._queue, self._max_batch_size)
            batch = []
            for item in waiting:
                if item[0].model is not model:
                    break
                batch.append(item)
            for _ in batch:
                self._queue.popleft()
            return batch

    def _compute_batch(self, batch: list[tuple[Request[M, T], int]]) -> None:
        batch = [item for item in batch if not item[0].ended]
        if not batch:
            return
        started = time.monotonic()
        model = batch[0][0].model
        seconds = self._metrics.stage_seconds
        seconds.labels("queue").observe(started - min(request.queued for request, _ in batch))
        texts = [request.texts[number] for request, number in batch]
        if self._encode is None:
            encoded = cast(Sequence[EncodedText], texts)
        else:
            encoded = self._encode(model, texts)
            seconds.labels("tokenise").observe(time.monotonic() - started)
        tokenised = time.monotonic()
        for group in _by_length(encoded, self._max_batch_tokens):
            rows = self._compute(model, [encoded[index] for index in group])
            self._metrics.batch_size.observe(len(group))
            for index, row in zip(group, rows, strict=True):
                request, number = batch[index]
                request.results[number] = row
                request.num_left -= 1
                if request.num_left == 0:
                    _finish(request)
        seconds.labels("compute").observe(time.monotonic() - tokenised)


def _by_length(encoded: Sequence[EncodedText], max_tokens: int | None) -> list[list[int]]:
    """Indices of texts in groups of similar length, the shortest first."""
    groups: list[list[int]] = []
    limit = 0.0
    for index in sorted(range(len(encoded)), key=lambda index: len(encoded[index])):
        length = len(encoded[index])
        padded = length * (len(groups[-1]) + 1) if groups else 0
        if not groups or length > limit or (max_tokens is not None and padded > max_tokens):
            groups.append([])
            limit = length * LENGTH_RATIO + LENGTH_SLACK
        groups[-1].append(index)
    return groups


def _finish(request: Request[M, T], error: BatchFailedError | None = None) -> None:
    """Hand the results, or the error, to the event loop."""

    def finish() -> None:
        if request.done.done():
            return
        if error is not None:
            request.done.set_exception(error)
        else:
            request.done.set_result([row for row in request.results if row is not None])

    try:
        request.loop.call_soon_threadsafe(finish)
    except RuntimeError:  # the event loop is closed
        log.debug("a batch ended after the server")
