"""What `reconcile` decides: a new status, and the actions that make it true.

Executors carry the parts out in this order: events, status, deletions, creations, the run itself.
Each is idempotent, and a crash between any two is mended by the next reconcile. The status is
written before workers are touched, so that a decision (a new attempt, a counted restart) is
made once.
"""

from dataclasses import dataclass
from typing import Literal

from trainyard_api.status import TrainingRunStatus


@dataclass(frozen=True)
class WorkerKey:
    """Names one worker to create."""

    attempt: int
    node: int


def worker_name(run: str, attempt: int, node: int) -> str:
    """RUN-ATTEMPT-NODE: a pod's name and host name."""
    return f"{run}-{attempt}-{node}"


@dataclass(frozen=True)
class RunEvent:
    """An Event about the run; `key` makes its name deterministic, so emitting it is idempotent."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    key: str


@dataclass(frozen=True)
class Plan:
    """One decision.

    Attributes:
        status: the run's status as it should read.
        events: transitions to tell about.
        delete: names of workers to delete.
        create: workers to create, with the run's Service and volume claim before them.
        nodes: size of the gang that `create` belongs to.
        delete_run: the finished run has outlived ttlSecondsAfterFinished.
        requeue_after: seconds until the run must be looked at again; None: only when it changes.
    """

    status: TrainingRunStatus
    events: tuple[RunEvent, ...] = ()
    delete: tuple[str, ...] = ()
    create: tuple[WorkerKey, ...] = ()
    nodes: int = 0
    delete_run: bool = False
    requeue_after: float | None = None
