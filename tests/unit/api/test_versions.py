"""Documents of another version: what it added is tolerated, and kept where it will be written."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.lifecycle.builders import T0, make_report, make_run
from tests.support.study.builders import succeeded
from trainyard_api.base import is_unknown, parse_known
from trainyard_api.checkpoint import Manifest
from trainyard_api.golden import GoldenText
from trainyard_api.progress import ProgressReport
from trainyard_api.run import TrainingRun
from trainyard_api.status import Attempt, CheckpointRef, TrainingRunStatus
from trainyard_api.study_status import CellResult, ScalingStudyStatus

TIME = "2026-01-01T00:00:00Z"
MANIFEST = {
    "kind": "checkpoint",
    "run": "r",
    "attempt": 1,
    "recipe": "char-gpt",
    "step": 5,
    "created": TIME,
    "files": {"a": {"size": 1, "sha256": "0" * 64}},
}
GOLDEN = {"prompt": "a", "promptIds": [1], "nextIds": [2], "topIds": [[2]], "topLogits": [[0.5]]}
STATUS = {
    "phase": "Running",
    "attempts": [{"number": 1, "startTime": TIME, "outcome": "Failed"}],
    "conditions": [{"type": "Running", "status": "True"}],
    "lastCheckpoint": {"step": 5, "digest": "sha256:0", "time": TIME},
}
CELL = {"number": 1, "values": {}, "label": "all", "processes": 1}
LAW = {
    "kind": "linear",
    "single": {"value": 1, "low": 1, "high": 1},
    "sigma": {"value": 0, "low": 0, "high": 0},
    "kappa": {"value": 0, "low": 0, "high": 0},
    "residual": 0,
    "sizes": [1, 2],
}
CURVE = {"configuration": {}, "label": "", "unit": "tokens", "law": LAW, "points": []}
STUDY_STATUS = {"phase": "Running", "cells": [CELL], "curves": [CURVE]}


def with_novelty(value: Any) -> Any:
    """The document with a key in every object that this version doesn't know."""
    if isinstance(value, dict):
        return {key: with_novelty(child) for key, child in value.items()} | {"novelty": {"a": [1]}}
    return [with_novelty(child) for child in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("model", "document"),
    [(TrainingRunStatus, STATUS), (ScalingStudyStatus, STUDY_STATUS), (GoldenText, GOLDEN)],
)
def test_unknown_keys_are_kept_when_the_document_is_written_again(
    model: Any, document: dict[str, Any]
) -> None:
    newer = with_novelty(document)
    for name in ("values", "configuration"):  # whose keys are the user's
        newer = _without(newer, name)
    written = model.model_validate(newer).model_copy(deep=True).to_wire()
    assert _contains(written, newer)


def _without(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {k: {} if k == name else _without(v, name) for k, v in value.items()}
    return [_without(child, name) for child in value] if isinstance(value, list) else value


def _contains(whole: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return all(key in whole and _contains(whole[key], child) for key, child in part.items())
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(_contains, whole, part))
    return bool(whole == part)


def test_a_manifest_of_a_newer_trainer_is_read() -> None:
    newer = {**MANIFEST, "novelty": 1, "files": {"a": {"size": 1, "sha256": "0" * 64, "gone": 1}}}
    assert Manifest.model_validate(newer).step == 5


def test_values_of_a_newer_version_are_kept() -> None:
    attempt = Attempt.model_validate({"number": 1, "startTime": TIME, "outcome": "Migrated"})
    assert attempt.to_wire()["outcome"] == "Migrated"
    assert CellResult.model_validate({**CELL, "phase": "Paused"}).phase == "Paused"
    law = {**LAW, "kind": "torus", "weights": {"torus": 0.9, "linear": 0.1}}
    status = ScalingStudyStatus.model_validate({"curves": [{**CURVE, "law": law}]})
    assert status.curves[0].law
    assert status.curves[0].law.choice == "torus (90% likely; linear scaling 10%)"


def test_a_report_is_read_without_what_is_unknown() -> None:
    """What a pod says is not stored unless this version knows it."""
    report = make_report(step=5, last_checkpoint=CheckpointRef(step=5, digest="x", time=T0))
    newer = with_novelty(report.to_wire())
    del newer["evaluation"]
    assert parse_known(ProgressReport, newer) == report


def test_what_is_known_of_a_run_and_what_is_wrong_with_it() -> None:
    wire = succeeded(make_run()).to_wire()
    wire |= {part: with_novelty(wire[part]) for part in ("spec", "status")}
    found = parse_known(TrainingRun, wire)
    assert found
    assert (found.status.phase, found.spec.num_nodes) == ("Succeeded", 2)
    assert found.status.model_extra == {}
    assert parse_known(TrainingRun, {"spec": 1}) is None


@pytest.mark.parametrize(
    ("spec", "unknown"),
    [({"novelty": 1}, True), ({"precision": "fp8"}, True), ({"seed": -1}, False)],
)
def test_only_keys_and_values_are_what_a_newer_version_may_know(
    spec: dict[str, Any], unknown: bool
) -> None:
    wire = make_run().to_wire()
    wire["spec"] |= spec
    with pytest.raises(ValidationError) as caught:
        TrainingRun.model_validate(wire)
    assert is_unknown(caught.value) is unknown


def test_only_a_path_of_a_trace_is_taken_from_a_report() -> None:
    """Commands that users paste are made with it."""
    known = "profiles/step-100-102/rank-0.json.gz"
    for path in (known, "../etc/passwd", f"{known}; reboot", f"{known}\n", 7, None):
        wire = make_report().to_wire() | {"profile": path}
        taken = ProgressReport.model_validate(wire).profile
        assert taken == (known if path == known else None), path
