"""One reconcile of one run: observe, decide, apply."""

import logging
import time
from collections.abc import Awaitable

from trainyard_lifecycle.reconcile import reconcile
from trainyard_operator.errors import ApiError, Rejected
from trainyard_operator.execute import Executor
from trainyard_operator.instruments import Instruments
from trainyard_operator.observe import Key, Observer
from trainyard_operator.stored import InvalidRun

logger = logging.getLogger(__name__)


class Controller:
    """What the queue calls."""

    def __init__(self, observer: Observer, executor: Executor, instruments: Instruments) -> None:
        self._observer = observer
        self._executor = executor
        self._instruments = instruments

    async def handle(self, key: Key) -> float | None:
        """Reconcile once; the seconds after which the run wants to be looked at again."""
        return await measured(self._instruments, self._reconcile(key))

    async def _reconcile(self, key: Key) -> tuple[str, float | None]:
        try:
            seen = await self._observer.observe(key)
        except InvalidRun as invalid:
            await self._executor.refuse(invalid)
            return "invalid", None
        if seen is None:
            return "gone", None
        raw, observed = seen
        plan = reconcile(observed)
        try:
            await self._executor.apply(raw, observed, plan)
        except ApiError as error:
            return overtaken(error)
        before = observed.run.status
        self._instruments.failed_attempts(before, plan.status)
        if before.phase != plan.status.phase:
            after = plan.status
            moved = f"{before.phase or 'new'} -> {after.phase}"
            logger.info("%s: %s: %s", key, moved, after.message, extra={"run": str(key)})
        return "ok", plan.requeue_after


def overtaken(error: ApiError) -> tuple[str, float | None]:
    """What a reconcile comes to whose object was changed or deleted since it was read.

    Any other error is raised.
    """
    if error.status == 404:
        return "gone", None
    if error.reason == "Conflict":
        return "conflict", 0.0
    raise error


async def measured(
    instruments: Instruments, reconcile: Awaitable[tuple[str, float | None]]
) -> float | None:
    """Await a reconcile, which says (its result, seconds until the next); count and time it."""
    started = time.perf_counter()
    result = "error"
    try:
        result, again = await reconcile
        return again
    except Rejected:
        result = "rejected"
        raise
    finally:
        instruments.reconciles.labels(result).inc()
        instruments.reconcile_seconds.observe(time.perf_counter() - started)
