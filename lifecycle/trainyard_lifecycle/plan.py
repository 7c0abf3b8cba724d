"""What `reconcile` sees and what it decides. Plain data, no clients.

A worker is one node's share of a gang: a pod on Kubernetes, a torchrun process on one machine.
Both executors describe theirs in the same words.

Executors carry a Plan out in this order: events, status, the claim's owner, deletions, creations,
the run itself.
Each step is idempotent, and the next reconcile repairs a crash between any two. The status is
written before workers are touched, so that a decision (a new attempt, a counted restart) is
made once.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from trainyard_api.progress import ProgressReport
from trainyard_api.run import TrainingRun
from trainyard_api.spec import WhenDeleted
from trainyard_api.status import TrainingRunStatus

WorkerPhase = Literal["Pending", "Running", "Succeeded", "Failed"]


@dataclass(frozen=True)
class RankExit:
    """How one rank ended; a negative exit code is the signal that ended it."""

    rank: int
    local_rank: int
    exit_code: int


@dataclass(frozen=True)
class Position:
    """Where ranks were among the collectives of one of torch's process groups.

    Attributes:
        seq: number of the collective: the first that had not ended, else the last; 0: none.
        op: such as all_reduce.
        where: the script's line that called it.
        waiting: seconds since they entered it, at most; None if it had ended.
        limit: seconds after which it times out.
    """

    group: str
    ranks: tuple[int, ...]
    seq: int
    op: str
    where: str
    waiting: float | None
    limit: float


@dataclass(frozen=True)
class Worker:
    """One worker as last seen.

    Attributes:
        name: pod name, RUN-ATTEMPT-NODE.
        phase: as the pod's, but Running only once the trainer container runs.
        waiting_reason, waiting_message: why a container can't start (ImagePullBackOff, ...).
        gated: a queue has not admitted it yet.
        unschedulable: the scheduler's message while it has found no node for the pod.
        warning: newest warning event of a pending pod (FailedMount and the like).
        exit_code: of the trainer container (128 + signal when a signal ended it).
        exit_reason: Kubernetes' reason for the end (OOMKilled, Evicted, Error, ...).
        termination_message: a report, torchelastic's error JSON, or the end of the log.
        ranks: how its ranks ended, in that order; empty where no agent has watched them.
        collectives: where its ranks were when a collective timed out.
        log_tail: last lines of the log; only fetched for workers that failed.
        disruption: reason of a true DisruptionTarget condition (node lost, preempted, evicted).
        deleting: deletion was requested; on a lost node such a pod stays forever.
        gone_by: when a worker that is being deleted will have been killed.
        lingering: the trainer has ended, but something beside it (a mesh's sidecar) still runs.
        host: name of the machine the worker is on.
        host_lost: the control plane has lost that machine since; the pod may still say Running.
    """

    name: str
    attempt: int
    node: int
    phase: WorkerPhase
    waiting_reason: str = ""
    waiting_message: str = ""
    unschedulable: str = ""
    warning: str = ""
    exit_code: int | None = None
    exit_reason: str = ""
    termination_message: str = ""
    ranks: tuple[RankExit, ...] = ()
    collectives: tuple[Position, ...] = ()
    log_tail: str = ""
    disruption: str = ""
    deleting: bool = False
    gone_by: datetime | None = None
    lingering: bool = False
    gated: bool = False
    host: str = ""
    host_lost: bool = False
    finished_at: datetime | None = None

    @property
    def finished(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    @property
    def scheduled(self) -> bool:
        """Whether it has found its place."""
        return self.phase != "Pending" or bool(self.host and not self.unschedulable)


@dataclass(frozen=True)
class Observed:
    """Everything one decision is made from.

    Attributes:
        report: rank 0's, of any attempt.
        report_error: why it couldn't be fetched although rank 0's worker runs.
    """

    run: TrainingRun
    now: datetime
    workers: tuple[Worker, ...] = ()
    report: ProgressReport | None = None
    report_error: str = ""

    def report_of(self, attempt: int) -> ProgressReport | None:
        """Rank 0's report, if it is of this attempt."""
        return self.report if self.report and self.report.attempt == attempt else None


@dataclass(frozen=True)
class WorkerKey:
    """Names one worker to create."""

    attempt: int
    node: int


def worker_name(run: str, attempt: int, node: int) -> str:
    """RUN-ATTEMPT-NODE: a pod's name and host name."""
    return f"{run}-{attempt}-{node}"


@dataclass(frozen=True)
class Event:
    """An Event about a run or a study.

    `key` makes its name deterministic, so that emitting it is idempotent.
    """

    type: Literal["Normal", "Warning"]
    reason: str
    message: str
    key: str


@dataclass(frozen=True)
class Plan:
    """One decision.

    Attributes:
        status: the run's status as it should read.
        events: transitions to report as Events.
        delete: names of workers to delete.
        create: workers to create, with the run's Service and volume claim before them.
        nodes: size of the gang that `create` belongs to.
        claim: make the volume claim's owner follow this value of whenDeleted, and then write it to
            the status, which says Changing until that is done.
        delete_run: the finished run has outlived ttlSecondsAfterFinished.
        requeue_after: seconds until the next reconcile; None: only when the run changes.
    """

    status: TrainingRunStatus
    events: tuple[Event, ...] = ()
    delete: tuple[str, ...] = ()
    create: tuple[WorkerKey, ...] = ()
    nodes: int = 0
    claim: WhenDeleted | None = None
    delete_run: bool = False
    requeue_after: float | None = None
