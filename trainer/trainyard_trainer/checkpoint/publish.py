"""Atomic, durable publishing of directories, and the fence against older attempts."""

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from trainyard_api.checkpoint import ATTEMPT_FILE, CHECKPOINTS, MANIFEST, MODELS, Manifest
from trainyard_storage.checkpoints import describe_files, digest, manifest_bytes
from trainyard_trainer.errors import ConfigError, SupersededError

TEMPORARY = ".tmp-"
_REPLACED = f"{TEMPORARY}replaced-"
LOCK_TIMEOUT = 30.0  # seconds; the lock is held for a few renames only


class Fence:
    """Keeps an older attempt, still alive on a lost node, from publishing beside a newer one.

    A file in the run directory has the newest attempt's number and its writer's name. It is read
    before every rename, under the lock that also guards its writing.

    Attributes:
        writer: a unique name of this process. Two processes never write into the same directory,
            even if the same attempt is started twice by mistake.
    """

    def __init__(self, run_dir: Path, attempt: int) -> None:
        self.path = run_dir / ATTEMPT_FILE
        self.attempt = attempt
        self.writer = f"attempt-{attempt}-{secrets.token_hex(4)}"

    def claim(self) -> None:
        """Make this the newest attempt. Raises SupersededError if there is a newer one."""
        with self._locked() as file:
            newest, _ = self._read(file)
            if newest > self.attempt:
                raise self._superseded(newest)
            # One write, never shorter than the old content: the file always has a number.
            os.pwrite(file, f"{self.attempt}\n{self.writer}\n".encode(), 0)
            os.fsync(file)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The lock, held by the newest attempt. Raises SupersededError if this is another."""
        with self._locked() as file:
            newest, writer = self._read(file)
            if newest > self.attempt or (newest == self.attempt and writer != self.writer):
                raise self._superseded(newest)
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """The lock; yields the file's descriptor."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # Some network file systems have no locks, and a stopped process may never release
            # its lock: the attempt number alone must then do.
            deadline = time.monotonic() + LOCK_TIMEOUT
            while not _try_lock(file) and time.monotonic() < deadline:
                time.sleep(0.01)
            yield file
        finally:
            os.close(file)

    def _read(self, file: int) -> tuple[int, str]:
        text = os.pread(file, 200, 0).decode(errors="replace")
        number, _, rest = text.partition("\n")
        if not number:
            return 0, ""
        if not number.isdecimal():
            raise ConfigError(
                f"{self.path}: {number[:40]!r} is not an attempt number; if no other attempt of"
                " this run is alive, remove the file"
            )
        return int(number), rest.partition("\n")[0]

    def _superseded(self, newest: int) -> SupersededError:
        started = f"attempt {newest} of this run has started"
        if newest == self.attempt:
            started = "the same attempt was started a second time"
        return SupersededError(
            f"attempt {self.attempt} stops: {started} ({self.path}); nothing was published"
        )


def _try_lock(file: int) -> bool:
    """Whether the lock was taken, or there are no locks here."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def prepare_run_dir(run_dir: Path, attempt: int) -> Fence:
    """Create the run's directories, claim them for `attempt`, and remove older leftovers."""
    try:
        for name in (CHECKPOINTS, MODELS):
            (run_dir / name).mkdir(parents=True, exist_ok=True)
        fence = Fence(run_dir, attempt)
        fence.claim()
        for name in (CHECKPOINTS, MODELS):
            _clear(run_dir / name)
    except OSError as error:
        raise ConfigError(
            f"the run directory {run_dir} cannot be written: {error.strerror}; check the volume"
            " and its permissions"
        ) from None
    return fence


def _clear(parent: Path) -> None:
    """Remove unfinished directories of a killed attempt; undo an unfinished replacement."""
    for leftover in parent.glob(f"{TEMPORARY}*"):
        final = parent / leftover.name.removeprefix(_REPLACED)
        if leftover.name.startswith(_REPLACED) and not final.exists():
            leftover.rename(final)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def check_shared(run_dir: Path, writer: str) -> None:
    """Raise ConfigError unless this rank sees the run directory that rank 0 claimed as `writer`."""
    try:
        lines = (run_dir / ATTEMPT_FILE).read_text().splitlines()
    except OSError:
        lines = []
    if writer not in lines:
        raise ConfigError(
            f"strategy fsdp: the node {socket.gethostname()} does not see rank 0's run directory"
            f" {run_dir}; every rank writes its shard there, so mount one volume on all nodes"
            " (storage.accessMode ReadWriteMany), or use strategy ddp"
        )


def publish(temporary: Path, final: Path, manifest: Manifest, fence: Fence) -> str:
    """Rename `temporary` to `final`, durably and atomically; returns its digest.

    `manifest` has no `files` yet: they are hashed here.
    """
    manifest = manifest.model_copy(update={"files": describe_files(temporary)})
    (temporary / MANIFEST).write_bytes(manifest_bytes(manifest))
    for folder, _, names in os.walk(temporary):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))
    name = digest(temporary)
    with fence.held():
        if final.exists():  # invalid, or the same step of an earlier attempt
            replaced = final.with_name(_REPLACED + final.name)
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
            temporary.rename(final)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            temporary.rename(final)
    _sync(final.parent)
    return name


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
