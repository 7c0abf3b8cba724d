"""The worker: order, bounds, cancelling, and surviving a failure."""

import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from trainyard_serving.generate.worker import JobFailedError, QueueFullError, Worker


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker(max_queue=2)
    worker.start()
    yield worker
    worker.stop()
    assert not worker.alive


async def test_results_come_in_order_from_another_thread(worker: Worker) -> None:
    def produce() -> Iterator[int]:
        yield from (1, 2, 3)
        yield threading.get_ident()

    results = [result async for result in worker.submit(produce).results()]
    assert results[:3] == [1, 2, 3]
    assert results[3] != threading.get_ident()


async def test_a_failing_job_fails_alone(worker: Worker) -> None:
    def bad() -> Iterator[int]:
        yield 1
        raise RuntimeError("boom")

    results = worker.submit(bad).results()
    assert await anext(results) == 1
    with pytest.raises(JobFailedError):
        await anext(results)
    assert [result async for result in worker.submit(lambda: iter([2])).results()] == [2]


async def test_the_queue_is_bounded_and_a_cancelled_job_gives_its_place_back(
    worker: Worker,
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        begun.set()
        assert go_on.wait(60)
        yield 1

    running = worker.submit(slow)
    assert begun.wait(60)
    never = worker.submit(lambda: iter([pytest.fail("a cancelled job ran")]))
    last = worker.submit(lambda: iter([3]))
    assert worker.depth == 2
    with pytest.raises(QueueFullError) as refused:
        worker.submit(lambda: iter([4]))
    assert refused.value.retry_after >= 1
    never.cancel()
    assert worker.depth == 1
    go_on.set()
    assert [result async for result in running.results()] == [1]
    assert [result async for result in last.results()] == [3]


async def test_stopping_ends_a_running_job_between_results() -> None:
    worker = Worker(max_queue=1)
    worker.start()

    def endless() -> Iterator[int]:
        while True:
            yield 1

    results = worker.submit(endless).results()
    assert await anext(results) == 1
    worker.stop()
    assert not worker.alive
