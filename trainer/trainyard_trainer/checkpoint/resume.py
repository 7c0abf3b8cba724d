"""What a run begins with: its own newest checkpoint, another run's (startFrom), or nothing."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainyard_api.checkpoint import CHECKPOINTS, MANIFEST, Manifest, step_name, step_of
from trainyard_api.job import TrainerJob
from trainyard_api.start_from import StartFrom
from trainyard_storage.checkpoints import (
    InvalidCheckpointError,
    best_first,
    newest_valid,
    steps,
    verify,
)
from trainyard_trainer.checkpoint.disk import reason
from trainyard_trainer.checkpoint.random_state import seed_rank
from trainyard_trainer.checkpoint.state import StateFiles
from trainyard_trainer.distributed.parallel import LossScaler
from trainyard_trainer.errors import CheckpointError, ConfigError

DESCRIPTION_FILE = "trainer.json"  # settings, loss scale and the recipe's state
SCRIPT_FILE = "script.json"  # the same of a script that uses trainyard.Checkpointer
# The keys that each must have.
_NEEDED = {
    DESCRIPTION_FILE: ("config", "spec", "recipe", "scaler"),
    SCRIPT_FILE: ("format", "shared", "ranks"),
}
# What to change where startFrom names what a recipe, or a script, can't take over.
_ADVICE = {
    DESCRIPTION_FILE: "name a run of the same recipe",
    SCRIPT_FILE: "name a run of this script, or set startFrom.what to weights and load its model"
    " from run.start_from",
}


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


def find_newest(parent: Path, name: str = DESCRIPTION_FILE) -> Resume | None:
    """The newest valid checkpoint below `parent`, with its description in the file `name`.

    Raises CheckpointError when there are checkpoints but none is valid.
    """
    directory, manifest, skipped = newest_valid(parent)
    if directory is not None and manifest is not None:
        return Resume(directory, manifest, _description(directory, name), skipped)
    if skipped:
        raise CheckpointError(
            f"none of the {len(skipped)} checkpoints in {parent} is valid ({skipped[0]});"
            " restore one from a backup, or move that folder aside to start from step 0"
        )
    return None


def find_resume(job: TrainerJob) -> Resume | None:
    """The checkpoint to begin with; None in a new run without startFrom.

    Raises CheckpointError when there are checkpoints but none is valid (starting again from step 0
    would silently discard the run's work), and ConfigError when that of startFrom isn't there.
    """
    parent = Path(job.run_dir) / CHECKPOINTS
    if newest := find_newest(parent):
        return newest
    if job.start_from is None:
        return None
    if job.start_dir is None:
        raise ConfigError(
            f"startFrom: the run has had checkpoints of its own, but there is none in {parent} any"
            " more; restore one, or create the run again under another name"
        )
    return find_start(job.start_from, Path(job.start_dir))


def find_start(start: StartFrom, directory: Path, name: str = DESCRIPTION_FILE) -> Resume:
    """The checkpoint that startFrom names, of the run or the checkpoint in `directory`.

    Raises ConfigError when it isn't there, or is not one that has the file `name`, and
    CheckpointError when it is damaged.
    """
    where, parent = field_of(start), directory / CHECKPOINTS
    single = (directory / MANIFEST).is_file()
    found = directory if single else choose_step(start, parent, "checkpoint")
    skipped: list[str] = []
    if start.step == "newest" and not single:
        newest, manifest, skipped = newest_valid(parent)
        if newest is None or manifest is None:
            raise CheckpointError(f"{where}: no checkpoint in {parent} is valid ({skipped[0]})")
        found = newest
    else:
        manifest = verified(start, found)
    if manifest.kind != "checkpoint":
        raise ConfigError(f"{where}: it is a model, not a checkpoint; {_ADVICE[name]}")
    source = f"step {manifest.step} of {owner_of(start)}"
    weights_only = start.what == "weights"
    description = _description(found, name, where)
    return Resume(found, manifest, description, skipped, source, weights_only)


def field_of(start: StartFrom) -> str:
    """The field that names where to start from, as errors begin with it."""
    return f"startFrom.run: {start.run}" if start.run else f"startFrom.path: {start.path}"


def owner_of(start: StartFrom) -> str:
    """Whose checkpoint or model it is: `run a`, or the path."""
    return f"run {start.run}" if start.run else str(start.path)


def verified(start: StartFrom, directory: Path) -> Manifest:
    """The manifest of what startFrom names, after checking every byte. Raises CheckpointError."""
    try:
        return verify(directory)
    except InvalidCheckpointError as error:
        raise CheckpointError(f"{field_of(start)}: {error}; name another step") from None


def choose_step(start: StartFrom, parent: Path, noun: str) -> Path:
    """The step directory below `parent` that startFrom asks for, not verified yet.

    noun: what these directories are, `checkpoint` or `model`.
    """
    where, available = field_of(start), list(steps(parent))
    if not available:
        raise ConfigError(f"{where}: there is no {noun} in {parent}; name a run that has one")
    if start.step == "newest":
        return available[0]
    if start.step == "best":
        evaluated = best_first(parent)
        if not evaluated:
            raise ConfigError(
                f"{where}: no {noun} in {parent} has an evaluation loss: set startFrom.step to"
                " newest or to a number"
            )
        return evaluated[0][1]
    chosen = parent / step_name(start.step)
    if chosen not in available:
        there = ", ".join(str(step_of(path)) for path in available)
        raise ConfigError(
            f"{where}: there is no {noun} of step {start.step}; set startFrom.step to one of"
            f" {there}"
        )
    return chosen


def _description(directory: Path, name: str = DESCRIPTION_FILE, where: str = "") -> dict[str, Any]:
    """What the checkpoint says of the run that saved it. Raises UserError.

    where: the field that names it, if it is another run's.

    Its bytes are verified, so what is missing was written by a version that is too old or too new,
    or by a script where a recipe is asked for. Further keys do no harm.
    """
    other = SCRIPT_FILE if name == DESCRIPTION_FILE else DESCRIPTION_FILE
    if not (directory / name).exists() and (directory / other).exists():
        by, whose = ("a script", "recipe's") if other == SCRIPT_FILE else ("a recipe", "script's")
        if where:
            raise ConfigError(f"{where}: {directory.name} was saved by {by}; {_ADVICE[name]}")
        raise CheckpointError(
            f"{directory}: was saved by {by} and can't continue as a {whose} run: start the run"
            " under another name"
        )
    description: dict[str, Any] = json.loads((directory / name).read_text())
    if missing := [key for key in _NEEDED[name] if key not in description]:
        raise CheckpointError(
            f"{directory}: {name} has no {', '.join(missing)}, so that another version"
            " of Trainyard must have saved it: use the image of that version"
        )
    return description


def restore(resume: Resume, files: StateFiles, scaler: LossScaler, job: TrainerJob) -> bool:
    """Load a checkpoint into the model, optimizer, loss scaler and random generators.

    With the same number of ranks the next step is bitwise the one the saved run would have taken.
    With another number, or on another kind of device, every rank gets a new random state, from the
    seed, the step and the rank. Returns whether the random states are the saved ones.
    """
    group = files.group
    everything = not resume.weights_only
    random = everything and resume.manifest.world_size == group.world_size
    restored = read_state(files, resume.directory, optimizer=everything, random=random)
    if everything and resume.description["spec"]["precision"] == job.precision:
        scaler.load_state_dict(resume.description["scaler"])
    if not restored:
        seed_rank(job.seed, resume.step, group.rank)
    return restored


def read_state(files: StateFiles, directory: Path, *, optimizer: bool, random: bool) -> bool:
    """Load a checkpoint's weights, and with them these parts of it. Raises CheckpointError.

    Returns whether the random states are the saved ones: not on another kind of device.
    """
    try:
        states = files.read(directory, optimizer=optimizer, random=random)
        return random and files.set_random(states)
    except BaseException as error:  # torch's CheckpointException is not an Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        why = reason(error, directory)
        raise CheckpointError(f"{directory}: cannot be loaded: {why}") from error
