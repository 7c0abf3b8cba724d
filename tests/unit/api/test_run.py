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


def test_the_manifest_that_the_table_changes_is_valid() -> None:
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
        ({"resourcesPerNode": {"limits": {"amd.com/gpu": 8, "nvidia.com/gpumem": 4000}}}, 8),
        ({"resourcesPerNode": {"limits": {"gpu.intel.com/i915": 2}}}, 2),
        ({"resourcesPerNode": {"limits": {"nvidia.com/gpu.shared": 2}}}, 1),
        ({"resourcesPerNode": {"limits": {"nvidia.com/mig-1g.10gb": 2}}}, 1),
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


@pytest.mark.parametrize(
    ("resources", "asks"),
    [
        ({"limits": {"cpu": "4", "nvidia.com/gpu": "0", "example.com/fpga": "1"}}, False),
        ({"limits": {"nvidia.com/gpu": "1"}}, True),
        ({"limits": {"nvidia.com/mig-1g.10gb": "1"}}, True),
        ({"limits": {"amd.com/gpu": 1}}, True),
        ({"claims": [{"name": "gpu"}]}, True),
    ],
)
def test_a_run_asks_for_gpus_by_a_limit_or_a_claim(resources: dict[str, Any], asks: bool) -> None:
    container = {"name": "trainer", "resources": resources}
    spec = {"podTemplate": {"spec": {"containers": [{"name": "other"}, container]}}}
    run = TrainingRun.model_validate(manifest(Refused("gpu", (), spec)))
    assert run.asks_for_gpus is asks


@pytest.mark.parametrize("env", [[{"value": "3"}], ["A=3"], {"A": "3"}])
def test_an_env_without_names_is_refused_in_one_line(env: object) -> None:
    template = {"spec": {"containers": [{"name": "trainer", "env": env}]}}
    with pytest.raises(ValidationError) as error:
        TrainingRun.model_validate(manifest(Refused("env", (), {"podTemplate": template})))
    (line,) = validation_message(error.value).splitlines()
    assert "env of trainer must be a list of objects that each have a name" in line
