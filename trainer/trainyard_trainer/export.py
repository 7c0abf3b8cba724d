"""The finished model, published in Hugging Face form under models/step-XXXXXXXX."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainyard_api.checkpoint import MODELS, Manifest, step_name
from trainyard_api.job import TrainerJob
from trainyard_api.status import ModelRef
from trainyard_trainer.errors import CheckpointError
from trainyard_trainer.parallel import Parallel
from trainyard_trainer.publish import TEMPORARY, Fence, publish
from trainyard_trainer.recipes.base import Recipe


def export_model(
    job: TrainerJob,
    recipe: Recipe,
    parallel: Parallel,
    fence: Fence | None,
    step: int,
    config: dict[str, Any],
    metrics: dict[str, float],
) -> ModelRef | None:
    """Gather the weights and publish them; every rank calls this, rank 0 gets the reference.

    Raises CheckpointError, on every rank, if the model can't be written.
    """
    weights = parallel.full_weights()
    group = parallel.group

    def write() -> ModelRef | None:
        if fence is None:
            return None
        parent = Path(job.run_dir) / MODELS
        temporary = parent / f"{TEMPORARY}{step_name(step)}-{fence.writer}"
        manifest = Manifest(
            kind="model",
            run=job.run,
            attempt=job.attempt,
            recipe=job.recipe,
            step=step,
            total_steps=step,
            world_size=group.world_size,
            created=datetime.now(UTC),
            config=config,
            metrics=metrics,
            files={},
        )
        try:
            temporary.mkdir()
            recipe.export(weights, temporary)
            digest = publish(temporary, parent / step_name(step), manifest, fence)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            free = shutil.disk_usage(parent).free / 2**20
            raise CheckpointError(
                f"the model could not be written to {parent}: {error.strerror}"
                f" ({free:,.0f} MiB free)"
            ) from None
        return ModelRef(step=step, digest=digest, path=f"{MODELS}/{step_name(step)}")

    return group.together(write)
