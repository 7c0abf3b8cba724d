"""Retention: keeps the last few valid checkpoints and the best, removes the others."""

import contextlib
import math
import shutil
from pathlib import Path

from trainyard_api.checkpoint import Manifest
from trainyard_storage.checkpoints import (
    InvalidCheckpointError,
    UnreadableCheckpointError,
    eval_loss,
    read_manifest,
    steps,
    verify,
)
from trainyard_trainer.checkpoint.publish import TEMPORARY, Fence

_Fingerprint = frozenset[tuple[str, int, int]]


class Retention:
    """Removes checkpoints beyond the last `keep_last` valid ones and the best.

    A checkpoint is valid if this process published or verified it and its files have not changed
    since. Each older checkpoint is verified once, so that a damaged one is never kept instead of
    a usable one. One that can't be read now may be valid: it is neither counted nor removed.
    """

    def __init__(self, parent: Path, keep_last: int, keep_best: bool, fence: Fence) -> None:
        self.parent = parent
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.fence = fence
        self._verdicts: dict[Path, tuple[_Fingerprint, Manifest | None]] = {}  # None: damaged

    def trust(self, directory: Path, manifest: Manifest) -> None:
        """Record that this process published or verified `directory`."""
        self._verdicts[directory] = _fingerprint(directory), manifest

    def prune(self, newest: Path) -> list[Path]:
        """Remove all but `newest`, just published, and the ones to keep; returns the removed ones.

        A directory that can't be removed is kept. Raises SupersededError before removing anything.
        """
        keep = self._kept() | {newest}
        surplus = [directory for directory in steps(self.parent) if directory not in keep]
        renamed = {}
        with self.fence.held():
            for directory in surplus:
                # Renamed first: a partly removed checkpoint must not have a checkpoint's name.
                trash = directory.with_name(f"{TEMPORARY}pruned-{directory.name}")
                shutil.rmtree(trash, ignore_errors=True)
                with contextlib.suppress(OSError):
                    renamed[directory] = directory.rename(trash)
                    self._verdicts.pop(directory, None)
        for trash in renamed.values():
            shutil.rmtree(trash, ignore_errors=True)
        return list(renamed)

    def _kept(self) -> set[Path]:
        keep: set[Path] = set()
        num_valid = 0
        rest: list[tuple[float, Path]] = []  # older ones, kept only if the best
        best = math.inf
        for directory in steps(self.parent):
            try:
                if num_valid < self.keep_last:
                    manifest = self._verified(directory)
                    num_valid += 1
                    keep.add(directory)
                    best = min(best, eval_loss(manifest))
                else:
                    rest.append((eval_loss(read_manifest(directory)), directory))
            except UnreadableCheckpointError:
                keep.add(directory)
            except InvalidCheckpointError:
                continue
        if self.keep_best:
            for loss, directory in sorted(rest, key=lambda each: each[0]):
                if loss >= best:
                    break
                with contextlib.suppress(InvalidCheckpointError):
                    self._verified(directory)
                    keep.add(directory)
                    break
        return keep

    def _verified(self, directory: Path) -> Manifest:
        """The manifest of `directory`. Raises InvalidCheckpointError if it isn't valid."""
        fingerprint = _fingerprint(directory)
        verified, manifest = self._verdicts.get(directory, (None, None))
        if fingerprint != verified:
            try:
                manifest = verify(directory)
            except UnreadableCheckpointError:
                raise
            except InvalidCheckpointError:
                manifest = None
            self._verdicts[directory] = fingerprint, manifest
        if manifest is None:
            raise InvalidCheckpointError(f"{directory}: damaged")
        return manifest


def _fingerprint(directory: Path) -> _Fingerprint:
    """Path, size and modification time of every file, which tell whether to verify it again."""
    files = set()
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.stat()
            files.add((str(path), status.st_size, status.st_mtime_ns))
    return frozenset(files)
