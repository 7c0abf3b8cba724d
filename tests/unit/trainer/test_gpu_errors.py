"""GPUs: which one a rank takes, and torch's errors for them, in the texts of CUDA and NCCL."""

import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainyard_trainer import errors
from trainyard_trainer.distributed import device
from trainyard_trainer.distributed.device import (
    cpu_numbers,
    driver_cuda,
    pick_device,
    run_near,
    why_no_gpu,
)
from trainyard_trainer.errors import (
    ConfigError,
    HardwareError,
    KernelError,
    as_gpu_error,
    as_out_of_memory,
    as_rank_lost,
    type_and_message,
)

UUID = "8f2b7c1e-4a11-2d0c-9a5e-0c6f3b7d1e24"
CUDA = (
    "CUDA error: {}\nSearch for `cudaErrorUnknown' in https://docs.nvidia.com/cuda for more"
    " information.\nCUDA kernel errors might be asynchronously reported at some other API call."
)
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:97, invalid usage (run with"
    " NCCL_DEBUG=WARN for details), NCCL version 2.28.9\nncclInvalidUsage: This usually reflects"
    " invalid usage of NCCL library.\nLast error:\n{}\nException raised from x (most recent call"
    " first)"
)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This process's place, once it has taken the second of two GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    properties = SimpleNamespace(uuid=UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device(require_gpu=True) == torch.device("cuda", 1)
    yield f"{socket.gethostname()}, GPU 1, GPU-{UUID}"
    errors.name_gpu("")


def test_a_gpu_is_used_only_if_it_was_asked_for(on_gpu: str) -> None:
    assert pick_device(require_gpu=False) == torch.device("cpu")


@pytest.mark.parametrize(
    "message",
    [
        CUDA.format("uncorrectable ECC error encountered"),
        CUDA.format("uncorrectable NVLink error detected during the execution"),
        CUDA.format("unspecified launch failure"),
        CUDA.format("hardware stack error"),
        CUDA.format("Invalid access of peer GPU memory over nvlink or a hardware error"),
        "NCCL error: unhandled cuda error\nLast error:\nCuda failure 'uncorrectable ECC error'",
    ],
)
def test_a_broken_gpu_is_one_line(message: str, on_gpu: str) -> None:
    error = as_gpu_error(RuntimeError(message), "in step 7")
    assert isinstance(error, HardwareError)
    line = type_and_message(error)
    assert line.startswith("HardwareError: in step 7: ")
    assert f"(on {on_gpu})" in line
    assert "Search for" not in line


@pytest.mark.parametrize(
    "words",
    [
        "an illegal memory access was encountered",
        "an illegal instruction was encountered",
        "misaligned address",
        "device-side assert triggered",
    ],
)
def test_a_kernels_mistake_is_one_line(
    words: str, on_gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError(CUDA.format(words))
    line = type_and_message(as_gpu_error(error, "in step 7"))
    assert line.startswith(f"{KernelError.__name__}: in step 7: {words} (on {on_gpu}): ")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    assert as_gpu_error(error, "in step 7") is error  # with its traceback


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "Duplicate GPU detected : rank 3 and rank 0 both on CUDA device a000",
            "ranks 3 and 0 use the same GPU: request as many GPUs as processes; NCCL error",
        ),
        (
            "Multiple Ranks are using the same GPU/Partition. Set NCCL_MULTI_RANK_GPU_ENABLE=1",
            "ranks use the same GPU: request as many GPUs as processes; NCCL error",
        ),
        ("Mismatched NCCL version detected : rank 0 version 22809", "in step 7: NCCL error in: "),
    ],
)
def test_nccl_used_wrongly_is_no_lost_peer(words: str, said: str, on_gpu: str) -> None:
    raised = torch.distributed.DistBackendError(NCCL.format(words))
    error = as_rank_lost(as_gpu_error(raised, "in step 7"), "in step 7")
    assert isinstance(error, ConfigError)
    assert said in str(error)
    assert str(error).endswith(f"{words} (on {on_gpu})")


def test_too_little_memory_keeps_its_figures(on_gpu: str) -> None:
    figures = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 79.19 GiB"
        " of which 1.10 GiB is free. Including non-PyTorch memory, this process has 78.00 GiB"
        " memory in use. Of the allocated memory 70.00 GiB is allocated by PyTorch, and 6.00 GiB"
        " is reserved by PyTorch but unallocated"
    )
    advice = ". If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF"
    error = as_out_of_memory(torch.OutOfMemoryError(figures + advice), 7)
    assert str(error).endswith(f"({on_gpu}: {figures})")


def test_so_does_too_little_memory_of_the_machine() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert str(as_out_of_memory(raised.value, 7)).endswith(
        f"({socket.gethostname()}: DefaultCPUAllocator: can't allocate memory: you tried to"
        " allocate 1152921504606846976 bytes. Error code 12 (Cannot allocate memory))"
    )


@pytest.mark.parametrize(
    "message",
    [
        CUDA.format("out of memory"),
        # Of a lost peer, which its own rank or node explains.
        "NCCL error: remote process exited or there was a network error",
        "NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
        "mat1 and mat2 shapes cannot be multiplied",
    ],
)
def test_anything_else_is_not_the_gpu(message: str) -> None:
    error = RuntimeError(message)
    assert as_gpu_error(error, "in step 7") is error
    assert not isinstance(as_gpu_error(ValueError("uncorrectable ECC error"), "x"), HardwareError)


@pytest.mark.parametrize(
    ("built", "driver", "advice"),
    [
        (None, None, "is built without CUDA: use an image with a CUDA build"),
        ("13.2", None, "it is built for CUDA 13.2, and the container has no NVIDIA driver"),
        ("13.2", (12, 4), "the node's driver supports CUDA up to 12.4: update the driver, or use"),
        ("12.8", (12, 4), "which the driver supports: check nvidia-smi on the node"),
    ],
)
def test_a_pytorch_that_finds_no_gpu_says_what_differs(
    monkeypatch: pytest.MonkeyPatch, built: str | None, driver: tuple[int, int] | None, advice: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(device, "driver_cuda", lambda: driver)
    assert advice in why_no_gpu()


def test_the_drivers_version_is_read_from_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "cuda.c"
    source.write_text("int cuDriverGetVersion(int *version) { *version = 12040; return 0; }")
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    load = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda _: load(str(library)))
    assert driver_cuda() == (12, 4)


@pytest.mark.parametrize(
    ("local", "ranks", "bound"),
    [
        ("0-3,8", "2", {1, 2, 3, 8}),  # the CPUs near the GPU, of those that the process may use
        ("8-9", "2", {1, 2, 3, 8, 9, 10}),  # too few for half of the work
        ("8-9", "4", {8, 9}),
        ("32-63", "2", {1, 2, 3, 8, 9, 10}),
    ],
)
def test_a_rank_runs_on_the_cpus_near_its_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, local: str, ranks: str, bound: set[int]
) -> None:
    cpus = {1, 2, 3, 8, 9, 10}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cpus))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, chosen: cpus.intersection_update(chosen))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    folder = tmp_path / "0000:1b:00.0"
    folder.mkdir()
    (folder / "local_cpulist").write_text(f"{local}\n")
    run_near(SimpleNamespace(pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0), tmp_path)
    assert cpus == bound


def test_the_kernels_list_of_this_machine_can_be_read() -> None:
    text = Path("/sys/devices/system/cpu/online").read_text()
    assert cpu_numbers(text) >= os.sched_getaffinity(0)
    assert cpu_numbers("\n") == set()
