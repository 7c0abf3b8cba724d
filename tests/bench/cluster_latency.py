"""Seconds from `kubectl apply` to the first step and from kill -9 to the next, and where they go.

    .venv/bin/python -m tests.bench.cluster_latency [repetitions]

Needs the local cluster with the operator installed in trainyard-system and an otherwise idle
machine. Times are the API server's and the container runtime's own.
"""

import json
import statistics
import sys
import time
from datetime import UTC, datetime
from typing import Any

from tests.e2e.conftest import delete_namespace, make_namespace
from tests.e2e.kube import Namespace, kill_rank, run, wait_until
from tests.e2e.runs import char_gpt

SPACE = "bench-latency"
RUN = "latency"
FIRST_STEP = "first step done"


def main(repetitions: int) -> None:
    """Print every repetition's phases and their medians, in seconds."""
    rows: dict[str, list[float]] = {}
    for number in range(repetitions):
        space = make_namespace(SPACE)
        try:
            for phase, seconds in measure(space).items():
                rows.setdefault(phase, []).append(seconds)
        finally:
            delete_namespace(SPACE)
        print(f"repetition {number + 1}:", {name: values[-1] for name, values in rows.items()})
    print(f"\n{'phase':<44}{'median':>8}{'min':>8}{'max':>8}")
    for phase, values in rows.items():
        median = statistics.median(values)
        print(f"{phase:<44}{median:>8.1f}{min(values):>8.1f}{max(values):>8.1f}")
    print(f"\noperator's memory: {operator_memory_mib():.0f} MiB")


def measure(space: Namespace) -> dict[str, float]:
    """Seconds of each phase of one run."""
    config = {"corpus": "stdlib", "max_steps": 100_000, "log_steps": 1}
    policy = {"everySteps": 50}
    backoff = {"initialSeconds": 1, "maxSeconds": 1}
    applied = time.time()
    space.apply(char_gpt(RUN, None, config, checkpoint=policy, backoff=backoff))
    first = wait_until("the first step", lambda: step_times(space, 1), 180)
    phases = {
        "apply -> pods created": first["created"] - applied,
        "  pods created -> containers run": first["started"] - first["created"],
        "  containers run -> first step": first["step"] - first["started"],
        "apply -> first step": first["step"] - applied,
    }
    wait_until("a checkpoint", lambda: "lastCheckpoint" in space.status(RUN), 180)
    kill_rank(space, f"{RUN}-1-1")
    killed = time.time()  # after kubectl exec came back: the kill was up to 0.2 s before
    again = wait_until("the next attempt's step", lambda: step_times(space, 2), 180)
    return phases | {
        "kill -9 -> next attempt's pods created": again["created"] - killed,
        "  pods created -> containers run, again": again["started"] - again["created"],
        "  containers run -> next step": again["step"] - again["started"],
        "kill -9 -> next step": again["step"] - killed,
    }


def step_times(space: Namespace, attempt: int) -> dict[str, float] | None:
    """When the attempt's pods were created, ran, and rank 0 did its first step."""
    pods = space.pods(RUN, attempt)
    if len(pods) != 2 or any(not started(pod) for pod in pods):
        return None
    log = space.kubectl("logs", f"{RUN}-{attempt}-0", "--timestamps")
    line = next((line for line in log.splitlines() if FIRST_STEP in line), None)
    if line is None:
        return None
    return {
        "created": max(stamp(pod["metadata"]["creationTimestamp"]) for pod in pods),
        "started": max(stamp(started(pod) or "") for pod in pods),
        "step": stamp(line.split()[0]),
    }


def started(pod: dict[str, Any]) -> str | None:
    """When the trainer container began to run (whole seconds, as Kubernetes says it)."""
    for container in pod["status"].get("containerStatuses", []):
        if container["name"] == "trainer" and "running" in container["state"]:
            return str(container["state"]["running"]["startedAt"])
    return None


def stamp(text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time, nanoseconds cut."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    moment = datetime.fromisoformat(whole).replace(tzinfo=UTC)
    return moment.timestamp() + float(f"0.{fraction or 0}")


def operator_memory_mib() -> float:
    """Working set of the operator's container, by its kubelet."""
    space = Namespace("trainyard-system")
    node = space.items("pods")[0]["spec"]["nodeName"]
    summary = json.loads(
        run("kubectl", "get", "--raw", f"/api/v1/nodes/{node}/proxy/stats/summary")
    )
    for pod in summary["pods"]:
        if pod["podRef"]["namespace"] == space.name:
            return float(pod["memory"]["workingSetBytes"]) / 2**20
    raise LookupError("the kubelet has no figures of the operator's pod")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
