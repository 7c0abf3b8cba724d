"""Whole reconciles over HTTP: from a stored run to its pods, and the endpoints beside it."""

import asyncio
from typing import Any

import aiohttp
import pytest
from prometheus_client import generate_latest

from tests.support.lifecycle.builders import make_run
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_api.status import TrainingRunStatus
from trainyard_operator import reports, server
from trainyard_operator.client import Kube
from trainyard_operator.controller import Controller
from trainyard_operator.errors import ApiError
from trainyard_operator.execute import Executor
from trainyard_operator.instruments import Instruments
from trainyard_operator.observe import Key, Observer

KEY = Key("ns", "r")
RUNS = "/apis/trainyard.dev/v1alpha1/namespaces/ns/trainingruns"
PODS = "/api/v1/namespaces/ns/pods"


def put_run(state: ApiServer, name: str = "r", **status: Any) -> dict[str, Any]:
    wire = make_run(numNodes=2).to_wire()
    wire["metadata"] = {"name": name, "uid": f"uid-of-{name}"}
    return state.put(f"{RUNS}/{name}", {**wire, "status": status})


def controller(kube: Kube, http: aiohttp.ClientSession, instruments: Instruments) -> Controller:
    return Controller(Observer(kube, http), Executor(kube, "ours:1"), instruments)


def metric(instruments: Instruments, name: str, **labels: str) -> float | None:
    return instruments.registry.get_sample_value(name, labels)


def kubelet(state: ApiServer, trainer: dict[str, Any], name: str) -> None:
    """Write a pod's status as its kubelet would."""
    pod = state.objects[f"{PODS}/{name}"]
    statuses = [{"name": "trainer", "state": trainer}]
    state.put(f"{PODS}/{name}", {**pod, "status": {"containerStatuses": statuses}})


async def test_a_runs_life() -> None:
    instruments = Instruments()
    async with api_server() as (state, kube), reports.session() as http:
        put_run(state)
        handle = controller(kube, http, instruments).handle
        assert await handle(KEY) is not None
        assert {f"{PODS}/r-1-0", f"{PODS}/r-1-1"} <= set(state.objects)
        for name in ("r-1-0", "r-1-1"):
            kubelet(state, {"running": {}}, name)
        await handle(KEY)
        assert state.objects[f"{RUNS}/r"]["status"]["phase"] == "Starting"

        kubelet(state, {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "r-1-1")
        await handle(KEY)
        status = state.objects[f"{RUNS}/r"]["status"]
        assert status["phase"] == "Restarting"
        assert "out of memory" in status["message"]
        assert metric(instruments, "trainyard_operator_restarts_total", reason="OOMKilled") == 1

        for name in list(state.objects):
            if name.startswith(PODS):
                del state.objects[name]
        run = state.objects[f"{RUNS}/r"]
        state.put(
            f"{RUNS}/r", {**run, "status": {**status, "nextAttemptTime": "2026-01-01T00:00:00Z"}}
        )
        await handle(KEY)
        assert {f"{PODS}/r-2-0", f"{PODS}/r-2-1"} <= set(state.objects)

        for name in ("r-2-0", "r-2-1"):
            kubelet(state, {"terminated": {"exitCode": 0}}, name)
        while state.objects[f"{RUNS}/r"]["status"]["phase"] != "Succeeded":
            await handle(KEY)
        assert await handle(KEY) is None
        del state.objects[f"{RUNS}/r"]
        assert await handle(KEY) is None


async def test_a_conflict_is_looked_at_again_at_once() -> None:
    instruments = Instruments()
    async with api_server() as (state, kube), reports.session() as http:
        put_run(state)
        state.refuse("PUT", "/status", 409, "Conflict", "modified")
        assert await controller(kube, http, instruments).handle(KEY) == 0.0
    assert metric(instruments, "trainyard_operator_reconciles_total", result="conflict") == 1


async def test_long_lists_come_page_by_page() -> None:
    async with api_server() as (state, kube):
        for index in range(7):
            put_run(state, f"run-{index}")
        assert len(await kube.list_all(RUNS, limit="3")) == 7


async def test_endpoints() -> None:
    instruments = Instruments()
    instruments.watch_queue(lambda: 3, lambda: 1)
    instruments.failed_attempts(TrainingRunStatus(), TrainingRunStatus())
    wrong = ""
    app = server.application(lambda: wrong, lambda: "not yet", instruments.registry)
    async with server.serve(app, "127.0.0.1", 0) as port, aiohttp.ClientSession() as http:

        async def get(path: str) -> tuple[int, str]:
            async with http.get(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, await answer.text()

        assert await get("/healthz") == (200, "ok\n")
        assert await get("/readyz") == (503, "not yet\n")
        status, text = await get("/metrics")
        assert status == 200
        assert "trainyard_operator_queue_depth 3.0" in text
        assert "trainyard_operator_failing_runs 1.0" in text
        wrong = "reconciling has stalled"
        assert await get("/healthz") == (503, "reconciling has stalled\n")


def test_every_operator_metric_is_exported() -> None:
    from trainyard_api import metrics

    exported = generate_latest(Instruments().registry).decode()
    for value in vars(metrics).values():
        if isinstance(value, metrics.Metric) and value.name.startswith("trainyard_operator_"):
            assert f"# TYPE {value.name.removesuffix('_total')}" in exported, value.name


async def test_an_unreachable_api_server_is_one_line() -> None:
    async with api_server() as (_, kube):
        pass
    with pytest.raises(ApiError, match=r"API server: .+"):
        await asyncio.wait_for(kube.get("/api/v1/pods"), 10)
