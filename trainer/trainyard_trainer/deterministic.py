"""`deterministic: true`: every operation gives the same result from the same inputs, or fails."""

import os
import re

import torch

from trainyard_trainer.errors import ConfigError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# With these cuBLAS adds in one order; with others torch refuses matrix products.
WORKSPACES = (":4096:8", ":16:8")
_REFUSED = re.compile(r"(\S+) does not have a deterministic implementation")


def use_deterministic_algorithms(compiles: bool) -> None:
    """In this process, from now on; before CUDA is first used, whose libraries read WORKSPACE then.

    torch then also keeps NCCL from reducing in NVLink's switches (NVLS), whose order varies.
    `compiles`: kernels are compiled; none is then chosen by measuring. Raises ConfigError if
    WORKSPACE has an unfit value.
    """
    value = os.environ.setdefault(WORKSPACE, WORKSPACES[0])
    if value not in WORKSPACES:
        raise ConfigError(
            f"config.deterministic: {WORKSPACE} is {value}, with which cuBLAS does not always add"
            f" in the same order; set it to {' or '.join(WORKSPACES)}, or leave it out"
        )
    if compiles:
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_deterministic_debug_mode("error")  # the same, without the compiler's import
    # Filling new tensors would show who reads them before they are written, and cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # The other kernels of attention have a deterministic backward pass for all inputs they take.
    torch.backends.cuda.enable_cudnn_sdp(False)


def as_nondeterministic(error: BaseException) -> BaseException:
    """A ConfigError in place of torch's for an operation that can't be deterministic; else `error`.

    It names the operation.
    """
    if not isinstance(error, RuntimeError) or not (found := _REFUSED.search(str(error))):
        return error
    return ConfigError(
        f"config.deterministic: {found[1]}, which this model uses, has no deterministic"
        " implementation on this device; set it to false, or train without that operation"
    )
