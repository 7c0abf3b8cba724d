"""torch's errors for a GPU that failed, by the documented messages of CUDA."""

import pytest

from trainyard_trainer.errors import HardwareError, as_hardware, one_line

CUDA = "CUDA error: {}\nCUDA kernel errors might be asynchronously reported at some other API call."


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
def test_a_broken_gpu_is_one_line(message: str) -> None:
    error = as_hardware(RuntimeError(message), "in step 7")
    assert isinstance(error, HardwareError)
    assert one_line(error).startswith("HardwareError: in step 7: ")


@pytest.mark.parametrize(
    "message",
    [
        CUDA.format("device-side assert triggered"),
        CUDA.format("an illegal memory access was encountered"),
        CUDA.format("out of memory"),
        # Of a lost peer, which its own rank or node explains.
        "NCCL error: remote process exited or there was a network error",
        "NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
        "mat1 and mat2 shapes cannot be multiplied",
    ],
)
def test_a_mistake_or_a_lost_peer_is_not_the_hardware(message: str) -> None:
    error = RuntimeError(message)
    assert as_hardware(error, "in step 7") is error
    assert as_hardware(ValueError("uncorrectable ECC error"), "in step 7") is not None
