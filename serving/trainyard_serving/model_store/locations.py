"""Locations of models: a run's directory, with several of them, or that of one model."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from trainyard_api.checkpoint import (
    ATTEMPT_FILE,
    CHECKPOINTS,
    MANIFEST,
    MODELS,
    STEP_NAME,
    step_name,
    step_of,
)
from trainyard_api.golden import EVALUATION, GOLDEN
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

# What a run's exported model has, and a plain Hugging Face directory has not.
OF_RUN = frozenset({MANIFEST, GOLDEN, EVALUATION})
DATA = "data"  # where a directory of `trainyard run` keeps its run's


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
    """The models of a run, the last or the best first, or only that of a `step`.

    path: the run's directory on its volume, or the one in which `trainyard run` keeps a run.
    """

    path: Path
    step: Literal["last", "best"] | int = "last"
    digest: str | None = None

    def candidates(self) -> list[Candidate]:
        try:
            return self._candidates()
        except OSError as error:
            raise _unreadable(error) from None

    def _candidates(self) -> list[Candidate]:
        run = _data_of(self.path)
        available = list(steps(run / MODELS))
        directories = available
        if isinstance(self.step, int):
            directories = [path for path in available if path.name == step_name(self.step)]
        if not directories:
            raise ModelUnavailableError(self._why_empty(run, available))
        models = [_candidate(directory, verify_model, self.digest) for directory in directories]
        if self.step != "best":
            return models
        evaluated = zip(models, map(loss_of, directories), strict=True)
        return best_first(run, [replace(model, loss=loss) for model, loss in evaluated])

    def _why_empty(self, run: Path, available: list[Path]) -> str:
        if not run.is_dir():
            return f"{run}: no such run directory"
        if available:
            return f"{run}: no model of step {self.step}; {there_are(map(step_of, available))}"
        if wrong := not_of_run(str(run), {path.name for path in run.iterdir()}):
            runs = sorted(path.name for path in run.iterdir() if _is_run(_data_of(path)))
            return f"{wrong}; of the runs in it, use --run-dir {run / runs[0]}" if runs else wrong
        wanted = f"no model of step {self.step}" if isinstance(self.step, int) else "no model yet"
        for directory in steps(run / CHECKPOINTS):
            try:
                manifest = read_manifest(directory)
            except InvalidCheckpointError:
                continue
            total = f" of {manifest.total_steps}" if manifest.total_steps else ""
            newest = f" (newest checkpoint: step {manifest.step}{total})"
            return f"{run}: {wanted}: the run has not finished{newest}"
        return f"{run}: {wanted}: the run has not finished"


def not_of_run(location: str, names: set[str]) -> str:
    """What to give instead of `location`, which has entries of these names; empty for a run's."""
    if names & {MANIFEST, "config.json"}:
        return f"{location}: holds one model: use --model {location}"
    if any(STEP_NAME.fullmatch(name) for name in names):
        run = location.rpartition("/")[0]
        return f"{location}: a folder in a run's directory: use --run-dir {run}"
    if names and not names & {MODELS, CHECKPOINTS, ATTEMPT_FILE, DATA}:
        return f"{location}: not a run's directory: it has neither {MODELS}/ nor {CHECKPOINTS}/"
    return ""


def _is_run(path: Path) -> bool:
    # os.path, because a directory that may not be read, such as a volume's lost+found, is no run.
    return any(os.path.exists(path / name) for name in (MODELS, CHECKPOINTS, ATTEMPT_FILE))


def _data_of(path: Path) -> Path:
    """Where the run at `path` has its models: there, or where `trainyard run` keeps its data."""
    if _is_run(path):
        return path
    try:
        storage = json.loads((path / "run.json").read_bytes())["spec"].get("storage") or {}
    except (OSError, ValueError, LookupError, AttributeError):
        storage = {}
    if claim := storage.get("claimName"):
        path = path.absolute()
        return path.parents[1] / "volumes" / str(claim) / path.name
    return path / DATA if os.path.isdir(path / DATA) else path


@dataclass(frozen=True)
class ModelDirectory:
    """One model: a run's, with a manifest, or a plain Hugging Face directory."""

    path: Path
    digest: str | None = None

    def candidates(self) -> list[Candidate]:
        if not self.path.is_dir():
            raise ModelUnavailableError(f"{self.path}: no such directory")
        # A run's model without its manifest is broken, not plain.
        try:
            of_run = any((self.path / name).exists() for name in OF_RUN)
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
