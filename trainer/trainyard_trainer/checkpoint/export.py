"""Export of the model in Hugging Face format to models/step-XXXXXXXX."""

import contextlib
import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trainyard_api.checkpoint import CHECKPOINTS, MODELS, Manifest, step_name
from trainyard_api.job import TrainerJob
from trainyard_api.status import ModelRef
from trainyard_storage.checkpoints import InvalidCheckpointError, digest, verify
from trainyard_storage.files import write_text_atomic
from trainyard_trainer.checkpoint.disk import failed_call, free_space, kind, what_to_do
from trainyard_trainer.checkpoint.publish import TEMPORARY, Fence, publish
from trainyard_trainer.checkpoint.retention import Retention
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.recipes.base import Recipe

# Servers may still be reading the last two before the newest.
KEEP_MODELS = 3
# Beside the checkpoints: which model stands for a last checkpoint that could not be written.
EXPORTED_FILE = "exported.json"


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

        Training is not affected: the random state is restored. Raises DiskFullError or
        CheckpointError, on every rank, if the model can't be written.
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
            name = publish(temporary, parent / step_name(step), manifest, fence)
            if self._retention:
                self._retention.prune(parent / step_name(step))
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            code, _ = failed_call(error, parent)
            if code is None:  # not the disk's
                raise
            cls, size = kind(error, parent), sum(tensor.nbytes for tensor in weights.values())
            raise cls(
                f"the model could not be written to {parent}: {os.strerror(code)}"
                f"{free_space(parent)}{what_to_do(cls, size)}"
            ) from None
        return ModelRef(step=step, digest=name, path=f"{MODELS}/{step_name(step)}")


def note_exported(run_dir: Path, model: ModelRef, run: dict[str, Any]) -> None:
    """Record that the run is complete up to its last checkpoint, which could not be written.

    The next attempt then need not repeat the steps since the one before: see `find_exported`.
    `run`: the settings that determine the result.
    """
    note = {"step": model.step, "digest": model.digest, "run": run}
    with contextlib.suppress(OSError):  # then these steps are trained again
        write_text_atomic(run_dir / CHECKPOINTS / EXPORTED_FILE, json.dumps(note, indent=1) + "\n")


def find_exported(run_dir: Path, step: int, run: dict[str, Any]) -> ModelRef | None:
    """The model of `step` that an earlier attempt has noted, if it is intact and of this `run`.

    Any other note is removed: the run continues, and ends differently.
    """
    path = run_dir / CHECKPOINTS / EXPORTED_FILE
    directory = run_dir / MODELS / step_name(step)
    try:
        note = json.loads(path.read_bytes())
        if note["step"] == step and note["run"] == run and digest(directory) == note["digest"]:
            verify(directory)
            path_in_run = f"{MODELS}/{directory.name}"
            return ModelRef(step=step, digest=note["digest"], path=path_in_run)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, InvalidCheckpointError):
        pass
    with contextlib.suppress(OSError):
        path.unlink()
    return None
