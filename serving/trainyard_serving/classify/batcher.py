"""One thread that runs the model: whatever waits is computed together, up to a limit.

Nobody waits for a batch to fill: when the thread is idle a single text is computed at once, and
while it computes, the next batch gathers. The event loop never computes.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from trainyard_serving.classify.classifier import Classifier
from trainyard_serving.classify.engine import Floats
from trainyard_serving.errors import QueueFullError
from trainyard_serving.metrics import Metrics
from trainyard_serving.threads import computing_thread

log = logging.getLogger(__name__)

# Padding is computed like text: a batch is cut where texts become this much longer.
LENGTH_RATIO = 1.5
LENGTH_SLACK = 8  # tokens


class ComputingFailedError(Exception):
    """The computation raised; the traceback is in the log."""


@dataclass(eq=False)
class Request:
    """Texts of one client, and their answers on their way back.

    Attributes:
        model: the one they began with; a batch never mixes models.
        left: texts that are not answered yet.
    """

    model: Classifier
    texts: list[str]
    loop: asyncio.AbstractEventLoop
    answers: "asyncio.Future[list[Floats]]"
    found: list[Floats | None]
    left: int
    queued: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        """Nobody waits any more: the client went away, or an earlier batch failed."""
        return self.answers.done()


class Batcher:
    """Computes texts in the order they came."""

    def __init__(self, max_batch_size: int, max_queue: int, metrics: Metrics) -> None:
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._metrics = metrics
        self._queue: deque[tuple[Request, int]] = deque()  # a request and one of its texts
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds_per_text = 0.05  # moving average
        self._thread = computing_thread(self._run, "model-batcher")

    @property
    def depth(self) -> int:
        """Texts waiting."""
        return len(self._queue)

    def full(self) -> QueueFullError | None:
        """Why not even one text would fit now; None when it would."""
        return None if self._fits(1) else self._full()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Give up what waits, and wait for the thread to end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    async def classify(self, model: Classifier, texts: list[str]) -> list[Floats]:
        """Probabilities (classes,) of each text, in the texts' order.

        Whoever stops waiting gives the texts' places back. Raises QueueFullError at once when
        they don't fit into the queue, ComputingFailedError.
        """
        loop = asyncio.get_running_loop()
        request = Request(model, texts, loop, loop.create_future(), [None] * len(texts), len(texts))
        with self._changed:
            if not self._fits(len(texts)):
                raise self._full()
            self._queue.extend((request, number) for number in range(len(texts)))
            self._changed.notify()
        try:
            return await request.answers
        except asyncio.CancelledError:
            self._forget(request)
            raise

    def _forget(self, request: Request) -> None:
        with self._changed:
            self._queue = deque(item for item in self._queue if item[0] is not request)

    def _fits(self, num_texts: int) -> bool:
        return len(self._queue) + num_texts <= self._max_queue

    def _full(self) -> QueueFullError:
        return QueueFullError("texts", self._seconds_per_text * len(self._queue))

    def _run(self) -> None:
        while batch := self._take():
            started = time.monotonic()
            try:
                self._compute(batch)
            except Exception:
                log.exception("a batch failed inside the model")
                error = ComputingFailedError("the model failed on this; the server's log says why")
                for request in {request for request, _ in batch}:
                    _tell(request, error)
            spent = (time.monotonic() - started) / len(batch)
            self._seconds_per_text += 0.2 * (spent - self._seconds_per_text)

    def _take(self) -> list[tuple[Request, int]]:
        """The next texts of one model, at least one; none when it is time to stop."""
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

    def _compute(self, batch: list[tuple[Request, int]]) -> None:
        batch = [item for item in batch if not item[0].over]
        if not batch:
            return
        began = time.monotonic()
        model = batch[0][0].model
        seconds = self._metrics.stage_seconds
        seconds.labels("queue").observe(began - min(request.queued for request, _ in batch))
        encoded = model.encode([request.texts[number] for request, number in batch])
        tokenised = time.monotonic()
        seconds.labels("tokenise").observe(tokenised - began)
        for group in _alike(encoded):
            found = model.probabilities([encoded[place] for place in group])
            self._metrics.batch_size.observe(len(group))
            for place, probabilities in zip(group, found, strict=True):
                request, number = batch[place]
                self._metrics.predicted(model.labels[int(probabilities.argmax())])
                request.found[number] = probabilities
                request.left -= 1
                if request.left == 0:
                    _tell(request)
        seconds.labels("compute").observe(time.monotonic() - tokenised)


def _alike(encoded: list[list[int]]) -> list[list[int]]:
    """Places of texts, in groups of like length, the shortest first."""
    groups: list[list[int]] = []
    limit = 0.0
    for place in sorted(range(len(encoded)), key=lambda place: len(encoded[place])):
        length = len(encoded[place])
        if not groups or length > limit:
            groups.append([])
            limit = length * LENGTH_RATIO + LENGTH_SLACK
        groups[-1].append(place)
    return groups


def _tell(request: Request, error: ComputingFailedError | None = None) -> None:
    def tell() -> None:
        if request.answers.done():
            return
        if error is not None:
            request.answers.set_exception(error)
        else:
            request.answers.set_result([found for found in request.found if found is not None])

    try:
        request.loop.call_soon_threadsafe(tell)
    except RuntimeError:  # the event loop is closed: nobody waits any more
        log.debug("an answer came after the server's end")
