"""The keyed queue."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests import patience
from tests.patience import until_async
from trainyard_operator import queue as queue_module
from trainyard_operator.client import ApiError
from trainyard_operator.queue import Queue


@asynccontextmanager
async def running(
    handle: Callable[[str], Awaitable[float | None]], workers: int = 4
) -> AsyncIterator[Queue[str]]:
    queue: Queue[str] = Queue(handle, workers)
    task = asyncio.create_task(queue.run())
    try:
        async with asyncio.timeout(patience.SECONDS):
            yield queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Recorder:
    """A handler that notes its calls and answers from a script."""

    def __init__(self, *answers: float | Exception | None) -> None:
        self.calls: list[str] = []
        self._answers = list(answers)
        self._called = asyncio.Event()

    async def __call__(self, key: str) -> float | None:
        self.calls.append(key)
        self._called.set()
        answer = self._answers.pop(0) if self._answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def wait_for(self, count: int) -> None:
        while len(self.calls) < count:
            self._called.clear()
            await self._called.wait()


async def test_every_key_is_handled() -> None:
    handle = Recorder()
    async with running(handle) as queue:
        for key in "abc":
            queue.add(key)
        await handle.wait_for(3)
    assert sorted(handle.calls) == ["a", "b", "c"]


async def test_a_key_added_twice_before_it_is_due_is_handled_once() -> None:
    handle = Recorder()
    async with running(handle, workers=1) as queue:
        for _ in range(5):
            queue.add("a")
        queue.add("b", 0.05)
        await handle.wait_for(2)
    assert handle.calls == ["a", "b"]


async def test_the_earlier_time_wins() -> None:
    handle = Recorder()
    async with running(handle) as queue:
        queue.add("a", 3600)
        queue.add("a")
        queue.add("a", 3600)
        await handle.wait_for(1)


async def test_a_key_added_while_it_is_handled_is_handled_again_afterwards() -> None:
    release = asyncio.Event()
    started = asyncio.Event()
    inside = most = total = 0

    async def handle(key: str) -> None:
        nonlocal inside, most, total
        inside, total = inside + 1, total + 1
        most = max(most, inside)
        started.set()
        await release.wait()
        inside -= 1

    async with running(handle) as queue:
        queue.add("a")
        await started.wait()
        for _ in range(3):
            queue.add("a")
        await asyncio.sleep(0)
        assert total == 1
        release.set()
        await until_async(lambda: total == 2)
    assert (most, total) == (1, 2)


async def test_a_slow_key_does_not_hold_up_others() -> None:
    hang = asyncio.Event()
    done: list[str] = []

    async def handle(key: str) -> None:
        if key == "slow":
            await hang.wait()
        done.append(key)

    async with running(handle, workers=2) as queue:
        queue.add("slow")
        queue.add("slow")
        queue.add("fast")
        await until_async(lambda: "fast" in done)
    assert done == ["fast"]


async def test_a_key_is_handled_again_when_its_handler_asks() -> None:
    handle = Recorder(0.0, 0.01, None)
    async with running(handle) as queue:
        queue.add("a")
        await handle.wait_for(3)
    assert handle.calls == ["a"] * 3


async def test_errors_are_retried_with_backoff_and_logged_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queue_module, "FIRST_BACKOFF", 0.01)
    handle = Recorder(ApiError(500, "InternalError", "etcd is away"), ValueError("ours"), None)
    async with running(handle) as queue:
        queue.add("a")
        await handle.wait_for(3)
    first, second = caplog.records
    assert first.getMessage() == "a: etcd is away; retrying in 0.01 s"
    assert first.exc_info is None, "an error of the cluster's needs no traceback"
    assert second.getMessage() == "a: ValueError: ours; retrying in 0.02 s"
    assert second.exc_info is not None, "an error of ours does"


async def test_a_change_doesnt_wait_for_the_backoff() -> None:
    handle = Recorder(ApiError(500, "InternalError", "x"), ApiError(500, "InternalError", "x"))
    async with running(handle) as queue:
        queue.add("a")
        await handle.wait_for(1)
        queue.add("a")
        await handle.wait_for(2)


async def test_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    started, hang = asyncio.Event(), asyncio.Event()

    async def handle(key: str) -> None:
        started.set()
        await hang.wait()

    async with running(handle) as queue:
        assert not queue.is_stalled()
        queue.add("a")
        await started.wait()
        assert not queue.is_stalled()
        monkeypatch.setattr(queue_module, "STALLED_SECONDS", -1.0)
        assert queue.is_stalled()


async def test_depth_counts_due_keys() -> None:
    queue: Queue[str] = Queue(Recorder())
    queue.add("a")
    queue.add("b")
    queue.add("later", 3600)
    assert queue.depth == 2
