"""Plans of runs carried out over HTTP: the order, and what counts as done."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import ClientSession

from tests import patience
from tests.support.lifecycle.builders import T0, make_run
from tests.support.operator.api_server import ApiServer, api_server
from trainyard_api.run import TrainingRun
from trainyard_api.status import Attempt, TrainingRunStatus
from trainyard_lifecycle.plan import Event, Observed, Plan, WorkerKey
from trainyard_operator import probes
from trainyard_operator.client import ApiError, Kube, RejectedError
from trainyard_operator.controller import Controller
from trainyard_operator.manifests import Images
from trainyard_operator.metrics import OperatorMetrics
from trainyard_operator.objects import ObjectKey, parse
from trainyard_operator.runs import RunReconciler, grace_seconds

RUN = "/apis/trainyard.dev/v1alpha1/namespaces/ns/trainingruns/r"
NS = "/api/v1/namespaces/ns"


class Stage:
    """A stored run, and a controller to carry plans out on it."""

    def __init__(self, state: ApiServer, kube: Kube, http: ClientSession, **spec: Any) -> None:
        self.state = state
        metrics = OperatorMetrics()
        self.controller = Controller(
            kube, RunReconciler(kube, http, Images("ours:1"), metrics), metrics
        )
        wire = make_run(**spec).to_wire()
        wire.pop("status")
        self.raw = state.put(RUN, wire)

    async def apply(self, plan: Plan, raw: dict[str, Any] | None = None) -> None:
        """Apply to the run as it is now, or as it was read earlier."""
        raw = raw or self.state.objects[RUN]
        run = parse(TrainingRun, raw)
        async with asyncio.timeout(patience.SECONDS):
            await self.controller.execute(raw, run, Observed(run, datetime.now(UTC)), plan)

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.state.objects[RUN].get("status", {})
        return found


@asynccontextmanager
async def make_stage(**spec: Any) -> AsyncIterator[tuple[ApiServer, Stage]]:
    async with api_server() as (state, kube), probes.session() as http:
        yield state, Stage(state, kube, http, **spec)


def plan(**fields: Any) -> Plan:
    """The plan that begins a first attempt with two pods."""
    status = TrainingRunStatus(phase="Pending", reason="Creating", attempt=1, nodes=2)
    base = Plan(status, create=(WorkerKey(1, 0), WorkerKey(1, 1)), nodes=2)
    return replace(base, **fields)


async def test_the_order_is_events_status_deletions_creations_run() -> None:
    async with make_stage() as (state, stage):
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


async def test_carrying_a_plan_out_twice_changes_nothing() -> None:
    async with make_stage() as (state, stage):
        first = plan(events=(Event("Normal", "AttemptStarted", "go", "1-started"),))
        await stage.apply(first)
        names = set(state.objects)
        uids = {path: item["metadata"]["uid"] for path, item in state.objects.items()}
        await stage.apply(replace(first, delete=("r-0-0",)))
        assert set(state.objects) == names
        assert uids == {path: item["metadata"]["uid"] for path, item in state.objects.items()}


async def test_an_unchanged_status_is_not_written() -> None:
    async with make_stage() as (state, stage):
        still = Plan(TrainingRunStatus(phase="Running"))
        await stage.apply(still)
        before = len(state.writes())
        await stage.apply(still)
        assert len(state.writes()) == before


async def test_nothing_is_done_for_a_run_that_has_changed_since_it_was_read() -> None:
    async with make_stage() as (state, stage):
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
async def test_the_status_says_why_a_pod_was_rejected(
    status: int, reason: str, message: str
) -> None:
    async with make_stage() as (state, stage):
        state.refuse("POST", "/pods", status, reason, message)
        with pytest.raises(RejectedError):
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


async def test_an_error_of_the_api_server_is_not_a_rejection() -> None:
    async with make_stage() as (state, stage):
        state.refuse("POST", "/pods", 503, "ServiceUnavailable", "etcd is away")
        with pytest.raises(ApiError, match="etcd is away"):
            await stage.apply(plan())
        assert stage.status["reason"] == "Creating"


async def test_the_error_of_a_webhook_is_in_the_status() -> None:
    async with make_stage() as (state, stage):
        said = 'failed calling webhook "quota.example.com"'
        state.refuse("POST", "/pods", 500, "InternalError", said)
        with pytest.raises(RejectedError, match="failed calling webhook"):
            await stage.apply(plan())
        assert (stage.status["phase"], stage.status["reason"]) == ("Pending", "Rejected")
        assert said in stage.status["message"]


async def test_a_name_that_another_pod_has_is_said() -> None:
    async with make_stage() as (state, stage):
        state.put(f"{NS}/pods/r-1-0", {})
        with pytest.raises(RejectedError, match="a Pod named r-1-0 already exists"):
            await stage.apply(plan())
        assert "r-1-0" in stage.status["message"]


async def test_a_pod_that_exists_does_not_stop_the_others() -> None:
    async with make_stage(numNodes=8) as (state, stage):
        owner = {"ownerReferences": [{"uid": stage.raw["metadata"]["uid"]}]}
        state.put(f"{NS}/pods/r-1-3", {"metadata": owner})
        create = tuple(WorkerKey(1, node) for node in range(8))
        await stage.apply(plan(create=create, nodes=8))
        pods = [path for path in state.objects if path.startswith(f"{NS}/pods/")]
        assert len(pods) == 8


async def test_events_that_cannot_be_written_do_not_stop_a_run() -> None:
    async with make_stage() as (state, stage):
        state.refuse("POST", "/events", 403, "Forbidden", "namespace is terminating")
        await stage.apply(plan(events=(Event("Normal", "X", "x", "x"),)))
        assert stage.status["phase"] == "Pending"


async def test_a_service_of_another_owner_is_left_alone() -> None:
    async with make_stage() as (state, stage):
        theirs = state.put(f"{NS}/services/r", {"spec": {"ports": []}})
        with pytest.raises(RejectedError, match="a Service named r already exists: rename the run"):
            await stage.apply(plan())
        assert state.objects[f"{NS}/services/r"] == theirs
        assert "rename" in stage.status["message"]


async def test_a_claim_of_an_earlier_run_is_a_rejection() -> None:
    async with make_stage() as (state, stage):
        deleting = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
        state.put(f"{NS}/persistentvolumeclaims/r", {"metadata": deleting})
        with pytest.raises(RejectedError, match="still being deleted"):
            await stage.apply(plan())
        owner = {"uid": "older", "kind": "TrainingRun", "name": "r"}
        state.put(f"{NS}/persistentvolumeclaims/r", {"metadata": {"ownerReferences": [owner]}})
        with pytest.raises(RejectedError, match="belongs to TrainingRun r"):
            await stage.apply(plan())


async def test_a_retained_claim_is_reused_unchanged() -> None:
    async with make_stage() as (state, stage):
        kept = state.put(f"{NS}/persistentvolumeclaims/r", {"spec": {"volumeName": "v"}})
        await stage.apply(plan())
        assert state.objects[f"{NS}/persistentvolumeclaims/r"] == kept


async def test_the_runs_own_service_is_restored() -> None:
    async with make_stage() as (state, stage):
        await stage.apply(plan())
        state.objects[f"{NS}/services/r"]["spec"]["selector"] = {}
        await stage.apply(plan())
        selector = state.objects[f"{NS}/services/r"]["spec"]["selector"]
        assert selector == {"trainyard.dev/run": "r"}


async def test_a_newer_run_of_the_same_name_is_not_deleted() -> None:
    async with make_stage() as (state, stage):
        await stage.apply(Plan(TrainingRunStatus(phase="Succeeded")))
        raw = state.objects[RUN]
        state.put(RUN, {**raw, "metadata": {**raw["metadata"], "uid": "a newer one"}})
        await stage.apply(Plan(parse(TrainingRun, raw).status, delete_run=True), raw)
        assert RUN in state.objects


@pytest.mark.parametrize(
    ("outcome", "reason", "grace"),
    [
        ("Failed", "Signal", 5),
        ("Failed", "NodeLost", 5),  # the others can't reach it, and so can't save together
        ("Failed", "Evicted", None),
        ("Failed", "Preempted", None),
        ("Failed", "PodDeleted", None),
        ("Suspended", "Suspended", None),
    ],
)
def test_pods_that_can_still_save_get_their_whole_time(
    outcome: str, reason: str, grace: int | None
) -> None:
    record = {"number": 1, "startTime": T0, "outcome": outcome, "reason": reason}
    attempt = Attempt.model_validate(record)
    assert grace_seconds(TrainingRunStatus(attempts=[attempt])) == grace


@pytest.mark.parametrize("changes", [{"precision": "fp8"}, {"novelty": {"a": 1}}])
async def test_what_only_a_newer_operator_knows_changes_no_phase(changes: dict[str, Any]) -> None:
    async with make_stage() as (state, stage):
        await stage.apply(plan())
        before = dict(stage.status)
        stage.raw["spec"] |= changes
        assert await stage.controller.reconcile(ObjectKey("ns", "r")) is None
        after = dict(stage.status)
        condition = after.pop("conditions")[-1]
        assert (condition["type"], condition["status"]) == ("Unsupported", "True")
        assert next(iter(changes)) in condition["message"]
        before.pop("conditions", None)
        assert after == before
        written = len(state.writes())
        assert await stage.controller.reconcile(ObjectKey("ns", "r")) is None
        assert len(state.writes()) == written


@pytest.mark.parametrize("generation", [1, 2])
async def test_a_failed_run_changed_to_unknown_settings_says_so(generation: int) -> None:
    """What has ended and was not changed is left alone, such as all old runs after an upgrade."""
    async with make_stage() as (state, stage):
        ended = {"phase": "Failed", "reason": "Signal", "attempt": 1, "observedGeneration": 1}
        stage.raw["spec"]["novelty"] = 1
        stage.raw["metadata"]["generation"] = generation
        state.put(RUN, {**stage.raw, "status": ended})
        assert await stage.controller.reconcile(ObjectKey("ns", "r")) is None
        conditions = stage.status.pop("conditions", [])
        assert [c["type"] for c in conditions] == ["Unsupported"] * (generation - 1)
        assert stage.status == ended


async def test_what_a_newer_operator_wrote_stays_when_this_one_writes() -> None:
    async with make_stage() as (state, stage):
        attempt = {"number": 1, "startTime": "2026-01-01T00:00:00Z", "outcome": "Migrated"}
        newer: dict[str, Any] = {
            "phase": "Restarting",
            "attempt": 1,
            "nodes": 2,
            "nextAttemptTime": "2026-01-01T00:00:00Z",
            "novelty": {"a": [1]},
            "attempts": [{**attempt, "zone": "a"}],
            "conditions": [{"type": "Audited", "status": "True"}],
        }
        state.put(RUN, {**state.objects[RUN], "status": newer})
        assert await stage.controller.reconcile(ObjectKey("ns", "r")) is not None
        assert (stage.status["phase"], stage.status["attempt"]) == ("Pending", 2)
        assert stage.status["novelty"] == {"a": [1]}
        first = stage.status["attempts"][0]
        assert (first["outcome"], first["zone"]) == ("Migrated", "a")
        assert stage.status["conditions"][0] == newer["conditions"][0] | {
            "reason": "",
            "message": "",
        }


async def test_a_phase_of_a_newer_operator_is_left_alone() -> None:
    async with make_stage() as (state, stage):
        state.put(RUN, {**state.objects[RUN], "status": {"phase": "Paused", "novelty": 1}})
        assert await stage.controller.reconcile(ObjectKey("ns", "r")) is None
        (condition,) = stage.status.pop("conditions")
        assert (condition["type"], condition["reason"]) == ("Unsupported", "UnknownToThisVersion")
        assert "status.phase" in condition["message"]
        assert stage.status == {"phase": "Paused", "novelty": 1}
        assert not [path for path in state.objects if "/pods/" in path]


async def test_an_invalid_spec_is_reported_once_in_the_status() -> None:
    async with make_stage() as (state, stage):
        stage.raw["spec"]["seed"] = -1
        assert await stage.controller.reconcile(ObjectKey("ns", "r")) is None
        assert (stage.status["phase"], stage.status["reason"]) == ("Failed", "InvalidSpec")
        assert stage.status["message"].startswith("spec.seed: Input should be greater")
        written = len(state.writes())
        assert await stage.controller.reconcile(ObjectKey("ns", "r")) is None
        assert len(state.writes()) == written
