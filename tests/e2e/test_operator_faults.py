"""An operator that is killed, and a node that is lost, during a run."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.kube import LONG, REPO, Namespace, wait_until
from tests.e2e.runs import char_gpt


def test_the_operator_killed_in_the_middle_changes_nothing(
    space: Namespace, operator: Namespace, corpus: dict[str, Any]
) -> None:
    space.apply(char_gpt("steady", corpus, {"max_steps": 250}))
    space.wait_phase("steady", "Running")
    before = space.pods("steady")
    kill_operator(operator)
    status = space.wait_phase("steady", "Succeeded")
    assert (status["attempt"], status["restarts"]) == (1, 0)
    assert [pod["metadata"]["uid"] for pod in space.pods("steady")] == [
        pod["metadata"]["uid"] for pod in before
    ]
    assert space.event_reasons("steady").count("AttemptStarted") == 1


def test_a_run_that_ends_without_an_operator_gets_the_right_status(
    alone: None, space: Namespace, operator: Namespace, corpus: dict[str, Any]
) -> None:
    """Alone: the status of other tests' runs would stand still for as long as this one trains."""
    space.apply(char_gpt("alone", corpus, {"max_steps": 250}))
    space.wait_phase("alone", "Running")
    operator.kubectl("scale", "deployment", "--all", "--replicas", "0")
    try:
        wait_until(
            "both pods are done",
            lambda: [pod["status"]["phase"] for pod in space.pods("alone")] == ["Succeeded"] * 2,
            LONG,
        )
        assert space.status("alone")["phase"] == "Running"
    finally:
        operator.kubectl("scale", "deployment", "--all", "--replicas", "1")
    status = space.wait_phase("alone", "Succeeded")
    assert status["progress"] == "250/250"
    assert status["lastCheckpoint"]["step"] == 250


def kill_operator(operator: Namespace) -> None:
    """Delete the operator's pod without grace, and see the next one take over."""
    old = {pod["metadata"]["uid"] for pod in operator.items("pods")}
    operator.kubectl("delete", "pods", "--all", "--grace-period=0", "--force")

    def ready() -> bool:
        return any(
            pod["metadata"]["uid"] not in old
            and any(
                c["type"] == "Ready" and c["status"] == "True"
                for c in pod["status"].get("conditions", [])
            )
            for pod in operator.items("pods")
        )

    wait_until("a new operator pod is ready", ready)


@pytest.mark.skipif(
    bool(os.environ.get("TRAINYARD_CONTEXT")),
    reason="takes a node from the cluster that make cluster made, never from another one",
)
def test_a_lost_node_does_not_hold_up_the_run(
    alone: None, space: Namespace, operator: Namespace, corpus: dict[str, Any]
) -> None:
    """The lost node's pod stays Terminating for ever; the run continues elsewhere."""
    space.apply(char_gpt("survivor", corpus, {"max_steps": 500}))
    space.wait_status(
        "survivor",
        "a checkpoint",
        lambda s: s.get("phase") == "Running" and "lastCheckpoint" in s,
    )
    home = operator.items("pods")[0]["spec"]["nodeName"]
    lost = "node2" if home != "node2" else "node1"
    saved = space.status("survivor")["lastCheckpoint"]["step"]
    victims = [
        pod["metadata"]["name"] for pod in space.pods("survivor") if pod["spec"]["nodeName"] == lost
    ]
    assert victims, "the scheduler put both pods on one node"
    cluster("node-lost", lost)
    try:
        status = space.wait_status(
            "survivor",
            "the next attempt resumed",
            lambda s: s.get("attempt", 0) >= 2 and s.get("resumedFromStep") is not None,
        )
        assert status["attempts"][0]["reason"] == "NodeLost", status["attempts"]
        assert status["attempts"][-1]["resumedFromStep"] >= saved > 0
        pods = {pod["metadata"]["name"]: pod for pod in space.pods("survivor")}
        for name in victims:
            assert "deletionTimestamp" in pods[name]["metadata"]
        for pod in space.pods("survivor", attempt=status["attempt"]):
            assert pod["spec"]["nodeName"] != lost
        space.wait_phase("survivor", "Succeeded")
    finally:
        cluster("up")
    nodes = json.loads(space.kubectl("get", "nodes", "-o", "json"))["items"]
    assert len(nodes) == 2


def cluster(*args: str) -> None:
    subprocess.run([sys.executable, "-m", "dev.cluster", *args], cwd=REPO, check=True, timeout=LONG)
