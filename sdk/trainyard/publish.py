"""Publishes a Hugging Face folder as a model of the run, which servers then load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard.needs import needs
from trainyard.reporting import finite

if TYPE_CHECKING:
    from trainyard.run import Run

with needs("run.publish"):
    from trainyard_api.checkpoint import CHECKPOINTS, MANIFEST, MODELS, step_name, step_of
    from trainyard_storage.checkpoints import steps
    from trainyard_trainer.checkpoint.disk import failed_call, free_space, reason
    from trainyard_trainer.checkpoint.models import KEEP_MODELS, best_model, model_ref
    from trainyard_trainer.checkpoint.publish import (
        TEMPORARY,
        Fence,
        Origin,
        prepare_run_dir,
        publish,
    )
    from trainyard_trainer.checkpoint.retention import Retention
    from trainyard_trainer.errors import CheckpointError, ConfigError

CONFIG, WEIGHTS, INDEX = "config.json", "*.safetensors", "model.safetensors.index.json"
# What a server never opens: pickled files, which can run code, and a Trainer's checkpoints.
_LEFT_OUT = (".*", "__pycache__", "checkpoint-*", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

_fences: dict[Path, Fence] = {}  # by run directory: a second claim would supersede the first


def fence_of(run: Run) -> Fence:
    """The claim of this process on the run's directory. Rank 0 only. Raises UserError."""
    key = run.directory.resolve()
    if key not in _fences:
        _fences[key] = prepare_run_dir(run.directory, run.attempt, run.uid)
    return _fences[key]


def publish_folder(
    run: Run,
    directory: Path,
    metrics: Mapping[str, Any] | None,
    step: int | None,
    golden: str | Sequence[str] | None,
) -> Path:
    """See Run.publish."""
    _check_model(directory)
    step = _newest_step(run) if step is None else step
    fence, parent = fence_of(run), run.directory / MODELS
    final = parent / step_name(step)
    temporary = parent / f"{TEMPORARY}{final.name}-{fence.writer}"
    numbers = {name: finite(value) for name, value in (metrics or {}).items()}
    known = {name: number for name, number in numbers.items() if number is not None}
    manifest = Origin(run.name, run.attempt, run.world_size).manifest(
        "model", step, run.total, known
    )
    try:
        shutil.copytree(directory, temporary, ignore=_ignored)
        if golden is not None:
            _record(directory, temporary, golden)
        publish(temporary, final, manifest, fence)
    except (OSError, shutil.Error) as error:
        code, _ = failed_call(error, parent)
        why = reason(error, parent) if code else str(error)[:300]
        raise CheckpointError(
            f"the model could not be written to {parent}: {why}{free_space(parent)}"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone, if it was published
    Retention(parent, KEEP_MODELS, keep_best=True, fence=fence).prune(final)
    models = {"model": model_ref(final, manifest), "bestModel": best_model(run.directory)}
    run._note(**{name: model.to_wire() for name, model in models.items() if model})
    return final


def _record(directory: Path, copy: Path, golden: str | Sequence[str]) -> None:
    """Record the answers of the copy, which is what servers will have."""
    from trainyard.golden import record

    try:
        record(copy, golden)
    except ConfigError as error:
        raise ConfigError(f"publish: {directory}: {error}".replace(str(copy), "it")) from None


def _check_model(directory: Path) -> None:
    """Raise ConfigError unless servers can load the folder."""
    if not directory.is_dir():
        raise ConfigError(f"publish: {directory} is not a directory")
    if not (directory / CONFIG).is_file():
        merge = ""
        if (directory / "adapter_config.json").is_file():
            merge = " (of an adapter: publish the model that merge_and_unload() returns)"
        raise ConfigError(
            f"publish: {directory} has no {CONFIG}{merge}: write the folder with"
            " model.save_pretrained() and tokenizer.save_pretrained()"
        )
    if not any(directory.glob(WEIGHTS)):
        raise ConfigError(
            f"publish: {directory} has no weights in {WEIGHTS} files, the only ones that servers"
            " open: write them with model.save_pretrained()"
        )
    try:
        json.loads((directory / CONFIG).read_bytes())
        index = directory / INDEX
        shards = json.loads(index.read_bytes())["weight_map"].values() if index.is_file() else ()
        missing = sorted({str(each) for each in shards if not (directory / str(each)).is_file()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"publish: {directory}: its JSON can't be read: {error}") from None
    if missing:
        raise ConfigError(f"publish: {directory} lacks {missing[0]}, which {INDEX} names")


def _ignored(folder: str, names: list[str]) -> set[str]:
    skipped = shutil.ignore_patterns(*_LEFT_OUT)(folder, names)
    return skipped | ({MANIFEST} & set(names))  # of an earlier publishing


def _newest_step(run: Run) -> int:
    """The step that was reported last, or saved last."""
    saved = next(iter(steps(run.directory / CHECKPOINTS)), None)
    step = run.step if run.step is not None else step_of(saved) if saved else None
    if step is None:
        raise ConfigError("publish: which step is it? Pass step=, or report it before")
    return step
