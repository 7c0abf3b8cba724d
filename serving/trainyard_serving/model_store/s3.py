"""Models in a bucket: s3://BUCKET/PATH of a run or of one model, downloaded before it is loaded.

An upload may be incomplete, so a model is downloaded only once all files in its manifest are there;
the copy is then verified like any model. Credentials, region and endpoint come from the
sources that all AWS tools use (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, a role, ...).
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from trainyard_api.checkpoint import MANIFEST, MODELS, step_name, step_of
from trainyard_api.scores import SCORES
from trainyard_serving.errors import ModelUnavailableError
from trainyard_serving.model_store.locations import (
    DATA,
    OF_RUN,
    Candidate,
    best_first,
    loss_of,
    not_of_run,
    there_are,
    with_scores,
)
from trainyard_serving.model_store.verified import VerifiedModel, describe_plain, verify_model
from trainyard_storage.checkpoints import InvalidCheckpointError, read_manifest
from trainyard_storage.s3 import s3_filesystem, s3_problem
from trainyard_storage.scores import parse_scores

ABANDONED_SECONDS = 24 * 3600  # a partial copy this old was left by a killed process
KEEP_COPIES = 2  # the current model, and the one to roll back to


@dataclass(frozen=True)
class _Object:
    size: int
    etag: str


Objects = dict[str, _Object]  # file name inside the model -> its object


@dataclass(frozen=True)
class S3Location:
    """The models of a run in a bucket (see RunDirectory), or one model if `alone`.

    scored: read the models' scores too, which takes one more request each time.
    """

    url: str
    alone: bool = False
    step: Literal["last", "best"] | int = "last"
    digest: str | None = None
    cache_dir: str | None = None
    scored: bool = False
    _fs: Any = field(default=None, init=False, compare=False)
    _losses: dict[str, float] = field(default_factory=dict, init=False, compare=False)  # by stamp

    def candidates(self) -> list[Candidate]:
        root = self.url.removeprefix("s3://").strip("/")
        if not root:
            raise ModelUnavailableError(f"{self.url}: names no bucket: use s3://BUCKET/PATH")
        if self.alone:
            prefix, models = root, self._list(root)
        else:
            prefix, models = self._list_run(root)
        newest_first = sorted(models, key=lambda name: (len(name), name), reverse=True)
        chosen = newest_first
        if isinstance(self.step, int):
            chosen = [name for name in newest_first if name == step_name(self.step)]
        if not chosen:
            raise ModelUnavailableError(self._why_empty(root, newest_first))
        paths = [f"{prefix}/{name}".rstrip("/") for name in chosen]
        scores = self._list_scores(paths[0]) if self.scored else {}
        candidates = [
            self._candidate(path, models[name], scores.get(_scores_of(path)))
            for name, path in zip(chosen, paths, strict=True)
        ]
        if self.step != "best":
            return candidates
        losses = [
            self._loss(f"{prefix}/{name}", candidate.stamp, models[name])
            for name, candidate in zip(chosen, candidates, strict=True)
        ]
        evaluated = zip(candidates, losses, strict=True)
        return best_first(self.url, [replace(model, loss=loss) for model, loss in evaluated])

    def _list(self, prefix: str) -> dict[str, Objects]:
        """The objects of each model below `prefix`; of the one at `prefix` if `alone`."""
        with _explained(self.url):
            listed: dict[str, Any] = self._filesystem().find(prefix, detail=True)
        models: dict[str, Objects] = {}
        for path, info in listed.items():
            name = path.removeprefix(f"{prefix}/")
            model, _, rest = ("", "", name) if self.alone else name.partition("/")
            if rest and not rest.endswith("/"):
                item = _Object(int(info["size"]), str(info.get("ETag", "")))
                models.setdefault(model, {})[rest] = item
        return models

    def _list_run(self, root: str) -> tuple[str, dict[str, Objects]]:
        """Where the run at `root` has its models, and these; see `RunDirectory`."""
        for prefix in (f"{root}/{MODELS}", f"{root}/{DATA}/{MODELS}"):
            listed = self._list(prefix)
            if models := {name: objects for name, objects in listed.items() if _is_step(name)}:
                return prefix, models
        return f"{root}/{MODELS}", {}

    def _loss(self, path: str, stamp: str, objects: Objects) -> float:
        """See `loss_of`; downloads the manifest, once."""
        if stamp not in self._losses:
            with tempfile.TemporaryDirectory() as directory:
                if MANIFEST in objects:
                    self._download(path, MANIFEST, Path(directory))
                self._losses[stamp] = loss_of(Path(directory))
        return self._losses[stamp]

    def _why_empty(self, root: str, available: list[str]) -> str:
        if self.alone:
            return f"{self.url}: no such model"
        if available:
            there = there_are(step_of(Path(name)) for name in available)
            return f"{self.url}: no model of step {self.step}; {there}"
        with _explained(self.url):
            entries = self._filesystem().find(root, maxdepth=1, withdirs=True)
        names = {path.rpartition("/")[2] for path in entries if path != root}
        if wrong := not_of_run(self.url.rstrip("/"), names):
            return wrong
        wanted = f"no model of step {self.step}" if isinstance(self.step, int) else "no model yet"
        return f"{self.url}: {wanted} under {MODELS}/"

    def _list_scores(self, path: str) -> dict[str, str]:
        """The ETag of each file of scores beside the model at `path`."""
        if path.count("/") < 3:  # not BUCKET/RUN/models/NAME: its parents are not a run's
            return {}
        parent = _scores_of(path).rpartition("/")[0]
        with _explained(f"s3://{parent}"):
            listed: dict[str, Any] = self._filesystem().find(parent, detail=True)
        return {name: str(info.get("ETag", "")) for name, info in listed.items()}

    def _candidate(self, path: str, objects: Objects, scores: str | None) -> Candidate:
        """scores: the ETag of the model's, if it has some."""
        lines = [f"{name} {item.size} {item.etag}\n" for name, item in sorted(objects.items())]
        stamp = hashlib.sha256("".join([path, "\n", *lines]).encode()).hexdigest()
        fetch = partial(self._fetch, path, objects, stamp, scores is not None)
        return Candidate(f"s3://{path}", f"{stamp}{scores or ''}", fetch, self.alone)

    def _fetch(self, path: str, objects: Objects, stamp: str, scored: bool) -> VerifiedModel:
        url = f"s3://{path}"
        of_run = not self.alone or bool(OF_RUN & objects.keys())
        verify = verify_model if of_run else describe_plain
        cache = Path(self.cache_dir or tempfile.gettempdir())
        try:
            home = _cache_root(self.cache_dir) / hashlib.sha256(self.url.encode()).hexdigest()[:16]
            local = home / stamp[:16] / path.rpartition("/")[2]
            if (model := _intact_copy(local, verify)) is None:
                self._copy(path, objects, local, of_run)
                model = verify(local)
        except InvalidCheckpointError as error:
            shutil.rmtree(local.parent, ignore_errors=True)
            raise InvalidCheckpointError(str(error).replace(str(local), url)) from None
        except OSError as error:
            raise ModelUnavailableError(
                f"{url}: cannot be copied to {error.filename or cache}: {error.strerror or error}"
            ) from None
        _remove_superseded(home, local.parent)
        if self.digest not in (None, model.digest):
            raise InvalidCheckpointError(f"{url}: its digest is {model.digest}, not {self.digest}")
        if not scored:
            return model
        with _explained(f"s3://{_scores_of(path)}"):
            text = self._filesystem().cat_file(_scores_of(path))
        return with_scores(model, parse_scores(text, model.digest))

    def _copy(self, path: str, objects: Objects, local: Path, of_run: bool) -> None:
        """Download a complete model into a temporary directory, then rename it to `local`."""
        shutil.rmtree(local.parent, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=_make_directory(local.parents[1])))
        try:
            inside = temporary / local.name
            inside.mkdir()
            names = sorted(objects)
            if of_run:
                if MANIFEST not in objects:
                    raise InvalidCheckpointError(f"{local}: no {MANIFEST}: upload not complete?")
                self._download(path, MANIFEST, inside)
                _check_listing(inside, local, objects)
                names.remove(MANIFEST)
            for name in names:
                self._download(path, name, inside)
            temporary.rename(local.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _download(self, path: str, name: str, directory: Path) -> None:
        target = directory / name
        if not target.resolve().is_relative_to(directory.resolve()):
            raise InvalidCheckpointError(f"s3://{path}: {name} lies outside the model")
        target.parent.mkdir(parents=True, exist_ok=True)
        with _explained(f"s3://{path}/{name}"):
            self._filesystem().get_file(f"{path}/{name}", str(target))

    def _filesystem(self) -> Any:
        """The client; made at first use because its import is slow."""
        if self._fs is None:
            fs = s3_filesystem(attempts=2)  # the follower retries anyway
            object.__setattr__(self, "_fs", fs)
        return self._fs


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn the client's errors into one line that says what to change.

    Raises ModelUnavailableError; OSErrors of the local disk pass through.
    """
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    try:
        yield
    except (BotoCoreError, ClientError, OSError) as error:
        of_disk = getattr(error, "filename", None) and not isinstance(error, FileNotFoundError)
        if of_disk:
            raise
        raise ModelUnavailableError(f"{url}: {s3_problem(error)}") from None


def _scores_of(path: str) -> str:
    """The object with the scores of the model at `path`; see `scores_file`."""
    parent, _, name = path.rpartition("/")
    return f"{parent.rpartition('/')[0]}/{SCORES}/{name}.json"


def _is_step(name: str) -> bool:
    return name.startswith("step-") and name[5:].isdecimal() and len(name) >= len(step_name(0))


def _check_listing(directory: Path, shown: Path, objects: Objects) -> None:
    """Compare the bucket's listing with the manifest, to detect an incomplete upload early."""
    try:
        files = read_manifest(directory).files
    except InvalidCheckpointError as error:
        raise InvalidCheckpointError(str(error).replace(str(directory), str(shown))) from None
    for name, entry in files.items():
        item = objects.get(name)
        if item is None:
            raise InvalidCheckpointError(f"{shown}/{name}: missing: upload not complete?")
        if item.size != entry.size:
            raise InvalidCheckpointError(
                f"{shown}/{name}: {item.size} bytes, the manifest says {entry.size}"
            )
    for name in sorted(objects.keys() - files.keys() - {MANIFEST}):
        raise InvalidCheckpointError(f"{shown}/{name}: is not in the manifest")


def _intact_copy(local: Path, verify: Callable[[Path], VerifiedModel]) -> VerifiedModel | None:
    """The model if an earlier copy of it still verifies; otherwise None."""
    try:
        return verify(local)
    except (InvalidCheckpointError, OSError):
        return None


def _cache_root(cache_dir: str | None) -> Path:
    """The cache directory, which no other user may be able to change."""
    if cache_dir is not None:
        return _make_directory(Path(cache_dir))
    directory = Path(tempfile.gettempdir()) / f"trainyard-models-{os.getuid()}"
    _make_directory(directory)
    status = directory.lstat()
    if directory.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ModelUnavailableError(
            f"{directory}: other users may change it: remove it, or choose another with --cache-dir"
        )
    return directory


def _make_directory(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def _remove_superseded(home: Path, newest: Path) -> None:
    """Keep only the newest copies; models in memory do not need theirs any more."""
    os.utime(newest)
    copies = sorted(
        (path for path in home.iterdir() if not path.name.startswith(".tmp-")),
        key=lambda path: path.stat().st_mtime_ns,
        reverse=True,
    )
    abandoned = time.time() - ABANDONED_SECONDS
    partial_copies = (path for path in home.glob(".tmp-*") if path.stat().st_mtime < abandoned)
    for path in [*copies[KEEP_COPIES:], *partial_copies]:
        shutil.rmtree(path, ignore_errors=True)
