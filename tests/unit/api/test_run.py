"""TrainingRun as the local backend validates it; the API server is held to the same table."""

from typing import Any

import pytest
from pydantic import ValidationError

from tests.manifests.refused import (
    CHANGEABLE,
    CHANGED,
    REFUSED,
    Refused,
    manifest,
    with_field,
)
from trainyard_api.base import validation_message
from trainyard_api.immutable import immutable_changes
from trainyard_api.run import TrainingRun
from trainyard_api.spec import TrainingRunSpec


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.case)
def test_refused(case: Refused) -> None:
    with pytest.raises(ValidationError) as error:
        TrainingRun.model_validate(manifest(case))
    text = validation_message(error.value)
    assert "\n" not in text
    for word in case.words:
        assert word.lower() in text.lower()


def test_the_good_manifest_behind_the_table_is_good() -> None:
    run = TrainingRun.model_validate(manifest(Refused("good", ())))
    assert (run.nproc, run.claim_name, run.namespace) == (1, "good", "default")


@pytest.mark.parametrize(("case", "field", "before", "after"), CHANGED, ids=[c[0] for c in CHANGED])
def test_immutable(case: str, field: str, before: Any, after: Any) -> None:
    def spec(value: Any) -> TrainingRunSpec:
        return TrainingRunSpec.model_validate(with_field(field, value))

    assert immutable_changes(spec(before), spec(after)) == [field]
    assert immutable_changes(spec(before), spec(before)) == []


@pytest.mark.parametrize(("case", "before", "after"), CHANGEABLE, ids=[c[0] for c in CHANGEABLE])
def test_changeable(case: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    def spec(fields: dict[str, Any]) -> TrainingRunSpec:
        return TrainingRunSpec.model_validate({"recipe": "char-gpt"} | fields)

    assert immutable_changes(spec(before), spec(after)) == []


@pytest.mark.parametrize(
    ("spec", "nproc"),
    [
        ({}, 1),
        ({"numProcPerNode": 3}, 3),
        ({"resourcesPerNode": {"limits": {"nvidia.com/gpu": 4}}}, 4),
        ({"resourcesPerNode": {"limits": {"nvidia.com/gpu": 4}}, "numProcPerNode": 2}, 2),
        (
            {
                "podTemplate": {
                    "spec": {
                        "containers": [
                            {"name": "trainer", "resources": {"limits": {"nvidia.com/gpu": "8"}}}
                        ]
                    }
                }
            },
            8,
        ),
    ],
)
def test_gpus_set_the_processes_per_node(spec: dict[str, Any], nproc: int) -> None:
    run = TrainingRun.model_validate(manifest(Refused("gpu", (), spec)))
    assert run.nproc == nproc
