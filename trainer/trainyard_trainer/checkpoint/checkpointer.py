"""Checkpoints: saved in the background, published by rank 0."""

import contextlib
import json
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainyard_api.checkpoint import CHECKPOINTS, Manifest, step_name
from trainyard_api.job import TrainerJob
from trainyard_api.status import CheckpointRef
from trainyard_trainer.checkpoint.disk import free_space, kind, reason
from trainyard_trainer.checkpoint.publish import TEMPORARY, Fence, publish
from trainyard_trainer.checkpoint.resume import DESCRIPTION_FILE, Resume
from trainyard_trainer.checkpoint.retention import Retention
from trainyard_trainer.checkpoint.state import StateFiles
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.errors import (
    CheckpointError,
    NonFiniteLossError,
    SupersededError,
    UserError,
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


class Checkpointer:
    """Saves in the background, one checkpoint at a time; rank 0 publishes."""

    def __init__(
        self,
        job: TrainerJob,
        files: StateFiles,
        fence: Fence | None,
        header: dict[str, Any],
        resume: Resume | None,
    ) -> None:
        """`fence` on rank 0 only; `header`: the run's part of DESCRIPTION_FILE."""
        self.job = job
        self.files = files
        self.fence = fence
        self.header = header
        self.parent = Path(job.run_dir) / CHECKPOINTS
        self.writer = files.group.broadcast(fence.writer if fence else "")
        self.retention: Retention | None = None
        if fence is not None:
            keep = job.checkpoint
            self.retention = Retention(self.parent, keep.keep_last, keep.keep_best, fence)
            if resume is not None and not resume.source:
                self.retention.trust(resume.directory, resume.manifest)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Saved] | None = None

    def preload(self) -> None:
        """Prepare for the first save while training continues."""
        self.files.preload(self._background)

    def save(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        """Start copying and writing the state. The previous save must have ended: see `wait`.

        The optimizer must not take its next step before `wait_copied`.
        """
        assert self._pending is None, "a checkpoint is still being written"
        began = time.perf_counter()
        parallel: Parallel = self.files.parallel
        write = self.files.stage()
        manifest = Manifest(
            kind="checkpoint",
            run=self.job.run,
            attempt=self.job.attempt,
            recipe=self.job.recipe,
            step=step,
            total_steps=total_steps,
            world_size=parallel.group.world_size,
            created=datetime.now(UTC),
            config=self.header["config"],
            metrics=metrics,
            files={},
        )
        description = self.header | {"step": step, "scaler": parallel.scaler.state_dict()}

        size = self.files.size()

        def finish() -> Saved:
            try:
                saved = self._write(write, manifest, description)
            finally:
                self.files.copied.set()  # also after a failure: training waits for this
            return replace(saved, seconds=time.perf_counter() - began, size=size)

        self._pending = self._background.submit(finish)

    def wait_copied(self) -> None:
        """Wait until the running save, if any, has copied the state."""
        self.files.copied.wait()

    def poll(self) -> Saved | None:
        """The result of the running save, once; None while it runs."""
        if self._pending is None or not self._pending.done():
            return None
        return self.wait()

    def wait(self) -> Saved | None:
        """Wait for the running save, if any. Raises SupersededError on rank 0."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    def close(self) -> None:
        """Stop the background thread."""
        self._background.shutdown()
        self.files.close()

    def _write(self, write: Any, manifest: Manifest, description: dict[str, Any]) -> Saved:
        """In the background: write this rank's files; rank 0 publishes those of all ranks."""
        name = step_name(manifest.step)
        temporary = self.parent / f"{TEMPORARY}{name}-{self.writer}"
        final = self.parent / name
        try:
            write(temporary)
            if self.fence is None or self.retention is None:
                return Saved(manifest.step, 0)
            (temporary / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1) + "\n")
            digest = publish(temporary, final, manifest, self.fence)
        except SupersededError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        except BaseException as error:  # torch's CheckpointException is not an Exception
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
