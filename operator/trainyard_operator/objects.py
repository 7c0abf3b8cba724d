"""Runs and studies on the API server: parsing them, writing their statuses and Events."""

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from trainyard_api import __version__
from trainyard_api.base import Model, is_unknown, validation_message
from trainyard_api.resource import Resource
from trainyard_api.run import API_VERSION, GROUP, PLURAL, TrainingRun
from trainyard_api.status import FINISHED, TrainingRunStatus
from trainyard_api.study_status import ScalingStudyStatus
from trainyard_lifecycle.plan import Event
from trainyard_operator.client import ApiError, ExpectedError, Kube, Object, RejectedError, path_of

COMPONENT = "trainyard-operator"
UNSUPPORTED = "Unsupported"  # the condition of an object that this version can't read
MAX_PARALLEL = 16  # requests at once per object: a large gang must not starve the API server
_MAX_EVENT_MESSAGE = 1024

M = TypeVar("M", bound=Model)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObjectKey:
    """Names a run or a study."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class InvalidObjectError(ExpectedError):
    """The API server accepted an object that our model does not.

    Attributes:
        unknown: it has only keys or values that this version doesn't know: a newer one would.
    """

    def __init__(self, raw: Object, error: ValidationError) -> None:
        self.reason = validation_message(error)
        super().__init__(f"{raw.get('kind')} {raw['metadata'].get('name')}: {self.reason}")
        self.raw = raw
        self.unknown = is_unknown(error)


def parse(model: type[M], raw: Object) -> M:
    """The stored object as a model. Raises InvalidObjectError."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise InvalidObjectError(raw, error) from None


def owned_by(item: Object, uid: str | None) -> bool:
    """Whether the object belongs to this very owner, not to an older one of the same name."""
    owners = item["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == uid for owner in owners)


def owner_reference(owner: Resource) -> Object:
    """Makes the garbage collector delete an object with its owner."""
    return {
        "apiVersion": API_VERSION,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


async def replace_status(kube: Kube, plural: str, raw: Object, status: Object) -> Object:
    """PUT the status unless it is unchanged; a Conflict if the object has changed since the read.

    Returns the object as it is stored now.
    """
    if status == raw.get("status"):
        return raw
    metadata = raw["metadata"]
    path = path_of(API_VERSION, plural, metadata["namespace"], metadata["name"], "status")
    return await kube.replace(path, {**raw, "status": status})


async def refuse_invalid(
    kube: Kube,
    plural: str,
    invalid: InvalidObjectError,
    status: type[TrainingRunStatus] | type[ScalingStudyStatus],
) -> None:
    """Say in the status why the object can't be read, and touch nothing else of what has begun.

    After an upgrade of the CRDs, or a downgrade of the operator, a run may have what this operator
    does not know: its phase and its pods stay as they are until one does that knows it.
    """
    before: Object = invalid.raw.get("status") or {}
    generation = invalid.raw["metadata"].get("generation")
    if before.get("phase") in FINISHED and before.get("observedGeneration") == generation:
        return  # what has ended stays; only a change of it, such as a corrected spec, has an answer
    now = datetime.now(UTC)
    if before.get("phase") or invalid.unknown:
        conditions = [c for c in before.get("conditions") or [] if c.get("type") != UNSUPPORTED]
        old = [c for c in before.get("conditions") or [] if c.get("type") == UNSUPPORTED]
        since = old[0].get("lastTransitionTime") if old and old[0]["status"] == "True" else None
        condition = {
            "type": UNSUPPORTED,
            "status": "True",
            "reason": "UnknownToThisVersion" if invalid.unknown else "InvalidSpec",
            "message": f"this operator (version {__version__}) can't read it: {invalid.reason}",
            "lastTransitionTime": since or now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        changed = {**before, "conditions": [*conditions, condition]}
        if not before.get("phase"):
            text = {"phase": "Pending", "reason": UNSUPPORTED, "message": condition["message"]}
            changed |= text
        await replace_status(kube, plural, invalid.raw, changed)
        return
    failed = status(
        observed_generation=generation,
        phase="Failed",
        reason="InvalidSpec",
        message=invalid.reason,
        completion_time=now,
    )
    await replace_status(kube, plural, invalid.raw, {**before, **to_status(failed)})


async def delete_run(kube: Kube, run: TrainingRun, *, unchanged: bool = False) -> bool:
    """Delete this very run, never a newer one of its name, with all it owns.

    unchanged: only as it was read. False if it is gone, or is another one by now.
    """
    only = {"uid": run.metadata.uid}
    if unchanged:
        only["resourceVersion"] = run.metadata.resource_version
    options = {"propagationPolicy": "Background", "preconditions": only}
    return await kube.delete(path_of(API_VERSION, PLURAL, run.namespace, run.name), options)


async def emit_event(kube: Kube, about: Resource, event: Event) -> None:
    """Write an Event. Events are for people: a failure to write one is only logged."""
    try:
        body = event_object(about, event, datetime.now(UTC))
        await kube.create(path_of("v1", "events", about.namespace), body)
    except ApiError as error:  # a full or vanishing namespace
        logger.warning("%s: event %s not written: %s", about.name, event.reason, error)


async def or_rejected(request: Awaitable[Object | None]) -> Object | None:
    """The answer; refusals that somebody else must resolve become RejectedError.

    500 is what the API server says when a webhook can't be called or fails; a webhook that refuses
    may choose any status.
    """
    try:
        return await request
    except ApiError as error:
        if error.status in (400, 403, 404, 422, 500) or "admission webhook" in str(error):
            raise RejectedError(" ".join(str(error).split())) from None
        raise


async def run_all(requests: Iterable[Awaitable[Any]]) -> None:
    """Run all, a bounded number at a time; the first error is raised once all have ended."""
    slots = asyncio.Semaphore(MAX_PARALLEL)

    async def one(request: Awaitable[Any]) -> None:
        async with slots:
            await request

    results = await asyncio.gather(*map(one, requests), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def to_status(status: Model) -> Object:
    """The status as stored. JSON has no NaN and no infinity: such figures are left out."""
    wire: Object = _drop_non_finite(status.to_wire())
    return wire


def event_object(about: Resource, event: Event, now: datetime) -> Object:
    """A v1 Event whose name is made from its key: emitting it twice makes one."""
    uid = about.metadata.uid or ""
    key = re.sub(r"[^a-z0-9]+", "-", event.key.lower()).strip("-")
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{about.name}.{uid.replace('-', '')[:12]}.{key}",
            "namespace": about.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": about.kind,
            "name": about.name,
            "namespace": about.namespace,
            "uid": uid,
            "resourceVersion": about.metadata.resource_version,
        },
        "type": event.type,
        "reason": event.reason,
        "message": event.message[:_MAX_EVENT_MESSAGE],
        "source": {"component": COMPONENT},
        "reportingComponent": f"{GROUP}/operator",
        "reportingInstance": COMPONENT,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }


def _drop_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _drop_non_finite(child)
            for key, child in value.items()
            if not (isinstance(child, float) and not math.isfinite(child))
        }
    return [_drop_non_finite(child) for child in value] if isinstance(value, list) else value
