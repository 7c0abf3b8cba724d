"""Locations of models: a run's directory, with several of them, or that of one model."""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from trainyard_api.checkpoint import CHECKPOINTS, MANIFEST, MODELS, step_name, step_of
from trainyard_api.scores import Scores
from trainyard_serving.errors import ModelUnavailableError
from trainyard_serving.model_store.verified import VerifiedModel, describe_plain, verify_model
from trainyard_serving.requirements import Requirement, parse_requirements
from trainyard_serving.settings import ModelSource
from trainyard_storage.checkpoints import (
    InvalidCheckpointError,
    UnreadableCheckpointError,
    eval_loss,
    read_manifest,
    steps,
)
from trainyard_storage.scores import read_scores, scores_file


@dataclass(frozen=True)
class Candidate:
    """A model that may be served.

    Attributes:
        name: how messages refer to it.
        stamp: changes whenever one of its files changes; cheap to compute.
        fetch: copies it to this machine if necessary, and verifies it. Raises
            InvalidCheckpointError, and ModelUnavailableError when it cannot be read at present.
        alone: it is the location's only model: serve it even if it is older than the current one.
        loss: where the best model is wanted, its evaluation loss: serve it even if it is older, but
            better than all before; infinite where the last one is.
    """

    name: str
    stamp: str
    fetch: Callable[[], VerifiedModel]
    alone: bool = False
    loss: float = math.inf


class ModelLocation(Protocol):
    """A directory or bucket in which models are published."""

    def candidates(self) -> list[Candidate]:
        """The models, at least one; the one to serve comes first, if it verifies.

        Raises ModelUnavailableError, which says why there is none.
        """


def location_of(source: ModelSource) -> ModelLocation:
    """The location that the settings name."""
    location = _location_of(source)
    requirements = parse_requirements(source.require)
    return Requiring(location, requirements) if requirements else location


def _location_of(source: ModelSource) -> ModelLocation:
    url = source.run_dir or source.model
    if url is not None and url.startswith("s3://"):
        from trainyard_serving.model_store.s3 import S3Location

        alone = source.run_dir is None
        return S3Location(
            url, alone, source.step, source.digest, source.cache_dir, scored=bool(source.require)
        )
    if source.run_dir is not None:
        return RunDirectory(Path(source.run_dir), source.step, source.digest)
    assert source.model is not None  # ModelSource has exactly one
    return ModelDirectory(Path(source.model), source.digest)


def loss_of(directory: Path) -> float:
    """The model's evaluation loss; infinite without one.

    -inf if the manifest can't be read: it may be the best, and fetching it says what is wrong.
    """
    try:
        return eval_loss(read_manifest(directory))
    except InvalidCheckpointError:
        return -math.inf


def best_first(where: object, candidates: list[Candidate]) -> list[Candidate]:
    """Those with an evaluation loss, the lowest first; of equal ones the newest.

    where: the location, for the message. Raises ModelUnavailableError if there is none.
    """
    evaluated = [candidate for candidate in candidates if candidate.loss < math.inf]
    if not evaluated:
        raise ModelUnavailableError(
            f"{where}: no model has an evaluation loss (eval_loss in its metrics), so none is the"
            " best: serve the last one, or that of a step"
        )
    return sorted(evaluated, key=lambda candidate: candidate.loss)


def first_verified(location: ModelLocation) -> tuple[VerifiedModel, list[str]]:
    """The first model that verifies, and the reasons why those before it were refused.

    Raises ModelUnavailableError.
    """
    refused: list[str] = []
    for candidate in location.candidates():
        try:
            return candidate.fetch(), refused
        except InvalidCheckpointError as error:
            refused.append(str(error))
    raise ModelUnavailableError("no model verifies: " + "; ".join(refused))


@dataclass(frozen=True)
class RunDirectory:
    """The models of a run, the last or the best first, or only that of a `step`."""

    path: Path
    step: Literal["last", "best"] | int = "last"
    digest: str | None = None

    def candidates(self) -> list[Candidate]:
        try:
            return self._candidates()
        except OSError as error:
            raise _unreadable(error) from None

    def _candidates(self) -> list[Candidate]:
        available = list(steps(self.path / MODELS))
        directories = available
        if isinstance(self.step, int):
            directories = [path for path in available if path.name == step_name(self.step)]
        if not directories:
            raise ModelUnavailableError(self._why_empty(available))
        models = [_candidate(directory, verify_model, self.digest) for directory in directories]
        if self.step != "best":
            return models
        evaluated = zip(models, map(loss_of, directories), strict=True)
        return best_first(self.path, [replace(model, loss=loss) for model, loss in evaluated])

    def _why_empty(self, available: list[Path]) -> str:
        if not self.path.is_dir():
            return f"{self.path}: no such run directory"
        if available:
            return (
                f"{self.path}: no model of step {self.step}; {there_are(map(step_of, available))}"
            )
        wanted = f"no model of step {self.step}" if isinstance(self.step, int) else "no model yet"
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
            of_run = (self.path / MANIFEST).exists() or self.path.resolve().parent.name == MODELS
            verify = verify_model if of_run else describe_plain
            return [_candidate(self.path, verify, self.digest, alone=True)]
        except OSError as error:
            raise _unreadable(error) from None


@dataclass(frozen=True)
class Requiring:
    """A location whose models are refused unless they meet the requirements."""

    location: ModelLocation
    requirements: list[Requirement]

    def candidates(self) -> list[Candidate]:
        return [self._checked(candidate) for candidate in self.location.candidates()]

    def _checked(self, candidate: Candidate) -> Candidate:
        def fetch() -> VerifiedModel:
            model = candidate.fetch()
            for requirement in self.requirements:
                if refusal := requirement.refusal(model.metrics):
                    raise InvalidCheckpointError(f"{candidate.name}: {refusal}")
            return model

        return replace(candidate, fetch=fetch)


def there_are(available: Iterable[int]) -> str:
    """Which steps' models there are, for a message about another one."""
    return f"there are those of {', '.join(map(str, available))}"


def _candidate(
    directory: Path,
    verify: Callable[[Path], VerifiedModel],
    expected_digest: str | None,
    alone: bool = False,
) -> Candidate:
    def fetch() -> VerifiedModel:
        try:
            model = verify(directory)
            if model.manifest:
                model = with_scores(model, read_scores(directory, model.digest))
        except UnreadableCheckpointError as error:  # it may be complete
            raise ModelUnavailableError(str(error)) from None
        except OSError as error:  # it was removed while it was read
            raise _unreadable(error) from None
        if expected_digest not in (None, model.digest):
            raise InvalidCheckpointError(
                f"{directory}: its digest is {model.digest}, not {expected_digest}"
            )
        return model

    return Candidate(str(directory), _stamp(directory), fetch, alone)


def with_scores(model: VerifiedModel, scores: Scores | None) -> VerifiedModel:
    """The model with what evaluations of it have found."""
    return replace(model, scores=scores.by_name) if scores else model


def _unreadable(error: OSError) -> ModelUnavailableError:
    return ModelUnavailableError(f"{error.filename}: cannot be read: {error.strerror}")


def _stamp(directory: Path) -> str:
    """A hash of the sizes and modification times of all files, and of the model's scores."""
    lines = []
    for path in [*sorted(directory.rglob("*")), scores_file(directory)]:
        try:
            stat = path.lstat()
        except FileNotFoundError:  # no scores; or retention has just removed it
            continue
        lines.append(f"{path} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
