"""The operator process around the queues: leading, stopping, stale watches, endpoints.

kopf's watches are the end-to-end tests' part; here a test delivers the events.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests import patience
from tests.patience import until_async
from tests.ports import free_port
from tests.support.lifecycle.builders import make_run
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_operator import app as app_module
from trainyard_operator import lease as lease_module
from trainyard_operator import probes
from trainyard_operator.app import App, FatalError, http_app, serve
from trainyard_operator.client import Kube
from trainyard_operator.metrics import OperatorMetrics
from trainyard_operator.objects import ObjectKey
from trainyard_operator.settings import Settings

RUN = "/apis/trainyard.dev/v1alpha1/namespaces/ns/trainingruns/r"
POD = "/api/v1/namespaces/ns/pods/r-1-0"
LIST = ("GET", "/apis/trainyard.dev/v1alpha1/trainingruns")
LEASE = "/apis/coordination.k8s.io/v1/namespaces/ops/leases/trainyard-operator"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(lease_module, "RENEW_DEADLINE_SECONDS", patience.SECONDS)
    monkeypatch.setattr(app_module, "RESYNC_SECONDS", 3600.0)

    async def watch(self: App, stop: asyncio.Event) -> None:
        await stop.wait()

    monkeypatch.setattr(App, "_watch", watch)


@pytest.fixture
def resync(monkeypatch: pytest.MonkeyPatch) -> None:
    """List every 50 ms, as if hours passed: an object without an event is missed at once."""
    monkeypatch.setattr(app_module, "RESYNC_SECONDS", 0.05)


def put_run(state: ApiServer, **metadata: Any) -> dict[str, Any]:
    wire = make_run(numNodes=1).to_wire()
    wire["metadata"] = {"name": "r", "uid": "u", "generation": 1, **metadata}
    wire.pop("status")
    return state.put(RUN, wire)


@asynccontextmanager
async def operator(
    kube: Kube, identity: str = "a"
) -> AsyncIterator[tuple[App, Any, asyncio.Event]]:
    """An App at work, its task, and the event that stops it."""
    settings = Settings(own_namespace="ops", identity=identity, host="127.0.0.1", port=free_port())
    async with probes.session() as http:
        app, stop = App(settings, kube, http), asyncio.Event()
        task = asyncio.create_task(app.run(stop))
        try:
            yield app, task, stop
        finally:
            stop.set()
            await asyncio.wait({task}, timeout=patience.SECONDS)
            assert task.done(), "the operator didn't stop"


def deliver(app: App, state: ApiServer) -> None:
    app.on_run(state.objects[RUN], deleted=False)


async def test_existing_runs_are_reconciled_and_the_lease_is_released() -> None:
    async with api_server() as (state, kube):
        put_run(state)
        async with operator(kube) as (_, task, stop):
            await until_async(lambda: POD in state.objects)
            assert state.objects[LEASE]["spec"]["holderIdentity"] == "a"
            stop.set()
            await asyncio.wait_for(task, patience.SECONDS)
        assert state.objects[LEASE]["spec"]["holderIdentity"] == ""


async def test_only_the_leader_acts() -> None:
    async with api_server() as (state, kube), operator(kube) as (_, _task, stop):
        await until_async(lambda: LEASE in state.objects)
        async with operator(kube, "b") as (second, _, _):
            assert second.problem() == "", "a standby is ready to take over"
            stop.set()
            await until_async(lambda: state.objects[LEASE]["spec"]["holderIdentity"] == "b")
            put_run(state)
            deliver(second, state)
            await until_async(lambda: POD in state.objects)


async def test_a_lost_lease_ends_the_process() -> None:
    async with api_server() as (state, kube), operator(kube) as (_, task, _):
        await until_async(lambda: LEASE in state.objects)
        lease = state.objects[LEASE]
        state.put(LEASE, {**lease, "spec": {**lease["spec"], "holderIdentity": "thief"}})
        with pytest.raises(FatalError, match="lost the lease"):
            await asyncio.wait_for(task, patience.SECONDS)
        assert state.objects[LEASE]["spec"]["holderIdentity"] == "thief"


@pytest.mark.usefixtures("resync")
async def test_a_stale_watch_ends_the_process() -> None:
    async with api_server() as (state, kube), operator(kube) as (_, task, _):
        await until_async(lambda: LEASE in state.objects)
        put_run(state)
        with pytest.raises(FatalError, match="watch is stale: no event received for ns/r"):
            await asyncio.wait_for(task, patience.SECONDS)


async def listed_again(state: ApiServer) -> None:
    count = state.requests.count(LIST)
    await until_async(lambda: state.requests.count(LIST) > count)


@pytest.mark.usefixtures("resync")
async def test_a_watch_that_delivers_events_is_not_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    async with api_server() as (state, kube), operator(kube) as (app, task, _):
        put = state.put

        def put_and_deliver(path: str, body: dict[str, Any]) -> dict[str, Any]:
            stored = put(path, body)
            if path == RUN:  # at once: between two lists would be too late
                deliver(app, state)
            return stored

        monkeypatch.setattr(state, "put", put_and_deliver)
        put_run(state, deletionTimestamp="2026-01-01T00:00:00Z")  # nothing to do: it won't change
        await until_async(lambda: ("PUT", f"{RUN}/status") in state.requests)
        for _ in range(5):
            await listed_again(state)
        assert not task.done()


async def test_changes_by_users_are_queued_and_our_own_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Answering our own status writes, which come back as events, would never end."""
    async with api_server() as (state, kube), probes.session() as http:
        app = App(Settings(), kube, http)
        added: list[ObjectKey] = []
        monkeypatch.setattr(app._run_informer, "_add", added.append)

        def change(deleted: bool = False, **metadata: Any) -> int:
            app.on_run(put_run(state, **metadata), deleted=deleted)
            return len(added)

        assert change() == 1, "a new run"
        assert change() == 1, "another version of the same spec: a status was written"
        assert change(generation=2) == 2, "the spec was changed"
        assert change(generation=2, annotations={"a": "b"}) == 2, "nothing that we act on"
        assert change(generation=2, deletionTimestamp="2026-01-01T00:00:00Z") == 3
        assert change(deleted=True, generation=2) == 4
        assert change(uid="another", generation=2) == 5, "made again under the same name"
        retry = {"trainyard.dev/retry": "1"}
        assert change(uid="another", generation=2, annotations=retry) == 6, "retry was asked for"


async def test_endpoints() -> None:
    metrics = OperatorMetrics()
    metrics.watch_queues(lambda: 3, lambda: 1)
    problem = ""
    app = http_app(lambda: problem, lambda: "not yet", metrics.registry)
    async with serve(app, "127.0.0.1", 0) as port, aiohttp.ClientSession() as http:

        async def get(path: str) -> tuple[int, str]:
            async with http.get(f"http://127.0.0.1:{port}{path}") as answer:
                return answer.status, await answer.text()

        assert await get("/healthz") == (200, "ok\n")
        assert await get("/readyz") == (503, "not yet\n")
        status, text = await get("/metrics")
        assert status == 200
        assert "trainyard_operator_queue_depth 3.0" in text
        assert "trainyard_operator_failing_runs 1.0" in text
        problem = "reconciling has stalled"
        assert await get("/healthz") == (503, "reconciling has stalled\n")
