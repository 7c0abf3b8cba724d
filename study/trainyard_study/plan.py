"""What `reconcile_study` sees and what it decides. Plain data, no clients.

Executors carry a StudyPlan out in this order: events, status, deletions, creations. Each is
idempotent, and a crash between any two is mended by the next reconcile. The status is written
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
        runs: every run that belongs to the study, also those being deleted.
        threads: of each process; None: a share of the CPUs that the template asks for.
    """

    study: ScalingStudy
    now: datetime
    runs: tuple[TrainingRun, ...] = ()
    threads: int | None = None


@dataclass(frozen=True)
class StudyPlan:
    """One decision.

    Attributes:
        status: the study's status as it should read.
        events: transitions to tell about.
        delete: names of runs to delete, with all they own.
        create: runs to create, in this order.
        requeue_after: seconds until the study must be looked at again; None: only when it or one
            of its runs changes.
    """

    status: ScalingStudyStatus
    events: tuple[Event, ...] = ()
    delete: tuple[str, ...] = ()
    create: tuple[TrainingRun, ...] = ()
    requeue_after: float | None = None
