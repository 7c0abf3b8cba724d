"""What a run trains on: a throughput measured on a CPU says nothing about a GPU."""

from collections.abc import Mapping
from typing import Any, Literal

from trainyard_api.gpus import gpu_resources
from trainyard_api.study import ScalingStudy

Device = Literal["cpu", "gpu"]


def of_spec(spec: Mapping[str, Any]) -> Device:
    """By the limits of a TrainingRun's spec in wire form, as they are on a cluster."""
    pod = (spec.get("podTemplate") or {}).get("spec") or {}
    resources = [spec.get("resourcesPerNode") or {}]
    resources += [each.get("resources") or {} for each in pod.get("containers") or []]
    asks = any(each.get("claims") or gpu_resources(each.get("limits") or {}) for each in resources)
    return "gpu" if asks else "cpu"


def of_study(study: ScalingStudy) -> Device | None:
    """By its machine; on a cluster, where that is unknown, by its template's limits."""
    if machine := study.status.machine:
        return "gpu" if machine.gpus else "cpu"
    try:
        return of_spec(study.spec.template.spec)
    except (AttributeError, TypeError):  # nobody has validated what is inside the template
        return None


def of_torch(name: object) -> Device | None:
    """By the device type that a run has logged: cpu, cuda, ..."""
    if not isinstance(name, str):
        return None
    return "cpu" if name == "cpu" else "gpu"
