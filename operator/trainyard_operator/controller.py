"""One reconcile of one object, whatever its kind: observe, decide, apply, and count the result.

The status is written before other objects are touched, and only if the object hasn't changed since
it was read. Every step is idempotent: the next reconcile repairs a crash between any two.
"""

import time
from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

from trainyard_api.resource import Resource
from trainyard_api.run import API_VERSION
from trainyard_api.status import TrainingRunStatus
from trainyard_api.study_status import ScalingStudyStatus
from trainyard_lifecycle.plan import Event
from trainyard_operator.client import ApiError, Kube, Object, RejectedError, path_of
from trainyard_operator.metrics import OperatorMetrics
from trainyard_operator.objects import (
    InvalidObjectError,
    ObjectKey,
    emit_event,
    parse,
    refuse_invalid,
    replace_status,
    to_status,
)


class Decision(Protocol):
    """What the plans of all kinds have in common."""

    @property
    def status(self) -> Any: ...

    @property
    def events(self) -> tuple[Event, ...]: ...

    @property
    def requeue_after(self) -> float | None: ...


# A kind's resource, what is observed of it (seen), and the plan.
R = TypeVar("R", bound=Resource)
S = TypeVar("S")
P = TypeVar("P", bound=Decision)


class Reconciler(ABC, Generic[R, S, P]):
    """What differs between the kinds: what is read, decided and changed beside the status.

    Attributes:
        plural: names the collection of the API server.
        model, status_model: of the kind and of its status.
    """

    plural: str
    model: type[R]
    status_model: type[TrainingRunStatus] | type[ScalingStudyStatus]

    @abstractmethod
    async def observe(self, resource: R, /) -> S:
        """Everything the decision is made from. Raises ApiError."""

    @abstractmethod
    def decide(self, observed: S) -> P:
        """The plan; pure."""

    async def follow(self, observed: S, plan: P, /) -> dict[str, Any]:
        """Change what must be confirmed in the status; the changes to the status that then hold.

        Raises ApiError with reason Conflict; any other refusal is shown to the user, and the next
        reconcile tries again.
        """
        return {}

    @abstractmethod
    async def apply(self, observed: S, plan: P) -> None:
        """Delete and create objects as the plan says. What is already done counts as done.

        Raises RejectedError when the API server won't have an object, and ApiError.
        """

    @abstractmethod
    def rejection(self, plan: P, message: str) -> tuple[dict[str, Any], str]:
        """Changes to the plan's status after a RejectedError, and the key of its Event."""

    @abstractmethod
    def record(self, key: ObjectKey, before: R, plan: P) -> None:
        """Log and count what has changed."""


class Controller(Generic[R, S, P]):
    """Reconciles the objects of one kind; its `reconcile` is what the queue calls."""

    def __init__(
        self,
        kube: Kube,
        reconciler: Reconciler[R, S, P],
        metrics: OperatorMetrics,
    ) -> None:
        self._kube = kube
        self._reconciler = reconciler
        self._metrics = metrics

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Reconcile once; seconds until the next time, None: only when something changes.

        Raises RejectedError after writing why to the status, and ApiError.
        """
        started = time.perf_counter()
        result = "error"
        try:
            result, requeue_after = await self._reconcile(key)
            return requeue_after
        except RejectedError:
            result = "rejected"
            raise
        finally:
            self._metrics.reconciles.labels(result).inc()
            self._metrics.reconcile_seconds.observe(time.perf_counter() - started)

    async def _reconcile(self, key: ObjectKey) -> tuple[str, float | None]:
        """The result, by which reconciles are counted, and the seconds until the next one."""
        reconciler = self._reconciler
        raw = await self._kube.find(
            path_of(API_VERSION, reconciler.plural, key.namespace, key.name)
        )
        if raw is None:
            return "gone", None
        try:
            resource = parse(reconciler.model, raw)
        except InvalidObjectError as invalid:
            await refuse_invalid(self._kube, reconciler.plural, invalid, reconciler.status_model)
            return "invalid", None
        observed = await reconciler.observe(resource)
        plan = reconciler.decide(observed)
        try:
            await self.execute(raw, resource, observed, plan)
        except ApiError as error:  # the object was deleted or changed since it was read
            if error.status == 404:
                return "gone", None
            if error.reason == "Conflict":
                return "conflict", 0.0
            raise
        reconciler.record(key, resource, plan)
        return "ok", plan.requeue_after

    async def execute(self, raw: Object, resource: R, observed: S, plan: P) -> None:
        """Carry out the plan: events, status, then other objects, as plan.py says.

        raw: the object as it was read; its resourceVersion guards the status.

        Raises RejectedError after writing why to the status; ApiError, with reason Conflict when
        the object has changed since it was read.
        """
        for event in plan.events:
            await emit_event(self._kube, resource, event)
        status, plural = plan.status, self._reconciler.plural
        raw = await replace_status(self._kube, plural, raw, to_status(status))
        if changes := await self._reconciler.follow(observed, plan):
            status = status.model_copy(update=changes)
            raw = await replace_status(self._kube, plural, raw, to_status(status))
        try:
            await self._reconciler.apply(observed, plan)
        except RejectedError as rejected:
            message = str(rejected)
            if (status.reason, status.message) != ("Rejected", message):
                changes, key = self._reconciler.rejection(plan, message)
                status = status.model_copy(update=changes)
                await emit_event(self._kube, resource, Event("Warning", "Rejected", message, key))
                await replace_status(self._kube, plural, raw, to_status(status))
            raise
