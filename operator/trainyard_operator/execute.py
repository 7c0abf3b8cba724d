"""Carries a Plan out on the API server: events, status, deletions, creations, the run itself.

Every action is idempotent: what is already so counts as done. The status comes before workers are
touched, and only if nobody else has written the run since it was read.
"""

from trainyard_api.run import PLURAL, TrainingRun
from trainyard_api.status import TrainingRunStatus
from trainyard_lifecycle.plan import Event, Observed, Plan
from trainyard_operator import manifests
from trainyard_operator.client import Kube, Object, path_of
from trainyard_operator.errors import Rejected
from trainyard_operator.observe import owned_by
from trainyard_operator.stored import InvalidRun
from trainyard_operator.write import (
    accepted,
    delete_run,
    each,
    refuse,
    replace_status,
    tell,
    to_status,
)

# A gang that has failed has nothing left to save: its other workers hang in a collective.
FAILED_GRACE_SECONDS = 5


class Executor:
    """Applies plans."""

    def __init__(self, kube: Kube, trainer_image: str) -> None:
        self._kube = kube
        self._trainer_image = trainer_image

    async def apply(self, raw: Object, observed: Observed, plan: Plan) -> None:
        """Make the plan true.

        Args:
            raw: the run as it was read; its resourceVersion guards the status.

        Raises Rejected after writing why to the status, when the API server won't have an object
        of the run; ApiError when it can't be asked, or with reason Conflict when the run has
        changed since it was read.
        """
        run = observed.run
        for event in plan.events:
            await tell(self._kube, run, event)
        raw = await replace_status(self._kube, PLURAL, raw, to_status(plan.status))
        grace = grace_seconds(plan.status)
        await each(self._delete_pod(run, name, grace) for name in plan.delete)
        if plan.create:
            try:
                await self._create(run, plan)
            except Rejected as rejected:
                await self._write_rejection(run, raw, plan.status, str(rejected))
                raise
        if plan.delete_run:
            await delete_run(self._kube, run)

    async def refuse(self, invalid: InvalidRun) -> None:
        """Tell the user, in the status, what is wrong with a spec that can't be read."""
        await refuse(self._kube, PLURAL, invalid, TrainingRunStatus)

    async def _write_rejection(
        self, run: TrainingRun, raw: Object, status: TrainingRunStatus, message: str
    ) -> None:
        rejected = status.model_copy(
            update={"phase": "Pending", "reason": "Rejected", "message": message}
        )
        if (status.reason, status.message) != (rejected.reason, rejected.message):
            key = f"{status.attempt}-rejected"
            await tell(self._kube, run, Event("Warning", "Rejected", message, key))
            await replace_status(self._kube, PLURAL, raw, to_status(rejected))

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
        attempt = plan.create[0].attempt
        group = manifests.pod_group(run, attempt, plan.nodes)
        if group is not None:
            await self._ensure(run, group["apiVersion"], "podgroups", group)
        pods = [
            manifests.pod(run, key, plan.nodes, trainer_image=self._trainer_image)
            for key in plan.create
        ]
        path = path_of("v1", "pods", run.namespace)
        await each(accepted(self._kube.create(path, pod)) for pod in pods)

    async def _ensure(
        self, run: TrainingRun, api: str, plural: str, body: Object, *, keep: bool = False
    ) -> None:
        """Create an object, or bring ours back to what it should be (`keep`: leave it as it is).

        Raises Rejected when the name is taken by an object of somebody else.
        """
        collection = path_of(api, plural, run.namespace)
        if await accepted(self._kube.create(collection, body)) is not None:
            return
        name = body["metadata"]["name"]
        path = path_of(api, plural, run.namespace, name)
        there = await self._kube.find(path)
        if there is None or "deletionTimestamp" in there["metadata"]:
            raise Rejected(f"{body['kind']} {name} of an earlier run is still being deleted")
        if not keep and owned_by(there, run.metadata.uid):
            await accepted(self._kube.apply(path, body))
            return
        owner = next(iter(there["metadata"].get("ownerReferences") or []), None)
        if owner is not None and not owned_by(there, run.metadata.uid):
            raise Rejected(f"{body['kind']} {name} belongs to {owner['kind']} {owner['name']}")
        if not keep:
            raise Rejected(f"a {body['kind']} named {name} is already there: rename the run")


def grace_seconds(status: TrainingRunStatus) -> int | None:
    """Time for pods to end; None: what the pod itself says, enough for a last checkpoint."""
    failed = bool(status.attempts) and status.attempts[-1].outcome == "Failed"
    return FAILED_GRACE_SECONDS if failed else None
