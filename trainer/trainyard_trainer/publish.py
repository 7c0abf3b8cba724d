"""Publishing a directory: complete and on disk, under its final name, or not there at all."""

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from trainyard_api.checkpoint import (
    ATTEMPT_FILE,
    CHECKPOINTS,
    MANIFEST,
    MODELS,
    InvalidCheckpointError,
    Manifest,
    describe_files,
    digest,
    manifest_bytes,
    read_manifest,
    steps,
)
from trainyard_trainer.errors import ConfigError, SupersededError

TEMPORARY = ".tmp-"


class Fence:
    """Keeps an older attempt, still alive on a lost node, from publishing beside a newer one.

    The newest attempt's number stands in the run directory; it is read, under the same lock that
    guards its writing, right before anything gets its final name.
    """

    def __init__(self, run_dir: Path, attempt: int) -> None:
        self.path = run_dir / ATTEMPT_FILE
        self.attempt = attempt

    def claim(self) -> None:
        """Make this the newest attempt. Raises SupersededError if there is a newer one."""
        with self.held() as file:
            # One write, never shorter than what it replaces: no moment without a number.
            os.pwrite(file, f"{self.attempt}\n".encode(), 0)
            os.fsync(file)

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """The lock, held by the newest attempt; yields the file's descriptor."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # Some network file systems have no locks; the check below still stands there.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            newest = int(os.pread(file, 32, 0) or b"0")
            if newest > self.attempt:
                raise SupersededError(
                    f"attempt {self.attempt} stops: attempt {newest} of this run has started"
                    f" ({self.path}); nothing was published"
                )
            yield file
        finally:
            os.close(file)


def prepare_run_dir(run_dir: Path, attempt: int) -> Fence:
    """Make the run's directories, claim them for `attempt`, and clear what older ones left."""
    try:
        for name in (CHECKPOINTS, MODELS):
            (run_dir / name).mkdir(parents=True, exist_ok=True)
        fence = Fence(run_dir, attempt)
        fence.claim()
        for name in (CHECKPOINTS, MODELS):
            for leftover in (run_dir / name).glob(f"{TEMPORARY}*"):
                shutil.rmtree(leftover, ignore_errors=True)
    except OSError as error:
        raise ConfigError(
            f"the run directory {run_dir} cannot be written: {error.strerror}; check the volume"
            " and its permissions"
        ) from None
    return fence


def check_shared(run_dir: Path, attempt: int) -> None:
    """Raise ConfigError unless this rank sees the run directory that rank 0 has claimed."""
    try:
        seen = (run_dir / ATTEMPT_FILE).read_text()
    except OSError:
        seen = ""
    if seen != f"{attempt}\n":
        raise ConfigError(
            f"strategy fsdp: the node {socket.gethostname()} does not see rank 0's run directory"
            f" {run_dir}; every rank writes its part there, so mount one volume on all nodes"
            " (storage.accessMode ReadWriteMany), or use strategy ddp"
        )


def publish(temporary: Path, final: Path, manifest: Manifest, fence: Fence) -> str:
    """Turn a filled directory into `final`, durably and in one step; returns its digest.

    `manifest` comes without its files: they are hashed here.
    """
    manifest = manifest.model_copy(update={"files": describe_files(temporary)})
    (temporary / MANIFEST).write_bytes(manifest_bytes(manifest))
    for folder, _, names in os.walk(temporary):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))
    name = digest(temporary)
    with fence.held():
        if final.exists():  # an invalid one, or the same step of an attempt that then died
            replaced = final.with_name(f"{TEMPORARY}replaced-{final.name}")
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
            temporary.rename(final)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            temporary.rename(final)
    _sync(final.parent)
    return name


def prune(parent: Path, newest: Path, keep_last: int, keep_best: bool) -> list[Path]:
    """Remove checkpoints beyond the last `keep_last` complete ones and the best; what went.

    `newest` was just published and is always kept. What claims to be of a later step was found
    damaged when this attempt chose where to go on; like a directory without a readable manifest it
    doesn't count, so that it can't push out the last good one.
    """
    complete: dict[Path, Manifest] = {}
    for directory in (path for path in steps(parent) if path.name <= newest.name):
        with contextlib.suppress(InvalidCheckpointError):
            complete[directory] = read_manifest(directory)
    keep = set(list(complete)[:keep_last])
    losses = {d: m.metrics["eval_loss"] for d, m in complete.items() if "eval_loss" in m.metrics}
    if keep_best and losses:
        keep.add(min(losses, key=lambda directory: losses[directory]))
    removed = [directory for directory in steps(parent) if directory not in keep]
    for directory in removed:
        # Renamed first: half a checkpoint must not be found under a checkpoint's name.
        doomed = directory.with_name(f"{TEMPORARY}pruned-{directory.name}")
        with contextlib.suppress(OSError):
            directory.rename(doomed)
            shutil.rmtree(doomed)
    return removed


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
