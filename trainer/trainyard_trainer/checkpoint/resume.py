"""What a run begins with: its own newest checkpoint, another run's (startFrom), or nothing."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainyard_api.checkpoint import CHECKPOINTS, MANIFEST, Manifest, step_name, step_of
from trainyard_api.job import TrainerJob
from trainyard_api.start_from import StartFrom
from trainyard_storage.checkpoints import (
    InvalidCheckpointError,
    newest_valid,
    read_manifest,
    steps,
    verify,
)
from trainyard_trainer.checkpoint.disk import reason
from trainyard_trainer.checkpoint.state import StateFiles
from trainyard_trainer.errors import CheckpointError, ConfigError

DESCRIPTION_FILE = "trainer.json"  # settings, loss scale and the recipe's state
_NEEDED = ("config", "spec", "recipe", "scaler")  # its keys


@dataclass(frozen=True)
class Resume:
    """The verified checkpoint that an attempt begins with.

    Attributes:
        skipped: why newer checkpoints are not used.
        source: whose it is, if another run's: `step 400 of run a`; else "".
        weights_only: take over its weights alone, and begin with step 0.
    """

    directory: Path
    manifest: Manifest
    description: dict[str, Any]
    skipped: list[str] = field(default_factory=list)
    source: str = ""
    weights_only: bool = False

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return 0 if self.weights_only else self.manifest.step


def find_resume(job: TrainerJob) -> Resume | None:
    """The checkpoint to begin with; None in a new run without startFrom.

    Raises CheckpointError when there are checkpoints but none is valid (starting again from step 0
    would silently discard the run's work), and ConfigError when that of startFrom isn't there.
    """
    parent = Path(job.run_dir) / CHECKPOINTS
    directory, manifest, skipped = newest_valid(parent)
    if directory is not None and manifest is not None:
        return Resume(directory, manifest, _description(directory), skipped)
    if skipped:
        raise CheckpointError(
            f"none of the {len(skipped)} checkpoints in {parent} is valid ({skipped[0]});"
            " restore one from a backup, or move that folder aside to start from step 0"
        )
    if job.start_from is None:
        return None
    if job.start_dir is None:
        raise ConfigError(
            f"startFrom: the run has had checkpoints of its own, but there is none in {parent} any"
            " more; restore one, or create the run again under another name"
        )
    return _find_start(job.start_from, Path(job.start_dir))


def _find_start(start: StartFrom, directory: Path) -> Resume:
    """The checkpoint that startFrom names, of the run or the checkpoint in `directory`."""
    where = f"startFrom.run: {start.run}" if start.run else f"startFrom.path: {start.path}"
    skipped: list[str] = []
    if (directory / MANIFEST).is_file():
        found = directory
    else:
        found, skipped = _choose(start, directory / CHECKPOINTS, where)
    try:
        manifest = verify(found)
    except InvalidCheckpointError as error:
        raise CheckpointError(f"{where}: {error}; name another step") from None
    source = f"step {manifest.step} of {f'run {start.run}' if start.run else directory}"
    weights_only = start.what == "weights"
    return Resume(found, manifest, _description(found), skipped, source, weights_only)


def _choose(start: StartFrom, parent: Path, where: str) -> tuple[Path, list[str]]:
    """The step directory that startFrom asks for, and why newer ones were skipped."""
    available = list(steps(parent))
    if not available:
        raise ConfigError(f"{where}: there is no checkpoint in {parent}; name a run that has one")
    if start.step == "newest":
        newest, _, skipped = newest_valid(parent)
        if newest is None:
            raise CheckpointError(f"{where}: no checkpoint in {parent} is valid ({skipped[0]})")
        return newest, skipped
    if start.step == "best":
        evaluated = [(loss, path) for path in available if (loss := _loss(path)) is not None]
        if not evaluated:
            raise ConfigError(
                f"{where}: no checkpoint in {parent} has an evaluation loss: set startFrom.step to"
                " newest or to a number"
            )
        return min(evaluated)[1], []
    chosen = parent / step_name(start.step)
    if chosen not in available:
        there = ", ".join(str(step_of(path)) for path in available)
        raise ConfigError(
            f"{where}: there is no checkpoint of step {start.step}; set startFrom.step to one of"
            f" {there}"
        )
    return chosen, []


def _loss(directory: Path) -> float | None:
    """The finite evaluation loss in the manifest; None if there is none."""
    try:
        loss = read_manifest(directory).metrics.get("eval_loss", math.inf)
    except InvalidCheckpointError:
        return None
    return loss if math.isfinite(loss) else None


def _description(directory: Path) -> dict[str, Any]:
    """What the checkpoint says of the run that saved it. Raises CheckpointError.

    Its bytes are verified, so what is missing was written by a version that is too old or too new.
    Further keys do no harm.
    """
    description: dict[str, Any] = json.loads((directory / DESCRIPTION_FILE).read_text())
    if missing := [key for key in _NEEDED if key not in description]:
        raise CheckpointError(
            f"{directory}: {DESCRIPTION_FILE} has no {', '.join(missing)}, so that another version"
            " of Trainyard must have saved it: use the image of that version"
        )
    return description


def restore(resume: Resume, files: StateFiles, job: TrainerJob) -> None:
    """Load a checkpoint into the model, optimizer, loss scaler and random generators.

    With the same number of ranks the next step is bitwise the one the saved run would have taken.
    With another number every rank gets a new random state, from the seed, the step and the rank.
    """
    group = files.group
    everything = not resume.weights_only
    same_ranks = resume.manifest.world_size == group.world_size
    try:
        files.read(resume.directory, optimizer=everything, random=everything and same_ranks)
    except BaseException as error:  # torch's CheckpointException is not an Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        why = reason(error, resume.directory)
        raise CheckpointError(f"{resume.directory}: cannot be loaded: {why}") from error
    if everything and resume.description["spec"]["precision"] == job.precision:
        files.parallel.scaler.load_state_dict(resume.description["scaler"])
    if not (everything and same_ranks):
        seed_rank(job.seed, resume.step, group.rank)


def seed_rank(seed: int, step: int, rank: int) -> None:
    """Seed the generators (for dropout), differently for every rank and starting step."""
    seeds = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(seeds[0]))
