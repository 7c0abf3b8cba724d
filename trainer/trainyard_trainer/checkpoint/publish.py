"""Atomic, durable publishing of directories, and the fence against older attempts."""

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trainyard_api.checkpoint import ATTEMPT_FILE, CHECKPOINTS, MANIFEST, MODELS, Manifest
from trainyard_storage.checkpoints import describe_files, digest, manifest_bytes
from trainyard_trainer.errors import ConfigError, SupersededError

TEMPORARY = ".tmp-"
_REPLACED = f"{TEMPORARY}replaced-"
LOCK_TIMEOUT = 30.0  # seconds; the lock is held for a few renames only


@dataclass(frozen=True)
class Origin:
    """Whose checkpoints and models they are, as their manifests say; `recipe`: "" of a script."""

    run: str
    attempt: int
    world_size: int
    recipe: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    def manifest(
        self,
        kind: Literal["checkpoint", "model"],
        step: int,
        total_steps: int | None,
        metrics: dict[str, float],
    ) -> Manifest:
        """The manifest of a directory of `step`; `publish` adds its files."""
        return Manifest(
            kind=kind,
            run=self.run,
            attempt=self.attempt,
            recipe=self.recipe,
            step=step,
            total_steps=total_steps,
            world_size=self.world_size,
            created=datetime.now(UTC),
            config=self.config,
            metrics=metrics,
            files={},
        )


class Claim(NamedTuple):
    """Who may write: the content of the run directory's `attempt` file, one value per line."""

    attempt: int = 0
    writer: str = ""
    uid: str = ""  # of the run; "" where none is known, as in files of earlier versions


class Fence:
    """Keeps an older attempt, still alive on a lost node, from publishing beside a newer one.

    A file in the run directory says who claimed it last: the attempt's number, its writer's name
    and the run's uid. It is read before every rename, under the lock that also guards its writing.
    Attempts of one run are ordered by their numbers. Those of different runs are not comparable: a
    new run on the kept data of an older one begins with attempt 1. So among runs the newest claim
    wins, and a process of the older run that is still alive publishes nothing more.

    Earlier versions wrote and read only the first two lines. Their file is that of an unknown run,
    so a run with a uid takes it over, with any attempt number. An old process that reads a new file
    stops if the number is larger than its own, or the same with another writer: so it does within a
    run, whose next attempt has the larger number. Only an old process of *another* run does not
    stop, if it is of a later attempt than the one that took over; to leave it no chance, end it
    before its directory is given to a new run.

    Attributes:
        writer: a unique name of this process. Two processes never write into the same directory,
            even if the same attempt is started twice by mistake.
    """

    def __init__(self, run_dir: Path, attempt: int, uid: str = "") -> None:
        self.path = run_dir / ATTEMPT_FILE
        self.attempt = attempt
        self.uid = uid
        self.writer = f"attempt-{attempt}-{secrets.token_hex(4)}"

    def claim(self) -> None:
        """Make this the newest claim. Raises SupersededError if this run has a newer attempt."""
        with self._locked() as file:
            newest = self._read(file)
            if newest.uid == self.uid and newest.attempt > self.attempt:
                raise self._superseded(newest)
            # One write that leaves no moment without a number; then what was longer is cut off.
            content = f"{self.attempt}\n{self.writer}\n{self.uid}\n".encode()
            os.pwrite(file, content, 0)
            os.ftruncate(file, len(content))
            os.fsync(file)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The lock, held by the newest claim. Raises SupersededError if that is another's."""
        with self._locked() as file:
            newest = self._read(file)
            older = newest.uid == self.uid and newest.attempt < self.attempt
            if newest.writer != self.writer and not older:
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
            # Closing is not enough: a loader worker that was forked meanwhile has the file open.
            _unlock(file)
            os.close(file)

    def _read(self, file: int) -> Claim:
        text = os.pread(file, 500, 0).decode(errors="replace")
        number, writer, uid, *_ = [*text.split("\n"), "", ""]
        if not number:
            return Claim()
        if not number.isdecimal():
            raise ConfigError(
                f"{self.path}: {number[:40]!r} is not an attempt number; if no other attempt of"
                " this run is alive, remove the file"
            )
        return Claim(int(number), writer, uid)

    def _superseded(self, newest: Claim) -> SupersededError:
        started = f"attempt {newest.attempt} of this run has started"
        if newest.uid != self.uid:
            of = f"of the run with uid {newest.uid}" if newest.uid else "of a run without a uid"
            started = f"attempt {newest.attempt} {of} has taken the directory over"
        elif newest.attempt == self.attempt:
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


def _unlock(file: int) -> None:
    with contextlib.suppress(OSError):  # no locks here
        fcntl.flock(file, fcntl.LOCK_UN)


def prepare_run_dir(run_dir: Path, attempt: int, uid: str = "") -> Fence:
    """Create the directories of the run `uid`, claim them for `attempt`, remove older leftovers."""
    try:
        for name in (CHECKPOINTS, MODELS):
            (run_dir / name).mkdir(parents=True, exist_ok=True)
        fence = Fence(run_dir, attempt, uid)
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
    mode = stat.S_IMODE((temporary / MANIFEST).stat().st_mode)
    for folder, _, names in os.walk(temporary):
        for name in names:
            # safetensors makes files for their owner alone, whatever the umask is.
            with contextlib.suppress(OSError):  # another user's, or a file system without modes
                os.chmod(Path(folder, name), mode)
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
