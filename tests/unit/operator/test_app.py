"""The operator process around the queue: leading, stopping, noticing a watch that has died.

kopf's watches are the end-to-end tests' part; here a test says what was watched.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests import patience
from tests.patience import until_async
from tests.support.lifecycle.builders import make_run
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_operator import app as app_module
from trainyard_operator import lease as lease_module
from trainyard_operator import reports
from trainyard_operator.app import App, StoppedError
from trainyard_operator.client import Kube
from trainyard_operator.observe import Key, Observer
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
    """List again and again, as if hours passed: what is never told is missed at once."""
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
    settings = Settings(own_namespace="ops", identity=identity, host="127.0.0.1", port=0)
    async with reports.session() as http:
        app, stop = App(settings, kube, Observer(kube, http)), asyncio.Event()
        task = asyncio.create_task(app.run(stop))
        try:
            yield app, task, stop
        finally:
            stop.set()
            await asyncio.wait({task}, timeout=patience.SECONDS)
            assert task.done(), "the operator didn't stop"


def watched(app: App, state: ApiServer) -> None:
    app.run_changed(state.objects[RUN], deleted=False)


async def test_runs_that_were_there_before_are_found_and_the_lease_is_given_back() -> None:
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
            assert second.wrong() == "", "a standby is ready to take over"
            stop.set()
            await until_async(lambda: state.objects[LEASE]["spec"]["holderIdentity"] == "b")
            put_run(state)
            watched(second, state)
            await until_async(lambda: POD in state.objects)


async def test_a_lost_lease_ends_the_process() -> None:
    async with api_server() as (state, kube), operator(kube) as (_, task, _):
        await until_async(lambda: LEASE in state.objects)
        lease = state.objects[LEASE]
        state.put(LEASE, {**lease, "spec": {**lease["spec"], "holderIdentity": "thief"}})
        with pytest.raises(StoppedError, match="lease was lost"):
            await asyncio.wait_for(task, patience.SECONDS)
        assert state.objects[LEASE]["spec"]["holderIdentity"] == "thief"


@pytest.mark.usefixtures("resync")
async def test_a_watch_that_has_died_ends_the_process() -> None:
    async with api_server() as (state, kube), operator(kube) as (_, task, _):
        await until_async(lambda: LEASE in state.objects)
        put_run(state)
        with pytest.raises(StoppedError, match="the watch has died: it never told of ns/r"):
            await asyncio.wait_for(task, patience.SECONDS)


async def listed_again(state: ApiServer) -> None:
    count = state.requests.count(LIST)
    await until_async(lambda: state.requests.count(LIST) > count)


@pytest.mark.usefixtures("resync")
async def test_a_watch_that_tells_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    async with api_server() as (state, kube), operator(kube) as (app, task, _):
        put = state.put

        def put_and_tell(path: str, body: dict[str, Any]) -> dict[str, Any]:
            stored = put(path, body)
            if path == RUN:  # at once: between two lists would be too late
                watched(app, state)
            return stored

        monkeypatch.setattr(state, "put", put_and_tell)
        put_run(state, deletionTimestamp="2026-01-01T00:00:00Z")  # nothing to do: it won't change
        await until_async(lambda: ("PUT", f"{RUN}/status") in state.requests)
        for _ in range(5):
            await listed_again(state)
        assert not task.done()


async def test_what_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answering our own status writes, which come back as events, would never end."""
    async with api_server() as (state, kube), reports.session() as http:
        app = App(Settings(), kube, Observer(kube, http))
        added: list[Key] = []
        monkeypatch.setattr(app._run_feed, "_add", added.append)

        def tell(deleted: bool = False, **metadata: Any) -> int:
            app.run_changed(put_run(state, **metadata), deleted=deleted)
            return len(added)

        assert tell() == 1, "a new run"
        assert tell() == 1, "another version of the same spec: a status was written"
        assert tell(generation=2) == 2, "the spec was changed"
        assert tell(generation=2, deletionTimestamp="2026-01-01T00:00:00Z") == 3
        assert tell(deleted=True, generation=2) == 4
        assert tell(uid="another", generation=2) == 5, "made again under the same name"


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"TRAINYARD_PORT": "many"}, "TRAINYARD_PORT: a whole number"),
        ({"TRAINYARD_WORKERS": "0"}, "TRAINYARD_WORKERS: a whole number from 1 on"),
        ({"TRAINYARD_LOG_FORMAT": "xml"}, "TRAINYARD_LOG_FORMAT: json or text"),
    ],
)
def test_settings_that_make_no_sense(env: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings.from_env(env)


def test_settings() -> None:
    settings = Settings.from_env(
        {"TRAINYARD_NAMESPACE": "team", "POD_NAME": "pod-1", "POD_NAMESPACE": "ops"}
    )
    assert (settings.namespace, settings.identity, settings.own_namespace) == (
        "team",
        "pod-1",
        "ops",
    )
    assert Settings.from_env({}).identity != ""
