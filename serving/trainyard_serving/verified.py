"""A model directory whose every file has been checked; reads directories, never weights."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trainyard_api.checkpoint import MANIFEST, MODELS, Manifest
from trainyard_serving.backend import Served
from trainyard_storage.checkpoints import InvalidCheckpointError, describe_files, digest, verify


@dataclass(frozen=True)
class VerifiedModel:
    """A model directory that is whole.

    Attributes:
        path: the directory, on this machine.
        run: the run that made it; a plain directory's own name.
        step: the run's step; None for a plain directory.
        digest: `sha256:HEX` that names every byte of it.
        created: when it was made (aware).
        manifest: None for a plain directory.
    """

    path: Path
    run: str
    step: int | None
    digest: str
    created: datetime
    manifest: Manifest | None = None

    @property
    def served(self) -> Served:
        return Served(self.run, self.step, self.digest)


def verify_model(directory: Path) -> VerifiedModel:
    """`directory` as a model, every file's sha256 checked against its manifest.

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
    return VerifiedModel(
        directory, manifest.run, manifest.step, digest(directory), manifest.created, manifest
    )


def describe_plain(directory: Path) -> VerifiedModel:
    """A Hugging Face directory that no run made: it has no manifest to be checked against.

    Its digest is the sha256 of its files' names and sha256s, so that a pinned digest checks it.
    Raises InvalidCheckpointError.
    """
    if not (directory / "config.json").is_file():
        raise InvalidCheckpointError(f"{directory}: has neither {MANIFEST} nor config.json")
    files = describe_files(directory)
    if not any(name.endswith(".safetensors") for name in files):
        raise InvalidCheckpointError(
            f"{directory}: holds no .safetensors file; pickled weights are not loaded"
        )
    names = "".join(f"{entry.sha256}  {name}\n" for name, entry in sorted(files.items()))
    newest = max((directory / name).stat().st_mtime for name in files)
    return VerifiedModel(
        directory,
        directory.resolve().name,
        None,
        f"sha256:{hashlib.sha256(names.encode()).hexdigest()}",
        datetime.fromtimestamp(newest, UTC),
    )
