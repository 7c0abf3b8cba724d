"""Leader election, over HTTP."""

import asyncio

import pytest

from tests import patience
from tests.patience import until_async
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_operator import lease as lease_module
from trainyard_operator.client import Kube
from trainyard_operator.lease import Lease

PATH = "/apis/coordination.k8s.io/v1/namespaces/ops/leases/trainyard"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(lease_module, "RENEW_DEADLINE_SECONDS", patience.SECONDS)


def candidate(kube: Kube, identity: str) -> Lease:
    return Lease(kube, "ops", "trainyard", identity)


def holder(state: ApiServer) -> str:
    return str(state.objects[PATH]["spec"]["holderIdentity"])


async def test_the_first_one_leads_and_the_second_waits_until_it_is_released() -> None:
    async with api_server() as (state, kube), asyncio.timeout(patience.SECONDS):
        first, second = candidate(kube, "a"), candidate(kube, "b")
        await first.acquire()
        assert (first.held, holder(state)) == (True, "a")
        waiting = asyncio.create_task(second.acquire())
        keeping = asyncio.create_task(first.keep())
        renewed = state.objects[PATH]["spec"]["renewTime"]
        await until_async(lambda: state.objects[PATH]["spec"]["renewTime"] != renewed)
        assert not waiting.done()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await first.release()
        await waiting
        assert (first.held, second.held, holder(state)) == (False, True, "b")
        assert state.objects[PATH]["spec"]["leaseTransitions"] == 2


async def test_a_lease_that_nobody_renews_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 1)
    async with api_server() as (state, kube), asyncio.timeout(patience.SECONDS):
        await candidate(kube, "dead").acquire()
        await candidate(kube, "b").acquire()
        assert holder(state) == "b"


async def test_the_same_pod_restarted_leads_again_at_once() -> None:
    async with api_server() as (state, kube), asyncio.timeout(patience.SECONDS):
        await candidate(kube, "pod-1").acquire()
        again = candidate(kube, "pod-1")
        await again.acquire()
        assert again.held
        assert state.objects[PATH]["spec"]["leaseTransitions"] == 1


async def test_a_leader_stops_when_another_has_the_lease() -> None:
    async with api_server() as (state, kube), asyncio.timeout(patience.SECONDS):
        first = candidate(kube, "a")
        await first.acquire()
        lease = state.objects[PATH]
        state.put(PATH, {**lease, "spec": {**lease["spec"], "holderIdentity": "b"}})
        await first.keep()
        assert not first.held
        await first.release()
        assert holder(state) == "b", "what isn't ours isn't given back"


async def test_a_leader_that_cant_renew_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_DEADLINE_SECONDS", 0.2)
    async with api_server() as (state, kube), asyncio.timeout(patience.SECONDS):
        first = candidate(kube, "a")
        await first.acquire()
        state.refuse("PUT", "/leases/", 500, "InternalError", "etcd is away")
        await first.keep()
        assert not first.held


async def test_a_short_failure_does_not_lose_the_lease() -> None:
    async with api_server() as (state, kube), asyncio.timeout(patience.SECONDS):
        first = candidate(kube, "a")
        await first.acquire()
        keeping = asyncio.create_task(first.keep())
        state.refuse("PUT", "/leases/", 500, "InternalError", "etcd is away")
        failed = len(state.requests)
        await until_async(lambda: len(state.requests) >= failed + 4)
        state.accept()
        version = state.objects[PATH]["metadata"]["resourceVersion"]
        await until_async(lambda: state.objects[PATH]["metadata"]["resourceVersion"] != version)
        assert first.held
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
