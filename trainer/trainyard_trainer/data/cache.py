"""A cache of tokenised text and decoded images on the run's volume, shared by its ranks and by
other runs.

A file appears by one rename, when it is complete and on the disk, and ends with a checksum that
every process verifies before it uses the file: a kill, or a power failure, leaves nothing that is
taken for data.
"""

import contextlib
import errno
import fcntl
import functools
import math
import os
import time
import zlib
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import torch

from trainyard_api.job import RUN_DIR_ENV
from trainyard_storage.files import open_atomic
from trainyard_trainer.errors import DiskFullError
from trainyard_trainer.reporting.console import Console

Array = npt.NDArray[Any]

_POLL_SECONDS = 0.2
_CHUNK = 2**20
_CHECKSUM_BYTES = 4
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # EFBIG: a limit on the size of a file
_MIB = 2**20

on_progress: ContextVar[Callable[[str], None]] = ContextVar("on_progress", default=lambda _: None)
"""Called with how much of the data is ready, after each part of it."""


def cache_dir() -> Path:
    """`.cache` beside the run's directory, shared by all pods; without one ~/.cache/trainyard."""
    run_dir = os.environ.get(RUN_DIR_ENV)
    return Path(run_dir).parent / ".cache" if run_dir else Path.home() / ".cache" / "trainyard"


def cached(name: str, make: Callable[[], Array]) -> Array:
    """What `make` returns, from a file from the second call on; `name` is the cache key."""
    return cached_parts([name], lambda _: make(), name)[0]


def cached_parts(names: Sequence[str], make: Callable[[int], Array], what: str) -> list[Array]:
    """What `make` returns for 0, 1, ..., each from a file of its own from the second call on.

    Processes that call this at once, on any node, share the work: each makes the parts that no
    other one is making, the ranks of a run starting at different places, and waits for the rest.
    Those of a process that is killed are made by the others.

    Where nothing can be written, every process makes all parts and keeps them in memory, after a
    warning; a damaged file is made again. `what` is being made, for the console.
    Raises DiskFullError.
    """
    paths = [cache_dir() / f"{name}.npy" for name in names]
    rank, world_size = (int(os.environ.get(key, n)) for key, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    first = len(paths) * rank // world_size
    order = [*range(first, len(paths)), *range(first)]
    parts = {i: part for i in order if (part := _read(paths[i])) is not None}
    while len(parts) < len(paths):
        before = len(parts)
        for i in order:
            if i in parts:
                continue
            if (part := _read_or_make(paths[i], functools.partial(make, i), len(paths))) is None:
                continue
            parts[i] = part
            on_progress.get()(f"{what}: {len(parts) / len(paths):.0%}")
        if len(parts) == before:
            time.sleep(_POLL_SECONDS)
    return [parts[i] for i in range(len(paths))]


def _read_or_make(path: Path, make: Callable[[], Array], num_parts: int) -> Array | None:
    """The array; None while another process makes it."""
    if (found := _read(path)) is not None:
        return found
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_suffix(".lock").open("w"))
        except OSError as error:
            return _in_memory(make(), path, num_parts, error)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError:
            # Some network file systems have no locks. Two processes may then make the same part,
            # each in its own temporary file.
            pass
        else:
            _remove_unfinished(path)
        if (found := _read(path)) is not None:
            return found
        if path.exists():
            Console(enabled=True).warn(f"{path} is damaged and is made again")
        made = make()
        try:
            _write(path, made)
        except OSError as error:
            return _in_memory(made, path, num_parts, error)
    mapped = _read(path)  # its pages are shared by all processes
    return made if mapped is None else mapped


def _in_memory(made: Array, path: Path, num_parts: int, error: OSError) -> Array:
    """The array itself, since it can't be written. Raises DiskFullError if there is no room."""
    if error.errno in _NO_ROOM:
        raise DiskFullError(
            f"the training data can't be kept in {cache_dir()}: {os.strerror(error.errno)}; it"
            f" needs about {max(0.1, made.nbytes * num_parts / _MIB):,.1f} MiB: free some space,"
            " and start the run again"
        )
    _warn_of_memory(cache_dir(), error.strerror or str(error))
    return made


@functools.cache  # once
def _warn_of_memory(directory: Path, reason: str) -> None:
    Console(enabled=os.environ.get("RANK", "0") == "0").warn(
        f"{directory} can't be written ({reason}): every process prepares all of the data at every"
        " start, and keeps it in memory"
    )


class _Checksummed:
    """A file that is written, and the checksum of its content."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.crc = 0

    def write(self, data: bytes) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self.file.write(data)


def _write(path: Path, array: Array) -> None:
    with open_atomic(path, writer=f"{os.uname().nodename}-{os.getpid()}.") as file:
        summed = _Checksummed(file)
        np.save(summed, array, allow_pickle=False)
        file.write(summed.crc.to_bytes(_CHECKSUM_BYTES))


def _read(path: Path) -> Array | None:
    """The array, memory-mapped; None if there is none, or a damaged one."""
    try:
        with path.open("rb") as file:
            remaining, crc = os.fstat(file.fileno()).st_size - _CHECKSUM_BYTES, 0
            if remaining < 0:
                return None
            while chunk := file.read(min(remaining, _CHUNK)):
                remaining -= len(chunk)
                crc = zlib.crc32(chunk, crc)
            if file.read() != crc.to_bytes(_CHECKSUM_BYTES):
                return None
            return _mapped(path, file)
    except OSError as error:
        if error.errno in _NO_DESCRIPTOR:  # the file may be whole
            raise
        return None
    except (ValueError, RuntimeError):
        return None


def _mapped(path: Path, file: BinaryIO) -> Array:
    """The array in the file. Raises ValueError if it holds none, RuntimeError if none is mapped.

    What NumPy maps keeps a file descriptor each, of which a process may have 1,024, and large data
    has thousands of parts. PyTorch's mapping needs none.
    """
    file.seek(0)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an unknown version")
    shape, in_fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    start, size = file.tell(), math.prod(shape) * dtype.itemsize
    content = torch.from_file(str(path), shared=False, size=start + size, dtype=torch.uint8)
    order: Literal["C", "F"] = "F" if in_fortran_order else "C"
    array: Array = content.numpy()[start:].view(dtype).reshape(shape, order=order)
    array.flags.writeable = False
    return array


def _remove_unfinished(path: Path) -> None:
    """Remove what processes left that were killed while they wrote; nobody else writes now."""
    for temporary in path.parent.glob(f".{path.name}.*tmp"):
        temporary.unlink(missing_ok=True)
