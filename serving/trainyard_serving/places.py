"""Where models lie: a run's directory, whose newest model is wanted, or one model's directory."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainyard_api.checkpoint import CHECKPOINTS, MANIFEST, MODELS, step_name
from trainyard_serving.errors import ModelUnavailableError
from trainyard_serving.settings import Source
from trainyard_serving.verified import VerifiedModel, describe_plain, verify_model
from trainyard_storage.checkpoints import (
    InvalidCheckpointError,
    UnreadableCheckpointError,
    read_manifest,
    steps,
)


@dataclass(frozen=True)
class Candidate:
    """A model that may be served.

    Attributes:
        name: what messages call it.
        stamp: changes when any of its files does; cheap to find out.
        fetch: brings it to this machine and verifies it. Raises InvalidCheckpointError, and
            ModelUnavailableError when it can't be read at present.
        alone: the place holds just this one: it is wanted even if it is older than what is served.
    """

    name: str
    stamp: str
    fetch: Callable[[], VerifiedModel]
    alone: bool = False


class Place(Protocol):
    """Somewhere that models are published."""

    def candidates(self) -> list[Candidate]:
        """What there is, newest first, at least one.

        Raises ModelUnavailableError saying why there is none.
        """


def place_of(source: Source) -> Place:
    """The place that the settings name."""
    url = source.run_dir or source.model
    if url is not None and url.startswith("s3://"):
        from trainyard_serving.s3_place import S3Place

        alone = source.run_dir is None
        return S3Place(url, alone, source.step, source.digest, source.cache_dir)
    if source.run_dir is not None:
        return RunDirectory(Path(source.run_dir), source.step, source.digest)
    assert source.model is not None  # Source holds exactly one
    return ModelDirectory(Path(source.model), source.digest)


def newest_good(place: Place) -> tuple[VerifiedModel, list[str]]:
    """The newest model that verifies, and why newer ones were refused.

    Raises ModelUnavailableError.
    """
    refused: list[str] = []
    for candidate in place.candidates():
        try:
            return candidate.fetch(), refused
        except InvalidCheckpointError as error:
            refused.append(str(error))
    raise ModelUnavailableError("no model verifies: " + "; ".join(refused))


@dataclass(frozen=True)
class RunDirectory:
    """The models of a run, or only the one of `step`."""

    path: Path
    step: int | None = None
    digest: str | None = None

    def candidates(self) -> list[Candidate]:
        try:
            return self._candidates()
        except OSError as error:
            raise _unreadable(error) from None

    def _candidates(self) -> list[Candidate]:
        found = list(steps(self.path / MODELS))
        if self.step is not None:
            found = [directory for directory in found if directory.name == step_name(self.step)]
        if not found:
            raise ModelUnavailableError(self._why_nothing_there())
        return [_candidate(directory, verify_model, self.digest) for directory in found]

    def _why_nothing_there(self) -> str:
        if not self.path.is_dir():
            return f"{self.path}: no such run directory"
        wanted = "no model yet" if self.step is None else f"no model of step {self.step}"
        for directory in steps(self.path / CHECKPOINTS):
            try:
                manifest = read_manifest(directory)
            except InvalidCheckpointError:
                continue
            total = f" of {manifest.total_steps}" if manifest.total_steps else ""
            newest = f" (newest checkpoint: step {manifest.step}{total})"
            return f"{self.path}: {wanted}: the run has not finished{newest}"
        return f"{self.path}: {wanted}: the run has not finished"


@dataclass(frozen=True)
class ModelDirectory:
    """One model: a run's, with a manifest, or a plain Hugging Face directory."""

    path: Path
    digest: str | None = None

    def candidates(self) -> list[Candidate]:
        if not self.path.is_dir():
            raise ModelUnavailableError(f"{self.path}: no such directory")
        # `x/models/step-00000100` without its manifest is broken, not plain.
        try:
            ours = (self.path / MANIFEST).exists() or self.path.resolve().parent.name == MODELS
            verify = verify_model if ours else describe_plain
            return [_candidate(self.path, verify, self.digest, alone=True)]
        except OSError as error:
            raise _unreadable(error) from None


def _candidate(
    directory: Path,
    verify: Callable[[Path], VerifiedModel],
    wanted: str | None,
    alone: bool = False,
) -> Candidate:
    def fetch() -> VerifiedModel:
        try:
            model = verify(directory)
        except UnreadableCheckpointError as error:  # nobody knows whether it is whole
            raise ModelUnavailableError(str(error)) from None
        except OSError as error:  # taken away while it was read
            raise _unreadable(error) from None
        if wanted not in (None, model.digest):
            raise InvalidCheckpointError(f"{directory}: its digest is {model.digest}, not {wanted}")
        return model

    return Candidate(str(directory), _stamp(directory), fetch, alone)


def _unreadable(error: OSError) -> ModelUnavailableError:
    return ModelUnavailableError(f"{error.filename}: cannot be read: {error.strerror}")


def _stamp(directory: Path) -> str:
    """Sizes and times of change of all files."""
    lines = []
    for path in sorted(directory.rglob("*")):
        try:
            stat = path.lstat()
        except FileNotFoundError:  # another's retention is at work
            continue
        lines.append(f"{path} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
