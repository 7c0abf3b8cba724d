"""What the operator observes of a fault: pods, events and nodes, read by its own code."""

import json
from dataclasses import replace
from typing import Any

from tests.faults.corpus import FOLDER, Seen
from trainyard_api import labels
from trainyard_lifecycle.plan import Worker
from trainyard_operator.pods import newest_warning, to_worker

RUN = "r"


def worker(seen: Seen, node: int, attempt: int) -> Worker | None:
    """The worker as the operator sees it; None if its pod is gone."""
    if seen.gone:
        return None
    events = []
    if seen.event:
        reason, message = seen.event
        events = [{"reason": reason, "message": message, "metadata": {}}]
    return replace(
        to_worker(pod(seen, node, attempt)),
        log_tail=_log(seen.log),
        warning=newest_warning(events, scheduled=True),
    )


def pod(seen: Seen, node: int, attempt: int) -> dict[str, Any]:
    """The pod as the API server has it."""
    metadata: dict[str, Any] = {
        "name": f"{RUN}-{attempt}-{node}",
        "labels": {labels.ATTEMPT: str(attempt), labels.NODE: str(node)},
    }
    if seen.deleting:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:30Z"
    scheduled = not (seen.gated or seen.unschedulable)
    spec: dict[str, Any] = {"nodeName": f"host{node}"} if scheduled else {}
    status: dict[str, Any] = {"phase": _phase(seen), "conditions": _conditions(seen)}
    state = _state(seen)
    if state is not None:
        status["containerStatuses"] = [{"name": labels.CONTAINER, "state": state}]
    if seen.init:
        ended = {"exitCode": seen.init.exit, "reason": "Error", "message": seen.init.message}
        status["initContainerStatuses"] = [{"name": "fetch", "state": {"terminated": ended}}]
    if seen.sidecar == "running":
        status["containerStatuses"].append({"name": "mesh", "state": {"running": {}}})
    if seen.sidecar == "native, crashed":
        spec["initContainers"] = [{"name": "mesh", "restartPolicy": "Always"}]
        crashed = {"exitCode": 1, "reason": "Error"}
        status["initContainerStatuses"] = [{"name": "mesh", "state": {"terminated": crashed}}]
    if seen.exit is None and seen.reason:
        status |= {"reason": seen.reason, "message": seen.message}
    return {"metadata": metadata, "spec": spec, "status": status}


def _phase(seen: Seen) -> str:
    if (seen.exit is None and seen.reason) or seen.init or seen.unknown:
        return "Failed"
    if seen.exit is not None and not seen.sidecar:
        return "Failed" if seen.exit else "Succeeded"
    return "Pending" if seen.waiting or seen.gated or seen.unschedulable else "Running"


def _state(seen: Seen) -> dict[str, Any] | None:
    """The state of the trainer container; None before there is one."""
    if seen.exit is not None:
        message = seen.message
        if seen.error:
            message = json.dumps({"message": {"message": seen.error, "extraInfo": {}}})
        reason = seen.reason or ("Error" if seen.exit else "Completed")
        return {
            "terminated": {
                "exitCode": seen.exit,
                "reason": reason,
                "message": message,
                "finishedAt": "2026-01-01T00:00:00Z",
            }
        }
    if seen.waiting:
        reason, message = seen.waiting
        return {"waiting": {"reason": reason, "message": message}}
    if seen.init:
        return {"waiting": {"reason": "PodInitializing"}}
    stateless = seen.gated or seen.unschedulable or seen.reason or seen.unknown
    return None if stateless else {"running": {}}


def _conditions(seen: Seen) -> list[dict[str, str]]:
    found = []
    if seen.gated or seen.unschedulable:
        reason = "SchedulingGated" if seen.gated else "Unschedulable"
        found.append({"type": "PodScheduled", "status": "False", "reason": reason})
        found[0]["message"] = seen.unschedulable
    if seen.condition:
        kind, reason = seen.condition
        found.append({"type": kind, "status": "True", "reason": reason})
    return found


def _log(log: str) -> str:
    return (FOLDER / "logs" / log).read_text() if log.endswith(".log") else log
