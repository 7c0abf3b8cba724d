"""Writing to the API server, for runs and studies alike: statuses, Events, what may be refused."""

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Iterable
from datetime import UTC, datetime
from typing import Any

from trainyard_api.base import Model, validation_message
from trainyard_api.resource import Resource
from trainyard_api.run import API_VERSION, GROUP, PLURAL, TrainingRun
from trainyard_api.status import FINISHED, TrainingRunStatus
from trainyard_api.study_status import ScalingStudyStatus
from trainyard_lifecycle.plan import Event
from trainyard_operator.client import Kube, Object, path_of
from trainyard_operator.errors import ApiError, Rejected
from trainyard_operator.stored import InvalidRun

COMPONENT = "trainyard-operator"
MAX_PARALLEL = 16  # requests at once per run: a large gang must not starve the API server
_MAX_EVENT_MESSAGE = 1024

logger = logging.getLogger(__name__)


async def replace_status(kube: Kube, plural: str, raw: Object, status: Object) -> Object:
    """PUT the status, unless nothing has changed; a Conflict when somebody wrote since the read."""
    if status == raw.get("status"):
        return raw
    metadata = raw["metadata"]
    path = path_of(API_VERSION, plural, metadata["namespace"], metadata["name"], "status")
    return await kube.replace(path, {**raw, "status": status})


async def refuse(
    kube: Kube,
    plural: str,
    invalid: InvalidRun,
    status: type[TrainingRunStatus] | type[ScalingStudyStatus],
) -> None:
    """Tell the user, in the status, what is wrong with a spec that can't be read."""
    before = invalid.raw.get("status") or {}
    if before.get("phase") in FINISHED:
        return
    refused = status(
        observed_generation=invalid.raw["metadata"].get("generation"),
        phase="Failed",
        reason="InvalidSpec",
        message=validation_message(invalid.error),
        completion_time=datetime.now(UTC),
    )
    await replace_status(kube, plural, invalid.raw, {**before, **to_status(refused)})


async def delete_run(kube: Kube, run: TrainingRun) -> None:
    """Delete this very run, never a newer one of its name, with all it owns."""
    options = {"propagationPolicy": "Background", "preconditions": {"uid": run.metadata.uid}}
    await kube.delete(path_of(API_VERSION, PLURAL, run.namespace, run.name), options)


async def tell(kube: Kube, about: Resource, event: Event) -> None:
    """Write an Event. Events are for people: one that can't be written stops nothing."""
    try:
        body = event_object(about, event, datetime.now(UTC))
        await kube.create(path_of("v1", "events", about.namespace), body)
    except ApiError as error:  # a full or vanishing namespace
        logger.warning("%s: event %s not written: %s", about.name, event.reason, error)


async def accepted(request: Awaitable[Object | None]) -> Object | None:
    """The answer; refusals that only the user can mend become Rejected."""
    try:
        return await request
    except ApiError as error:
        if error.status in (400, 403, 404, 422):
            raise Rejected(" ".join(str(error).split())) from None
        raise


async def each(requests: Iterable[Awaitable[Any]]) -> None:
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
    """The status as stored: JSON has no NaN or infinity, so such a figure is left out."""
    wire: Object = _finite(status.to_wire())
    return wire


def event_object(about: Resource, event: Event, now: datetime) -> Object:
    """A v1 Event with a name made from its key: telling the same thing twice makes one event."""
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


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _finite(child)
            for key, child in value.items()
            if not (isinstance(child, float) and not math.isfinite(child))
        }
    return [_finite(child) for child in value] if isinstance(value, list) else value
