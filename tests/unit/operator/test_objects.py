"""Stored objects: parsed as models whatever version wrote them; statuses and Events as JSON."""

import pytest

from tests.support.lifecycle.builders import T0, make_run
from trainyard_api.run import TrainingRun
from trainyard_api.status import TrainingRunStatus
from trainyard_lifecycle.plan import Event
from trainyard_operator.objects import InvalidObjectError, event_object, parse, to_status


def test_the_status_of_a_newer_operator_is_understood() -> None:
    raw = make_run().to_wire()
    attempt = {"number": 3, "startTime": "2026-01-01T00:00:00Z", "novelty": {"a": 1}}
    status = {"phase": "Running", "attempt": 3, "attempts": [attempt], "novelty": 1}
    run = parse(TrainingRun, {**raw, "status": status})
    assert (run.status.phase, run.status.attempt) == ("Running", 3)
    assert run.status.attempts[0].number == 3
    assert status["novelty"] == 1, "the stored object is left alone"


def test_an_invalid_spec_is_an_error() -> None:
    raw = make_run().to_wire()
    raw["spec"]["precision"] = "fp8"
    with pytest.raises(InvalidObjectError):
        parse(TrainingRun, raw)


def test_an_invalid_status_is_not_ignored() -> None:
    """Forgetting a status would run a finished run again."""
    with pytest.raises(InvalidObjectError):
        parse(TrainingRun, {**make_run().to_wire(), "status": {"phase": 7}})


def test_a_status_has_no_figures_that_json_lacks() -> None:
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
