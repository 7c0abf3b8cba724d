"""A feed: what is listed and watched of a kind, what of it is news, and who is told."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.lifecycle.builders import make_run
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_operator.client import Kube
from trainyard_operator.feed import Feed
from trainyard_operator.instruments import Instruments
from trainyard_operator.observe import Key

RUNS = "/apis/trainyard.dev/v1alpha1/namespaces/ns/trainingruns"


def put_run(state: ApiServer, name: str = "r", **status: Any) -> Mapping[str, Any]:
    wire = make_run(numNodes=2).to_wire()
    wire["metadata"] = {"name": name, "uid": f"uid-of-{name}"}
    return state.put(f"{RUNS}/{name}", {**wire, "status": status})


def make_feed(kube: Kube, instruments: Instruments, namespace: str = "") -> tuple[Feed, list[Key]]:
    added: list[Key] = []
    told = instruments.seen, instruments.seen_all
    return Feed(kube, "trainingruns", namespace, added.append, *told), added


@pytest.mark.parametrize("namespace", ["", "ns"])
async def test_the_list_finds_every_run_and_forgets_those_that_are_gone(namespace: str) -> None:
    instruments = Instruments()

    def runs(phase: str) -> float | None:
        return instruments.registry.get_sample_value("trainyard_operator_runs", {"phase": phase})

    async with api_server() as (state, kube):
        feed, added = make_feed(kube, instruments, namespace)
        put_run(state, "a", phase="Running")
        put_run(state, "b")
        await feed.list()
        assert added == [Key("ns", "a"), Key("ns", "b")]
        assert (runs("Running"), runs("Pending")) == (1, 1)
        del state.objects[f"{RUNS}/a"]
        await feed.list()
        assert runs("Running") is None
        feed.changed(state.objects[f"{RUNS}/b"], deleted=True)
        assert runs("Pending") is None


async def test_what_was_listed_twice_and_never_watched_proves_that_the_watch_is_dead() -> None:
    async with api_server() as (state, kube):
        feed, _ = make_feed(kube, Instruments())
        put_run(state)
        await feed.list()
        assert await feed.list_again() == Key("ns", "r")
        feed.changed(state.objects[f"{RUNS}/r"], deleted=False)
        assert await feed.list_again() is None
        put_run(state)
        assert await feed.list_again() is None, "it has just changed: the event may be under way"


async def test_a_change_that_is_told_before_the_list_is_read_proves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with api_server() as (state, kube):
        feed, _ = make_feed(kube, Instruments())
        feed.changed(put_run(state), deleted=False)
        await feed.list()
        list_all = kube.list_all

        async def slow(path: str) -> Any:
            items = await list_all(path)
            feed.changed(put_run(state), deleted=False)
            return items

        monkeypatch.setattr(kube, "list_all", slow)
        assert await feed.list_again() is None
