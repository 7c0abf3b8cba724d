"""One thread that runs the model, behind a bounded queue: the event loop never computes.

Texts join those being written at any token and leave when they end (continuous batching, Yu et
al. 2022, "Orca"). One round of the thread:

    forget what nobody waits for -> begin what waits -> read a piece of a prompt -> write a token
"""

import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from trainyard_serving.errors import QueueFullError
from trainyard_serving.generate.completion import Sampling
from trainyard_serving.generate.job import Job
from trainyard_serving.metrics import Metrics
from trainyard_serving.threads import computing_thread

if TYPE_CHECKING:  # importing torch takes seconds; the server must answer before that
    from trainyard_serving.generate.batch import Batch, News
    from trainyard_serving.generate.language_model import LanguageModel
    from trainyard_serving.generate.sequence import Sequence

log = logging.getLogger(__name__)


class Worker:
    """Writes the texts of up to `max_batch_size` prompts together, first come first served."""

    def __init__(self, max_queue: int, max_batch_size: int, metrics: Metrics) -> None:
        self._max_queue = max_queue
        self._max_batch_size = max_batch_size
        self._metrics = metrics
        self._waiting: deque[Job] = deque()
        # Sequences of different models never mix. There are several models only while texts that
        # began before a swap are still written; each gets its token every round.
        self._batches: dict[LanguageModel, Batch] = {}
        self._jobs: dict[Sequence, Job] = {}  # of every sequence under way
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds_per_job = 1.0  # moving average
        self._thread = computing_thread(self._run, "model-worker")

    @property
    def depth(self) -> int:
        """Requests waiting, those included of whose prompts some are under way."""
        return len(self._waiting)

    def full(self) -> QueueFullError | None:
        """Why no request would be taken now; None when one would."""
        if len(self._waiting) < self._max_queue:
            return None
        rounds = len(self._waiting) / self._max_batch_size
        return QueueFullError("requests", self._seconds_per_job * rounds)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Give up what is left and wait for the thread to end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, model: "LanguageModel", prompts: list[list[int]], sampling: Sampling) -> Job:
        """Queue the completion of `prompts` (of `model.encode`).

        Raises QueueFullError when `max_queue` requests wait already.
        """
        job = Job(model, prompts, sampling, self._forget)
        with self._changed:
            if full := self.full():
                raise full
            self._waiting.append(job)
            self._changed.notify()
        return job

    def _forget(self, job: Job) -> None:
        """Take `job` out of the queue, if it still waits there."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _run(self) -> None:
        while self._has_work():
            self._drop_cancelled()
            self._begin_waiting()
            self._advance()
        with self._changed:
            for job in {*self._waiting, *self._jobs.values()}:
                job.fail("the server is stopping")

    def _has_work(self) -> bool:
        """Wait for some; False when it is time to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._waiting or self._stopping)
            return not self._stopping

    def _drop_cancelled(self) -> None:
        gone = {sequence for sequence, job in self._jobs.items() if job.cancelled.is_set()}
        if gone:
            for sequence in gone:
                del self._jobs[sequence]
            for batch in self._batches.values():
                batch.drop(gone)

    def _begin_waiting(self) -> None:
        """Give the free places to whoever waits longest."""
        while (job := self._next()) is not None:
            try:
                sequence = job.model.begin(*job.unbegun.popleft(), job.sampling)
                if job.model not in self._batches:
                    self._batches[job.model] = job.model.batch(self._max_batch_size)
                self._batches[job.model].add(sequence)
            except Exception as error:
                self._fail(job, error)
                continue
            self._jobs[sequence] = job
            job.begun = job.begun or time.monotonic()

    def _next(self) -> Job | None:
        """The first in the line, if one more text of its model has a place."""
        with self._changed:
            while self._waiting and not self._waiting[0].unbegun:
                self._waiting.popleft()
            if not self._waiting or len(self._jobs) >= self._max_batch_size:
                return None
            batch = self._batches.get(self._waiting[0].model)
            return None if batch and batch.full else self._waiting[0]

    def _advance(self) -> None:
        """A piece of a prompt, then a token of every text, model by model."""
        for model, batch in list(self._batches.items()):
            try:
                self._tell(batch.read())
                if batch.num_writing:
                    self._metrics.batch_size.observe(batch.num_writing)
                    self._tell(batch.write())
            except Exception as error:  # of no single text: what all had in the cache is lost
                del self._batches[model]
                for job in {job for job in self._jobs.values() if job.model is model}:
                    self._fail(job, error)
            else:
                if not batch.sequences:
                    del self._batches[model]

    def _tell(self, news: "News") -> None:
        for sequence, said in news:
            job = self._jobs[sequence]
            if isinstance(said, Exception):
                self._fail(job, said)
                continue
            job.put(said)
            if said.finish_reason:
                del self._jobs[sequence]
                self._count_end(job)

    def _count_end(self, job: Job) -> None:
        job.num_left -= 1
        if job.num_left == 0:
            job.put(None)
            spent = time.monotonic() - (job.begun or 0)
            self._seconds_per_job += 0.2 * (spent - self._seconds_per_job)

    def _fail(self, job: Job, error: Exception) -> None:
        log.error("a request failed inside the model", exc_info=error)
        job.fail("the model failed on this request; the server's log says why")
