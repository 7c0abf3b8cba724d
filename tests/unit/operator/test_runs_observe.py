"""What the operator observes of a run, over HTTP."""

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.lifecycle.builders import make_run
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_api.run import TrainingRun
from trainyard_lifecycle.plan import Observed
from trainyard_operator import probes
from trainyard_operator.client import Kube
from trainyard_operator.manifests import Images
from trainyard_operator.metrics import OperatorMetrics
from trainyard_operator.objects import parse
from trainyard_operator.runs import RunReconciler

RUN = "/apis/trainyard.dev/v1alpha1/namespaces/ns/trainingruns/r"
PODS = "/api/v1/namespaces/ns/pods"


def put_run(state: ApiServer, **status: Any) -> dict[str, Any]:
    raw = make_run().to_wire()
    return state.put(RUN, {**raw, "status": {"attempt": 1, **status}})


def put_pod(state: ApiServer, node: int, owner: str = "u", **status: Any) -> dict[str, Any]:
    name = f"r-1-{node}"
    labels = {"trainyard.dev/run": "r", "trainyard.dev/attempt": "1"}
    metadata = {
        "labels": {**labels, "trainyard.dev/node": str(node)},
        "ownerReferences": [{"uid": owner}],
    }
    spec = {"nodeName": f"host{node}"}
    return state.put(f"{PODS}/{name}", {"metadata": metadata, "spec": spec, "status": status})


def trainer(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "trainer", "state": state}]}


async def observe(state: ApiServer, kube: Kube) -> Observed:
    async with probes.session() as http:
        reconciler = RunReconciler(kube, http, Images("ours:1"), OperatorMetrics())
        return await reconciler.observe(parse(TrainingRun, state.objects[RUN]))


async def test_only_the_runs_own_pods_are_workers() -> None:
    async with api_server() as (state, kube):
        put_run(state)
        put_pod(state, 0, **trainer(running={}))
        put_pod(state, 1, owner="an older run of the same name", **trainer(running={}))
        state.put(f"{PODS}/r-other", {"metadata": {"labels": {"trainyard.dev/run": "r"}}})
        seen = await observe(state, kube)
    assert [worker.name for worker in seen.workers] == ["r-1-0"]
    assert seen.report is None


async def test_logs_of_failed_pods_are_read() -> None:
    async with api_server() as (state, kube):
        put_run(state)
        put_pod(state, 0, **trainer(terminated={"exitCode": 1}))
        put_pod(state, 1, **trainer(running={}))
        state.logs[f"{PODS}/r-1-0/log"] = "Traceback\nValueError: bad"
        state.logs[f"{PODS}/r-1-1/log"] = "fine"
        seen = await observe(state, kube)
    assert [worker.log_tail for worker in seen.workers] == ["Traceback\nValueError: bad", ""]


async def test_the_log_of_the_init_container_that_failed() -> None:
    ended = {"name": "fetch", "state": {"terminated": {"exitCode": 4}}}
    async with api_server() as (state, kube):
        put_run(state)
        put_pod(state, 0, phase="Failed", initContainerStatuses=[ended])
        state.logs[f"{PODS}/r-1-0/log"] = "fetching\nno such bucket\n"
        seen = await observe(state, kube)
    assert seen.workers[0].log_tail == "fetching\ninit container fetch: no such bucket"


async def test_no_logs_are_read_for_finished_runs() -> None:
    async with api_server() as (state, kube):
        put_run(state, phase="Failed")
        put_pod(state, 0, **trainer(terminated={"exitCode": 1}))
        await observe(state, kube)
        assert not [path for _, path in state.requests if path.endswith("/log")]


async def test_warnings_of_pods_that_dont_start_are_read() -> None:
    async with api_server() as (state, kube):
        put_run(state)
        pod = put_pod(state, 0, phase="Pending")
        old = {"reason": "FailedScheduling", "lastTimestamp": "2026-01-02T00:00:00Z"}
        new = {"reason": "FailedMount", "lastTimestamp": "2026-01-01T00:00:00Z"}
        for index, event in enumerate((old, new)):
            body = {
                "type": "Warning",
                "message": "why",
                "involvedObject": {"uid": pod["metadata"]["uid"]},
                **event,
            }
            state.put(f"/api/v1/namespaces/ns/events/e{index}", body)
        seen = await observe(state, kube)
    assert seen.workers[0].warning == "FailedMount: why"


async def test_a_new_pod_is_neither_unschedulable_nor_stuck() -> None:
    unschedulable: dict[str, Any] = {
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]
    }
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    async with api_server() as (state, kube):
        put_run(state)
        young = put_pod(state, 0, **unschedulable)
        young["metadata"]["creationTimestamp"] = now
        put_pod(state, 1, **unschedulable)
        seen = await observe(state, kube)
        assert not [path for _, path in state.requests if path.endswith("/events")]
    assert [worker.unschedulable for worker in seen.workers] == ["", "Unschedulable"]


async def test_lost_nodes_are_observed_if_nodes_may_be_listed() -> None:
    async with api_server() as (state, kube):
        put_run(state)
        for name, ready in (("host0", "Unknown"), ("host1", "True")):
            conditions = [{"type": "Ready", "status": ready}]
            state.put(f"/api/v1/nodes/{name}", {"status": {"conditions": conditions}})
        for node in (0, 1):
            put_pod(state, node, phase="Running")
        seen = await observe(state, kube)
        assert [worker.host_lost for worker in seen.workers] == [True, False]
        state.refuse("GET", "/api/v1/nodes", 403, "Forbidden", "no")
        seen = await observe(state, kube)
        assert [worker.host_lost for worker in seen.workers] == [False, False]


@pytest.mark.parametrize("agent", [True, False])
async def test_a_scripts_report_is_asked_for_only_where_an_agent_serves_it(agent: bool) -> None:
    """Pods of before an upgrade have none, nor those whose template has a command of its own."""
    async with api_server() as (state, kube):
        put_run(state)
        spec = {"command": ["train.py"], "image": "x", "numNodes": 1}
        state.put(RUN, {**state.objects[RUN], "spec": spec})
        pod = put_pod(state, 0, podIP="127.0.0.1", **trainer(running={}))
        if agent:
            pod["spec"]["initContainers"] = [{"name": "trainyard-agent"}]
        seen = await observe(state, kube)
    assert seen.report is None
    assert ("no connection" in seen.report_error) == agent
