"""The device that a rank trains on."""

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Any

import torch

from trainyard_trainer.errors import ConfigError, name_gpu


def pick_device(require_gpu: bool) -> torch.device:
    """This rank's GPU if the manifest asks for GPUs, else the CPU, whatever PyTorch finds."""
    if not require_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "the manifest asks for GPUs (resourcesPerNode.limits), but PyTorch finds none here:"
            f" {why_no_gpu()}, or remove the limit to train on CPUs"
        )
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ConfigError(
            f"numProcPerNode: process {local_rank} has no GPU of its own: this node has {count};"
            " request as many GPUs as processes"
        )
    device = torch.device("cuda", local_rank)
    use_device(device)
    properties = torch.cuda.get_device_properties(device)
    name_gpu(f"GPU {local_rank}, GPU-{properties.uuid}")
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a matter of speed only
        run_near(properties)
    return device


def use_device(device: torch.device) -> None:
    """Make a GPU this thread's own: in a new thread CUDA's calls go to GPU 0, and open a context on
    it, which takes hundreds of MB, whichever GPU the process trains on."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def run_near(gpu: Any, devices: Path = Path("/sys/bus/pci/devices")) -> None:
    """Bind this process to the CPUs of the GPU's NUMA node: memory of another one is slower.

    It stays unbound if it may use fewer of these than an equal share of its node's, one for each
    local rank. Not measured here.

    Args:
        gpu: its properties, of torch.cuda.
    """
    address = f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
    allowed = os.sched_getaffinity(0)
    near = allowed & cpu_numbers((devices / address / "local_cpulist").read_text())
    if near and len(near) >= len(allowed) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        os.sched_setaffinity(0, near)


def cpu_numbers(ranges: str) -> set[int]:
    """The numbers in a kernel's list, such as `0-3,8`."""
    bounds = (part.split("-") for part in ranges.strip().split(",") if part)
    return {number for ends in bounds for number in range(int(ends[0]), int(ends[-1]) + 1)}


def why_no_gpu() -> str:
    """What to do about a PyTorch that finds no GPU, from its build and the driver's version."""
    if torch.version.hip is not None:
        return f"check the node's amdgpu driver for ROCm {torch.version.hip}"
    built = torch.version.cuda
    if built is None:
        return f"PyTorch {torch.__version__} is built without CUDA: use an image with a CUDA build"
    supported = driver_cuda()
    if supported is None:
        return (
            f"it is built for CUDA {built}, and the container has no NVIDIA driver: check the"
            " node's driver and its container toolkit"
        )
    # Within a major version newer builds run on older drivers.
    if supported[0] < int(built.partition(".")[0]):
        return (
            f"it is built for CUDA {built}, and the node's driver supports CUDA up to"
            f" {supported[0]}.{supported[1]}: update the driver, or use an image with PyTorch for"
            f" CUDA {supported[0]}"
        )
    return f"it is built for CUDA {built}, which the driver supports: check nvidia-smi on the node"


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the NVIDIA driver supports; None without a driver."""
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else (version.value // 1000, version.value % 1000 // 10)
