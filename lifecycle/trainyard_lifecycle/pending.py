"""Why a gang isn't running yet: one word and one line, and whether waiting can help."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainyard_lifecycle.observed import Worker

# The kubelet won't get over these without a change to the run.
_IMAGE_HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
_IMAGE = ("ImagePullBackOff", "ErrImagePull", "ImageInspectError", "RegistryUnavailable")
_VOLUME_WORDS = ("persistentvolumeclaim", "volume", "mount")


@dataclass(frozen=True)
class Waiting:
    """What the gang waits for.

    Attributes:
        reason: Image, Scheduling, Volume, Container or Creating.
        hopeless: waiting longer can't help: fail now.
        give_back: at the deadline give the places back and try again, rather than fail.
    """

    reason: str
    message: str
    hopeless: bool = False
    give_back: bool = False


_URGENCY = ("Image", "Volume", "Container", "Scheduling", "Creating")


def waiting_for(workers: Sequence[Worker], wanted: int) -> Waiting:
    """The most telling reason among the workers that aren't running."""
    reasons = [_of(worker) for worker in workers if worker.phase == "Pending"]
    if not reasons:
        return Waiting("Creating", f"creating workers: {len(workers)} of {wanted} there")
    worst = min(reasons, key=lambda waiting: _URGENCY.index(waiting.reason))
    running = sum(worker.phase != "Pending" for worker in workers)
    if wanted > 1:
        text = f"{worst.message} ({running} of {wanted} workers run)"
        return Waiting(worst.reason, text, worst.hopeless, worst.give_back)
    return worst


def _of(worker: Worker) -> Waiting:
    if worker.waiting_reason in (*_IMAGE, *_IMAGE_HOPELESS):
        text = f"{worker.name}: {worker.waiting_reason}: {_one_line(worker.waiting_message)}"
        return Waiting("Image", text, hopeless=worker.waiting_reason in _IMAGE_HOPELESS)
    if worker.unschedulable:
        text = f"{worker.name}: {_one_line(worker.unschedulable)}"
        if any(word in worker.unschedulable.lower() for word in _VOLUME_WORDS):
            return Waiting("Volume", text)
        return Waiting("Scheduling", text, give_back=True)
    if worker.warning:
        text = f"{worker.name}: {_one_line(worker.warning)}"
        volume = any(word in worker.warning.lower() for word in _VOLUME_WORDS)
        return Waiting("Volume" if volume else "Container", text)
    if worker.waiting_reason and worker.waiting_reason not in (
        "ContainerCreating",
        "PodInitializing",
    ):
        text = f"{worker.name}: {worker.waiting_reason}: {_one_line(worker.waiting_message)}"
        return Waiting("Container", text)
    return Waiting("Creating", f"{worker.name}: the container is being created")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
