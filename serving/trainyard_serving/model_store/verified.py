"""A model directory in which every file has been verified; weights are not loaded here."""

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from trainyard_api.base import Model
from trainyard_api.checkpoint import MANIFEST, MODELS, Manifest
from trainyard_api.golden import InvalidGoldenError, read_golden
from trainyard_serving.errors import BadModelError
from trainyard_storage.checkpoints import InvalidCheckpointError, describe_files, digest, verify

G = TypeVar("G", bound=Model)


@dataclass(frozen=True)
class ServedModel:
    """Identifies the model that answers requests."""

    run: str
    step: int | None  # None for a plain Hugging Face directory, which no run made
    digest: str


@dataclass(frozen=True)
class VerifiedModel:
    """A complete model directory.

    Attributes:
        path: the directory, on this machine.
        run: the run that made it; for a plain directory, the directory's name.
        step: the run's step; None for a plain directory.
        digest: `sha256:HEX`, which identifies every byte of it.
        created: when it was made (timezone-aware).
        manifest: None for a plain directory.
        scores: `task/metric` -> value, from `trainyard evaluate`.
    """

    path: Path
    run: str
    step: int | None
    digest: str
    created: datetime
    manifest: Manifest | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def served(self) -> ServedModel:
        return ServedModel(self.run, self.step, self.digest)

    @property
    def metrics(self) -> dict[str, float]:
        """What training and evaluations say of the model, by name."""
        return (self.manifest.metrics if self.manifest else {}) | self.scores


def verify_model(directory: Path) -> VerifiedModel:
    """Check the sha256 of every file in `directory` against its manifest.

    A file that is not in the manifest is refused too, because a loader might read it.
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
    """Describe a Hugging Face directory that no run made and that has no manifest.

    Its digest is the sha256 of its files' names and sha256s, so a pinned digest verifies it.
    Raises InvalidCheckpointError.
    """
    if not (directory / "config.json").is_file():
        message = f"{directory}: has neither {MANIFEST} nor config.json"
        if any((directory / name).is_dir() for name in (MODELS, f"data/{MODELS}")):
            message += f": for a run, use --run-dir {directory}"
        raise InvalidCheckpointError(message)
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


def golden_request(source: VerifiedModel, kind: type[G]) -> G | None:
    """The golden request that was exported with a model; None if there is none.

    Raises BadModelError when it cannot be read.
    """
    try:
        return read_golden(source.path, kind)
    except InvalidGoldenError as error:
        raise BadModelError(str(error)) from None
