"""What a run with startFrom begins with: a checkpoint or a model of another run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from trainyard.needs import needs

if TYPE_CHECKING:
    from trainyard.run import Run

with needs("startFrom"):
    from trainyard_api.checkpoint import CHECKPOINTS, MANIFEST, MODELS
    from trainyard_api.start_from import StartFrom
    from trainyard_storage.checkpoints import InvalidCheckpointError, read_manifest, steps
    from trainyard_trainer.checkpoint.resume import (
        SCRIPT_FILE,
        Resume,
        choose_step,
        field_of,
        find_start,
        owner_of,
        verified,
    )
    from trainyard_trainer.errors import ConfigError

CONFIG = "config.json"  # every model in Hugging Face format has one


def find_model(run: Run, directory: Path) -> tuple[Path, str]:
    """See Run.start_from; with it, which model it is, as the status shows it."""
    start = _start_of(directory)
    field, owner = field_of(start), owner_of(start)
    if (directory / MANIFEST).is_file():
        found = directory
    elif (directory / CONFIG).is_file() and start.path is not None:
        return directory, f"the model in {owner}"  # not one of ours: nothing to verify
    else:
        found = _published(start, directory)
    # Every byte is read once, not by each rank: a model may be large, and one error ends them all.
    try:
        manifest = verified(start, found) if run.rank == 0 else read_manifest(found)
    except InvalidCheckpointError as error:
        raise ConfigError(f"{field}: {error}; name another step") from None
    if manifest.kind != "model":
        raise ConfigError(
            f"{field}: it is a checkpoint, not a model; name the run, or load it with"
            " trainyard.Checkpointer"
        )
    return found, f"the model of step {manifest.step} of {owner}"


def _published(start: StartFrom, directory: Path) -> Path:
    parent = directory / MODELS
    if not any(steps(parent)):
        raise ConfigError(
            f"{field_of(start)}: there is no model in {parent}; name a run that has published one,"
            " or load its checkpoint with trainyard.Checkpointer, or its files from"
            " run.start_directory"
        )
    return choose_step(start, parent, "model")


def find_checkpoint(run: Run) -> Resume | None:
    """The checkpoint that startFrom names.

    None without startFrom, or if the script has loaded the model and nothing is left to restore.
    Raises UserError.
    """
    directory = run.start_directory
    if directory is None:
        return None
    start, parent = _start_of(directory), directory / CHECKPOINTS
    has_model = run._model_taken
    if has_model and start.what == "weights":
        return None
    if not any(steps(parent)) and not _is_checkpoint(directory):
        if has_model:
            return None
        if any(steps(directory / MODELS)):
            raise ConfigError(
                f"{field_of(start)}: there is no checkpoint in {parent}, but there are models:"
                " load one from run.start_from before resume()"
            )
    return find_start(start, directory, SCRIPT_FILE)


def _is_checkpoint(directory: Path) -> bool:
    try:
        return read_manifest(directory).kind == "checkpoint"
    except InvalidCheckpointError:
        return False


def _start_of(directory: Path) -> StartFrom:
    """spec.startFrom, from the environment of the run's workers."""
    run = os.environ.get("TRAINYARD_START_RUN")
    step = os.environ.get("TRAINYARD_START_STEP", "newest")
    return StartFrom.model_validate(
        {
            "run": run,
            "path": None if run else str(directory.absolute()),
            "step": int(step) if step.isdigit() else step,
            "what": os.environ.get("TRAINYARD_START_WHAT", "everything"),
        }
    )
