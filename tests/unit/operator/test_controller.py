"""Complete reconciles over HTTP: from a stored run to its pods and back."""

import asyncio
from typing import Any

import aiohttp
import pytest
from prometheus_client import generate_latest

from tests.support.lifecycle.builders import make_run
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_operator import probes
from trainyard_operator.client import ApiError, Kube
from trainyard_operator.controller import Controller
from trainyard_operator.manifests import Images
from trainyard_operator.metrics import OperatorMetrics
from trainyard_operator.objects import ObjectKey
from trainyard_operator.runs import RunReconciler

KEY = ObjectKey("ns", "r")
RUNS = "/apis/trainyard.dev/v1alpha1/namespaces/ns/trainingruns"
PODS = "/api/v1/namespaces/ns/pods"


def put_run(state: ApiServer, name: str = "r", **status: Any) -> dict[str, Any]:
    wire = make_run(numNodes=2).to_wire()
    wire["metadata"] = {"name": name, "uid": f"uid-of-{name}"}
    return state.put(f"{RUNS}/{name}", {**wire, "status": status})


def controller(
    kube: Kube, http: aiohttp.ClientSession, metrics: OperatorMetrics
) -> Controller[Any, Any, Any]:
    return Controller(kube, RunReconciler(kube, http, Images("ours:1"), metrics), metrics)


def metric(metrics: OperatorMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def kubelet(state: ApiServer, trainer: dict[str, Any], name: str) -> None:
    """Write a pod's status as its kubelet would."""
    pod = state.objects[f"{PODS}/{name}"]
    statuses = [{"name": "trainer", "state": trainer}]
    state.put(f"{PODS}/{name}", {**pod, "status": {"containerStatuses": statuses}})


async def test_a_run_from_creation_to_deletion() -> None:
    metrics = OperatorMetrics()
    async with api_server() as (state, kube), probes.session() as http:
        put_run(state)
        reconcile = controller(kube, http, metrics).reconcile
        assert await reconcile(KEY) is not None
        assert {f"{PODS}/r-1-0", f"{PODS}/r-1-1"} <= set(state.objects)
        for name in ("r-1-0", "r-1-1"):
            kubelet(state, {"running": {}}, name)
        await reconcile(KEY)
        assert state.objects[f"{RUNS}/r"]["status"]["phase"] == "Starting"

        kubelet(state, {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "r-1-1")
        await reconcile(KEY)
        status = state.objects[f"{RUNS}/r"]["status"]
        assert status["phase"] == "Restarting"
        assert "out of memory" in status["message"]
        assert metric(metrics, "trainyard_operator_restarts_total", reason="OOMKilled") == 1

        for name in list(state.objects):
            if name.startswith(PODS):
                del state.objects[name]
        run = state.objects[f"{RUNS}/r"]
        state.put(
            f"{RUNS}/r", {**run, "status": {**status, "nextAttemptTime": "2026-01-01T00:00:00Z"}}
        )
        await reconcile(KEY)
        assert {f"{PODS}/r-2-0", f"{PODS}/r-2-1"} <= set(state.objects)

        for name in ("r-2-0", "r-2-1"):
            kubelet(state, {"terminated": {"exitCode": 0}}, name)
        while state.objects[f"{RUNS}/r"]["status"]["phase"] != "Succeeded":
            await reconcile(KEY)
        assert await reconcile(KEY) is None
        del state.objects[f"{RUNS}/r"]
        assert await reconcile(KEY) is None


async def test_a_conflict_is_retried_at_once() -> None:
    metrics = OperatorMetrics()
    async with api_server() as (state, kube), probes.session() as http:
        put_run(state)
        state.refuse("PUT", "/status", 409, "Conflict", "modified")
        assert await controller(kube, http, metrics).reconcile(KEY) == 0.0
    assert metric(metrics, "trainyard_operator_reconciles_total", result="conflict") == 1


async def test_long_lists_are_read_page_by_page() -> None:
    async with api_server() as (state, kube):
        for index in range(7):
            put_run(state, f"run-{index}")
        assert len(await kube.list_all(RUNS, limit="3")) == 7


def test_every_operator_metric_is_exported() -> None:
    from trainyard_api import metrics

    exported = generate_latest(OperatorMetrics().registry).decode()
    for value in vars(metrics).values():
        if isinstance(value, metrics.Metric) and value.name.startswith("trainyard_operator_"):
            assert f"# TYPE {value.name.removesuffix('_total')}" in exported, value.name


async def test_an_unreachable_api_server_is_one_line() -> None:
    async with api_server() as (_, kube):
        pass
    with pytest.raises(ApiError, match=r"API server: .+"):
        await asyncio.wait_for(kube.get("/api/v1/pods"), 10)
