"""Reads NVIDIA's NVML: use and memory of this node's GPUs. Not measured on a GPU."""

from __future__ import annotations

import ctypes
from typing import Any, Mapping, NamedTuple

_LIBRARY = "libnvidia-ml.so.1"  # the container runtime mounts it where a pod has GPUs
_SUCCESS = 0


class Gpu(NamedTuple):
    """One GPU now.

    Attributes:
        utilization: share of the last second or so in which a kernel ran, 0 to 1.
        memory_active: share in which its memory was read or written. Ranks that wait in NCCL run a
            kernel that does neither.
        memory: bytes in use.
    """

    utilization: float
    memory_active: float
    memory: int


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _Memory(ctypes.Structure):
    _fields_ = [
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    ]


class Gpus:
    """The GPUs that this container may use; none without NVIDIA's driver."""

    def __init__(self, library: str = _LIBRARY) -> None:
        self._handles: list[ctypes.c_void_p] = []
        try:
            self._nvml: Any = ctypes.CDLL(library)
        except OSError:
            return
        count = ctypes.c_uint()
        if self._nvml.nvmlInit_v2() != _SUCCESS:
            return
        if self._nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _SUCCESS:
            return
        for index in range(count.value):
            handle = ctypes.c_void_p()
            status = self._nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
            if status == _SUCCESS:
                self._handles.append(handle)

    def of_rank(self, local_rank: int, environment: Mapping[str, str]) -> Gpu | None:
        """The GPU that a rank uses: the one of its local rank among those visible to it."""
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        index = local_rank
        if visible is not None:
            names = [*visible.split(","), *[""] * local_rank]
            if not names[local_rank].isdigit():
                return None  # it sees no such GPU, or one by UUID
            index = int(names[local_rank])
        return self._read(self._handles[index]) if index < len(self._handles) else None

    def _read(self, handle: ctypes.c_void_p) -> Gpu | None:
        used, memory = _Utilization(), _Memory()
        if self._nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(used)) != _SUCCESS:
            return None
        if self._nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != _SUCCESS:
            return None
        return Gpu(used.gpu / 100, used.memory / 100, int(memory.used))
