"""The worker of engine torch: one thread that generates texts, behind a bounded queue.

Texts join and leave the batch at any token (continuous batching; Yu et al. 2022, "Orca"). One round
of the thread, so that the event loop never computes:

    drop cancelled jobs -> start waiting prompts -> prefill a piece of a prompt -> decode a token

transformers' ContinuousBatchingManager is not used because it has one random seed for all requests.
Here a request's seed determines its text, whatever is generated beside it.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from trainyard_serving.concurrency import computing_thread
from trainyard_serving.errors import ApiError, QueueFullError
from trainyard_serving.generate.engine import Chunk, GrammarError, SamplingOptions
from trainyard_serving.metrics import Metrics
from trainyard_serving.middleware import DIGEST_HEADER

if TYPE_CHECKING:  # importing torch takes seconds, and the server must answer before that
    from trainyard_serving.generate.batch import Batch, Results
    from trainyard_serving.generate.language_model import LanguageModel
    from trainyard_serving.generate.sequence import TextSequence

log = logging.getLogger(__name__)


class JobFailedError(ApiError):
    """The text cannot go on: the request asks for the impossible, or the computation failed."""

    def __init__(
        self, message: str, digest: str, status: int = 500, param: str | None = None
    ) -> None:
        headers = {DIGEST_HEADER.decode(): digest}
        super().__init__(status, message, param=param, headers=headers)


class Job:
    """A request: prompts for one model, and the chunks of text that come back from the worker.

    Attributes:
        waiting: the texts that have not been started: index in the request, prompt, options.
        num_left: texts that have not ended.
        started: when the first text was started.
    """

    def __init__(
        self,
        model: "LanguageModel",
        prompts: Sequence[list[int]],
        options: Sequence[SamplingOptions],
        remove: Callable[["Job"], None],
    ) -> None:
        """
        Args:
            options: one for each text to generate for each prompt.
            remove: takes a cancelled job out of the queue.
        """
        self.model = model
        texts = ((prompt, how) for prompt in prompts for how in options)
        self.waiting = deque((index, *text) for index, text in enumerate(texts))
        self.num_left = len(self.waiting)
        self.started: float | None = None
        self.cancelled = threading.Event()
        self._remove = remove
        self._loop = asyncio.get_running_loop()
        self._results: asyncio.Queue[Chunk | JobFailedError | None] = asyncio.Queue()

    def put(self, result: Chunk | JobFailedError | None) -> None:
        """Called by the worker: a chunk, an error, or None at the end."""
        try:
            self._loop.call_soon_threadsafe(self._results.put_nowait, result)
        except RuntimeError:  # the event loop is closed
            self.cancelled.set()

    def fail(self, message: str, status: int = 500, param: str | None = None) -> None:
        """Called by the worker: end all texts of the job."""
        self.put(JobFailedError(message, self.model.source.digest, status, param))
        self.cancel()

    async def chunks(self) -> AsyncIterator[Chunk]:
        """The chunks as they are generated; those of several texts are interleaved.

        Raises JobFailedError.
        """
        while (result := await self._results.get()) is not None:
            if isinstance(result, JobFailedError):
                raise result
            yield result

    def cancel(self) -> None:
        """Leave the queue, or stop before the next token. Has no effect on a finished job."""
        self.cancelled.set()
        self._remove(self)


class Worker:
    """Generates up to `max_batch_size` texts at a time, first come first served."""

    def __init__(self, max_queue: int, max_batch_size: int, metrics: Metrics) -> None:
        self._max_queue = max_queue
        self._max_batch_size = max_batch_size
        self._metrics = metrics
        self._queue: deque[Job] = deque()
        # A batch never mixes models. There are several only while texts that were started before a
        # swap are still generated; each batch gets a token per round.
        self._batches: dict[LanguageModel, Batch] = {}
        self._jobs: dict[TextSequence, Job] = {}  # of each text in progress
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds_per_job = 1.0  # moving average
        self._thread = computing_thread(self._run, "model-worker")

    @property
    def depth(self) -> int:
        """Number of waiting requests, including those that wait with some of their prompts."""
        return len(self._queue)

    def full(self) -> QueueFullError | None:
        """Why one more request is refused now; None when it would be accepted."""
        if len(self._queue) < self._max_queue:
            return None
        rounds = len(self._queue) / self._max_batch_size
        return QueueFullError("requests", self._seconds_per_job * rounds)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Fail all remaining jobs and wait for the thread to end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(
        self, model: "LanguageModel", prompts: Sequence[list[int]], *options: SamplingOptions
    ) -> Job:
        """Queue prompts of token ids, each with a text for each of `options`, in this order.

        Raises QueueFullError when `max_queue` requests wait already.
        """
        job = Job(model, prompts, options, self._remove)
        with self._changed:
            if full := self.full():
                raise full
            self._queue.append(job)
            self._changed.notify()
        return job

    def _remove(self, job: Job) -> None:
        """Remove `job` from the queue, if it is still there."""
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)

    def _run(self) -> None:
        while self._wait_for_work():
            self._drop_cancelled()
            self._start_waiting()
            self._advance()
        with self._changed:
            for job in {*self._queue, *self._jobs.values()}:
                job.fail("the server is stopping")

    def _wait_for_work(self) -> bool:
        """False when the thread must end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._queue or self._stopping)
            return not self._stopping

    def _drop_cancelled(self) -> None:
        dropped = {sequence for sequence, job in self._jobs.items() if job.cancelled.is_set()}
        if dropped:
            for sequence in dropped:
                del self._jobs[sequence]
            for batch in self._batches.values():
                batch.drop(dropped)

    def _start_waiting(self) -> None:
        """Start the prompts that have waited longest, as many as the batch has room for."""
        while (job := self._next_job()) is not None:
            try:
                sequence = job.model.new_sequence(*job.waiting.popleft())
                if job.model not in self._batches:
                    self._batches[job.model] = job.model.new_batch(self._max_batch_size)
                self._batches[job.model].add(sequence)
            except Exception as error:
                self._fail(job, error)
                continue
            self._jobs[sequence] = job
            job.started = job.started or time.monotonic()

    def _next_job(self) -> Job | None:
        """The first job of the queue, if the batch of its model has room."""
        with self._changed:
            while self._queue and not self._queue[0].waiting:
                self._queue.popleft()
            if not self._queue or len(self._jobs) >= self._max_batch_size:
                return None
            batch = self._batches.get(self._queue[0].model)
            return None if batch and batch.full else self._queue[0]

    def _advance(self) -> None:
        """For each model: prefill a piece of one prompt, then decode a token of every text."""
        for model, batch in list(self._batches.items()):
            try:
                self._deliver(batch.prefill())
                if batch.num_decoding:
                    self._metrics.batch_size.observe(batch.num_decoding)
                    self._deliver(batch.decode())
            except Exception as error:  # not of a single text: the shared cache is lost
                del self._batches[model]
                for job in {job for job in self._jobs.values() if job.model is model}:
                    self._fail(job, error)
            else:
                if not batch.sequences:
                    del self._batches[model]

    def _deliver(self, results: "Results") -> None:
        for sequence, result in results:
            job = self._jobs[sequence]
            if isinstance(result, Exception):
                self._fail(job, result)
                continue
            job.put(result)
            if result.finish_reason:
                del self._jobs[sequence]
                self._end_text(job)

    def _end_text(self, job: Job) -> None:
        job.num_left -= 1
        if job.num_left == 0:
            job.put(None)
            seconds = time.monotonic() - (job.started or 0)
            self._seconds_per_job += 0.2 * (seconds - self._seconds_per_job)

    def _fail(self, job: Job, error: Exception) -> None:
        if isinstance(error, GrammarError):
            job.fail(f"response_format: {error}", 400, "response_format")
            return
        log.error("a request failed inside the model", exc_info=error)
        job.fail("the model failed on this request; the server's log says why")
