"""A ScalingStudy on the cluster: char-gpt on 1 and 2 processes, the operator deleted half-way."""

import json
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Forwarder
from tests.e2e.kube import LONG, CommandError, Namespace, wait_until
from tests.e2e.test_operator_faults import kill_operator
from tests.patience import SECONDS

TINY = {
    "corpus": "stdlib",
    "block_size": 32,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 32,
    "dropout": 0.0,
    "batch_size": 8,
    "log_steps": 5,
    "hang_timeout_seconds": SECONDS,
}

# Steps that take long enough to interrupt them, or to outlast a test.
SLOW = {"block_size": 128, "n_layer": 4, "n_head": 4, "n_embd": 128, "batch_size": 32}


def study(name: str, **spec: Any) -> dict[str, Any]:
    """Three cells: 1 and 2 processes, and one whose batch 3 processes can't share."""
    return {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "ScalingStudy",
        "metadata": {"name": name},
        "spec": {
            "template": {
                "spec": {
                    "recipe": "char-gpt",
                    "config": TINY,
                    "storage": {"size": "1Gi"},
                    "resourcesPerNode": {"requests": {"cpu": "500m"}},
                }
            },
            "matrix": {"numProcPerNode": [1, 2, 3]},
            "repeats": 1,
            "steps": 40,
            "warmupSteps": 5,
            "cost": {"perProcessHour": 0.02},
        }
        | spec,
    }


def status_of(space: Namespace, name: str) -> dict[str, Any]:
    return (space.get("scalingstudy", name) or {}).get("status") or {}


def wait_study(space: Namespace, name: str, phase: str = "", measured: int = 0) -> dict[str, Any]:
    """The status once it has this phase, or so many runs are measured."""

    def look() -> dict[str, Any] | None:
        status = status_of(space, name)
        done = int((status.get("progress") or "0/3").partition("/")[0])
        return status if (status.get("phase") == phase if phase else done >= measured) else None

    try:
        return wait_until(f"{name}: {phase or measured}", look, LONG)
    except AssertionError as error:
        parts = [space.kubectl("get", kind, "-o", "yaml") for kind in ("study", "trainingruns")]
        parts.append(space.kubectl("get", "events", "--sort-by", ".lastTimestamp"))
        raise AssertionError("\n".join([str(error), *parts])) from None


def test_a_study_survives_restarts_of_the_operator(space: Namespace, operator: Namespace) -> None:
    space.apply(study("sizes"))
    wait_study(space, "sizes", measured=1)
    kill_operator(operator)
    status = wait_study(space, "sizes", "Failed")

    one, two, three = status["cells"]
    for cell in (one, two):
        assert "failure" not in cell, cell
        (run,) = cell["measurements"]
        assert run["tokensPerSecond"] > 0
        assert run["stepSeconds"]["p50"] <= run["stepSeconds"]["p99"]
        assert run["peakMemoryBytes"] > 50 * 2**20
    assert (one["speedup"], one["efficiency"]) == (1, 1)
    assert two["efficiency"] == two["speedup"] / 2
    assert three["failure"]["reason"] == "ConfigError"
    assert "8 samples can't be shared evenly by 3 processes" in three["failure"]["message"]
    assert status["threadsPerProcess"] == 1
    (curve,) = status["curves"]
    points = {point["processes"]: point for point in curve["points"]}
    assert [points[n]["source"] for n in (1, 2, 4, 8, 16)] == ["measured"] * 2 + ["projected"] * 3
    assert points[16]["costPerMillion"] > 0

    # Only the run that failed is kept, for its log; the volumes of the others are gone.
    assert [run["metadata"]["name"] for run in space.items("trainingruns")] == ["sizes-3-1"]
    wait_until(
        "only the failed run's volume is left",
        lambda: [c["metadata"]["name"] for c in space.items("pvc")] == ["sizes-3-1"],
    )
    table = space.kubectl("get", "scalingstudies")
    print(table)
    assert table.splitlines()[0].split() == ["NAME", "PHASE", "PROGRESS", "HEADLINE", "AGE"]
    assert f"{two['speedup']:.2f}x on 2 ({two['efficiency']:.0%})" in table

    labels = f'namespace="{space.name}",processes="2",source="measured",study="sizes"'
    text = wait_metrics(operator, f'trainyard_study_speedup_ratio{{configuration="",{labels}}}')
    assert 'trainyard_operator_studies{phase="Failed"} 1.0' in text
    space.kubectl("delete", "study", "sizes")
    wait_until("the runs go with it", lambda: space.items("trainingruns") == [])
    wait_until("so do its series", lambda: "sizes" not in metrics(operator))


def test_an_interrupted_run_is_measured_again(space: Namespace) -> None:
    """It resumes where it was and succeeds, with the times of only a part of its steps."""
    manifest = study("cut", matrix={"numProcPerNode": [1]}, steps=60)
    manifest["spec"]["template"]["spec"]["config"] |= SLOW
    space.apply(manifest)
    space.wait_status("cut-1-1", "some steps", lambda s: (s.get("step") or 0) > 5)
    first = (space.get("trainingrun", "cut-1-1") or {})["metadata"]["uid"]
    space.kubectl("delete", "pod", "cut-1-1-1-0")
    (cell,) = wait_study(space, "cut", "Succeeded")["cells"]
    assert len(cell["measurements"]) == 1
    events = space.items("events")
    (event,) = (event for event in events if event["reason"] == "RunAgain")
    assert "repeat 1 is run again: it was interrupted, and resumed from step" in event["message"]
    assert first in event["metadata"]["name"]


def test_a_bad_study_is_refused(space: Namespace) -> None:
    """What CEL can't check is shown in the status, before anything runs."""
    space.apply(study("bad", matrix={"numProcPerNode": [1, 99]}))
    status = wait_study(space, "bad", "Failed")
    assert status["reason"] == "InvalidSpec"
    assert "cell numProcPerNode=99: spec.numProcPerNode" in status["message"]
    assert space.items("trainingruns") == []


def test_null_in_a_matrix_and_a_study_that_waits(space: Namespace) -> None:
    later = study("later", matrix={"config.n_head": [None, 1]}, suspend=True)
    # Not as part of a List: those kubectl checks itself, and it knows no null.
    space.kubectl("apply", "-f", "-", stdin=json.dumps(later))
    wait_study(space, "later", "Suspended")
    stored = space.get("scalingstudy", "later")
    assert stored
    assert stored["spec"]["matrix"] == {"config.n_head": [None, 1]}
    for spec, said in (
        ({"repeats": 2}, "spec.repeats is immutable: make a new study"),
        ({"cost": {"perProcessHour": -1}}, "must not be negative"),
        ({"cost": {"currency": "eur"}}, "three letters"),
        ({"projectTo": [0]}, "greater than or equal to 1"),
    ):
        patch = ("--type", "merge", "--patch", json.dumps({"spec": spec}))
        with pytest.raises(CommandError, match=said):
            space.kubectl("patch", "study", "later", *patch)
    space.kubectl("patch", "study", "later", "--type", "merge", "-p", '{"spec":{"projectTo":[9]}}')
    assert space.items("trainingruns") == []


def metrics(operator: Namespace) -> str:
    forwarder = Forwarder(operator)
    try:
        url = forwarder.url("deployment/trainyard-operator", 8080)
        return httpx.get(f"{url}/metrics", timeout=SECONDS).text
    finally:
        forwarder.close()


def wait_metrics(operator: Namespace, series: str) -> str:
    """/metrics once it has the series."""

    def look() -> str | None:
        text = metrics(operator)
        return text if series in text else None

    return wait_until(series, look)
