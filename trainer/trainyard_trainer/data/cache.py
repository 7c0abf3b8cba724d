"""Tokenised text, kept in a folder of this machine's runs so that it is made only once."""

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
    """`.cache` beside the runs, where the pods of later attempts find it too; by hand ~/.cache."""
    run_dir = os.environ.get(RUN_DIR_ENV)
    return Path(run_dir).parent / ".cache" if run_dir else Path.home() / ".cache" / "trainyard"


def keep(name: str, make: Callable[[], "Tokens"]) -> "Tokens":
    """What `make` returns, from a file once it has been made; `name` says all that it depends on.

    Of the processes that ask at the same time one makes it and the others wait. The file appears
    whole or not at all. Where nothing can be written every process makes its own.
    """
    path = cache_dir() / f"{name}.npy"
    kept = _read(path)
    if kept is not None:
        return kept
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(path.with_suffix(".lock")))
            kept = _read(path)  # made while this process waited
        if kept is not None:
            return kept
        made = make()
        # Two writers, where there are no locks, don't meet.
        writer = f"{os.uname().nodename}-{os.getpid()}."
        with contextlib.suppress(OSError), open_atomic(path, writer=writer) as file:
            np.save(file, made)
    kept = _read(path)  # its pages are shared by all processes, and can be dropped
    return made if kept is None else kept


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
