"""ScalingStudies: what is observed of one, and its runs."""

import logging
from datetime import UTC, datetime
from typing import Any

from trainyard_api import labels
from trainyard_api.base import parse_known
from trainyard_api.run import API_VERSION, KIND, PLURAL, TrainingRun
from trainyard_api.status import FINISHED
from trainyard_api.study import STUDY_PLURAL, ScalingStudy
from trainyard_api.study_status import ScalingStudyStatus
from trainyard_operator.client import ApiError, Kube, Object, RejectedError, path_of
from trainyard_operator.controller import Reconciler
from trainyard_operator.objects import (
    ObjectKey,
    delete_run,
    or_rejected,
    owned_by,
    owner_reference,
    run_all,
)
from trainyard_study.plan import StudyObserved, StudyPlan
from trainyard_study.reconcile import reconcile_study

logger = logging.getLogger(__name__)


class StudyReconciler(Reconciler[ScalingStudy, StudyObserved, StudyPlan]):
    """Reconciles studies."""

    plural = STUDY_PLURAL
    model = ScalingStudy
    status_model = ScalingStudyStatus

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def observe(self, study: ScalingStudy) -> StudyObserved:
        path = path_of(API_VERSION, PLURAL, study.namespace)
        items = await self._kube.list_all(path, labelSelector=f"{labels.STUDY}={study.name}")
        own = (item for item in items if owned_by(item, study.metadata.uid))
        # A run with a field that only a newer operator knows still counts, as far as it is known.
        runs = [run for item in own if (run := parse_known(TrainingRun, item))]
        return StudyObserved(study, datetime.now(UTC), tuple(runs))

    def decide(self, observed: StudyObserved) -> StudyPlan:
        return reconcile_study(observed)

    async def apply(self, observed: StudyObserved, plan: StudyPlan) -> None:
        unwanted = [run for run in observed.runs if run.name in plan.delete]
        await run_all(self._delete(run) for run in unwanted)
        await run_all(self._create(observed.study, run) for run in plan.create)

    def rejection(self, plan: StudyPlan, message: str) -> tuple[dict[str, Any], str]:
        return {"reason": "Rejected", "message": message}, f"rejected-{plan.status.progress}"

    def record(self, key: ObjectKey, before: ScalingStudy, plan: StudyPlan) -> None:
        old, new = before.status, plan.status
        if (old.phase, old.progress) != (new.phase, new.progress):
            text = f"{new.phase} {new.progress}: {new.message}"
            logger.info("study %s: %s", key, text, extra={"run": str(key)})

    async def _delete(self, run: TrainingRun) -> None:
        """Delete a run; one that is under way only as it was seen: it may have ended since."""
        under_way = run.status.phase not in FINISHED
        if not await delete_run(self._kube, run, unchanged=under_way) and under_way:
            raise ApiError(409, "Conflict", f"TrainingRun {run.name} has changed")

    async def _create(self, study: ScalingStudy, run: TrainingRun) -> None:
        path = path_of(API_VERSION, PLURAL, study.namespace)
        if await or_rejected(self._kube.create(path, run_object(study, run))) is not None:
            return
        existing = await self._kube.find(path_of(API_VERSION, PLURAL, study.namespace, run.name))
        if existing is not None and not owned_by(existing, study.metadata.uid):
            text = f"TrainingRun {run.name} already exists and is not this study's: rename either"
            raise RejectedError(text)


def run_object(study: ScalingStudy, run: TrainingRun) -> Object:
    """The run of a cell; it is deleted with the study."""
    metadata = {
        "name": run.name,
        "namespace": study.namespace,
        "labels": run.metadata.labels,
        "ownerReferences": [owner_reference(study)],
    }
    spec = run.spec.to_wire()
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
