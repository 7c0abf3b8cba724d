"""Reads pods, their events and nodes as `reconcile` needs them: a Worker per pod. Pure.

The trainer container's state decides. Sidecars may outlive it or fail on their own.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from trainyard_api import labels
from trainyard_lifecycle.agent_output import parse_ending
from trainyard_lifecycle.plan import Worker, WorkerPhase
from trainyard_operator.client import Object

# A new pod may look unschedulable at first: its claim is bound, and it is scheduled, at the second
# attempt. Until a pod is this old nothing is wrong with it.
STARTING_SECONDS = 3.0

Status = dict[str, Any]


def to_worker(pod: Object) -> Worker:
    """The worker of a pod that carries our labels."""
    metadata, spec, status = pod["metadata"], pod.get("spec", {}), _without_sidecars(pod)
    phase = _phase(status)
    ended = _ended(status)
    waiting_reason, waiting_message = _waiting(status) if phase == "Pending" else ("", "")
    has_ended = phase in ("Failed", "Succeeded")
    ending = parse_ending(_termination_message(status, ended) if has_ended else "")
    return Worker(
        name=metadata["name"],
        attempt=int(metadata["labels"][labels.ATTEMPT]),
        node=int(metadata["labels"][labels.NODE]),
        phase=phase,
        waiting_reason=waiting_reason,
        waiting_message=waiting_message,
        gated=phase == "Pending" and _scheduling(status).get("reason") == "SchedulingGated",
        unschedulable=_unschedulable(status) if phase == "Pending" else "",
        exit_code=ended.get("exitCode") if phase != "Pending" else None,
        exit_reason=_exit_reason(status, ended) if phase == "Failed" else "",
        termination_message=ending.message,
        ranks=ending.ranks,
        collectives=ending.collectives,
        disruption=_disruption(status),
        deleting="deletionTimestamp" in metadata,
        # The API server writes the time by which the pod has been killed, not that of the request.
        gone_by=_time(metadata.get("deletionTimestamp")),
        lingering=_is_lingering(status),
        host=spec.get("nodeName", ""),
        finished_at=_time(ended.get("finishedAt")),
    )


def has_agent(pod: Object) -> bool:
    """Whether an agent starts the pod's command, and serves what its script reports."""
    inits = (pod.get("spec") or {}).get("initContainers") or []
    return any(container.get("name") == labels.AGENT_CONTAINER for container in inits)


def failed_init(pod: Object) -> str:
    """Name of the init container that ended the pod; empty when none did."""
    return str(_failed_init(_without_sidecars(pod)).get("name", ""))


def is_starting(pod: Object, now: datetime) -> bool:
    """Whether the pod is too young for its troubles to mean anything."""
    created = datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
    return (now - created).total_seconds() <= STARTING_SECONDS


def is_stuck(pod: Object, worker: Worker, now: datetime) -> bool:
    """Whether it is pending for longer than starting takes, and its own status doesn't say why."""
    if worker.phase != "Pending" or worker.unschedulable:
        return False
    if worker.waiting_reason not in ("", "ContainerCreating", "PodInitializing"):
        return False
    return not is_starting(pod, now)


def newest_warning(events: Iterable[Object], *, scheduled: bool) -> str:
    """The newest warning's message; those of the scheduler are outdated once it has succeeded."""
    current = [
        event for event in events if not scheduled or event.get("reason") != "FailedScheduling"
    ]
    newest = max(current, key=_event_time, default=None)
    return f"{newest.get('reason')}: {newest.get('message')}" if newest else ""


def find_lost_hosts(nodes: Iterable[Object]) -> dict[str, datetime]:
    """Nodes whose heartbeats have been missing for as long as the control plane allows, and since.

    A node that itself says it isn't ready is alive, and so may its pods be. When every node's
    heartbeat is missing, it is the control plane that is cut off: no node is declared lost then.
    """
    unknown: dict[str, datetime] = {}
    is_any_alive = False
    for node in nodes:
        condition = _condition(node.get("status") or {}, "Ready", "Unknown")
        if condition:
            since = _time(condition.get("lastTransitionTime"))
            unknown[node["metadata"]["name"]] = since or datetime.max.replace(tzinfo=UTC)
        else:
            is_any_alive = True
    return unknown if is_any_alive else {}


def is_lost(pod: Object, lost: Mapping[str, datetime]) -> bool:
    """Whether the pod's node is one of those, and was lost after the pod got there.

    The scheduler gives a lost node no pods. So one that came later shows that the node is back, and
    that the list of nodes is older than that.
    """
    since = lost.get((pod.get("spec") or {}).get("nodeName", ""))
    if since is None:
        return False
    scheduled = _condition(pod.get("status") or {}, "PodScheduled", "True")
    placed = _time(scheduled.get("lastTransitionTime"))
    return placed is None or placed <= since


def _event_time(event: Object) -> str:
    series: Object = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )


def _phase(status: Status) -> WorkerPhase:
    state = _trainer(status)
    if "terminated" in state:
        return "Succeeded" if state["terminated"].get("exitCode") == 0 else "Failed"
    # The whole pod ended and took the container along (evicted, node shut down, init failed).
    if status.get("phase") == "Failed" or _failed_init(status):
        return "Failed"
    if status.get("phase") == "Succeeded":
        return "Succeeded"
    return "Running" if "running" in state else "Pending"


def _trainer(status: Status) -> dict[str, Any]:
    """State of the trainer container: {running|waiting|terminated: {...}}, or {}."""
    for container in status.get("containerStatuses") or []:
        if container.get("name") == labels.CONTAINER:
            return container.get("state") or {}
    return {}


def _failed_init(status: Status) -> dict[str, Any]:
    """The init container that failed, which ends a pod that never restarts."""
    for container in status.get("initContainerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated")
        if ended and ended.get("exitCode") != 0:
            return {**ended, "name": container.get("name")}
    return {}


def _ended(status: Status) -> dict[str, Any]:
    return _trainer(status).get("terminated") or _failed_init(status)


def _exit_reason(status: Status, ended: dict[str, Any]) -> str:
    # The kubelet's reason for ending the whole pod (Evicted, NodeShutdown, ...) says more than
    # the container's, which then only reads Error.
    return str(status.get("reason") or ended.get("reason") or "")


def _termination_message(status: Status, ended: dict[str, Any]) -> str:
    text, pods_own = str(ended.get("message") or ""), str(status.get("message") or "")
    if status.get("reason") and pods_own:  # why the kubelet ended it; the container only ended then
        return pods_own
    if "name" in ended and "terminated" not in _trainer(status):
        return f"init container {ended['name']}: {text or ended.get('reason', '')}"
    return text or pods_own


def _waiting(status: Status) -> tuple[str, str]:
    """Why the trainer, or an init container before it, waits."""
    states = [
        (container, (container.get("state") or {}).get("waiting") or {})
        for container in status.get("initContainerStatuses") or []
    ]
    for container, waiting in states:
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            text = waiting.get("message", "")
            return waiting["reason"], f"init container {container['name']}: {text}"
    waiting = _trainer(status).get("waiting") or {}
    return waiting.get("reason", ""), waiting.get("message", "")


def _scheduling(status: Status) -> dict[str, Any]:
    return _condition(status, "PodScheduled", "False")


def _unschedulable(status: Status) -> str:
    condition = _scheduling(status)
    if condition.get("reason") == "Unschedulable":
        return str(condition.get("message") or condition["reason"])
    return ""


def _disruption(status: Status) -> str:
    """Why the cluster ends the pod: Kubernetes' condition, or Kueue's when it preempts."""
    reason = _condition(status, "DisruptionTarget", "True").get("reason", "")
    if not reason and _condition(status, "TerminationTarget", "True"):
        return "TerminationTarget"
    return str(reason)


def _is_lingering(status: Status) -> bool:
    """Whether another container still runs after the trainer has ended.

    Kubernetes itself ends native sidecars (init containers that restart).
    """
    if "terminated" not in _trainer(status):
        return False
    states = [container.get("state") or {} for container in status.get("containerStatuses") or []]
    return any("running" in state for state in states)


def _without_sidecars(pod: Object) -> Status:
    """The pod's status without its native sidecars: a restart of one means nothing for the run."""
    status: Status = pod.get("status") or {}
    sidecars = {
        container.get("name")
        for container in (pod.get("spec") or {}).get("initContainers") or []
        if container.get("restartPolicy") == "Always"
    }
    if not sidecars:
        return status
    inits = status.get("initContainerStatuses") or []
    return {**status, "initContainerStatuses": [c for c in inits if c.get("name") not in sidecars]}


def _condition(status: Status, kind: str, value: str) -> dict[str, Any]:
    for condition in status.get("conditions") or []:
        if condition.get("type") == kind and condition.get("status") == value:
            return dict(condition)
    return {}


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
