"""Checkpoints: saved while training goes on, published by rank 0, found by the next attempt."""

import contextlib
import errno
import json
import os
import re
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainyard_api.checkpoint import CHECKPOINTS, Manifest, step_name
from trainyard_api.job import TrainerJob
from trainyard_api.status import CheckpointRef
from trainyard_storage.checkpoints import newest_valid
from trainyard_trainer.checkpoint.publish import TEMPORARY, Fence, publish
from trainyard_trainer.checkpoint.retention import Retention
from trainyard_trainer.checkpoint.state import StateFiles
from trainyard_trainer.distributed.parallel import Parallel
from trainyard_trainer.errors import CheckpointError, SupersededError, one_line

DESCRIPTION_FILE = "trainer.json"  # settings, loss scale and the recipe's state

# How torch's archive writer says that a file took fewer bytes than it was given, and how little
# space makes a full disk the reason.
_CUT_SHORT = re.compile(r"inline_container|PytorchStreamWriter")
_FULL = 1 << 20  # bytes


@dataclass(frozen=True)
class Saved:
    """How a save ended, as rank 0 knows it."""

    step: int
    seconds: float
    ref: CheckpointRef | None = None
    error: str = ""


@dataclass(frozen=True)
class Resume:
    """The checkpoint to go on from."""

    directory: Path
    manifest: Manifest
    description: dict[str, Any]
    skipped: list[str]


def find_resume(run_dir: Path) -> Resume | None:
    """The newest checkpoint that verifies; None in a fresh run.

    Raises CheckpointError when there are checkpoints but none is valid: starting again from step 0
    would throw the run's work away without a word.
    """
    parent = run_dir / CHECKPOINTS
    directory, manifest, skipped = newest_valid(parent)
    if directory is None or manifest is None:
        if skipped:
            raise CheckpointError(
                f"none of the {len(skipped)} checkpoints in {parent} is valid ({skipped[0]});"
                " restore one from a backup, or remove that folder to start from step 0"
            )
        return None
    description = json.loads((directory / DESCRIPTION_FILE).read_text())
    return Resume(directory, manifest, description, skipped)


def restore(resume: Resume, files: StateFiles, seed: int) -> None:
    """Put a checkpoint's state into the model, optimizer, loss scale and random generators.

    With as many ranks as before the next step is bitwise the one the saved run would have taken.
    With another number every rank gets a new random state of its own, from the seed and the step.
    """
    group = files.group
    same_ranks = resume.manifest.world_size == group.world_size
    try:
        files.read(resume.directory, same_ranks)
    except BaseException as error:  # torch's CheckpointException is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        reason = _reason(error, resume.directory)
        raise CheckpointError(f"{resume.directory}: cannot be loaded: {reason}") from error
    files.parallel.scaler.load_state_dict(resume.description["scaler"])
    if not same_ranks:
        seed_rank(seed, resume.manifest.step, group.rank)


def seed_rank(seed: int, step: int, rank: int) -> None:
    """A random state (dropout) that no other rank or starting step has."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


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
        """`fence` on rank 0 only; `header`: what DESCRIPTION_FILE says of the run."""
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
            if resume is not None:
                self.retention.trust(resume.directory, resume.manifest)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[Saved] | None = None

    def preload(self) -> None:
        """Get ready for the first save while training goes on."""
        self.files.preload(self._background)

    def save(self, step: int, total_steps: int, metrics: dict[str, float]) -> None:
        """Start copying and writing the state. The save before must have ended: see `wait`.

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

        def finish() -> Saved:
            try:
                ref, error = self._write(write, manifest, description)
            finally:
                self.files.copied.set()  # whatever became of it: training waits for this
            return Saved(step, time.perf_counter() - began, ref, error)

        self._pending = self._background.submit(finish)

    def wait_copied(self) -> None:
        """Wait until the running save, if there is one, has its own copy of the state."""
        self.files.copied.wait()

    def poll(self) -> Saved | None:
        """How the running save ended, once; None while it runs."""
        if self._pending is None or not self._pending.done():
            return None
        return self.wait()

    def wait(self) -> Saved | None:
        """Wait for the running save, if there is one. Raises SupersededError on rank 0."""
        if self._pending is None:
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    def close(self) -> None:
        """Give up the thread."""
        self._background.shutdown()
        self.files.close()

    def _write(
        self, write: Any, manifest: Manifest, description: dict[str, Any]
    ) -> tuple[CheckpointRef | None, str]:
        """In the background: write this rank's files; on rank 0 publish everybody's."""
        name = step_name(manifest.step)
        temporary = self.parent / f"{TEMPORARY}{name}-{self.writer}"
        final = self.parent / name
        try:
            write(temporary)
            if self.fence is None or self.retention is None:
                return None, ""
            (temporary / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1) + "\n")
            digest = publish(temporary, final, manifest, self.fence)
        except SupersededError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        except BaseException as error:  # torch's CheckpointException is no Exception
            message = f"{final}: {_reason(error, self.parent)}{_space(self.parent)}"
            if isinstance(error, CheckpointError):
                message = f"{final}: {error}"
            if self.fence is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            return None, message
        self.retention.trust(final, manifest)
        with contextlib.suppress(OSError):  # then it keeps more than it should
            self.retention.prune(final)
        return CheckpointRef(step=manifest.step, digest=digest, time=manifest.created), ""


def _reason(error: BaseException, directory: Path) -> str:
    """The operating system's words for it, however deep they are wrapped; else the innermost's."""
    pending = [error]
    while pending:
        cause = pending.pop()
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        if code := re.search(r"\(os error (\d+)\)", str(cause)):  # as safetensors words it
            return os.strerror(int(code[1]))
        if _CUT_SHORT.search(str(cause)) and shutil.disk_usage(directory).free < _FULL:
            return os.strerror(errno.ENOSPC)
        failures = getattr(cause, "failures", {})  # of torch's CheckpointException, by rank
        error = error if failures else cause
        pending.extend(wrapped[0] for wrapped in failures.values())
        pending.extend(e for e in (cause.__cause__, cause.__context__) if e is not None)
    return one_line(error)[:300]


def _space(path: Path) -> str:
    with contextlib.suppress(OSError):
        return f" ({shutil.disk_usage(path).free / 2**20:,.1f} MiB free)"
    return ""
