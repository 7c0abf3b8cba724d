"""What `reconcile` sees: a run, its workers, rank 0's report and the time. Plain data, no clients.

A worker is one node's share of a gang: a pod on Kubernetes, a torchrun process on one machine.
Both executors describe theirs in the same words.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from trainyard_api.progress import ProgressReport
from trainyard_api.run import TrainingRun

WorkerPhase = Literal["Pending", "Running", "Succeeded", "Failed"]


@dataclass(frozen=True)
class Worker:
    """One worker as last seen.

    Attributes:
        name: pod name, RUN-ATTEMPT-NODE.
        phase: as the pod's, but Running only once the trainer container runs.
        waiting_reason, waiting_message: why a container can't start (ImagePullBackOff, ...).
        unschedulable: the scheduler's message while it has found no node for the pod.
        warning: newest warning event of a pending pod (FailedMount and the like).
        exit_code: of the trainer container (128 + signal when a signal ended it).
        exit_reason: Kubernetes' word for the end (OOMKilled, Evicted, Error, ...).
        last_words: termination message: a report, torchelastic's error JSON, or log tail.
        log_tail: last lines of the log; only fetched for workers that failed.
        disruption: reason of a true DisruptionTarget condition (node lost, preempted, evicted).
        deleting: deletion was asked for; on a lost node such a pod stays for ever.
        host: name of the machine the worker is on.
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
    last_words: str = ""
    log_tail: str = ""
    disruption: str = ""
    deleting: bool = False
    host: str = ""
    finished_at: datetime | None = None

    @property
    def finished(self) -> bool:
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True)
class Observed:
    """Everything one decision is made from."""

    run: TrainingRun
    now: datetime
    workers: tuple[Worker, ...] = ()
    report: ProgressReport | None = None
    # Nodes of the cluster that are NotReady: their pods are lost though they still say Running.
    lost_hosts: frozenset[str] = field(default_factory=frozenset)
