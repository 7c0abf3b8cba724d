"""The state at the end of an epoch in one .pt file, for other tools.

It is not used to resume: checkpoints are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainyard_storage.files import open_atomic
from trainyard_trainer.distributed.parallel import Parallel, full_tensor

FOLDER = "epochs"  # in the run's directory


def write_epoch_file(
    run_dir: Path,
    name: str,
    epoch: int,
    parallel: Parallel,
    optimizer: torch.optim.Optimizer,
    metrics: dict[str, float],
    config: dict[str, Any],
) -> Path:
    """Gather the state on every rank and write it on rank 0. Raises OSError on rank 0.

    Keys: epoch, model_state_dict, optimizer_state_dict (both for load_state_dict), loss, accuracy
    (None if the recipe has none), config.
    """
    model = parallel.full_weights()
    state = _gathered(optimizer.state_dict())
    path = run_dir / FOLDER / name
    if not parallel.group.is_main:
        return path
    path.parent.mkdir(exist_ok=True)
    content = {
        "epoch": epoch,
        "model_state_dict": model,
        "optimizer_state_dict": state,
        "loss": metrics.get("loss"),
        "accuracy": metrics.get("accuracy"),
        "config": config,
    }
    with open_atomic(path) as file:
        torch.save(content, file)
    return path


def _gathered(value: Any) -> Any:
    """`value` with every tensor in it unsharded and on the CPU."""
    if isinstance(value, Tensor):
        return full_tensor(value).cpu()
    if isinstance(value, Mapping):
        return {key: _gathered(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_gathered(item) for item in value]
    return value
