"""An informer: what is listed and watched of a kind, what is queued, and stale watches."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.lifecycle.builders import make_run
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_operator.client import Kube
from trainyard_operator.metrics import OperatorMetrics
from trainyard_operator.objects import ObjectKey
from trainyard_operator.watch import Informer

RUNS = "/apis/trainyard.dev/v1alpha1/namespaces/ns/trainingruns"


def put_run(state: ApiServer, name: str = "r", **status: Any) -> Mapping[str, Any]:
    wire = make_run(numNodes=2).to_wire()
    wire["metadata"] = {"name": name, "uid": f"uid-of-{name}"}
    return state.put(f"{RUNS}/{name}", {**wire, "status": status})


def make_informer(
    kube: Kube, metrics: OperatorMetrics, namespace: str = ""
) -> tuple[Informer, list[ObjectKey]]:
    added: list[ObjectKey] = []
    return Informer(kube, "trainingruns", namespace, added.append, metrics.runs), added


@pytest.mark.parametrize("namespace", ["", "ns"])
async def test_the_list_queues_every_run_and_forgets_deleted_ones(namespace: str) -> None:
    metrics = OperatorMetrics()

    def runs(phase: str) -> float | None:
        return metrics.registry.get_sample_value("trainyard_operator_runs", {"phase": phase})

    async with api_server() as (state, kube):
        informer, added = make_informer(kube, metrics, namespace)
        put_run(state, "a", phase="Running")
        put_run(state, "b")
        await informer.list()
        assert added == [ObjectKey("ns", "a"), ObjectKey("ns", "b")]
        assert (runs("Running"), runs("Pending")) == (1, 1)
        del state.objects[f"{RUNS}/a"]
        await informer.list()
        assert runs("Running") is None
        informer.on_event(state.objects[f"{RUNS}/b"], deleted=True)
        assert runs("Pending") is None


async def test_an_object_listed_twice_without_an_event_proves_the_watch_stale() -> None:
    async with api_server() as (state, kube):
        informer, _ = make_informer(kube, OperatorMetrics())
        put_run(state)
        await informer.list()
        assert await informer.resync() == ObjectKey("ns", "r")
        informer.on_event(state.objects[f"{RUNS}/r"], deleted=False)
        assert await informer.resync() is None
        put_run(state)
        assert await informer.resync() is None, "it has just changed: the event may be under way"


async def test_an_event_delivered_while_the_list_is_read_proves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with api_server() as (state, kube):
        informer, _ = make_informer(kube, OperatorMetrics())
        informer.on_event(put_run(state), deleted=False)
        await informer.list()
        list_all = kube.list_all

        async def slow(path: str) -> Any:
            items = await list_all(path)
            informer.on_event(put_run(state), deleted=False)
            return items

        monkeypatch.setattr(kube, "list_all", slow)
        assert await informer.resync() is None
