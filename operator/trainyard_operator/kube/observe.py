"""What is true of a run right now: asked from the API server, never from a watch's cache."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import aiohttp
from pydantic import ValidationError

from trainyard_api import labels
from trainyard_api.run import API_VERSION, PLURAL, TrainingRun
from trainyard_operator.kube import reports
from trainyard_operator.kube.client import Kube, Object, path_of
from trainyard_operator.kube.errors import ApiError
from trainyard_operator.kube.pods import failed_init, to_worker
from trainyard_operator.observed import Observed, Worker

LOG_LINES = 200
LOG_BYTES = 32 * 1024
SETTLE_SECONDS = 3.0
MAX_ASKED = 4  # pods whose events or logs are read at once: a gang mostly fails for one reason
NODES_SECONDS = 5.0
FORBIDDEN_SECONDS = 300.0


@dataclass(frozen=True)
class Key:
    """Names a run."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class InvalidRun(Exception):
    """The object is no valid TrainingRun though the API server took it."""

    def __init__(self, raw: Object, error: ValidationError) -> None:
        super().__init__()
        self.raw = raw
        self.error = error


class Observer:
    """Looks at runs. Shared by all of them, as are the pods' HTTP session and the node list."""

    def __init__(self, kube: Kube, http: aiohttp.ClientSession) -> None:
        self._kube = kube
        self._http = http
        self._lost: frozenset[str] = frozenset()
        self._nodes_at = float("-inf")
        self._nodes_lock = asyncio.Lock()

    async def observe(self, key: Key) -> tuple[Object, Observed] | None:
        """The run as stored and what is seen of it; None when it is gone.

        Raises InvalidRun, and ApiError when the API server can't be asked.
        """
        raw = await self._kube.find(path_of(API_VERSION, PLURAL, key.namespace, key.name))
        if raw is None:
            return None
        run = parse_run(raw)
        pods, lost = await asyncio.gather(self._pods(run), self._lost_hosts())
        attempt = run.status.attempt
        now = datetime.now(UTC)
        workers = await self._with_details(run, pods, now)
        leader = next((pod for pod, worker in pods if _is_leader(worker, attempt)), None)
        address = (leader or {}).get("status", {}).get("podIP")
        report = await reports.fetch(self._http, address) if address else None
        if report and (report.run, report.attempt) != (run.name, attempt):
            report = None
        return raw, Observed(run, now, workers, report, lost)

    async def _pods(self, run: TrainingRun) -> list[tuple[Object, Worker]]:
        selector = f"{labels.RUN}={run.name},{labels.ATTEMPT},{labels.NODE}"
        path = path_of("v1", "pods", run.namespace)
        pods = await self._kube.list_all(path, labelSelector=selector)
        return [(pod, to_worker(pod)) for pod in pods if owned_by(pod, run.metadata.uid)]

    async def _with_details(
        self, run: TrainingRun, pods: Iterable[tuple[Object, Worker]], now: datetime
    ) -> tuple[Worker, ...]:
        """Workers with the log of those that failed and the warnings of those that can't start."""
        current = [(pod, worker) for pod, worker in pods if worker.attempt == run.status.attempt]
        failed = [(pod, worker) for pod, worker in current if worker.phase == "Failed"]
        failed.sort(key=lambda item: (item[1].finished_at or now, item[1].node))
        stuck = [pod for pod, worker in current if _is_stuck(pod, worker, now)]
        if run.status.phase in ("Succeeded", "Failed"):
            failed, stuck = [], []
        tails, warnings = await asyncio.gather(
            asyncio.gather(*(self._log_tail(pod) for pod, _ in failed[:MAX_ASKED])),
            asyncio.gather(*(self._warning(pod) for pod in stuck[:MAX_ASKED])),
        )
        tail = {worker.name: text for (_, worker), text in zip(failed, tails, strict=False)}
        warned = {pod["metadata"]["name"]: text for pod, text in zip(stuck, warnings, strict=False)}
        return tuple(
            replace(
                worker,
                log_tail=tail.get(worker.name, ""),
                warning=warned.get(worker.name, ""),
                unschedulable="" if _is_young(pod, now) else worker.unschedulable,
            )
            for pod, worker in pods
        )

    async def _log_tail(self, pod: Object) -> str:
        """End of the log of the container that failed."""
        metadata, init = pod["metadata"], failed_init(pod)
        path = path_of("v1", "pods", metadata["namespace"], metadata["name"], "log")
        container = init or labels.CONTAINER
        try:
            text = await self._kube.text(path, container=container, tailLines=str(LOG_LINES))
        except ApiError:
            return ""  # never started, or its node is gone: other evidence must do
        if init:
            *before, last = text.strip().rsplit("\n", 1)
            text = "\n".join([*before, f"init container {init}: {last}"])
        return text[-LOG_BYTES:]

    async def _warning(self, pod: Object) -> str:
        metadata = pod["metadata"]
        selector = f"involvedObject.uid={metadata['uid']},type=Warning"
        path = path_of("v1", "events", metadata["namespace"])
        try:
            page = await self._kube.get(path, fieldSelector=selector, limit="50")
        except ApiError:
            return ""
        return newest_warning(page.get("items") or [], scheduled="nodeName" in pod["spec"])

    async def _lost_hosts(self) -> frozenset[str]:
        """Hosts the control plane has lost; the list is shared by all runs for a few seconds."""
        async with self._nodes_lock:
            if time.monotonic() - self._nodes_at < NODES_SECONDS:
                return self._lost
            try:
                nodes = await self._kube.list_all(path_of("v1", "nodes"), resourceVersion="0")
            except ApiError as error:
                # A namespaced role doesn't see nodes. Their pods then count as lost when the
                # control plane marks them for deletion, some seconds later.
                wait = FORBIDDEN_SECONDS if error.status == 403 else 0.0
                self._lost, self._nodes_at = frozenset(), time.monotonic() + wait
                return self._lost
            self._lost, self._nodes_at = lost_hosts(nodes), time.monotonic()
            return self._lost


def parse_run(raw: Object) -> TrainingRun:
    """The stored object as a model; keys of a status that a newer operator wrote are dropped.

    Raises InvalidRun.
    """
    try:
        return TrainingRun.model_validate(raw)
    except ValidationError as error:
        known = {**raw, "status": _known_status(raw.get("status", {}), error)}
    try:
        return TrainingRun.model_validate(known)
    except ValidationError as error:
        raise InvalidRun(raw, error) from None


def owned_by(item: Object, uid: str | None) -> bool:
    """True when the object belongs to this very run, not to an older one of the same name."""
    owners = item["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == uid for owner in owners)


def lost_hosts(nodes: Iterable[Object]) -> frozenset[str]:
    """Nodes whose heartbeats have stopped for as long as the control plane allows.

    A node that itself says it isn't ready is alive, and so may its pods be. When no node at all
    is heard, it is the control plane that is cut off: nobody is declared lost then.
    """
    heard: dict[str, bool] = {}
    for node in nodes:
        conditions = (node.get("status") or {}).get("conditions") or []
        ready: Object = next((item for item in conditions if item.get("type") == "Ready"), {})
        heard[node["metadata"]["name"]] = ready.get("status") != "Unknown"
    if not any(heard.values()):
        return frozenset()
    return frozenset(name for name, is_heard in heard.items() if not is_heard)


def newest_warning(events: Iterable[Object], *, scheduled: bool) -> str:
    """The newest warning's message; scheduling is not a worry any more once it has happened."""
    told = [event for event in events if not scheduled or event.get("reason") != "FailedScheduling"]
    newest = max(told, key=_event_time, default=None)
    return f"{newest.get('reason')}: {newest.get('message')}" if newest else ""


def _event_time(event: Object) -> str:
    series: dict[str, Any] = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )


def _is_leader(worker: Worker, attempt: int) -> bool:
    return worker.attempt == attempt and worker.node == 0 and worker.phase == "Running"


def _is_stuck(pod: Object, worker: Worker, now: datetime) -> bool:
    """Pending for longer than starting takes, and the pod's own status doesn't say why."""
    if worker.phase != "Pending" or worker.unschedulable:
        return False
    if worker.waiting_reason not in ("", "ContainerCreating", "PodInitializing"):
        return False
    return not _is_young(pod, now)


def _is_young(pod: Object, now: datetime) -> bool:
    """Too young to worry: a new claim is bound, and a pod placed, at the second try."""
    created = datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
    return (now - created).total_seconds() <= SETTLE_SECONDS


def _known_status(status: Object, error: ValidationError) -> Object:
    """A copy of `status` without the keys that `error` calls unknown."""
    copy: Object = _copy(status)
    for item in error.errors():
        if item["type"] == "extra_forbidden" and item["loc"][0] == "status":
            parent: Any = copy
            for step in item["loc"][1:-1]:
                parent = parent[step]
            parent.pop(item["loc"][-1], None)
    return copy


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(child) for key, child in value.items()}
    return [_copy(child) for child in value] if isinstance(value, list) else value
