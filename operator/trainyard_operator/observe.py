"""What is true of a run right now: asked from the API server, never from a watch's cache."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import aiohttp

from trainyard_api import labels
from trainyard_api.run import API_VERSION, PLURAL, TrainingRun
from trainyard_lifecycle.plan import Observed, Worker
from trainyard_operator import reports
from trainyard_operator.client import Kube, Object, path_of
from trainyard_operator.errors import ApiError
from trainyard_operator.nodes import Nodes
from trainyard_operator.pods import failed_init, to_worker
from trainyard_operator.stored import parse_run

LOG_LINES = 200
LOG_BYTES = 32 * 1024
SETTLE_SECONDS = 3.0
MAX_ASKED = 4  # pods whose events or logs are read at once: a gang mostly fails for one reason


@dataclass(frozen=True)
class Key:
    """Names a run."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Observer:
    """Looks at runs. Shared by all of them, as are the pods' HTTP session and the node list."""

    def __init__(self, kube: Kube, http: aiohttp.ClientSession) -> None:
        self._kube = kube
        self._http = http
        self._nodes = Nodes(kube)

    async def observe(self, key: Key) -> tuple[Object, Observed] | None:
        """The run as stored and what is seen of it; None when it is gone.

        Raises InvalidRun, and ApiError when the API server can't be asked.
        """
        raw = await self._kube.find(path_of(API_VERSION, PLURAL, key.namespace, key.name))
        if raw is None:
            return None
        run = parse_run(raw)
        pods, lost = await asyncio.gather(self._pods(run), self._nodes.lost())
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


def owned_by(item: Object, uid: str | None) -> bool:
    """True when the object belongs to this very run, not to an older one of the same name."""
    owners = item["metadata"].get("ownerReferences") or []
    return any(owner.get("uid") == uid for owner in owners)


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
