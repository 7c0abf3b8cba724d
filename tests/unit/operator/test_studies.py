"""Studies over HTTP: from a stored study to its runs and back, what is refused, the series."""

from typing import Any

import pytest

from tests.support.operator.api_server import ApiServer, api_server
from tests.support.study.builders import make_study, succeeded
from trainyard_api.run import TrainingRun
from trainyard_api.study import ScalingStudy
from trainyard_operator.client import ApiError, Kube, RejectedError
from trainyard_operator.controller import Controller
from trainyard_operator.metrics import OperatorMetrics
from trainyard_operator.objects import ObjectKey
from trainyard_operator.studies import StudyReconciler

KEY = ObjectKey("ns", "s")
API = "/apis/trainyard.dev/v1alpha1/namespaces/ns"
STUDY = f"{API}/scalingstudies/s"


def put_study(state: ApiServer, **spec: Any) -> dict[str, Any]:
    wire = make_study(**spec).to_wire()
    wire.pop("status")
    return state.put(STUDY, wire)


def controller(kube: Kube) -> Controller[Any, Any, Any]:
    return Controller(kube, StudyReconciler(kube), OperatorMetrics())


def finish(state: ApiServer, name: str, samples_per_second: float) -> None:
    """Write a run's status as the run controller would."""
    path = f"{API}/trainingruns/{name}"
    raw = state.objects[path]
    run = succeeded(TrainingRun.model_validate(raw), samples_per_second)
    state.put(path, {**raw, "status": run.status.to_wire()})


def status(state: ApiServer) -> dict[str, Any]:
    found: dict[str, Any] = state.objects[STUDY]["status"]
    return found


async def test_a_study_from_creation_to_its_results() -> None:
    async with api_server() as (state, kube):
        put_study(state, repeats=1, cost={"perProcessHour": 1})
        reconcile = controller(kube).reconcile
        assert await reconcile(KEY) is not None
        run = state.objects[f"{API}/trainingruns/s-1-1"]
        (owner,) = run["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("ScalingStudy", "study", True)
        assert run["metadata"]["labels"]["trainyard.dev/study"] == "s"
        assert run["spec"]["config"]["max_steps"] == 60
        assert "status" not in run
        env = run["spec"]["podTemplate"]["spec"]["containers"][0]["env"]
        assert env == [{"name": "OMP_NUM_THREADS", "value": "1"}]

        finish(state, "s-1-1", 100)
        await reconcile(KEY)
        assert f"{API}/trainingruns/s-1-1" not in state.objects
        writes = [request for request in state.writes() if "s-1-1" in request[1]]
        put = state.requests.index(("PUT", f"{STUDY}/status"))
        assert state.requests.index(writes[-1]) > put, "figures first, then the run goes"
        finish(state, "s-2-1", 180)
        assert await reconcile(KEY) is None
        assert (status(state)["phase"], status(state)["progress"]) == ("Succeeded", "2/2")
        assert status(state)["headline"].startswith("1.80x on 2 (90%)")
        assert "resamples" not in status(state)["curves"][0]["law"]
        before = len(state.writes())
        assert await reconcile(KEY) is None
        assert len(state.writes()) == before, "nothing is written when nothing changes"


async def test_a_run_without_figures_is_deleted_and_run_again() -> None:
    async with api_server() as (state, kube):
        put_study(state, repeats=1)
        reconcile = controller(kube).reconcile
        await reconcile(KEY)
        path = f"{API}/trainingruns/s-1-1"
        first = state.put(path, state.objects[path] | {"status": {"phase": "Succeeded"}})
        await reconcile(KEY)
        assert path not in state.objects
        (event,) = (o for o in state.objects.values() if o.get("reason") == "RunAgain")
        assert "numProcPerNode=1; repeat 1 is run again" in event["message"]
        assert status(state)["cells"][0]["unreported"] == [first["metadata"]["uid"]]
        await reconcile(KEY)
        finish(state, "s-1-1", 100)
        await reconcile(KEY)
        assert [m["repeat"] for m in status(state)["cells"][0]["measurements"]] == [1]


async def test_a_run_that_ends_while_its_study_is_suspended_is_not_deleted_unseen() -> None:
    async with api_server() as (state, kube):
        raw = put_study(state, repeats=1)
        await controller(kube).reconcile(KEY)
        path = f"{API}/trainingruns/s-1-1"
        state.put(path, state.objects[path] | {"status": {"phase": "Running"}})
        reconciler = StudyReconciler(kube)
        stored = state.objects[STUDY]
        state.put(STUDY, stored | {"spec": raw["spec"] | {"suspend": True}})
        study = ScalingStudy.model_validate(state.objects[STUDY])
        observed = await reconciler.observe(study)
        plan = reconciler.decide(observed)
        assert plan.delete == ("s-1-1",)
        finish(state, "s-1-1", 100)
        with pytest.raises(ApiError, match="s-1-1 has changed"):
            await reconciler.apply(observed, plan)
        await controller(kube).reconcile(KEY)
        assert (status(state)["phase"], status(state)["progress"]) == ("Suspended", "1/2")
        assert path not in state.objects, "its figures are in the status"


async def test_a_deleted_study_needs_nothing() -> None:
    async with api_server() as (_, kube):
        assert await controller(kube).reconcile(KEY) is None


async def test_a_conflict_is_retried_and_nothing_else_is_done() -> None:
    async with api_server() as (state, kube):
        put_study(state)
        state.refuse("PUT", "/status", 409, "Conflict", "modified")
        assert await controller(kube).reconcile(KEY) == 0.0
        assert not [path for path in state.objects if "trainingruns" in path]


async def test_the_status_says_why_a_run_was_rejected() -> None:
    async with api_server() as (state, kube):
        put_study(state)
        state.refuse("POST", "/trainingruns", 403, "Forbidden", "exceeded quota: runs")
        with pytest.raises(RejectedError):
            await controller(kube).reconcile(KEY)
        assert status(state)["reason"] == "Rejected"
        assert status(state)["message"] == "exceeded quota: runs"
        state.accept()
        await controller(kube).reconcile(KEY)
        assert status(state)["reason"] == "Starting"


async def test_a_run_of_another_owner_is_left_alone() -> None:
    async with api_server() as (state, kube):
        put_study(state)
        theirs = state.put(f"{API}/trainingruns/s-1-1", {"spec": {"recipe": "x"}})
        with pytest.raises(RejectedError):
            await controller(kube).reconcile(KEY)
        assert "TrainingRun s-1-1 already exists" in status(state)["message"]
        assert state.objects[f"{API}/trainingruns/s-1-1"] == theirs


async def test_an_invalid_spec_is_reported_in_the_status() -> None:
    async with api_server() as (state, kube):
        raw = put_study(state)
        state.put(STUDY, {**raw, "spec": {**raw["spec"], "repeats": "many"}})
        assert await controller(kube).reconcile(KEY) is None
        assert (status(state)["phase"], status(state)["reason"]) == ("Failed", "InvalidSpec")
        assert status(state)["message"].startswith("spec.repeats: ")


async def test_a_study_with_a_run_of_a_newer_version_continues() -> None:
    async with api_server() as (state, kube):
        put_study(state, repeats=1, parallelism=2)
        await controller(kube).reconcile(KEY)
        for name in ("s-1-1", "s-2-1"):  # as a newer operator has made and begun them
            path = f"{API}/trainingruns/{name}"
            raw = state.objects[path]
            newer = {"spec": raw["spec"] | {"novelty": 1}, "status": {"phase": "Running"}}
            state.put(path, raw | newer)
        stored = state.objects[STUDY]
        stored["spec"]["template"]["spec"]["novelty"] = 1
        fingerprint = ScalingStudy.model_validate(stored).spec.fingerprint()
        status = stored["status"] | {"fingerprint": fingerprint, "handledBy": "99"}
        state.put(STUDY, {**stored, "status": status})
        assert await controller(kube).reconcile(KEY) is not None
        status = state.objects[STUDY]["status"]
        assert (status["phase"], status["reason"]) == ("Running", "Measuring")
        assert status["handledBy"] == "99"
        (unsupported,) = (c for c in status["conditions"] if c["type"] == "Unsupported")
        assert (unsupported["status"], unsupported["reason"]) == ("True", "UnknownToThisVersion")
        assert (
            "can't create the remaining runs: spec.novelty: unknown key" in unsupported["message"]
        )
        written = len(state.writes())
        await controller(kube).reconcile(KEY)
        assert len(state.writes()) == written
        assert {f"{API}/trainingruns/s-1-1", f"{API}/trainingruns/s-2-1"} <= state.objects.keys()


async def test_results_are_exported_until_the_study_is_deleted() -> None:
    async with api_server() as (state, kube):
        put_study(state, repeats=1, cost={"perProcessHour": 3.6, "currency": "EUR"})
        for name, rate in ((None, 0.0), ("s-1-1", 100.0), ("s-2-1", 150.0)):
            if name:
                finish(state, name, rate)
            await controller(kube).reconcile(KEY)
        metrics = OperatorMetrics()
        metrics.studies.update(KEY, state.objects[STUDY])

    def sample(name: str, **more: str) -> float | None:
        point = {"namespace": "ns", "study": "s", "configuration": "", "processes": "2"}
        return metrics.registry.get_sample_value(name, point | {"source": "measured"} | more)

    assert metrics.registry.get_sample_value("trainyard_operator_studies", {"phase": "Succeeded"})
    assert sample("trainyard_study_tokens_per_second") == 600
    assert sample("trainyard_study_samples_per_second") is None
    assert sample("trainyard_study_speedup_ratio") == 1.5
    assert sample("trainyard_study_efficiency_ratio") == 0.75
    projected = sample("trainyard_study_speedup_ratio", processes="4", source="projected")
    assert projected is not None
    assert 1.5 < projected < 3.1
    # The middle of a range this wide is not exported.
    assert sample("trainyard_study_speedup_ratio", processes="16", source="projected") is None
    priced = {"unit": "tokens", "currency": "EUR"}
    assert sample("trainyard_study_cost_per_million", **priced) == pytest.approx(0.002 / 600 * 1e6)
    metrics.studies.replace_all({})
    assert sample("trainyard_study_speedup_ratio") is None
