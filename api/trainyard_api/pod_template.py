"""spec.podTemplate: what users change in the pods of a run."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from trainyard_api.base import Model

_NAMED = {
    "containers": "Containers, merged by name. The one named trainer is the one that trains.",
    "initContainers": "Init containers, merged by name.",
    "volumes": "Volumes, merged by name.",
}
_POD_SPEC: Any = {
    key: {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "description": "Name by which entries are merged."}
            },
            "x-kubernetes-preserve-unknown-fields": True,
        },
        "description": description,
    }
    for key, description in _NAMED.items()
}


def _check_pod_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """What merging by name needs; the rest is the API server's to judge when pods are made."""
    for key in _NAMED:
        _check_named(key, spec.get(key, []))
    for key in ("containers", "initContainers"):
        for container in spec.get(key, []):
            _check_named(f"env of {container['name']}", container.get("env") or [])
    return spec


def _check_named(what: str, items: object) -> None:
    if not isinstance(items, list) or not all(
        isinstance(item, dict) and isinstance(item.get("name"), str) for item in items
    ):
        raise ValueError(f"{what} must be a list of objects that each have a name")


class PodMetadata(Model):
    """Labels and annotations added to every pod."""

    labels: dict[str, str] = Field(
        default_factory=dict,
        max_length=64,
        description="Labels added to every pod. The operator's own can't be replaced.",
    )
    annotations: dict[str, str] = Field(
        default_factory=dict, max_length=64, description="Annotations added to every pod."
    )


class PodTemplate(BaseModel):
    """Merged into every pod: containers, env and volumes by name."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"description": "Overrides for every pod, merged as kubectl patch does."},
    )

    metadata: PodMetadata = Field(default_factory=PodMetadata)
    spec: Annotated[dict[str, Any], AfterValidator(_check_pod_spec)] = Field(
        default_factory=dict,
        description="A pod's spec. Containers, env and volumes are merged by name, tolerations are"
        " added, null removes a value, and anything else replaces the operator's. The API server"
        " validates the result when the pods are created.",
        json_schema_extra={"properties": _POD_SPEC},
    )
