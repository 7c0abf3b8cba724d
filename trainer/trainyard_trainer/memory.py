"""How much memory this rank has used at most."""

import resource

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Of its GPU (what PyTorch allocated); without one, of the process (resident)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
