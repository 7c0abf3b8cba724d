"""The operator's metrics: series of single runs, which come from the objects and go with them."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from trainyard_api import labels, metrics
from trainyard_operator.instruments import Instruments
from trainyard_operator.observe import Key
from trainyard_operator.run_series import FINISHED_SECONDS


def at(ago: float) -> str:
    return datetime.fromtimestamp(time.time() - ago, UTC).isoformat()


def run(name: str = "r", spec: Any = None, **status: Any) -> dict[str, Any]:
    metadata = {"namespace": "ns", "name": name, "creationTimestamp": at(60)}
    return {"metadata": metadata, "spec": spec or {}, "status": status}


def told(instruments: Instruments, metric: metrics.Metric, **labels: str) -> float | None:
    of = {"namespace": "ns", "run": "r"} | labels
    return instruments.registry.get_sample_value(metric.name, of)


def of_runs(instruments: Instruments) -> list[Any]:
    """All samples that name a run."""
    families = instruments.registry.collect()
    return [s for family in families for s in family.samples if "run" in s.labels]


def seen(body: dict[str, Any]) -> Instruments:
    instruments = Instruments()
    instruments.seen(Key("ns", body["metadata"]["name"]), body)
    return instruments


def test_a_run_is_told_by_what_is_stored() -> None:
    gpus = {"limits": {"nvidia.com/gpu": 8}}
    attempts = [
        {"startTime": at(90), "outcome": "Failed", "reason": "Hang"},
        {"startTime": at(60), "outcome": "Failed", "reason": "something new"},
        {"startTime": at(30), "outcome": None},
    ]
    instruments = seen(
        run(
            spec={"numNodes": 2, "resourcesPerNode": gpus},
            phase="Running",
            restarts=2,
            attempts=attempts,
            activeSeconds=100,
            activeSince=at(90),
        )
    )
    assert told(instruments, metrics.RUN_PHASE, phase="Running") == 1
    assert told(instruments, metrics.RUN_GPUS) == 16
    assert told(instruments, metrics.RUN_RESTARTS) == 2
    assert told(instruments, metrics.RUN_ACTIVE_SECONDS) == pytest.approx(190, abs=5)
    assert told(instruments, metrics.RUN_FAILED_ATTEMPTS, reason="Hang") == 1
    assert told(instruments, metrics.RUN_FAILED_ATTEMPTS, reason="Unknown") == 1
    assert told(instruments, metrics.RUN_WAITING_SECONDS, queue="") is None


def test_an_elastic_run_asks_for_the_nodes_that_it_has() -> None:
    spec = {"numNodes": 4, "resourcesPerNode": {"limits": {"nvidia.com/gpu": "2"}}}
    assert told(seen(run(spec=spec, phase="Running", nodes=3)), metrics.RUN_GPUS) == 6


def test_a_pending_run_says_how_long_it_has_waited_and_for_which_queue() -> None:
    instruments = seen(run(spec={"queue": {"name": "gold"}}))
    waited = told(instruments, metrics.RUN_WAITING_SECONDS, queue="gold")
    assert waited == pytest.approx(60, abs=5)


def test_a_finished_run_is_active_no_longer_and_soon_no_more_told() -> None:
    instruments = seen(run(phase="Succeeded", activeSince=at(500), completionTime=at(400)))
    assert told(instruments, metrics.RUN_ACTIVE_SECONDS) == pytest.approx(100, abs=1)
    ended = at(FINISHED_SECONDS + 1)
    assert not of_runs(seen(run(phase="Succeeded", activeSince=at(9000), completionTime=ended)))


def test_a_run_names_the_study_it_is_labelled_with() -> None:
    body = run()
    assert told(seen(body), metrics.RUN_STUDY, study="s") is None
    body["metadata"]["labels"] = {labels.STUDY: "s"}
    assert told(seen(body), metrics.RUN_STUDY, study="s") == 1


def test_the_series_of_deleted_runs_go() -> None:
    instruments = seen(run())
    instruments.seen(Key("ns", "s"), run("s", phase="Running"))
    assert {sample.labels["run"] for sample in of_runs(instruments)} == {"r", "s"}
    instruments.seen(Key("ns", "r"), None)
    assert {sample.labels["run"] for sample in of_runs(instruments)} == {"s"}
    instruments.seen_all({})
    assert not of_runs(instruments)


@pytest.mark.parametrize(
    "spec",
    [{"queue": "gold"}, {"resourcesPerNode": 3}, {"numNodes": "many"}, "nothing"],
)
def test_a_run_that_was_refused_is_counted_all_the_same(spec: Any) -> None:
    assert told(seen(run(spec=spec, phase="Failed")), metrics.RUN_GPUS) is None
    assert told(seen(run(spec=spec, phase="Pending")), metrics.RUN_GPUS) == 0
