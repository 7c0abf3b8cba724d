"""Which resources of a container are GPUs: whole ones, or slices of them, of any make."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

NVIDIA = "nvidia.com/gpu"

# Device plugins count memory and cores of GPUs under such names, too (nvidia.com/gpumem), and turns
# of time on one (nvidia.com/gpu.shared).
_WHOLE = re.compile(r"/gpu$|^gpu\.intel\.com/(i915|xe)$")
_ANY = re.compile(r"gpu|/mig-")


def whole_gpus(limits: Mapping[str, Any]) -> dict[str, int]:
    """The number of GPUs by resource, such as nvidia.com/gpu or amd.com/gpu; no zeros.

    Shares of a GPU (nvidia.com/mig-1g.10gb, nvidia.com/gpu.shared) are not counted: several may be
    of the same one, on which NCCL connects no two processes.
    """
    amounts = {name: str(amount) for name, amount in limits.items() if _WHOLE.search(name)}
    return {name: int(each) for name, each in amounts.items() if each.isdecimal() and int(each)}


def gpu_resources(limits: Mapping[str, Any]) -> list[str]:
    """The names of the limits that give a container GPUs, whole or in part."""
    return [
        name
        for name, amount in limits.items()
        if _ANY.search(name) and str(amount) not in ("0", "None")
    ]


def gpu_taints(resources: Iterable[str]) -> list[str]:
    """The keys of the taints that keep other pods off the nodes with these resources.

    As vendors and clouds set them: the resource's own name, nvidia.com/gpu for slices, too.
    """
    return sorted({NVIDIA if name.startswith("nvidia.com/") else name for name in resources})
