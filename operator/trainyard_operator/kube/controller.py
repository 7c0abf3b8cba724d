"""One reconcile of one run: observe, decide, apply; and the list that finds runs again."""

import logging
import time
from collections.abc import Hashable
from typing import Any

from trainyard_api.run import API_VERSION, PLURAL
from trainyard_operator.kube.client import Kube, path_of
from trainyard_operator.kube.errors import ApiError, Rejected
from trainyard_operator.kube.execute import Executor
from trainyard_operator.kube.instruments import Instruments
from trainyard_operator.kube.observe import Key, Observer
from trainyard_operator.kube.stored import InvalidRun
from trainyard_operator.reconcile import reconcile

logger = logging.getLogger(__name__)


class Controller:
    """What the queue calls."""

    def __init__(
        self, kube: Kube, observer: Observer, executor: Executor, instruments: Instruments
    ) -> None:
        self._kube = kube
        self._observer = observer
        self._executor = executor
        self._instruments = instruments

    async def handle(self, key: Key) -> float | None:
        """Reconcile once; the seconds after which the run wants to be looked at again."""
        started = time.perf_counter()
        result = "error"
        try:
            result, again = await self._reconcile(key)
            return again
        except Rejected:
            result = "rejected"
            raise
        finally:
            self._instruments.reconciles.labels(result).inc()
            self._instruments.reconcile_seconds.observe(time.perf_counter() - started)

    async def list_runs(self, namespace: str) -> dict[Key, str]:
        """Every run there is (in `namespace`, if given) and its resourceVersion."""
        items = await self._kube.list_all(path_of(API_VERSION, PLURAL, namespace or None))
        bodies: dict[Hashable, Any] = {key_of(item): item for item in items}
        self._instruments.seen_all(bodies)
        return {key_of(item): item["metadata"]["resourceVersion"] for item in items}

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
            if error.status == 404:
                return "gone", None
            if error.reason == "Conflict":
                return "conflict", 0.0
            raise
        before = observed.run.status
        self._instruments.failed_attempts(before, plan.status)
        if before.phase != plan.status.phase:
            after = plan.status
            moved = f"{before.phase or 'new'} -> {after.phase}"
            logger.info("%s: %s: %s", key, moved, after.message, extra={"run": str(key)})
        return "ok", plan.requeue_after


def key_of(item: dict[str, Any]) -> Key:
    """The key of a stored run."""
    return Key(item["metadata"]["namespace"], item["metadata"]["name"])
