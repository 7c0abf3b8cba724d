"""Why a gang isn't running yet, in one line, and when waiting ends. Pure.

Each step of a start has its own deadline: queueing, scheduling, starting and joining. What may yet
come (quota, room, a registry, a volume) is waited for: at the deadline the gang gives its places
back and tries again later. Only what can't come right without a change to the run stops it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from trainyard_api.spec import TrainingRunSpec
from trainyard_api.status import Attempt
from trainyard_lifecycle.diagnosis import shorten
from trainyard_lifecycle.plan import Worker

# The kubelet won't get over these without a change to the run.
_IMAGE_PERMANENT = ("InvalidImageName",)
_IMAGE = (
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",  # somebody may yet load it into the node
    "ImageInspectError",
    "RegistryUnavailable",
)
_VOLUME_WORDS = ("persistentvolumeclaim", "volume", "mount")
_STARTING = ("ContainerCreating", "PodInitializing")
_MAX_MESSAGE = 300


@dataclass(frozen=True)
class PendingReason:
    """What a gang waits for.

    Attributes:
        reason: Queued, Image, Scheduling, Volume, Container or Creating.
        permanent: waiting longer can't help: stop now.
    """

    reason: str
    message: str
    permanent: bool = False


_URGENCY = ("Image", "Volume", "Container", "Scheduling", "Queued", "Creating")


def diagnose_pending(workers: Sequence[Worker], wanted: int) -> PendingReason:
    """The most telling reason among the workers that aren't running."""
    reasons = [_pending_reason(worker) for worker in workers if worker.phase == "Pending"]
    if not reasons:
        return PendingReason("Creating", f"creating workers: {len(workers)} of {wanted} exist")
    worst = min(reasons, key=lambda pending: _URGENCY.index(pending.reason))
    running = sum(worker.phase != "Pending" for worker in workers)
    if wanted > 1:
        text = f"{worst.message} ({running} of {wanted} workers are running)"
        return PendingReason(worst.reason, text, worst.permanent)
    return worst


def record_progress(attempt: Attempt, workers: Sequence[Worker], now: datetime) -> None:
    """Write into the attempt's record when its whole gang was admitted, scheduled, running."""
    if any(worker.gated for worker in workers):
        return
    attempt.admitted_time = attempt.admitted_time or now
    if not all(worker.scheduled for worker in workers):
        return
    attempt.scheduled_time = attempt.scheduled_time or now
    if all(worker.phase != "Pending" for worker in workers):
        attempt.running_time = attempt.running_time or now


def overdue(attempt: Attempt, spec: TrainingRunSpec, now: datetime, queued: bool) -> str | None:
    """The deadline that has passed, for example `not scheduled within 600 s`; else None.

    `queued`: pods wait for a queue's admission.
    """
    if attempt.running_time:
        since, limit, what = attempt.running_time, spec.join_seconds, "ranks didn't join"
    elif attempt.scheduled_time:
        since, limit, what = attempt.scheduled_time, spec.start_seconds, "not started"
    elif queued:
        queue_limit = spec.deadlines.queue_seconds
        if queue_limit is None:
            return None
        since, limit, what = attempt.start_time, queue_limit, "not admitted by the queue"
    else:
        since = attempt.admitted_time or attempt.start_time
        limit, what = spec.schedule_seconds, "not scheduled"
    return f"{what} within {limit} s" if (now - since).total_seconds() > limit else None


def _pending_reason(worker: Worker) -> PendingReason:
    def line(text: str) -> str:
        return f"{worker.name}: {shorten(text, _MAX_MESSAGE)}"

    container = ": ".join(filter(None, (worker.waiting_reason, worker.waiting_message)))
    if worker.waiting_reason in (*_IMAGE, *_IMAGE_PERMANENT):
        permanent = worker.waiting_reason in _IMAGE_PERMANENT
        return PendingReason("Image", line(container), permanent)
    if worker.gated:
        return PendingReason("Queued", line("waiting for its queue's admission"))
    if worker.unschedulable:
        # A message of the scheduler counts nodes by reason: one without room may yet get it.
        volume = (
            _names_a_volume(worker.unschedulable) and "Insufficient" not in worker.unschedulable
        )
        return PendingReason("Volume" if volume else "Scheduling", line(worker.unschedulable))
    if worker.warning:
        reason = "Volume" if _names_a_volume(worker.warning) else "Container"
        return PendingReason(reason, line(worker.warning))
    if worker.waiting_reason and worker.waiting_reason not in _STARTING:
        return PendingReason("Container", line(container))
    return PendingReason("Creating", line("the container is being created"))


def _names_a_volume(text: str) -> bool:
    return any(word in text.lower() for word in _VOLUME_WORDS)
