"""What `reconcile_study` sees and what it decides. Plain data, no clients.

Executors carry a StudyPlan out in this order: events, status, deletions, creations. Each is
idempotent, and the next reconcile repairs a crash between any two. The status is written
before a run is deleted, so that a measurement is in the status, in its run, or in both.
"""

from dataclasses import dataclass
from datetime import datetime

from trainyard_api.run import TrainingRun
from trainyard_api.study import ScalingStudy
from trainyard_api.study_status import ScalingStudyStatus
from trainyard_lifecycle.plan import Event


@dataclass(frozen=True)
class StudyObserved:
    """Everything one decision is made from.

    Attributes:
        runs: every run that belongs to the study, including those being deleted.
        threads: per process; None: each process's share of the CPUs that the template requests.
    """

    study: ScalingStudy
    now: datetime
    runs: tuple[TrainingRun, ...] = ()
    threads: int | None = None


@dataclass(frozen=True)
class StudyPlan:
    """One decision.

    Attributes:
        status: the study's new status.
        events: transitions to report.
        delete: names of runs to delete, with all they own.
        create: runs to create, in this order.
        requeue_after: seconds until the next reconcile; None: only when the study or one of its
            runs changes.
    """

    status: ScalingStudyStatus
    events: tuple[Event, ...] = ()
    delete: tuple[str, ...] = ()
    create: tuple[TrainingRun, ...] = ()
    requeue_after: float | None = None
