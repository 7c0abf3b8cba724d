"""The operator's metrics: series of single runs, which come from the objects and go with them."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from trainyard_api import labels
from trainyard_api import metrics as names
from trainyard_operator.metrics import FINISHED_SECONDS, OperatorMetrics
from trainyard_operator.objects import ObjectKey


def at(ago: float) -> str:
    return datetime.fromtimestamp(time.time() - ago, UTC).isoformat()


def run(name: str = "r", spec: Any = None, **status: Any) -> dict[str, Any]:
    metadata = {"namespace": "ns", "name": name, "creationTimestamp": at(60)}
    return {"metadata": metadata, "spec": spec or {}, "status": status}


def sample(metrics: OperatorMetrics, metric: names.Metric, **labels: str) -> float | None:
    of = {"namespace": "ns", "run": "r"} | labels
    return metrics.registry.get_sample_value(metric.name, of)


def of_runs(metrics: OperatorMetrics) -> list[Any]:
    """All samples that name a run."""
    families = metrics.registry.collect()
    return [s for family in families for s in family.samples if "run" in s.labels]


def exported(body: dict[str, Any]) -> OperatorMetrics:
    metrics = OperatorMetrics()
    metrics.runs.update(ObjectKey("ns", body["metadata"]["name"]), body)
    return metrics


def test_series_of_a_run_come_from_the_stored_object() -> None:
    gpus = {"limits": {"nvidia.com/gpu": 8}}
    attempts = [
        {"startTime": at(90), "outcome": "Failed", "reason": "Hang"},
        {"startTime": at(60), "outcome": "Failed", "reason": "something new"},
        {"startTime": at(30), "outcome": None},
    ]
    metrics = exported(
        run(
            spec={"numNodes": 2, "resourcesPerNode": gpus},
            phase="Running",
            restarts=2,
            attempts=attempts,
            activeSeconds=100,
            activeSince=at(90),
        )
    )
    assert sample(metrics, names.RUN_PHASE, phase="Running") == 1
    assert sample(metrics, names.RUN_GPUS) == 16
    assert sample(metrics, names.RUN_RESTARTS) == 2
    assert sample(metrics, names.RUN_ACTIVE_SECONDS) == pytest.approx(190, abs=5)
    assert sample(metrics, names.RUN_FAILED_ATTEMPTS, reason="Hang") == 1
    assert sample(metrics, names.RUN_FAILED_ATTEMPTS, reason="Unknown") == 1
    assert sample(metrics, names.RUN_WAITING_SECONDS, queue="") is None


def test_an_elastic_run_counts_the_gpus_of_its_nodes() -> None:
    spec = {"numNodes": 4, "resourcesPerNode": {"limits": {"amd.com/gpu": "2"}}}
    assert sample(exported(run(spec=spec, phase="Running", nodes=3)), names.RUN_GPUS) == 6


def test_a_pending_run_says_how_long_it_has_waited_and_for_which_queue() -> None:
    metrics = exported(run(spec={"queue": {"name": "gold"}}))
    waited = sample(metrics, names.RUN_WAITING_SECONDS, queue="gold")
    assert waited == pytest.approx(60, abs=5)


def test_a_finished_run_is_not_active_and_soon_not_exported() -> None:
    metrics = exported(run(phase="Succeeded", activeSince=at(500), completionTime=at(400)))
    assert sample(metrics, names.RUN_ACTIVE_SECONDS) == pytest.approx(100, abs=1)
    ended = at(FINISHED_SECONDS + 1)
    assert not of_runs(exported(run(phase="Succeeded", activeSince=at(9000), completionTime=ended)))


def test_a_run_names_the_study_it_is_labelled_with() -> None:
    body = run()
    assert sample(exported(body), names.RUN_STUDY, study="s") is None
    body["metadata"]["labels"] = {labels.STUDY: "s"}
    assert sample(exported(body), names.RUN_STUDY, study="s") == 1


def test_series_end_with_their_run() -> None:
    metrics = exported(run())
    metrics.runs.update(ObjectKey("ns", "s"), run("s", phase="Running"))
    assert {sample.labels["run"] for sample in of_runs(metrics)} == {"r", "s"}
    metrics.runs.update(ObjectKey("ns", "r"), None)
    assert {sample.labels["run"] for sample in of_runs(metrics)} == {"s"}
    metrics.runs.replace_all({})
    assert not of_runs(metrics)


@pytest.mark.parametrize(
    "spec",
    [{"queue": "gold"}, {"resourcesPerNode": 3}, {"numNodes": "many"}, "nothing"],
)
def test_an_invalid_run_is_counted(spec: Any) -> None:
    assert sample(exported(run(spec=spec, phase="Failed")), names.RUN_GPUS) is None
    assert sample(exported(run(spec=spec, phase="Pending")), names.RUN_GPUS) == 0
