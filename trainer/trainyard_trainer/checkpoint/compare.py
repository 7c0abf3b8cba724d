"""Whether an exported model is the trained one: both compute the same held-out samples."""

import contextlib
from pathlib import Path

import numpy as np
import torch

from trainyard_trainer.data.sampling import Batch
from trainyard_trainer.data.transfer import on_device
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.errors import ConfigError, ExportError
from trainyard_trainer.recipes.base import Recipe

SAMPLES = 2  # held-out samples, which the exported model computes on the CPU
# Largest difference between outputs, as root mean square, relative to their standard deviation (or
# to 1, where that is smaller). The exported model is in fp32 and computes in it; the trained one
# computes in the given type, whose unit roundoff is 6e-8, 5e-4 or 4e-3. A deep network multiplies
# that by 10 or so; weights that are missing, mixed up or merged wrongly change outputs by far more.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class Comparison:
    """The trained model's outputs, to which those of the exported one are compared.

    Every rank makes it: under FSDP all of them take part. Only rank 0 has the outputs.
    """

    def __init__(self, recipe: Recipe, parallel: Parallel) -> None:
        """Compute the outputs. Training is not affected: the random state is restored."""
        self._recipe = recipe
        dtype = _compute_dtype(parallel)
        self._tolerance = TOLERANCE[dtype]
        self._trained: torch.Tensor | None = None
        if not can_compare(recipe):
            return
        if parallel.strategy != "fsdp" and not parallel.group.is_main:
            return  # the ranks have the same model, whole
        device = parallel.group.device
        self._batch = held_out_batch(recipe)
        with (
            torch.no_grad(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            _without_compiling(parallel),
        ):
            parallel.module.eval()
            outputs = recipe.outputs(parallel.module, on_device(self._batch, device))
            parallel.module.train()
        if parallel.group.is_main:
            self._trained = outputs.float().cpu()

    @torch.no_grad()
    def check(self, directory: Path) -> None:
        """Compare the model that the recipe has exported to `directory`. Raises ExportError."""
        if self._trained is None:
            return
        try:
            model = self._recipe.load_exported(directory)
        except ConfigError as error:
            raise ExportError(f"the exported model can't be loaded: {error}") from None
        assert model is not None  # see __init__
        exported, trained = self._recipe.outputs(model, self._batch).float(), self._trained
        if exported.shape != trained.shape:
            raise ExportError(
                f"the exported model has outputs of the shape {tuple(exported.shape)}, the trained"
                f" one of {tuple(trained.shape)}; it is not published"
            )
        difference = (exported - trained).abs()
        rms = float(difference.square().mean().sqrt())
        allowed = self._tolerance * max(1.0, float(trained.std(correction=0)))
        if not rms <= allowed:  # also true for NaN
            worst = int(difference.argmax())
            raise ExportError(
                f"the exported model is not the trained one: its outputs for {SAMPLES} held-out"
                f" samples differ by {rms:.3g} (root mean square; {allowed:.2g} can be rounding),"
                f" at most where the trained model's is {float(trained.flatten()[worst]):.4g} and"
                f" the exported one's {float(exported.flatten()[worst]):.4g}; it is not published"
            )


def can_compare(recipe: Recipe) -> bool:
    """Whether the recipe can read what it exports."""
    return type(recipe).load_exported is not Recipe.load_exported


def held_out_batch(recipe: Recipe) -> Batch:
    """SAMPLES held-out samples, the first and the last one among them, on the CPU."""
    ids = np.linspace(0, len(recipe.held_out) - 1, SAMPLES).astype(np.int64)
    return recipe.held_out.fetch(ids, np.zeros(SAMPLES, dtype=np.uint64))


def _compute_dtype(parallel: Parallel) -> torch.dtype:
    """What the model computes in without autocast: only FSDP casts the parameters themselves."""
    if parallel.strategy == "fsdp" and parallel.dtype != torch.float32:
        return parallel.dtype
    # GPUs may compute fp32 products as TF32, which has the precision of fp16.
    return torch.float32 if parallel.group.device.type == "cpu" else torch.float16


def _without_compiling(parallel: Parallel) -> contextlib.AbstractContextManager[object]:
    """Eager mode: compiled blocks would be compiled once more, for this batch."""
    eager: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if parallel.compiler:
        eager = torch.compiler.set_stance("force_eager")
    return eager
