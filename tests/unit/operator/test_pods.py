"""Pods as workers, as a table of what the kubelet and the scheduler write."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.lifecycle.builders import T0
from trainyard_operator.pods import (
    failed_init,
    find_lost_hosts,
    is_lost,
    newest_warning,
    to_worker,
)


def make_pod(status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "r-2-1",
            "labels": {"trainyard.dev/attempt": "2", "trainyard.dev/node": "1"},
            **metadata,
        },
        "spec": {"nodeName": "node1"},
        "status": status,
    }


def trainer(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "trainer", "state": state}]}


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [condition("PodScheduled", "False", "Unschedulable", "0/2 nodes fit")],
}
ENDED = {"exitCode": 1, "reason": "Error", "finishedAt": "2026-01-01T00:00:00Z"}

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("just made", {}, {"phase": "Pending"}),
    ("unschedulable", UNSCHEDULABLE, {"phase": "Pending", "unschedulable": "0/2 nodes fit"}),
    (
        "gated by a queue",
        {"conditions": [condition("PodScheduled", "False", "SchedulingGated")]},
        {"phase": "Pending", "gated": True, "unschedulable": ""},
    ),
    (
        "scheduled",
        {"conditions": [condition("PodScheduled", "True", "")]},
        {"phase": "Pending", "unschedulable": ""},
    ),
    (
        "image pull",
        trainer(waiting={"reason": "ImagePullBackOff", "message": "no such image"}),
        {
            "phase": "Pending",
            "waiting_reason": "ImagePullBackOff",
            "waiting_message": "no such image",
        },
    ),
    (
        "image of an init container",
        {
            "initContainerStatuses": [
                {"name": "fetch", "state": {"waiting": {"reason": "ErrImagePull", "message": "x"}}}
            ],
            **trainer(waiting={"reason": "PodInitializing"}),
        },
        {
            "phase": "Pending",
            "waiting_reason": "ErrImagePull",
            "waiting_message": "init container fetch: x",
        },
    ),
    (
        "init container at work",
        {
            "initContainerStatuses": [{"name": "fetch", "state": {"running": {}}}],
            **trainer(waiting={"reason": "PodInitializing"}),
        },
        {"phase": "Pending", "waiting_reason": "PodInitializing"},
    ),
    (
        "init container failed",
        {
            "phase": "Failed",
            "initContainerStatuses": [
                {
                    "name": "fetch",
                    "state": {"terminated": {"exitCode": 4, "reason": "Error", "message": "404"}},
                }
            ],
            **trainer(waiting={"reason": "PodInitializing"}),
        },
        {
            "phase": "Failed",
            "exit_code": 4,
            "exit_reason": "Error",
            "termination_message": "init container fetch: 404",
        },
    ),
    ("running", trainer(running={}), {"phase": "Running", "exit_code": None}),
    (
        "running beside a sidecar that has ended",
        {
            "phase": "Running",
            "containerStatuses": [
                {"name": "sidecar", "state": {"terminated": {"exitCode": 1}}},
                {"name": "trainer", "state": {"running": {}}},
            ],
        },
        {"phase": "Running"},
    ),
    (
        "succeeded while a sidecar still runs",
        {
            "phase": "Running",
            "containerStatuses": [
                {"name": "sidecar", "state": {"running": {}}},
                {
                    "name": "trainer",
                    "state": {"terminated": {"exitCode": 0, "message": '{"step": 9}'}},
                },
            ],
        },
        {
            "phase": "Succeeded",
            "exit_code": 0,
            "exit_reason": "",
            "termination_message": '{"step": 9}',
        },
    ),
    (
        "failed",
        {"phase": "Failed", **trainer(terminated={**ENDED, "message": "ValueError: x"})},
        {
            "phase": "Failed",
            "exit_code": 1,
            "exit_reason": "Error",
            "termination_message": "ValueError: x",
            "finished_at": datetime(2026, 1, 1, tzinfo=UTC),
        },
    ),
    (
        "out of memory",
        {"phase": "Failed", **trainer(terminated={"exitCode": 137, "reason": "OOMKilled"})},
        {"phase": "Failed", "exit_code": 137, "exit_reason": "OOMKilled"},
    ),
    (
        "evicted, with a message of the container",
        {
            "phase": "Failed",
            "reason": "Evicted",
            "message": "The node was low on resource: memory.",
            **trainer(
                terminated={"exitCode": 137, "reason": "Error", "message": "the end of its log"}
            ),
        },
        {
            "phase": "Failed",
            "exit_reason": "Evicted",
            "termination_message": "The node was low on resource: memory.",
        },
    ),
    (
        "evicted before it ran",
        {"phase": "Failed", "reason": "Evicted", "message": "The node had no room."},
        {
            "phase": "Failed",
            "exit_code": None,
            "exit_reason": "Evicted",
            "termination_message": "The node had no room.",
        },
    ),
    (
        "its node refused it",
        {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no GPU left"},
        {"phase": "Failed", "exit_reason": "UnexpectedAdmissionError"},
    ),
    (
        "about to be preempted",
        {
            **trainer(running={}),
            "conditions": [condition("DisruptionTarget", "True", "PreemptionByScheduler")],
        },
        {"phase": "Running", "disruption": "PreemptionByScheduler"},
    ),
    (
        "a disruption that didn't happen",
        {
            **trainer(running={}),
            "conditions": [condition("DisruptionTarget", "False", "PreemptionByScheduler")],
        },
        {"phase": "Running", "disruption": ""},
    ),
    ("succeeded without container states", {"phase": "Succeeded"}, {"phase": "Succeeded"}),
]


@pytest.mark.parametrize(("case", "status", "expected"), CASES, ids=[case[0] for case in CASES])
def test_worker(case: str, status: dict[str, Any], expected: dict[str, Any]) -> None:
    worker = to_worker(make_pod(status))
    assert (worker.name, worker.attempt, worker.node, worker.host) == ("r-2-1", 2, 1, "node1")
    assert {key: getattr(worker, key) for key in expected} == expected


def test_deleting() -> None:
    status = trainer(running={})
    assert not to_worker(make_pod(status)).deleting
    assert to_worker(make_pod(status, deletionTimestamp="2026-01-01T00:00:00Z")).deleting


def test_a_native_sidecar_that_crashes_means_nothing() -> None:
    crashed = {"name": "proxy", "state": {"terminated": ENDED}}
    pod = make_pod({**trainer(running={}), "initContainerStatuses": [crashed]})
    assert to_worker(pod).phase == "Failed"
    pod["spec"]["initContainers"] = [{"name": "proxy", "restartPolicy": "Always"}]
    assert to_worker(pod).phase == "Running"
    assert failed_init(pod) == ""


@pytest.mark.parametrize("code", [0, 1])
def test_a_sidecar_that_outlives_the_trainer_lingers(code: int) -> None:
    status = trainer(terminated=ENDED | {"exitCode": code})
    assert not to_worker(make_pod(status)).lingering
    status["containerStatuses"].append({"name": "mesh", "state": {"running": {}}})
    assert to_worker(make_pod(status)).lingering


def test_kueues_preemption_is_a_disruption() -> None:
    status = trainer(running={}) | {"conditions": [condition("TerminationTarget", "True", "x")]}
    assert to_worker(make_pod(status)).disruption == "TerminationTarget"


def test_failed_init_container_is_named() -> None:
    status = {
        "initContainerStatuses": [
            {"name": "one", "state": {"terminated": {"exitCode": 0}}},
            {"name": "two", "state": {"terminated": {"exitCode": 1}}},
        ]
    }
    assert failed_init(make_pod(status)) == "two"
    assert failed_init(make_pod(trainer(running={}))) == ""


def node(name: str, ready: str | None) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready}] if ready else []
    return {"metadata": {"name": name}, "status": {"conditions": conditions}}


@pytest.mark.parametrize(
    ("nodes", "lost"),
    [
        ([], set()),
        ([node("a", "True"), node("b", "Unknown")], {"b"}),
        ([node("a", "True"), node("b", "False")], set()),  # it answers, so it is alive
        ([node("a", "Unknown"), node("b", "Unknown")], set()),  # the control plane is cut off
        ([node("a", "True"), node("b", None)], set()),  # just joined
    ],
)
def test_lost_hosts(nodes: list[dict[str, Any]], lost: set[str]) -> None:
    assert set(find_lost_hosts(nodes)) == lost


@pytest.mark.parametrize(
    ("scheduled", "expected"),
    [(T0 - timedelta(seconds=60), True), (T0, True), (T0 + timedelta(seconds=1), False)],
)
def test_a_pod_that_came_after_its_node_was_lost_is_on_one_that_is_back(
    scheduled: datetime, expected: bool
) -> None:
    """The list of nodes is some seconds old, and a node may be used again within them."""
    lost = node("b", "Unknown")
    lost["status"]["conditions"][0]["lastTransitionTime"] = T0.isoformat()
    status = trainer(running={}) | {"conditions": [condition("PodScheduled", "True", "")]}
    status["conditions"][0]["lastTransitionTime"] = scheduled.isoformat()
    pod = make_pod(status)
    pod["spec"] = {"nodeName": "b"}
    assert is_lost(pod, find_lost_hosts([node("a", "True"), lost])) is expected
    assert not is_lost(pod, find_lost_hosts([node("b", "True")]))


def test_newest_warning() -> None:
    events: list[dict[str, Any]] = [
        {"reason": "FailedMount", "message": "old", "lastTimestamp": "2026-01-01T00:00:00Z"},
        {
            "reason": "FailedCreatePodSandBox",
            "message": "new",
            "eventTime": "2026-01-01T00:00:05Z",
            "metadata": {},
        },
        {"reason": "FailedScheduling", "message": "x", "lastTimestamp": "2026-01-01T00:00:09Z"},
    ]
    assert newest_warning(events, scheduled=True) == "FailedCreatePodSandBox: new"
    assert newest_warning(events, scheduled=False) == "FailedScheduling: x"
    assert newest_warning([], scheduled=True) == ""
