"""Checkpoints: saved in the background, published by rank 0."""

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainyard_api.checkpoint import Manifest, step_name
from trainyard_api.spec import CheckpointPolicy
from trainyard_api.status import CheckpointRef
from trainyard_trainer.checkpoint.disk import free_space, kind, reason
from trainyard_trainer.checkpoint.publish import TEMPORARY, Fence, Origin, publish
from trainyard_trainer.checkpoint.resume import DESCRIPTION_FILE, Resume
from trainyard_trainer.checkpoint.retention import Retention
from trainyard_trainer.checkpoint.state import StateFiles, Write
from trainyard_trainer.distributed.device import use_device
from trainyard_trainer.distributed.parallel import LossScaler
from trainyard_trainer.errors import (
    CheckpointError,
    NonFiniteLossError,
    SupersededError,
    UserError,
    is_rank_lost,
)


@dataclass(frozen=True)
class Saved:
    """The result of a save, on rank 0.

    Attributes:
        error: why there is no `ref`; `failure` is its class if nothing can follow the save.
        size: bytes of the state.
    """

    step: int
    seconds: float
    ref: CheckpointRef | None = None
    error: str = ""
    failure: type[UserError] = CheckpointError
    size: int = 0


def describer(header: dict[str, Any], scaler: LossScaler) -> Callable[[int], Write]:
    """Writes a recipe's description; `header`: the rest of it, as it is when a save starts."""

    def describe(step: int) -> Write:
        description = header | {"step": step, "scaler": scaler.state_dict()}
        text = json.dumps(description, indent=1) + "\n"

        def write(directory: Path) -> None:
            (directory / DESCRIPTION_FILE).write_text(text)

        return write

    return describe


class Checkpointer:
    """Saves in the background, one checkpoint at a time; rank 0 publishes."""

    def __init__(
        self,
        parent: Path,
        origin: Origin,
        files: StateFiles,
        fence: Fence | None,
        keep: CheckpointPolicy,
        describe: Callable[[int], Write],
        resume: Resume | None,
    ) -> None:
        """Args:
        parent: directory of the run's checkpoints.
        fence: on rank 0 only.
        describe: called on rank 0 as a save of a step starts; what it returns writes, in the
            background, the files beside the tensors.
        """
        self.parent = parent
        self.origin = origin
        self.files = files
        self.fence = fence
        self.describe = describe
        self.writer = files.group.broadcast(fence.writer if fence else "")
        self.retention: Retention | None = None
        if fence is not None:
            self.retention = Retention(parent, keep.keep_last, keep.keep_best, fence)
            if resume is not None and not resume.source:
                self.retention.trust(resume.directory, resume.manifest)
        self._background = ThreadPoolExecutor(
            1, "checkpoint", initializer=use_device, initargs=(files.group.device,)
        )
        self._pending: Future[Saved] | None = None

    def preload(self) -> None:
        """Prepare for the first save while training continues."""
        self.files.preload(self._background)

    def save(self, step: int, total_steps: int | None, metrics: dict[str, float]) -> Future[Saved]:
        """Start copying and writing the state. The previous save must have ended: see `wait`.

        The optimizer must not take its next step before `wait_copied`.
        """
        assert self._pending is None, "a checkpoint is still being written"
        began = time.perf_counter()
        write = self.files.stage()
        manifest = self.origin.manifest("checkpoint", step, total_steps, metrics)
        describe = self.describe(step) if self.fence else None
        size = self.files.size()

        def finish() -> Saved:
            try:
                saved = self._write(write, manifest, describe)
            finally:
                self.files.copied.set()  # also after a failure: training waits for this
            return replace(saved, seconds=time.perf_counter() - began, size=size)

        self._pending = self._background.submit(finish)
        return self._pending

    def wait_copied(self) -> None:
        """Wait until the running save, if any, has copied the state."""
        self.files.copied.wait()

    def poll(self) -> Saved | None:
        """The result of the running save, once; None while it runs."""
        if self._pending is None or not self._pending.done():
            return None
        return self.wait()

    def wait(self) -> Saved | None:
        """Wait for the running save, if any.

        Raises SupersededError on rank 0, and torch's error if another rank was lost meanwhile.
        """
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    def close(self) -> None:
        """Stop the background thread."""
        self._background.shutdown()

    def _write(self, write: Write, manifest: Manifest, describe: Write | None) -> Saved:
        """In the background: write this rank's files; rank 0 publishes those of all ranks."""
        name = step_name(manifest.step)
        temporary = self.parent / f"{TEMPORARY}{name}-{self.writer}"
        final = self.parent / name
        try:
            write(temporary)
            if self.fence is None or self.retention is None or describe is None:
                return Saved(manifest.step, 0)
            describe(temporary)
            digest = publish(temporary, final, manifest, self.fence)
        except SupersededError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        except BaseException as error:  # torch's CheckpointException is not an Exception
            if is_rank_lost(error):
                # Not all ranks notice: one that went on would leave the others waiting for it.
                raise
            message = f"{final}: {reason(error, self.parent)}{free_space(self.parent)}"
            failure = kind(error, self.parent)
            if isinstance(error, NonFiniteLossError):
                message, failure = f"{final}: {error}", NonFiniteLossError
            if self.fence is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            return Saved(manifest.step, 0, None, message, failure)
        self.retention.trust(final, manifest)
        with contextlib.suppress(OSError):  # the surplus stays until the next save
            self.retention.prune(final)
        ref = CheckpointRef(step=manifest.step, digest=digest, time=manifest.created)
        return Saved(manifest.step, 0, ref)
