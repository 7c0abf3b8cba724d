"""Plans carried out over HTTP; the order, and what counts as done."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tests import patience
from tests.support.lifecycle.builders import T0, make_run
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_api.status import Attempt, TrainingRunStatus
from trainyard_lifecycle.plan import Event, Observed, Plan, WorkerKey
from trainyard_operator.client import Kube
from trainyard_operator.errors import ApiError, Rejected
from trainyard_operator.execute import Executor, grace_seconds
from trainyard_operator.stored import InvalidRun, parse_run
from trainyard_operator.write import event_object, to_status

RUN = "/apis/trainyard.dev/v1alpha1/namespaces/ns/trainingruns/r"
NS = "/api/v1/namespaces/ns"


class Stage:
    """A stored run, and an executor to apply plans to it."""

    def __init__(self, state: ApiServer, kube: Kube, **spec: Any) -> None:
        self.state = state
        self.executor = Executor(kube, "ours:1")
        wire = make_run(**spec).to_wire()
        wire.pop("status")
        self.raw = state.put(RUN, wire)

    async def apply(self, plan: Plan, raw: dict[str, Any] | None = None) -> None:
        """Apply to the run as it is now, or as it was read earlier."""
        raw = raw or self.state.objects[RUN]
        observed = Observed(parse_run(raw), datetime.now(UTC))
        async with asyncio.timeout(patience.SECONDS):
            await self.executor.apply(raw, observed, plan)

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.state.objects[RUN].get("status", {})
        return found


def plan(**fields: Any) -> Plan:
    """The plan that begins a first attempt with two pods."""
    status = TrainingRunStatus(phase="Pending", reason="Creating", attempt=1, nodes=2)
    base = Plan(status, create=(WorkerKey(1, 0), WorkerKey(1, 1)), nodes=2)
    return replace(base, **fields)


async def test_the_order_is_events_status_deletions_creations_run() -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube)
        state.put(f"{NS}/pods/r-0-0", {})
        await stage.apply(
            plan(
                events=(Event("Normal", "AttemptStarted", "go", "1-started"),),
                delete=("r-0-0",),
                delete_run=True,
            )
        )
        assert state.writes() == [
            ("POST", f"{NS}/events"),
            ("PUT", f"{RUN}/status"),
            ("DELETE", f"{NS}/pods/r-0-0"),
            ("POST", f"{NS}/persistentvolumeclaims"),
            ("POST", f"{NS}/services"),
            ("POST", f"{NS}/pods"),
            ("POST", f"{NS}/pods"),
            ("DELETE", RUN),
        ]


async def test_everything_again_changes_nothing() -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube)
        first = plan(events=(Event("Normal", "AttemptStarted", "go", "1-started"),))
        await stage.apply(first)
        names = set(state.objects)
        uids = {path: item["metadata"]["uid"] for path, item in state.objects.items()}
        await stage.apply(replace(first, delete=("r-0-0",)))
        assert set(state.objects) == names
        assert uids == {path: item["metadata"]["uid"] for path, item in state.objects.items()}


async def test_an_unchanged_status_is_not_written() -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube)
        still = Plan(TrainingRunStatus(phase="Running"))
        await stage.apply(still)
        before = len(state.writes())
        await stage.apply(still)
        assert len(state.writes()) == before


async def test_a_run_changed_meanwhile_is_a_conflict_and_nothing_else_is_done() -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube)
        state.put(RUN, stage.raw)
        with pytest.raises(ApiError) as caught:
            await stage.apply(plan(delete=("r-0-0",)), stage.raw)
        assert caught.value.reason == "Conflict"
        assert state.writes() == [("PUT", f"{RUN}/status")]


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (403, "Forbidden", 'pods "r-1-0" is forbidden: exceeded quota: gpus'),
        (422, "Invalid", 'Pod "r-1-0" is invalid: spec.x: bad'),
        (400, "BadRequest", 'strict decoding error: unknown field "spec.nodeSelectr"'),
    ],
)
async def test_a_refused_pod_is_told_in_the_status(status: int, reason: str, message: str) -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube)
        state.refuse("POST", "/pods", status, reason, message)
        with pytest.raises(Rejected):
            await stage.apply(plan())
        found = stage.status
        assert (found["phase"], found["reason"]) == ("Pending", "Rejected")
        assert found["message"] == message
        assert found["attempt"] == 1, "the decision itself is kept"
        [event] = [item for path, item in state.objects.items() if "/events/" in path]
        assert (event["type"], event["reason"], event["message"]) == (
            "Warning",
            "Rejected",
            message,
        )


async def test_an_absent_api_server_is_no_rejection() -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube)
        state.refuse("POST", "/pods", 500, "InternalError", "etcd is away")
        with pytest.raises(ApiError, match="etcd is away"):
            await stage.apply(plan())
        assert stage.status["reason"] == "Creating"


async def test_one_refused_pod_doesnt_keep_the_others_from_being_made() -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube, numNodes=8)
        state.put(f"{NS}/pods/r-1-3", {})
        create = tuple(WorkerKey(1, node) for node in range(8))
        await stage.apply(plan(create=create, nodes=8))
        pods = [path for path in state.objects if path.startswith(f"{NS}/pods/")]
        assert len(pods) == 8


async def test_events_never_stop_a_run() -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube)
        state.refuse("POST", "/events", 403, "Forbidden", "namespace is terminating")
        await stage.apply(plan(events=(Event("Normal", "X", "x", "x"),)))
        assert stage.status["phase"] == "Pending"


async def test_somebody_elses_service_is_left_alone() -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube)
        theirs = state.put(f"{NS}/services/r", {"spec": {"ports": []}})
        with pytest.raises(Rejected, match="a Service named r is already there: rename the run"):
            await stage.apply(plan())
        assert state.objects[f"{NS}/services/r"] == theirs
        assert "rename" in stage.status["message"]


async def test_an_older_runs_claim_must_go_first() -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube)
        deleting = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
        state.put(f"{NS}/persistentvolumeclaims/r", {"metadata": deleting})
        with pytest.raises(Rejected, match="still being deleted"):
            await stage.apply(plan())
        owner = {"uid": "older", "kind": "TrainingRun", "name": "r"}
        state.put(f"{NS}/persistentvolumeclaims/r", {"metadata": {"ownerReferences": [owner]}})
        with pytest.raises(Rejected, match="belongs to TrainingRun r"):
            await stage.apply(plan())


async def test_a_retained_claim_is_used_again_as_it_is() -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube)
        kept = state.put(f"{NS}/persistentvolumeclaims/r", {"spec": {"volumeName": "v"}})
        await stage.apply(plan())
        assert state.objects[f"{NS}/persistentvolumeclaims/r"] == kept


async def test_our_service_is_mended() -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube)
        await stage.apply(plan())
        state.objects[f"{NS}/services/r"]["spec"]["selector"] = {}
        await stage.apply(plan())
        selector = state.objects[f"{NS}/services/r"]["spec"]["selector"]
        assert selector == {"trainyard.dev/run": "r"}


async def test_only_this_very_run_is_deleted() -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube)
        await stage.apply(Plan(TrainingRunStatus(phase="Succeeded")))
        raw = state.objects[RUN]
        state.put(RUN, {**raw, "metadata": {**raw["metadata"], "uid": "a newer one"}})
        await stage.apply(Plan(parse_run(raw).status, delete_run=True), raw)
        assert RUN in state.objects


async def test_an_invalid_spec_is_told() -> None:
    async with api_server() as (state, kube):
        stage = Stage(state, kube)
        stage.raw["spec"]["precision"] = "fp8"
        with pytest.raises(InvalidRun) as caught:
            parse_run(stage.raw)
        await stage.executor.refuse(caught.value)
        assert (stage.status["phase"], stage.status["reason"]) == ("Failed", "InvalidSpec")
        assert stage.status["message"].startswith("spec.precision: Input should be 'fp32'")
        written = len(state.writes())
        with pytest.raises(InvalidRun) as caught:
            parse_run(state.objects[RUN])
        await stage.executor.refuse(caught.value)
        assert len(state.writes()) == written, "told once"


@pytest.mark.parametrize(("outcome", "grace"), [("Failed", 5), ("Suspended", None)])
def test_who_has_nothing_left_to_save_gets_little_time(outcome: str, grace: int | None) -> None:
    attempt = Attempt.model_validate({"number": 1, "startTime": T0, "outcome": outcome})
    assert grace_seconds(TrainingRunStatus(attempts=[attempt])) == grace


def test_status_is_json() -> None:
    status = TrainingRunStatus(loss=float("nan"), eval_loss=float("inf"), tokens_per_second=1.5)
    wire = to_status(status)
    assert wire["tokensPerSecond"] == 1.5
    assert not {"loss", "evalLoss"} & wire.keys()


def test_event_names_are_deterministic_and_legal() -> None:
    run = make_run()
    event = Event("Warning", "Failed", "x" * 5000, "2-Pending-Image_Pull")
    first, second = (event_object(run, event, T0) for _ in range(2))
    assert first == second
    assert first["metadata"]["name"] == "r.u.2-pending-image-pull"
    assert len(first["message"]) == 1024
    assert first["involvedObject"]["uid"] == "u"
