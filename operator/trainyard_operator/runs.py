"""TrainingRuns: what is observed of one, and its pods, Service, volume claim and PodGroup.

Everything is asked of the API server and of rank 0, never read from a watch's cache.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import aiohttp

from trainyard_api import labels
from trainyard_api.run import PLURAL, TrainingRun
from trainyard_api.status import TrainingRunStatus
from trainyard_lifecycle.plan import Event, Observed, Plan, Worker
from trainyard_lifecycle.policy import GRACEFUL
from trainyard_lifecycle.reconcile import reconcile
from trainyard_operator import manifests, probes
from trainyard_operator.client import ApiError, Kube, Object, RejectedError, path_of
from trainyard_operator.controller import Reconciler
from trainyard_operator.metrics import OperatorMetrics
from trainyard_operator.objects import (
    ObjectKey,
    delete_run,
    emit_event,
    or_rejected,
    owned_by,
    owner_reference,
    run_all,
)
from trainyard_operator.pods import (
    failed_init,
    has_agent,
    is_lost,
    is_starting,
    is_stuck,
    newest_warning,
    to_worker,
)

LOG_LINES = 200
LOG_BYTES = 32 * 1024
MAX_DETAILED = 4  # pods whose events or logs are read: a gang mostly fails for one reason
# A gang that has failed has nothing left to save: its other workers hang in a collective.
FAILED_GRACE_SECONDS = 5

logger = logging.getLogger(__name__)


class RunReconciler(Reconciler[TrainingRun, Observed, Plan]):
    """Reconciles runs; one is shared by all of them, as are the HTTP session and the node list."""

    plural = PLURAL
    model = TrainingRun
    status_model = TrainingRunStatus

    def __init__(
        self,
        kube: Kube,
        http: aiohttp.ClientSession,
        images: manifests.Images,
        metrics: OperatorMetrics,
    ) -> None:
        """http: for rank 0's reports (see probes.session)."""
        self._kube = kube
        self._http = http
        self._nodes = probes.NodeList(kube)
        self._images = images
        self._metrics = metrics

    async def observe(self, run: TrainingRun) -> Observed:
        pods, lost = await asyncio.gather(self._pods(run), self._nodes.lost_hosts())
        attempt = run.status.attempt
        now = datetime.now(UTC)
        workers = await self._with_details(run, pods, lost, now)
        leader = next((pod for pod, worker in pods if _is_leader(worker, attempt)), None)
        address = (leader or {}).get("status", {}).get("podIP")
        report, problem = None, ""
        if leader and address and (run.spec.recipe or has_agent(leader)):
            report, problem = await probes.fetch_report(self._http, address)
        if report and (report.run, report.attempt) != (run.name, attempt):
            report = None
        return Observed(run, now, workers, report, problem)

    def decide(self, observed: Observed) -> Plan:
        return reconcile(observed)

    async def follow(self, observed: Observed, plan: Plan) -> dict[str, Any]:
        run = observed.run
        if plan.claim is None:
            return {}
        try:
            await self._set_owner(run, retained=plan.claim == "Retain")
        except ApiError as error:
            if error.reason == "Conflict":
                raise
            message = f"the claim does not follow storage.whenDeleted yet: {error}"
            key = f"claim-{run.metadata.generation}"
            await emit_event(self._kube, run, Event("Warning", "ClaimNotChanged", message, key))
            return {}
        return {"when_deleted": plan.claim}

    async def _set_owner(self, run: TrainingRun, *, retained: bool) -> None:
        """Make the run's claim belong to the run, or to nobody; one that isn't ours is left alone.

        A claim that is not there yet is made as the spec says.
        """
        path = path_of("v1", "persistentvolumeclaims", run.namespace, run.claim_name)
        claim = await self._kube.find(path)
        if claim is None or not _is_ours(claim, run):
            return
        if owned_by(claim, run.metadata.uid) == retained:
            owners = [] if retained else [owner_reference(run)]
            metadata = {**claim["metadata"], "ownerReferences": owners}
            await self._kube.replace(path, {**claim, "metadata": metadata})

    async def apply(self, observed: Observed, plan: Plan) -> None:
        run = observed.run
        grace = grace_seconds(plan.status)
        await run_all(self._delete_pod(run, name, grace) for name in plan.delete)
        if plan.create:
            await self._create(run, plan)
        if plan.delete_run:
            await delete_run(self._kube, run)

    def rejection(self, plan: Plan, message: str) -> tuple[dict[str, Any], str]:
        changes = {"phase": "Pending", "reason": "Rejected", "message": message}
        return changes, f"{plan.status.attempt}-rejected"

    def record(self, key: ObjectKey, before: TrainingRun, plan: Plan) -> None:
        old, new = before.status, plan.status
        self._metrics.count_failed_attempts(old, new)
        if old.phase != new.phase:
            change = f"{old.phase or 'new'} -> {new.phase}"
            logger.info("%s: %s: %s", key, change, new.message, extra={"run": str(key)})

    async def _pods(self, run: TrainingRun) -> list[tuple[Object, Worker]]:
        selector = f"{labels.RUN}={run.name},{labels.ATTEMPT},{labels.NODE}"
        path = path_of("v1", "pods", run.namespace)
        pods = await self._kube.list_all(path, labelSelector=selector)
        return [(pod, to_worker(pod)) for pod in pods if owned_by(pod, run.metadata.uid)]

    async def _with_details(
        self,
        run: TrainingRun,
        pods: Iterable[tuple[Object, Worker]],
        lost: Mapping[str, datetime],
        now: datetime,
    ) -> tuple[Worker, ...]:
        """Workers with the log of those that failed and the warnings of those that can't start."""
        current = [(pod, worker) for pod, worker in pods if worker.attempt == run.status.attempt]
        failed = [(pod, worker) for pod, worker in current if worker.phase == "Failed"]
        failed.sort(key=lambda item: (item[1].finished_at or now, item[1].node))
        stuck = [pod for pod, worker in current if is_stuck(pod, worker, now)]
        if run.status.phase in ("Succeeded", "Failed"):
            failed, stuck = [], []
        tails, warnings = await asyncio.gather(
            asyncio.gather(*(self._log_tail(pod) for pod, _ in failed[:MAX_DETAILED])),
            asyncio.gather(*(self._warning(pod) for pod in stuck[:MAX_DETAILED])),
        )
        tail = {worker.name: text for (_, worker), text in zip(failed, tails, strict=False)}
        warned = {pod["metadata"]["name"]: text for pod, text in zip(stuck, warnings, strict=False)}
        return tuple(
            replace(
                worker,
                host_lost=is_lost(pod, lost),
                log_tail=tail.get(worker.name, ""),
                warning=warned.get(worker.name, ""),
                unschedulable="" if is_starting(pod, now) else worker.unschedulable,
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
            return ""  # it never started, or its node is lost: other evidence decides
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

    async def _delete_pod(self, run: TrainingRun, name: str, grace: int | None) -> None:
        options: Object = {"propagationPolicy": "Background"}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        await self._kube.delete(path_of("v1", "pods", run.namespace, name), options)

    async def _create(self, run: TrainingRun, plan: Plan) -> None:
        """Claim, Service and PodGroup first; then every missing pod, several at a time."""
        claim = manifests.claim(run)
        if claim is not None:
            await self._ensure(run, "v1", "persistentvolumeclaims", claim, keep=True)
        await self._ensure(run, "v1", "services", manifests.service(run))
        group = manifests.pod_group(run, plan.create[0].attempt, plan.nodes)
        if group is not None:
            await self._ensure(run, group["apiVersion"], "podgroups", group)
        pods = [manifests.pod(run, key, plan.nodes, self._images) for key in plan.create]
        await run_all(self._create_pod(run, pod) for pod in pods)

    async def _create_pod(self, run: TrainingRun, body: Object) -> None:
        """Create a pod; one of the run's own that exists is left as it is.

        Raises RejectedError when the name is taken by a pod that isn't the run's.
        """
        collection, name = path_of("v1", "pods", run.namespace), body["metadata"]["name"]
        if await or_rejected(self._kube.create(collection, body)) is not None:
            return
        existing = await self._kube.find(f"{collection}/{name}")
        if existing is None or owned_by(existing, run.metadata.uid):
            return
        if "deletionTimestamp" in existing["metadata"]:
            raise RejectedError(f"Pod {name} of an earlier run is still being deleted")
        raise RejectedError(f"a Pod named {name} already exists: delete it, or rename the run")

    async def _ensure(
        self, run: TrainingRun, api: str, plural: str, body: Object, *, keep: bool = False
    ) -> None:
        """Create an object, or restore the run's own (`keep`: leave an existing one as it is).

        Raises RejectedError when the name is taken by an object that isn't the run's.
        """
        collection = path_of(api, plural, run.namespace)
        if await or_rejected(self._kube.create(collection, body)) is not None:
            return
        kind, name = body["kind"], body["metadata"]["name"]
        path = path_of(api, plural, run.namespace, name)
        existing = await self._kube.find(path)
        if existing is None or "deletionTimestamp" in existing["metadata"]:
            raise RejectedError(f"{kind} {name} of an earlier run is still being deleted")
        if not keep and owned_by(existing, run.metadata.uid):
            await or_rejected(self._kube.apply(path, body))
            return
        owner = next(iter(existing["metadata"].get("ownerReferences") or []), None)
        if owner is not None and not owned_by(existing, run.metadata.uid):
            raise RejectedError(f"{kind} {name} belongs to {owner['kind']} {owner['name']}")
        if not keep:
            raise RejectedError(f"a {kind} named {name} already exists: rename the run")


def grace_seconds(status: TrainingRunStatus) -> int | None:
    """Time for pods to end; None: what the pod itself says, enough for a last checkpoint.

    After a disruption the ranks still reach each other, so they can save their step.
    """
    last = status.attempts[-1] if status.attempts else None
    failed = last is not None and last.outcome == "Failed" and last.reason not in GRACEFUL
    return FAILED_GRACE_SECONDS if failed else None


def _is_ours(claim: Object, run: TrainingRun) -> bool:
    """Whether an operator made the claim for a run of this name, and nobody else owns it now."""
    metadata = claim["metadata"]
    found = metadata.get("labels") or {}
    owners = metadata.get("ownerReferences") or []
    made = (found.get(labels.RUN), found.get(labels.MANAGED_BY)) == (run.name, labels.MANAGER)
    return made and all(owner.get("uid") == run.metadata.uid for owner in owners)


def _is_leader(worker: Worker, attempt: int) -> bool:
    return worker.attempt == attempt and worker.node == 0 and worker.phase == "Running"
