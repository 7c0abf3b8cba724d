"""Models in a bucket: s3://BUCKET/PATH of a run or of one model, copied here before they load.

What a bucket holds can be half an upload, so a copy is only made of what a manifest says is there,
and the copy is verified as any model is. Credentials, region and endpoint come from where every
AWS tool takes them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, a role, ...).
"""

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trainyard_api.checkpoint import MANIFEST, MODELS, step_name
from trainyard_serving.errors import ModelUnavailableError
from trainyard_serving.places import Candidate
from trainyard_serving.verified import VerifiedModel, describe_plain, verify_model
from trainyard_storage.checkpoints import InvalidCheckpointError, read_manifest

CONNECT_SECONDS = 5
READ_SECONDS = 30  # between two pieces of an answer
ABANDONED_SECONDS = 24 * 3600  # half a copy this old is of a process that was killed
KEEP_COPIES = 2  # the model served, and the one to roll back to


@dataclass(frozen=True)
class _Object:
    size: int
    etag: str


Objects = dict[str, _Object]  # name relative to the model -> what the bucket says of it


@dataclass(frozen=True)
class S3Place:
    """A run's models, or with `alone` one model, in a bucket."""

    url: str
    alone: bool = False
    step: int | None = None
    digest: str | None = None
    cache_dir: str | None = None
    _fs: Any = field(default=None, init=False, compare=False)

    def candidates(self) -> list[Candidate]:
        root = self.url.removeprefix("s3://").strip("/")
        if not root:
            raise ModelUnavailableError(f"{self.url}: names no bucket: give s3://BUCKET/PATH")
        prefix = root if self.alone else f"{root}/{MODELS}"
        with _explained(self.url):
            listed: dict[str, Any] = self._filesystem().find(prefix, detail=True)
        models: dict[str, Objects] = {}
        for path, info in listed.items():
            name = path.removeprefix(f"{prefix}/")
            model, _, rest = ("", "", name) if self.alone else name.partition("/")
            if rest and not rest.endswith("/"):
                found = _Object(int(info["size"]), str(info.get("ETag", "")))
                models.setdefault(model, {})[rest] = found
        if not self.alone:
            wanted = None if self.step is None else step_name(self.step)
            models = {
                name: objects
                for name, objects in models.items()
                if name == wanted or (wanted is None and _is_step(name))
            }
        if not models:
            raise ModelUnavailableError(self._why_nothing_there())
        newest_first = sorted(models, key=lambda name: (len(name), name), reverse=True)
        return [
            self._candidate(f"{prefix}/{name}".rstrip("/"), models[name]) for name in newest_first
        ]

    def _why_nothing_there(self) -> str:
        if self.alone:
            return f"{self.url}: nothing is there: no such model"
        wanted = "no model yet" if self.step is None else f"no model of step {self.step}"
        return f"{self.url}: {wanted} under {MODELS}/"

    def _candidate(self, path: str, objects: Objects) -> Candidate:
        lines = [f"{name} {o.size} {o.etag}\n" for name, o in sorted(objects.items())]
        stamp = hashlib.sha256("".join([path, "\n", *lines]).encode()).hexdigest()
        fetch = partial(self._fetch, path, objects, stamp)
        return Candidate(f"s3://{path}", stamp, fetch, self.alone)

    def _fetch(self, path: str, objects: Objects, stamp: str) -> VerifiedModel:
        url = f"s3://{path}"
        ours = MANIFEST in objects or path.split("/")[-2:-1] == [MODELS] or not self.alone
        verify = verify_model if ours else describe_plain
        cache = Path(self.cache_dir or tempfile.gettempdir())
        try:
            home = _private(self.cache_dir) / hashlib.sha256(self.url.encode()).hexdigest()[:16]
            local = home / stamp[:16] / path.rpartition("/")[2]
            if (model := _good_copy(local, verify)) is None:
                self._copy(path, objects, local, ours)
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
        return model

    def _copy(self, path: str, objects: Objects, local: Path, ours: bool) -> None:
        """Download a model that is there as a whole; under its name only once it is here."""
        shutil.rmtree(local.parent, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=_made(local.parents[1])))
        try:
            inside = temporary / local.name
            inside.mkdir()
            names = sorted(objects)
            if ours:
                if MANIFEST not in objects:
                    raise InvalidCheckpointError(f"{local}: no {MANIFEST}: not all uploaded yet?")
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
        """The client; made at the first use, since it is slow to import."""
        if self._fs is None:
            import s3fs  # type: ignore[import-untyped]

            for chatty in ("botocore", "aiobotocore"):  # where each credential was found
                logging.getLogger(chatty).setLevel(logging.WARNING)
            fs = s3fs.S3FileSystem(
                use_listings_cache=False,
                skip_instance_cache=True,
                config_kwargs={
                    "connect_timeout": CONNECT_SECONDS,
                    "read_timeout": READ_SECONDS,
                    "retries": {"max_attempts": 1},
                },
            )
            fs.retries = 1  # the follower tries again anyway
            object.__setattr__(self, "_fs", fs)
        return self._fs


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """What the client raises, as one line that says what to change.

    Raises ModelUnavailableError; and OSError of this machine's disk as it is.
    """
    from botocore.exceptions import (  # type: ignore[import-untyped]
        BotoCoreError,
        ClientError,
        NoCredentialsError,
    )

    try:
        yield
    except NoCredentialsError:
        raise ModelUnavailableError(
            f"{url}: no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run"
            " with a role that may read it"
        ) from None
    except PermissionError as error:
        if error.filename:  # of this machine
            raise
        raise ModelUnavailableError(
            f"{url}: access denied: the credentials may not list or read it"
        ) from None
    except FileNotFoundError:
        raise ModelUnavailableError(f"{url}: no such bucket or path") from None
    except (BotoCoreError, ClientError, TimeoutError, ConnectionError) as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelUnavailableError(f"{url}: cannot be reached: {why}") from None
    except OSError as error:
        if error.filename:
            raise
        why = " ".join(str(error).split())[:300]
        raise ModelUnavailableError(f"{url}: cannot be read: {why}") from None


def _is_step(name: str) -> bool:
    return name.startswith("step-") and name[5:].isdecimal() and len(name) >= len(step_name(0))


def _check_listing(directory: Path, shown: Path, objects: Objects) -> None:
    """Compare the bucket's list with the manifest: half an upload is not worth a download."""
    try:
        files = read_manifest(directory).files
    except InvalidCheckpointError as error:
        raise InvalidCheckpointError(str(error).replace(str(directory), str(shown))) from None
    for name, entry in files.items():
        found = objects.get(name)
        if found is None:
            raise InvalidCheckpointError(f"{shown}/{name}: missing: not all uploaded yet?")
        if found.size != entry.size:
            raise InvalidCheckpointError(
                f"{shown}/{name}: {found.size} bytes, the manifest says {entry.size}"
            )
    for name in sorted(objects.keys() - files.keys() - {MANIFEST}):
        raise InvalidCheckpointError(f"{shown}/{name}: is not in the manifest")


def _good_copy(local: Path, verify: Callable[[Path], VerifiedModel]) -> VerifiedModel | None:
    """An earlier copy, unless it was spoilt since."""
    try:
        return verify(local)
    except (InvalidCheckpointError, OSError):
        return None


def _private(cache_dir: str | None) -> Path:
    """The cache's directory, which nobody else can change."""
    if cache_dir is not None:
        return _made(Path(cache_dir))
    directory = Path(tempfile.gettempdir()) / f"trainyard-models-{os.getuid()}"
    _made(directory)
    status = directory.lstat()
    if directory.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ModelUnavailableError(
            f"{directory}: others may change it: remove it, or choose another with --cache-dir"
        )
    return directory


def _made(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def _remove_superseded(home: Path, newest: Path) -> None:
    """Keep the newest copies; those of models in memory may go, they have been read."""
    os.utime(newest)
    copies = sorted(
        (path for path in home.iterdir() if not path.name.startswith(".tmp-")),
        key=lambda path: path.stat().st_mtime_ns,
        reverse=True,
    )
    abandoned = time.time() - ABANDONED_SECONDS
    halves = (path for path in home.glob(".tmp-*") if path.stat().st_mtime < abandoned)
    for path in [*copies[KEEP_COPIES:], *halves]:
        shutil.rmtree(path, ignore_errors=True)
