"""A cache of tokenised text and decoded images, shared by the runs of a machine."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainyard_api.job import RUN_DIR_ENV
from trainyard_storage.files import open_atomic

if TYPE_CHECKING:
    from trainyard_trainer.data.corpus import Tokens


def cache_dir() -> Path:
    """`.cache` beside the run's directory, shared by all pods; without one ~/.cache/trainyard."""
    run_dir = os.environ.get(RUN_DIR_ENV)
    return Path(run_dir).parent / ".cache" if run_dir else Path.home() / ".cache" / "trainyard"


def cached(name: str, make: Callable[[], "Tokens"]) -> "Tokens":
    """What `make` returns, from a file from the second call on; `name` is the cache key.

    If several processes call this at once, one runs `make` and the others wait. The file is written
    atomically. Where nothing can be written, every process runs `make`.
    """
    path = cache_dir() / f"{name}.npy"
    found = _read(path)
    if found is not None:
        return found
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(path.with_suffix(".lock")))
            found = _read(path)  # written while this process waited
        if found is not None:
            return found
        made = make()
        # On a file system without locks two processes may write: each has its own temporary file.
        writer = f"{os.uname().nodename}-{os.getpid()}."
        with contextlib.suppress(OSError), open_atomic(path, writer=writer) as file:
            np.save(file, made)
    mapped = _read(path)  # memory-mapped: its pages are shared by all processes
    return made if mapped is None else mapped


def _read(path: Path) -> "Tokens | None":
    try:
        tokens: Tokens = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return tokens


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
