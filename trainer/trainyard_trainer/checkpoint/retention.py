"""Which checkpoints stay: the last few and the best, of those that are known to be good."""

import contextlib
import math
import shutil
from pathlib import Path

from trainyard_api.checkpoint import Manifest
from trainyard_storage.checkpoints import (
    InvalidCheckpointError,
    UnreadableCheckpointError,
    read_manifest,
    steps,
    verify,
)
from trainyard_trainer.checkpoint.publish import TEMPORARY, Fence

_Touched = frozenset[tuple[str, int, int]]


class Retention:
    """Removes checkpoints beyond the last `keep_last` good ones and the best.

    Good is what this process published, or has hashed, and what nobody has touched since: each
    older checkpoint is read once, so that one with a damaged file never takes the place of one that
    could be resumed from. What can't be read now may be good: it is neither counted nor removed.
    """

    def __init__(self, parent: Path, keep_last: int, keep_best: bool, fence: Fence) -> None:
        self.parent = parent
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.fence = fence
        self._known: dict[Path, tuple[_Touched, Manifest | None]] = {}  # None: damaged

    def trust(self, directory: Path, manifest: Manifest) -> None:
        """Take note that this process published or verified `directory`."""
        self._known[directory] = _touched(directory), manifest

    def prune(self, newest: Path) -> list[Path]:
        """Remove what needn't stay beside `newest`, just published; what went.

        A disk that can't remove keeps more than it should. Raises SupersededError, having removed
        nothing.
        """
        keep = self._kept() | {newest}
        doomed = [directory for directory in steps(self.parent) if directory not in keep]
        renamed = {}
        with self.fence.held():
            for directory in doomed:
                # Renamed first: half a checkpoint must not be found under a checkpoint's name.
                grave = directory.with_name(f"{TEMPORARY}pruned-{directory.name}")
                shutil.rmtree(grave, ignore_errors=True)
                with contextlib.suppress(OSError):
                    renamed[directory] = directory.rename(grave)
                    self._known.pop(directory, None)
        for grave in renamed.values():
            shutil.rmtree(grave, ignore_errors=True)
        return list(renamed)

    def _kept(self) -> set[Path]:
        keep: set[Path] = set()
        good = 0
        rest: list[tuple[float, Path]] = []  # beyond the last ones, to be kept only as the best
        best = math.inf
        for directory in steps(self.parent):
            try:
                if good < self.keep_last:
                    manifest = self._verified(directory)
                    good += 1
                    keep.add(directory)
                    best = min(best, _loss(manifest))
                else:
                    rest.append((_loss(read_manifest(directory)), directory))
            except UnreadableCheckpointError:
                keep.add(directory)
            except InvalidCheckpointError:
                continue
        if self.keep_best:
            for loss, directory in sorted(rest):
                if loss >= best:
                    break
                with contextlib.suppress(InvalidCheckpointError):
                    self._verified(directory)
                    keep.add(directory)
                    break
        return keep

    def _verified(self, directory: Path) -> Manifest:
        """Raises InvalidCheckpointError if `directory` isn't known to be good."""
        touched = _touched(directory)
        before, manifest = self._known.get(directory, (None, None))
        if touched != before:
            try:
                manifest = verify(directory)
            except UnreadableCheckpointError:
                raise
            except InvalidCheckpointError:
                manifest = None
            self._known[directory] = touched, manifest
        if manifest is None:
            raise InvalidCheckpointError(f"{directory}: damaged")
        return manifest


def _loss(manifest: Manifest) -> float:
    """What ranks models; infinite where the model wasn't evaluated, or came to nothing."""
    loss = manifest.metrics.get("eval_loss", math.inf)
    return loss if math.isfinite(loss) else math.inf


def _touched(directory: Path) -> _Touched:
    """Path, size and time of change of every file: what tells whether to read them again."""
    found = set()
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.add((str(path), status.st_size, status.st_mtime_ns))
    return frozenset(found)
