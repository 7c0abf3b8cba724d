"""A changed storage.whenDeleted over HTTP: whose claim is changed, when, and at what cost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.lifecycle.builders import make_run
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_operator import probes
from trainyard_operator.controller import Controller
from trainyard_operator.manifests import Images
from trainyard_operator.metrics import OperatorMetrics
from trainyard_operator.objects import ObjectKey
from trainyard_operator.runs import RunReconciler

RUN = "/apis/trainyard.dev/v1alpha1/namespaces/ns/trainingruns/r"
PODS = "/api/v1/namespaces/ns/pods"
CLAIM = "/api/v1/namespaces/ns/persistentvolumeclaims/r"
RETAIN = {"whenDeleted": "Retain"}


class Stage:
    """A stored run whose pods run, and its controller."""

    def __init__(self, state: ApiServer, controller: Controller[Any, Any, Any]) -> None:
        self.state = state
        self.controller = controller

    async def reconcile(self) -> list[tuple[str, str]]:
        """Reconcile once; the requests that it took."""
        before = len(self.state.requests)
        await self.controller.reconcile(ObjectKey("ns", "r"))
        return self.state.requests[before:]

    def edit(self, storage: dict[str, Any] | None) -> None:
        raw = self.state.objects[RUN]
        generation = raw["metadata"]["generation"] + 1
        metadata = raw["metadata"] | {"generation": generation}
        spec = {key: value for key, value in raw["spec"].items() if key != "storage"}
        spec |= {"storage": storage} if storage else {}
        self.state.put(RUN, {**raw, "metadata": metadata, "spec": spec})

    @property
    def owners(self) -> list[str]:
        """Uids of the claim's owners."""
        owners = self.state.objects[CLAIM]["metadata"].get("ownerReferences", [])
        return [owner["uid"] for owner in owners]

    @property
    def said(self) -> str | None:
        status: dict[str, Any] = self.state.objects[RUN].get("status", {})
        return status.get("whenDeleted")


@asynccontextmanager
async def stage(
    claim: dict[str, Any] | None = None, **spec: Any
) -> AsyncIterator[tuple[ApiServer, Stage]]:
    """claim: one that is there before the run."""
    async with api_server() as (state, kube), probes.session() as http:
        wire = make_run(numNodes=1, command=["train.py"], **spec).to_wire()
        wire.pop("status")
        state.put(RUN, wire)
        if claim is not None:
            state.put(CLAIM, claim)
        metrics = OperatorMetrics()
        made = Stage(
            state, Controller(kube, RunReconciler(kube, http, Images("ours:1"), metrics), metrics)
        )
        await made.reconcile()  # creates claim, Service and pod
        running = {"containerStatuses": [{"name": "trainer", "state": {"running": {}}}]}
        pod = state.objects[f"{PODS}/r-1-0"]
        state.put(f"{PODS}/r-1-0", {**pod, "status": running})
        await made.reconcile()
        yield state, made


async def test_the_claim_follows_and_nothing_is_asked_when_nothing_changed() -> None:
    async with stage() as (state, run):
        assert (run.owners, run.said) == (["u"], "Delete")
        quiet = await run.reconcile()
        assert ("GET", CLAIM) not in quiet
        run.edit(RETAIN)
        changing = await run.reconcile()
        extra = [
            ("PUT", f"{RUN}/status"),  # Changing, before the claim is touched
            ("GET", CLAIM),
            ("PUT", CLAIM),
            ("PUT", f"{RUN}/status"),
        ]
        assert [request for request in changing if request not in quiet] == extra
        assert (run.owners, run.said) == ([], "Retain")
        assert len(await run.reconcile()) == len(quiet)
        run.edit({"whenDeleted": "Delete"})
        assert len(await run.reconcile()) == len(quiet) + len(extra)
        assert (run.owners, run.said) == (["u"], "Delete")
        (owner,) = state.objects[CLAIM]["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["controller"]) == ("TrainingRun", "r", True)


async def test_the_rest_of_the_claim_stays_as_it_is() -> None:
    async with stage() as (state, run):
        claim = state.objects[CLAIM]
        metadata = claim["metadata"] | {"annotations": {"bound": "yes"}}
        bound = {**claim, "metadata": metadata, "status": {"phase": "Bound"}}
        state.put(CLAIM, bound)
        run.edit(RETAIN)
        await run.reconcile()
        found = state.objects[CLAIM]
        changed = {"ownerReferences", "resourceVersion"}
        assert {key for key in metadata if found["metadata"][key] != metadata[key]} == changed
        assert (found["spec"], found["status"]) == (bound["spec"], bound["status"])


async def test_a_default_that_is_written_out_costs_nothing() -> None:
    async with stage() as (_, run):
        quiet = len(await run.reconcile())
        run.edit({"whenDeleted": "Delete"})
        changed = await run.reconcile()
        assert ("GET", CLAIM) not in changed
        assert len(changed) == quiet + 1  # observedGeneration


async def test_a_claim_of_the_users_is_not_even_read() -> None:
    async with stage(storage={"claimName": "mine"}) as (state, run):
        state.put(CLAIM.replace("/r", "/mine"), {})
        for _ in range(2):
            run.edit({"claimName": "mine"})
            assert not [path for _, path in await run.reconcile() if "claims" in path]
        assert run.said is None


@pytest.mark.parametrize(
    "metadata",
    [
        {},  # made by hand, with the run's name
        {"labels": {"trainyard.dev/run": "r"}},
        {
            "labels": {"trainyard.dev/run": "r", "app.kubernetes.io/managed-by": "trainyard"},
            "ownerReferences": [{"uid": "somebody", "kind": "App", "name": "a"}],
        },
    ],
)
async def test_a_claim_that_is_not_ours_is_left_alone(metadata: dict[str, Any]) -> None:
    async with stage() as (state, run):
        theirs = state.put(CLAIM, {"metadata": metadata})
        for storage in (RETAIN, {"whenDeleted": "Delete"}):
            run.edit(storage)
            await run.reconcile()
            assert state.objects[CLAIM] == theirs
            assert run.said == storage["whenDeleted"], "it is not looked at again and again"


async def test_a_claim_that_an_earlier_run_left_is_owned_only_on_request() -> None:
    labels = {"trainyard.dev/run": "r", "app.kubernetes.io/managed-by": "trainyard"}
    async with stage(claim={"metadata": {"labels": labels}}) as (_, run):
        await run.reconcile()
        assert run.owners == []
        run.edit(RETAIN)
        await run.reconcile()
        assert run.owners == []
        run.edit({"whenDeleted": "Delete"})
        await run.reconcile()
        assert run.owners == ["u"]


async def test_a_refusal_is_reported_and_retried_and_stops_nothing() -> None:
    async with stage() as (state, run):
        state.refuse("PUT", "persistentvolumeclaims", 403, "Forbidden", "claims are ours")
        run.edit(RETAIN)
        await run.reconcile()
        await run.reconcile()
        assert (run.owners, run.said) == (["u"], "Changing")
        events = [item for path, item in state.objects.items() if "/events/" in path]
        (event,) = [event for event in events if event["reason"] == "ClaimNotChanged"]
        assert event["type"] == "Warning"
        assert "storage.whenDeleted yet: claims are ours" in event["message"]
        del state.objects[
            f"{PODS}/r-1-0"
        ]  # a disruption: the next attempt is prepared all the same
        await run.reconcile()
        assert state.objects[RUN]["status"]["phase"] == "Restarting"
        state.accept()
        await run.reconcile()
        assert (run.owners, run.said) == ([], "Retain")


async def test_a_claim_that_changed_meanwhile_is_read_again() -> None:
    async with stage() as (state, run):
        state.refuse("PUT", "persistentvolumeclaims", 409, "Conflict", "modified")
        run.edit(RETAIN)
        assert await run.controller.reconcile(ObjectKey("ns", "r")) == 0
        assert run.said == "Changing"
        state.accept()
        await run.reconcile()
        assert (run.owners, run.said) == ([], "Retain")
