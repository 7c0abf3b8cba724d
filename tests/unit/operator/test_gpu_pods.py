"""Pods with GPUs: of any make, whole, in slices, or by a claim."""

from typing import Any

import pytest

from tests.unit.operator.test_manifests import env, mounts, pod

GPU = {"name": "gpu"}


@pytest.mark.parametrize(
    ("limit", "processes", "taint"),
    [
        ("nvidia.com/gpu", "4", "nvidia.com/gpu"),
        ("nvidia.com/gpu.shared", "1", "nvidia.com/gpu"),
        ("nvidia.com/mig-1g.10gb", "1", "nvidia.com/gpu"),
        ("amd.com/gpu", "4", "amd.com/gpu"),
        ("gpu.intel.com/xe", "4", "gpu.intel.com/xe"),
    ],
)
def test_a_limit(limit: str, processes: str, taint: str) -> None:
    built = pod(resourcesPerNode={"limits": {limit: 4, "memory": "8Gi"}})
    assert env(built)["PET_NPROC_PER_NODE"] == processes
    assert mounts(built)["/dev/shm"] == "shm"
    assert tolerated(built) == [taint]


def test_a_claim() -> None:
    template = {
        "spec": {
            "resourceClaims": [{**GPU, "resourceClaimTemplateName": "one-gpu"}],
            "containers": [{"name": "trainer", "resources": {"claims": [GPU]}}],
        }
    }
    built = pod(podTemplate=template)
    assert mounts(built)["/dev/shm"] == "shm"
    assert tolerated(built) == ["nvidia.com/gpu"]


def test_none() -> None:
    built = pod(resourcesPerNode={"limits": {"nvidia.com/gpu": 0, "cpu": 2}})
    assert "/dev/shm" not in mounts(built)
    assert tolerated(built) == []


def tolerated(built: dict[str, Any]) -> list[str]:
    found = (item["key"] for item in built["spec"]["tolerations"])
    return [key for key in found if not key.startswith("node.kubernetes.io/")]
