"""A lock on a directory's file that the kernel releases when its holder dies.

Built on flock(2) instead of the `filelock` package, because three things are needed that the
package does not offer: a worker's lock is inherited by its agent across exec, a probe must not
exclude other probes (a shared lock), and the file names the holder (its process id, or JSON).
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class LockHeldError(Exception):
    """Another process holds the lock; `content` is what it wrote into the file."""

    def __init__(self, content: str) -> None:
        super().__init__(f"held by process {content or 'unknown'}")
        self.content = content


@contextmanager
def held(path: Path) -> Iterator[IO[bytes]]:
    """Hold the lock of the file at `path`, which is created if missing; its content is kept.

    Raises LockHeldError at once if another process holds it. A file that its former holder deleted
    between our open and our lock does not count: the lock is taken on a new one.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise LockHeldError(file.read().decode().strip()) from None
            if not _is_file_at(file.fileno(), path):
                continue
            yield file
            return


@contextmanager
def held_by_this_process(path: Path) -> Iterator[None]:
    """As `held`, with this process's id as the file's content."""
    with held(path) as file:
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


def holder(path: Path) -> str | None:
    """What the holder wrote into the file (perhaps nothing yet); None if nobody holds the lock."""
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().decode().strip()
    except (FileNotFoundError, NotADirectoryError):
        pass
    return None


def _is_file_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
