"""Files in a bucket (s3://) and on the Hub (hf://datasets/), read some blocks at a time: neither
the disk nor the memory ever holds a whole one.

Credentials are found where all tools of AWS and of the Hub look for them (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, a role; HF_TOKEN). A request that is interrupted is repeated, with growing pauses,
by s3fs and huggingface_hub.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

from trainyard_storage.s3 import s3_filesystem, s3_problem
from trainyard_trainer.data.hub import failed_load, no_answer
from trainyard_trainer.errors import ConfigError, HubUnreachableError, UserError

S3, HF = "s3://", "hf://"
_BLOCK_BYTES = 2**22
_BLOCKS = 8  # kept of an open file: parquet's columns are read in turns, each from its own place
_ATTEMPTS = 5


def is_remote(source: str) -> bool:
    """Whether a setting's value is of this kind."""
    return source.startswith((S3, HF))


class RemoteFile:
    """A file, always as it was when it was listed.

    Attributes:
        name: without the path.
        size: bytes.
        digest: on the Hub its id of the content (of a large file the sha256, as of one here); in a
            bucket a sha256 of path, size and ETag.
    """

    def __init__(self, where: str, source: str, fs: Any, info: dict[str, Any]) -> None:
        self._source, self._fs, self._path = source, fs, str(info["name"])
        self.name = self._path.rpartition("/")[2] + "/" * (info["type"] == "directory")
        self._where = f"{where}: {self.name}"
        self.size = int(info["size"] or 0)
        self._etag = info.get("ETag")  # the Hub has none; its path names a commit
        content = getattr(info.get("lfs"), "sha256", None) or info.get("blob_id")
        identity = repr((self._path, self.size, self._etag))
        self.digest = content or hashlib.sha256(identity.encode()).hexdigest()

    def open(self) -> Any:
        """A seekable binary file; to be used in `explained`."""
        options = {"cache_type": "blockcache", "cache_options": {"maxblocks": _BLOCKS}}
        file = self._fs.open(self._path, "rb", block_size=_BLOCK_BYTES, **options)
        # From here on the bucket itself compares it, with every block.
        if (file.size, file.details.get("ETag")) != (self.size, self._etag):
            raise self._changed()
        return file

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raises ConfigError and HubUnreachableError for what goes wrong with this file."""
        with _explained(self._where, self._source):
            try:
                yield
            except OSError as error:
                if type(error).__name__ == "FileExpired":  # s3fs need not be installed
                    raise self._changed() from None
                raise

    def _changed(self) -> ConfigError:
        return ConfigError(
            f"{self._where} was changed while it was read; start the run again when it is complete"
        )

    def check_unchanged(self) -> None:
        """Every read has compared it."""


def remote_files(where: str, source: str, alone: bool) -> list[RemoteFile]:
    """The file, if it is one `alone`, or what is in the folder, with names that end in / for those
    of other folders. Raises ConfigError and HubUnreachableError."""
    with _explained(where, source):
        fs, path = _bucket(where, source) if source.startswith(S3) else _hub(where, source)
        infos = [fs.info(path)] if alone else fs.ls(path, detail=True)
    files = [
        RemoteFile(where, source, fs, info) for info in infos if not info["name"].endswith("/")
    ]
    if alone and files[0].name.endswith("/"):
        raise ConfigError(f"{where} is a folder; give one whose name has no such ending, or a file")
    return sorted(files, key=lambda file: file.name)


def _bucket(where: str, source: str) -> tuple[Any, str]:
    path = source.removeprefix(S3).strip("/")
    if not path:
        raise ConfigError(f"{where} names no bucket; write s3://BUCKET/PATH")
    try:
        return s3_filesystem(_ATTEMPTS), path
    except ImportError:
        raise ConfigError(f"{where} needs the package s3fs; install trainyard[trainer]") from None


def _hub(where: str, source: str) -> tuple[Any, str]:
    """The path with the commit that its revision is now, so that all is read from one."""
    from huggingface_hub import HfApi, HfFileSystem

    path = source.removeprefix(HF).strip("/")
    if not path.startswith("datasets/") or path.count("/") < 2:
        raise ConfigError(f"{where} must be hf://datasets/OWNER/NAME[@REVISION]/PATH")
    fs = HfFileSystem(skip_instance_cache=True)
    found: Any = fs.resolve_path(path)
    commit = HfApi().dataset_info(found.repo_id, revision=found.revision).sha
    return fs, f"datasets/{found.repo_id}@{commit}/{found.path_in_repo}".rstrip("/")


@contextlib.contextmanager
def _explained(where: str, source: str) -> Iterator[None]:
    import pyarrow as pa  # type: ignore[import-untyped]

    try:
        yield
    except (UserError, pa.ArrowException, MemoryError):
        raise
    except Exception as error:  # the libraries' errors have no common base
        raise _failure(where, source, error) from None


def _failure(where: str, source: str, error: Exception) -> UserError:
    if source.startswith(HF):
        return failed_load(where, error)
    if reason := no_answer(error):
        return HubUnreachableError(f"{where}: the bucket can't be reached: {reason}")
    return ConfigError(f"{where}: {s3_problem(error)}")
