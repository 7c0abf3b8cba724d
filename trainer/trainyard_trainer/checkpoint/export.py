"""Export of the last and of the best model in Hugging Face format to models/step-XXXXXXXX."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from trainyard_api.checkpoint import CHECKPOINTS, MODELS, Manifest, step_name
from trainyard_api.job import TrainerJob
from trainyard_api.status import ModelRef
from trainyard_storage.checkpoints import InvalidCheckpointError, best_first, verify
from trainyard_storage.files import write_text_atomic
from trainyard_trainer.checkpoint.compare import Comparison
from trainyard_trainer.checkpoint.disk import failed_call, free_space, kind, what_to_do
from trainyard_trainer.checkpoint.models import KEEP_MODELS, best_model, model_ref
from trainyard_trainer.checkpoint.publish import TEMPORARY, Fence, Origin, publish
from trainyard_trainer.checkpoint.resume import read_state
from trainyard_trainer.checkpoint.retention import Retention
from trainyard_trainer.checkpoint.state import StateFiles
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.recipes.base import Recipe
from trainyard_trainer.reporting.console import Console

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
                Path(job.run_dir) / MODELS, KEEP_MODELS, job.checkpoint.keep_best, fence
            )

    def export(self, step: int, metrics: dict[str, float]) -> ModelRef | None:
        """Gather the weights and publish them; rank 0 gets the reference.

        Training is not affected: the random state is restored. Raises, on every rank, DiskFullError
        or CheckpointError if the model can't be written, and ExportError if what is written is not
        the trained model: then nothing is published.
        """
        weights = self._parallel.full_weights()
        trained = Comparison(self._recipe, self._parallel)
        group = self._parallel.group

        def write() -> ModelRef | None:
            if self._fence is None:
                return None
            with torch.random.fork_rng(devices=[]):
                return self._write(self._fence, weights, trained, step, metrics)

        return group.run_or_fail_all(write)

    def best(self) -> ModelRef | None:
        """The exported model with the lowest evaluation loss; rank 0 gets it."""
        return best_model(Path(self._job.run_dir)) if self._fence else None

    def export_best(self, files: StateFiles, console: Console) -> ModelRef | None:
        """At the end of a run: export the best checkpoint too, unless a model is as good.

        The model in training then has that checkpoint's weights: nothing may follow but the end.
        Rank 0 gets the reference of the best model. Raises as `export` does, and CheckpointError if
        the checkpoint can't be loaded; another attempt exports what is still missing.
        """
        if not self._job.checkpoint.keep_best:
            return self.best()
        group = self._parallel.group
        found = group.run_or_fail_all(lambda: self._unexported_best(console))
        better = group.broadcast(found)
        if better:
            directory, manifest = better
            loss = manifest.metrics["eval_loss"]
            console.info(f"step {manifest.step} is the best: evaluation loss {loss:.4f}")
            read_state(files, directory, optimizer=False, random=False)
            self.export(manifest.step, manifest.metrics)
        return self.best()

    def _unexported_best(self, console: Console) -> tuple[Path, Manifest] | None:
        """On rank 0, the best checkpoint that verifies, if it is better than every model."""
        if self._fence is None:
            return None
        run_dir = Path(self._job.run_dir)
        exported = best_model(run_dir, verify)
        for loss, directory in best_first(run_dir / CHECKPOINTS):
            if exported and exported.eval_loss is not None and loss >= exported.eval_loss:
                return None
            try:
                return directory, verify(directory)
            except InvalidCheckpointError as error:
                console.warn(f"it would be the best, but is not exported: {error}")
        return None

    def _write(
        self,
        fence: Fence,
        weights: dict[str, torch.Tensor],
        trained: Comparison,
        step: int,
        metrics: dict[str, float],
    ) -> ModelRef:
        job = self._job
        parent = Path(job.run_dir) / MODELS
        temporary = parent / f"{TEMPORARY}{step_name(step)}-{fence.writer}"
        world_size = self._parallel.group.world_size
        origin = Origin(job.run, job.attempt, world_size, job.recipe, self._config)
        manifest = origin.manifest("model", step, self._config["max_steps"], metrics)
        manifest.serving = self._recipe.serving
        try:
            temporary.mkdir()
            self._recipe.export(weights, temporary)
            trained.check(temporary)
            publish(temporary, parent / step_name(step), manifest, fence)
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
        return model_ref(parent / step_name(step), manifest)


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
        model = model_ref(directory, verify(directory))
        if note["step"] == step and note["run"] == run and model.digest == note["digest"]:
            return model
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, InvalidCheckpointError):
        pass
    with contextlib.suppress(OSError):
        path.unlink()
    return None
