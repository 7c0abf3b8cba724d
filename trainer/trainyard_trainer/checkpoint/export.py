"""Export of the model in Hugging Face format to models/step-XXXXXXXX."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trainyard_api.checkpoint import MODELS, Manifest, step_name
from trainyard_api.job import TrainerJob
from trainyard_api.status import ModelRef
from trainyard_trainer.checkpoint.publish import TEMPORARY, Fence, publish
from trainyard_trainer.checkpoint.retention import Retention
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.errors import CheckpointError
from trainyard_trainer.recipes.base import Recipe

# Servers may still be reading the last two before the newest.
KEEP_MODELS = 3


class Exporter:
    """Exports the model, during training and at its end; every rank makes the same calls."""

    def __init__(
        self,
        job: TrainerJob,
        recipe: Recipe,
        parallel: Parallel,
        fence: Fence | None,
        config: dict[str, Any],
    ) -> None:
        """`fence`: on rank 0 only, the rank that writes."""
        self._job = job
        self._recipe = recipe
        self._parallel = parallel
        self._fence = fence
        self._config = config
        self._retention: Retention | None = None
        if fence and config["export_steps"]:
            self._retention = Retention(
                Path(job.run_dir) / MODELS, KEEP_MODELS, keep_best=False, fence=fence
            )

    def export(self, step: int, metrics: dict[str, float]) -> ModelRef | None:
        """Gather the weights and publish them; rank 0 gets the reference.

        Training is not affected: the random state is restored. Raises CheckpointError, on every
        rank, if the model can't be written.
        """
        weights = self._parallel.full_weights()
        group = self._parallel.group

        def write() -> ModelRef | None:
            if self._fence is None:
                return None
            with torch.random.fork_rng(devices=[]):
                return self._write(self._fence, weights, step, metrics, group.world_size)

        return group.run_or_fail_all(write)

    def _write(
        self,
        fence: Fence,
        weights: dict[str, torch.Tensor],
        step: int,
        metrics: dict[str, float],
        world_size: int,
    ) -> ModelRef:
        job = self._job
        parent = Path(job.run_dir) / MODELS
        temporary = parent / f"{TEMPORARY}{step_name(step)}-{fence.writer}"
        manifest = Manifest(
            kind="model",
            run=job.run,
            attempt=job.attempt,
            recipe=job.recipe,
            step=step,
            total_steps=self._config["max_steps"],
            world_size=world_size,
            created=datetime.now(UTC),
            config=self._config,
            metrics=metrics,
            files={},
        )
        try:
            temporary.mkdir()
            self._recipe.export(weights, temporary)
            digest = publish(temporary, parent / step_name(step), manifest, fence)
            if self._retention:
                self._retention.prune(parent / step_name(step))
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            free = shutil.disk_usage(parent).free / 2**20
            raise CheckpointError(
                f"the model could not be written to {parent}: {error.strerror}"
                f" ({free:,.0f} MiB free)"
            ) from None
        return ModelRef(step=step, digest=digest, path=f"{MODELS}/{step_name(step)}")
