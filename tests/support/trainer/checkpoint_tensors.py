"""What a checkpoint holds, tensor by tensor, whichever form it was written in."""

import hashlib
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from trainyard_api.checkpoint import CHECKPOINTS, step_name


def digests(run_dir: Path, step: int) -> dict[str, str]:
    """sha256 of every tensor: parameters, optimizer state, the random states of every rank."""
    tensors = load(run_dir / CHECKPOINTS / step_name(step))
    assert "rng.0.cpu" in tensors
    assert any(name.startswith("optimizer.") for name in tensors)
    return {
        name: hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        if tensor.dim()
        else str(tensor.item())
        for name, tensor in tensors.items()
    }


def load(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor, whole."""
    if (directory / "state.safetensors").exists():
        return safetensors.torch.load_file(directory / "state.safetensors")
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, Any] = {}
    _load_state_dict(
        state,
        storage_reader=FileSystemReader(directory),
        planner=_EmptyStateDictLoadPlanner(),  # type: ignore[no-untyped-call]
        no_dist=True,
    )
    return state
