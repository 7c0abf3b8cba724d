"""The committed CRD is the generated one: structural, and it says what it should."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev import crd
from trainyard_api.base import Model
from trainyard_api.run import TrainingRun
from trainyard_api.spec import TrainingRunSpec
from trainyard_api.study import ScalingStudy, ScalingStudySpec

CRDS = Path(__file__).parents[3] / "charts/operator/crds"
each_kind = pytest.mark.parametrize("kind", crd.KINDS, ids=lambda kind: kind.kind)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """TrainingRun's."""
    return crd.schema(TrainingRun)


def walk(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema below `node`, with its path."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from walk(node[key], f"{path}[]")


@each_kind
def test_committed_definition_is_current(kind: crd.Kind) -> None:
    assert (CRDS / kind.file_name).read_text() == crd.to_yaml(kind), "stale: make crd"


def test_no_other_definition_is_committed() -> None:
    assert {path.name for path in CRDS.iterdir()} == {kind.file_name for kind in crd.KINDS}


@each_kind
def test_every_level_is_structural(kind: crd.Kind) -> None:
    for path, node in walk(crd.schema(kind.model)):
        untyped = {"x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"}
        assert node.keys() & {"type", *untyped}, path
        assert not node.keys() & {"$ref", "$defs", "title", "const", "oneOf", "allOf"}, path
        assert (node.get("type") == "array") == ("items" in node), path
        if "anyOf" in node:
            assert node.get("x-kubernetes-int-or-string"), path
        assert not isinstance(node.get("additionalProperties"), bool), path
        assert node.get("default", "") is not None, path


@pytest.mark.parametrize(
    ("kind", "model"), [(TrainingRun, TrainingRunSpec), (ScalingStudy, ScalingStudySpec)]
)
def test_every_field_has_its_wire_name(kind: type[Model], model: type[Model]) -> None:
    spec = crd.schema(kind)["properties"]["spec"]["properties"]
    assert set(spec) == {field.alias for field in model.model_fields.values()}


def test_a_matrix_holds_values_of_any_kind() -> None:
    """Also null; and exclude's entries, and the template's spec."""
    spec = crd.schema(ScalingStudy)["properties"]["spec"]["properties"]
    values = spec["matrix"]["additionalProperties"]
    assert values["items"] == {"x-kubernetes-preserve-unknown-fields": True, "nullable": True}
    for node in (spec["exclude"]["items"], spec["template"]["properties"]["spec"]):
        assert (node["type"], node["x-kubernetes-preserve-unknown-fields"]) == ("object", True)


def test_defaults_are_in_the_spec_and_not_in_the_status(schema: dict[str, Any]) -> None:
    spec = schema["properties"]["spec"]["properties"]
    assert spec["numNodes"]["default"] == 1
    assert spec["precision"] == {
        "description": "Number format of the forward and backward pass. With fp32 a GPU rounds the"
        " factors of matrix products to TF32, unless config.deterministic is true. Default: fp32.",
        "type": "string",
        "enum": ["fp32", "bf16", "fp16"],
        "default": "fp32",
    }
    assert spec["backoff"]["default"] == {"initialSeconds": 5, "maxSeconds": 300}
    assert spec["checkpoint"]["properties"]["everySteps"]["default"] == 200
    assert all("default" not in node for _, node in walk(schema["properties"]["status"]))


def test_free_form_fields_keep_what_users_write(schema: dict[str, Any]) -> None:
    spec = schema["properties"]["spec"]["properties"]
    template = spec["podTemplate"]["properties"]
    for node in (spec["config"], template["spec"]):
        assert node["x-kubernetes-preserve-unknown-fields"] is True
        assert node["type"] == "object"


def test_rules_are_on_the_object_that_has_their_fields(schema: dict[str, Any]) -> None:
    def rules(*path: str) -> list[str]:
        node = schema
        for name in path:
            node = node["properties"][name]
        return [rule["rule"] for rule in node["x-kubernetes-validations"]]

    assert any("self.metadata.name" in rule for rule in rules())
    assert "has(self.recipe) != has(self.command)" in rules("spec")
    assert rules("spec", "elastic") == ["self.minNodes <= self.maxNodes"]
    assert rules("spec", "recipe") == ["self.matches(r'^([a-z]([-a-z0-9]*[a-z0-9])?)$')"]


def test_every_immutable_field_has_a_transition_rule(schema: dict[str, Any]) -> None:
    rules = schema["properties"]["spec"]["x-kubernetes-validations"]
    transitions = {rule["fieldPath"]: rule for rule in rules if "oldSelf" in rule["rule"]}
    assert set(transitions) == {
        ".recipe",
        ".numProcPerNode",
        ".strategy",
        ".precision",
        ".seed",
        ".storage.claimName",
        ".storage.size",
        ".storage.storageClassName",
        ".storage.accessMode",
    }
    assert transitions[".seed"]["message"] == "spec.seed is immutable: make a new run"
    size = transitions[".storage.size"]
    assert size["message"] == "spec.storage.size is immutable: make a new run"
    # Where storage as a whole is added or removed, rules below it would not be asked.
    assert size["rule"].startswith("(has(self.storage) && has(self.storage.size)) == (has(oldSelf.")


def test_what_a_study_measures_is_immutable_where_cel_can_see_it() -> None:
    rules = crd.schema(ScalingStudy)["properties"]["spec"]["x-kubernetes-validations"]
    assert {rule["fieldPath"] for rule in rules} == {".repeats", ".steps", ".warmupSteps"}
    assert rules[0]["message"] == "spec.repeats is immutable: make a new study"


@each_kind
def test_rules_of_unbounded_values_are_affordable(kind: crd.Kind) -> None:
    """The API server refuses rules whose worst case costs too much: iteration needs a bound."""
    for path, node in walk(crd.schema(kind.model)["properties"]["spec"], "spec"):
        if "x-kubernetes-validations" in node and node.get("type") == "string":
            assert "maxLength" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


@each_kind
def test_columns_exist_in_the_schema(kind: crd.Kind) -> None:
    paths = {path for path, _ in walk(crd.schema(kind.model))}
    version = crd.definition(kind)["spec"]["versions"][0]
    for column in version["additionalPrinterColumns"]:
        path = column["jsonPath"]
        assert path in paths or path == ".metadata.creationTimestamp", path
    for path in version["subresources"].get("scale", {}).values():
        assert path in paths


@each_kind
def test_yaml_round_trips(kind: crd.Kind) -> None:
    assert yaml.safe_load(crd.to_yaml(kind)) == crd.definition(kind)
