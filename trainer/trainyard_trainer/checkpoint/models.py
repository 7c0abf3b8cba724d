"""A run's exported models: references to them, and which is the best."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

from trainyard_api.checkpoint import MODELS, Manifest
from trainyard_api.status import ModelRef
from trainyard_storage.checkpoints import (
    InvalidCheckpointError,
    best_first,
    digest,
    eval_loss,
    read_manifest,
)

# Servers may still be reading the last two before the newest.
KEEP_MODELS = 3


def model_ref(directory: Path, manifest: Manifest) -> ModelRef:
    """What the status says of the model in `directory`."""
    loss = eval_loss(manifest)
    return ModelRef(
        step=manifest.step,
        digest=digest(directory),
        path=f"{MODELS}/{directory.name}",
        eval_loss=loss if math.isfinite(loss) else None,
    )


def best_model(run_dir: Path, read: Callable[[Path], Manifest] = read_manifest) -> ModelRef | None:
    """The model with the lowest evaluation loss; None if none has one.

    read: `verify` also checks every byte, and passes over a damaged model.
    """
    for _, directory in best_first(run_dir / MODELS):
        with contextlib.suppress(InvalidCheckpointError, OSError):
            return model_ref(directory, read(directory))
    return None
