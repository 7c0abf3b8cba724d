"""What the operator sees of a run, asked over HTTP."""

from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web

from tests.support.lifecycle.builders import make_report, make_run
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_lifecycle.plan import Observed
from trainyard_operator import reports, server
from trainyard_operator.nodes import lost_hosts
from trainyard_operator.observe import Key, Observer, newest_warning
from trainyard_operator.stored import InvalidRun, parse_run

KEY = Key("ns", "r")
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


async def observe(state: ApiServer, kube: Any) -> Observed | None:
    async with reports.session() as http:
        seen = await Observer(kube, http).observe(KEY)
    return seen[1] if seen else None


async def test_no_run() -> None:
    async with api_server() as (state, kube):
        assert await observe(state, kube) is None


async def test_only_this_runs_pods() -> None:
    async with api_server() as (state, kube):
        put_run(state)
        put_pod(state, 0, **trainer(running={}))
        put_pod(state, 1, owner="an older run of the same name", **trainer(running={}))
        state.put(f"{PODS}/r-other", {"metadata": {"labels": {"trainyard.dev/run": "r"}}})
        seen = await observe(state, kube)
    assert seen
    assert [worker.name for worker in seen.workers] == ["r-1-0"]
    assert seen.report is None


async def test_logs_of_failed_pods_of_this_attempt() -> None:
    async with api_server() as (state, kube):
        put_run(state)
        put_pod(state, 0, **trainer(terminated={"exitCode": 1}))
        put_pod(state, 1, **trainer(running={}))
        state.logs[f"{PODS}/r-1-0/log"] = "Traceback\nValueError: bad"
        state.logs[f"{PODS}/r-1-1/log"] = "fine"
        seen = await observe(state, kube)
    assert seen
    assert [worker.log_tail for worker in seen.workers] == ["Traceback\nValueError: bad", ""]


async def test_the_log_of_the_init_container_that_failed() -> None:
    ended = {"name": "fetch", "state": {"terminated": {"exitCode": 4}}}
    async with api_server() as (state, kube):
        put_run(state)
        put_pod(state, 0, phase="Failed", initContainerStatuses=[ended])
        state.logs[f"{PODS}/r-1-0/log"] = "fetching\nno such bucket\n"
        seen = await observe(state, kube)
    assert seen
    assert seen.workers[0].log_tail == "fetching\ninit container fetch: no such bucket"


async def test_finished_runs_cost_no_logs() -> None:
    async with api_server() as (state, kube):
        put_run(state, phase="Failed")
        put_pod(state, 0, **trainer(terminated={"exitCode": 1}))
        await observe(state, kube)
        assert not [path for _, path in state.requests if path.endswith("/log")]


async def test_warnings_of_pods_that_dont_start() -> None:
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
    assert seen
    assert seen.workers[0].warning == "FailedMount: why"


async def test_a_young_pod_worries_nobody() -> None:
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
    assert seen
    assert [worker.unschedulable for worker in seen.workers] == ["", "Unschedulable"]


async def test_lost_nodes_and_no_rights_to_see_them() -> None:
    async with api_server() as (state, kube):
        put_run(state)
        for name, ready in (("host0", "Unknown"), ("host1", "True")):
            conditions = [{"type": "Ready", "status": ready}]
            state.put(f"/api/v1/nodes/{name}", {"status": {"conditions": conditions}})
        seen = await observe(state, kube)
        assert seen
        assert seen.lost_hosts == {"host0"}
        state.refuse("GET", "/api/v1/nodes", 403, "Forbidden", "no")
        seen = await observe(state, kube)
        assert seen
        assert seen.lost_hosts == frozenset()


def node(name: str, ready: str | None) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready}] if ready else []
    return {"metadata": {"name": name}, "status": {"conditions": conditions}}


@pytest.mark.parametrize(
    ("nodes", "lost"),
    [
        ([], set()),
        ([node("a", "True"), node("b", "Unknown")], {"b"}),
        ([node("a", "True"), node("b", "False")], set()),  # it speaks, so it is there
        ([node("a", "Unknown"), node("b", "Unknown")], set()),  # we are cut off, not they
        ([node("a", "True"), node("b", None)], set()),  # just joined
    ],
)
def test_lost_hosts(nodes: list[dict[str, Any]], lost: set[str]) -> None:
    assert lost_hosts(nodes) == lost


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


async def answer(report: web.Response) -> Any:
    async def progress(_: web.Request) -> web.Response:
        return report

    app = web.Application()
    app.router.add_get("/progress", progress)
    async with server.serve(app, "127.0.0.1", 0) as port, reports.session() as http:
        return await reports.fetch(http, "127.0.0.1", port)


async def test_report() -> None:
    report = make_report(step=5, loss=1.5)
    assert await answer(web.json_response(report.to_wire())) == report


async def test_a_newer_trainers_report_is_understood() -> None:
    report = make_report(step=5)
    assert await answer(web.json_response({**report.to_wire(), "novelty": 1})) == report


@pytest.mark.parametrize(
    "body",
    [
        web.Response(text="not json"),
        web.json_response([1]),
        web.json_response({"run": "r"}),
        web.Response(status=503, text="starting"),
        web.Response(body=b" " * (reports.MAX_BYTES + 10)),
        web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
    ],
)
async def test_what_is_no_report(body: web.Response) -> None:
    assert await answer(body) is None


async def test_nobody_there() -> None:
    async with reports.session() as http:
        assert await reports.fetch(http, "127.0.0.1", 1) is None


def test_status_of_a_newer_operator_is_kept_in_mind() -> None:
    raw = make_run().to_wire()
    attempt = {"number": 3, "startTime": "2026-01-01T00:00:00Z", "novelty": {"a": 1}}
    status = {"phase": "Running", "attempt": 3, "attempts": [attempt], "novelty": 1}
    run = parse_run({**raw, "status": status})
    assert (run.status.phase, run.status.attempt) == ("Running", 3)
    assert run.status.attempts[0].number == 3
    assert status["novelty"] == 1, "the stored object is left alone"


def test_invalid_spec() -> None:
    raw = make_run().to_wire()
    raw["spec"]["precision"] = "fp8"
    with pytest.raises(InvalidRun):
        parse_run(raw)


def test_unreadable_status_is_no_fresh_start() -> None:
    """Forgetting a status would run a finished run again."""
    with pytest.raises(InvalidRun):
        parse_run({**make_run().to_wire(), "status": {"phase": 7}})
