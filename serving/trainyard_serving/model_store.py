"""Finding a model to serve and proving that it is whole; reads directories, never weights."""

from dataclasses import dataclass
from pathlib import Path

from trainyard_api.checkpoint import (
    CHECKPOINTS,
    MANIFEST,
    MODELS,
    InvalidCheckpointError,
    Manifest,
    digest,
    read_manifest,
    steps,
    verify,
)
from trainyard_serving.settings import Source


class ModelUnavailableError(Exception):
    """There is no model to serve; the message is one line that says why."""


@dataclass(frozen=True)
class VerifiedModel:
    """A model directory whose every file agrees with its manifest."""

    path: Path
    manifest: Manifest
    digest: str
    refused: tuple[str, ...] = ()  # newer directories that did not verify, and why


def find_model(source: Source) -> VerifiedModel:
    """The model that `source` names, verified.

    Raises ModelUnavailableError.
    """
    try:
        if source.run_dir is not None:
            return newest_model(source.run_dir)
        assert source.model is not None  # Source holds exactly one
        return verify_model(source.model)
    except InvalidCheckpointError as error:
        raise ModelUnavailableError(str(error)) from None
    except OSError as error:
        raise ModelUnavailableError(f"{error.filename}: {error.strerror}") from None


def newest_model(run_dir: Path) -> VerifiedModel:
    """The newest model below `run_dir` that verifies; broken newer ones are stepped over.

    Raises ModelUnavailableError saying how far the run is, or why each model was refused.
    """
    refused: list[str] = []
    for directory in steps(run_dir / MODELS):
        try:
            model = verify_model(directory)
        except InvalidCheckpointError as error:
            refused.append(str(error))
        else:
            return VerifiedModel(model.path, model.manifest, model.digest, tuple(refused))
    if refused:
        raise ModelUnavailableError("no model verifies: " + "; ".join(refused))
    raise ModelUnavailableError(_why_nothing_there(run_dir))


def verify_model(directory: Path) -> VerifiedModel:
    """`directory` as a model, every file's sha256 checked.

    A file the manifest does not name is refused too: a loader might read it.
    Raises InvalidCheckpointError.
    """
    if not directory.is_dir():
        raise InvalidCheckpointError(f"{directory}: no such directory")
    manifest = verify(directory)
    if manifest.kind != "model":
        raise InvalidCheckpointError(
            f"{directory}: holds training state, not a model: serve one from {MODELS}/"
        )
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        known = name in manifest.files or name == MANIFEST or path.name.startswith(".")
        if not known and not path.is_dir():
            raise InvalidCheckpointError(f"{path}: is not in the manifest")
    return VerifiedModel(directory, manifest, digest(directory))


def _why_nothing_there(run_dir: Path) -> str:
    if not run_dir.is_dir():
        return f"{run_dir}: no such run directory"
    for directory in steps(run_dir / CHECKPOINTS):
        try:
            manifest = read_manifest(directory)
        except InvalidCheckpointError:
            continue
        total = f" of {manifest.total_steps}" if manifest.total_steps else ""
        return (
            f"{run_dir}: no model yet: the run has not finished"
            f" (newest checkpoint: step {manifest.step}{total})"
        )
    return f"{run_dir}: no model yet: the run has not finished"
