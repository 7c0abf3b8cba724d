"""One reconcile of one study: its runs as the API server has them, the decision, what it asks for.

The status is written before runs are deleted or made, and only if nobody else has written the
study since it was read.
"""

import logging
from datetime import UTC, datetime

from trainyard_api import labels
from trainyard_api.run import API_VERSION, KIND, PLURAL, TrainingRun
from trainyard_api.study import STUDY_KIND, STUDY_PLURAL, ScalingStudy
from trainyard_api.study_status import ScalingStudyStatus
from trainyard_lifecycle.plan import Event
from trainyard_operator.client import Kube, Object, path_of
from trainyard_operator.controller import measured, overtaken
from trainyard_operator.errors import ApiError, Rejected
from trainyard_operator.instruments import Instruments
from trainyard_operator.observe import Key, owned_by
from trainyard_operator.stored import InvalidRun, parse, parse_run
from trainyard_operator.write import (
    accepted,
    delete_run,
    each,
    refuse,
    replace_status,
    tell,
    to_status,
)
from trainyard_study.plan import StudyObserved, StudyPlan
from trainyard_study.reconcile import reconcile_study

logger = logging.getLogger(__name__)


class StudyController:
    """What the queue of studies calls."""

    def __init__(self, kube: Kube, instruments: Instruments) -> None:
        self._kube = kube
        self._instruments = instruments

    async def handle(self, key: Key) -> float | None:
        """Reconcile once; the seconds after which the study wants to be looked at again."""
        return await measured(self._instruments, self._reconcile(key))

    async def _reconcile(self, key: Key) -> tuple[str, float | None]:
        raw = await self._kube.find(path_of(API_VERSION, STUDY_PLURAL, key.namespace, key.name))
        if raw is None:
            return "gone", None
        try:
            study = parse(ScalingStudy, raw)
        except InvalidRun as invalid:
            await refuse(self._kube, STUDY_PLURAL, invalid, ScalingStudyStatus)
            return "invalid", None
        observed = StudyObserved(study, datetime.now(UTC), await self._runs(study))
        plan = reconcile_study(observed)
        try:
            await self._apply(raw, observed, plan)
        except ApiError as error:
            return overtaken(error)
        before, after = study.status, plan.status
        if (before.phase, before.progress) != (after.phase, after.progress):
            text = f"{after.phase} {after.progress}: {after.message}"
            logger.info("study %s: %s", key, text, extra={"run": str(key)})
        return "ok", plan.requeue_after

    async def _runs(self, study: ScalingStudy) -> tuple[TrainingRun, ...]:
        path = path_of(API_VERSION, PLURAL, study.namespace)
        items = await self._kube.list_all(path, labelSelector=f"{labels.STUDY}={study.name}")
        return tuple(parse_run(item) for item in items if owned_by(item, study.metadata.uid))

    async def _apply(self, raw: Object, observed: StudyObserved, plan: StudyPlan) -> None:
        """Make the plan true. Raises Rejected after writing why to the status, or ApiError."""
        study = observed.study
        for event in plan.events:
            await tell(self._kube, study, event)
        raw = await replace_status(self._kube, STUDY_PLURAL, raw, to_status(plan.status))
        unwanted = [run for run in observed.runs if run.name in plan.delete]
        await each(delete_run(self._kube, run) for run in unwanted)
        try:
            await each(self._create(study, run) for run in plan.create)
        except Rejected as rejected:
            await self._write_rejection(study, raw, plan.status, str(rejected))
            raise

    async def _create(self, study: ScalingStudy, run: TrainingRun) -> None:
        path = path_of(API_VERSION, PLURAL, study.namespace)
        if await accepted(self._kube.create(path, run_object(study, run))) is not None:
            return
        there = await self._kube.find(path_of(API_VERSION, PLURAL, study.namespace, run.name))
        if there is not None and not owned_by(there, study.metadata.uid):
            text = f"TrainingRun {run.name} is already there and is not this study's: rename one"
            raise Rejected(text)

    async def _write_rejection(
        self, study: ScalingStudy, raw: Object, status: ScalingStudyStatus, message: str
    ) -> None:
        rejected = status.model_copy(update={"reason": "Rejected", "message": message})
        event = Event("Warning", "Rejected", message, f"rejected-{status.progress}")
        await tell(self._kube, study, event)
        await replace_status(self._kube, STUDY_PLURAL, raw, to_status(rejected))


def run_object(study: ScalingStudy, run: TrainingRun) -> Object:
    """The run of a cell, which goes when the study goes."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": STUDY_KIND,
        "name": study.name,
        "uid": study.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    metadata = {
        "name": run.name,
        "namespace": study.namespace,
        "labels": run.metadata.labels,
        "ownerReferences": [owner],
    }
    spec = run.spec.to_wire()
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
