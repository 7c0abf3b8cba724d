"""Checkpoints: everything a step depends on, saved while training goes on, and read back."""

import contextlib
import errno
import importlib
import json
import os
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainyard_api.checkpoint import (
    CHECKPOINTS,
    Manifest,
    newest_valid,
    step_name,
    steps,
)
from trainyard_api.job import TrainerJob
from trainyard_api.status import CheckpointRef
from trainyard_trainer.errors import CheckpointError, SupersededError
from trainyard_trainer.group import Group
from trainyard_trainer.parallel import Parallel
from trainyard_trainer.publish import TEMPORARY, Fence, prune, publish

STATE_FILE = "trainer.json"  # settings and the recipe's state, beside torch's own files


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
    state: dict[str, Any]
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
    state = json.loads((directory / STATE_FILE).read_text())
    return Resume(directory, manifest, state, skipped)


def training_state(parallel: Parallel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a checkpoint holds, as torch.distributed.checkpoint saves it.

    Parameters and optimizer state go by the parameter's name, so that they find their place again
    however many ranks there are.
    """
    random = {"cpu": torch.get_rng_state()}
    if parallel.group.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(parallel.group.device)
    return {
        "model": parallel.module.state_dict(),
        "optimizer": {
            name: dict(optimizer.state[parameter])
            for name, parameter in parallel.module.named_parameters()
        },
        "rng": {str(parallel.group.rank): random},
    }


def load(resume: Resume, parallel: Parallel, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Put a checkpoint's state into the model, optimizer, scaler and random generators.

    With as many ranks as before the next step is bitwise the one the saved run would have taken.
    With another number every rank gets a new random state of its own, from the seed and the step.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_state

    group = parallel.group
    reader = FileSystemReader(resume.directory)
    same_ranks = resume.manifest.world_size == group.world_size
    try:
        _make_room(optimizer, parallel, reader.read_metadata().state_dict_metadata)
        state = training_state(parallel, optimizer)
        if not same_ranks:
            del state["rng"]
        load_state(state, storage_reader=reader, process_group=group.background)
    except (Exception, CheckpointException) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{resume.directory}: cannot be loaded: {reason}") from error
    parallel.scaler.load_state_dict(resume.state["scaler"])
    if same_ranks:
        random = state["rng"][str(group.rank)]
        torch.set_rng_state(random["cpu"])
        if group.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], group.device)
    else:
        seed_rank(seed, resume.manifest.step, group.rank)


def _make_room(optimizer: torch.optim.Optimizer, parallel: Parallel, saved: dict[str, Any]) -> None:
    """Give a fresh optimizer the state tensors that the checkpoint has, to be filled by loading."""
    for name, parameter in parallel.module.named_parameters():
        prefix = f"optimizer.{name}."
        for key in (key for key in saved if key.startswith(prefix)):
            size, dtype = saved[key].size, saved[key].properties.dtype
            alike = size == parameter.shape
            optimizer.state[parameter][key.removeprefix(prefix)] = (
                torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
                if alike
                else torch.zeros(size, dtype=dtype)
            )


def seed_rank(seed: int, step: int, rank: int) -> None:
    """A random state (dropout) that no other rank or starting step has."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


class Checkpointer:
    """Saves in the background, one checkpoint at a time; rank 0 publishes."""

    def __init__(
        self, job: TrainerJob, group: Group, fence: Fence | None, header: dict[str, Any]
    ) -> None:
        """`fence` on rank 0 only; `header`: what STATE_FILE says of the run."""
        self.job = job
        self.group = group
        self.fence = fence
        self.header = header
        self.parent = Path(job.run_dir) / CHECKPOINTS
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._imports: Future[Any] | None = None
        self._pending: Future[Saved] | None = None
        self._stager: Any = None

    def preload(self) -> None:
        """Import torch's checkpoint package in the background, ahead of the first save."""
        name = "torch.distributed.checkpoint"
        self._imports = self._writer.submit(importlib.import_module, name)

    def save(
        self,
        step: int,
        total_steps: int,
        parallel: Parallel,
        optimizer: torch.optim.Optimizer,
        metrics: dict[str, float],
    ) -> float:
        """Copy the state and start writing it; the seconds training had to wait.

        The one before must have ended: call `wait` first.
        """
        if self._imports is not None:
            self._imports.result()  # two threads must not import the same package at once
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
        from torch.distributed.checkpoint.state_dict_saver import async_save

        assert self._pending is None, "a checkpoint is still being written"
        began = time.perf_counter()
        if self._stager is None:
            self._stager = DefaultStager(StagingOptions(False, False, False, False))
        # The attempt is in the name: two attempts' writers never share a directory.
        temporary = self.parent / f"{TEMPORARY}{step_name(step)}-attempt-{self.job.attempt}"
        state = training_state(parallel, optimizer)
        writing = async_save(
            state,
            storage_writer=FileSystemWriter(temporary, sync_files=True),
            process_group=self.group.background,
            async_stager=self._stager,
        )
        manifest = Manifest(
            kind="checkpoint",
            run=self.job.run,
            attempt=self.job.attempt,
            recipe=self.job.recipe,
            step=step,
            total_steps=total_steps,
            world_size=self.group.world_size,
            created=datetime.now(UTC),
            config=self.header["config"],
            metrics=metrics,
            files={},
        )
        described = self.header | {"step": step, "scaler": parallel.scaler.state_dict()}
        self._pending = self._writer.submit(
            self._finish, writing, temporary, manifest, described, began
        )
        return time.perf_counter() - began

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
        """Give up the threads."""
        self._writer.shutdown()
        if self._stager is not None:
            self._stager.close()

    def _finish(
        self,
        writing: Any,
        temporary: Path,
        manifest: Manifest,
        described: dict[str, Any],
        began: float,
    ) -> Saved:
        """In the background: wait for every rank's files, then publish them (rank 0)."""
        step = manifest.step
        try:
            writing.result()
            if self.fence is None:
                return Saved(step, time.perf_counter() - began)
            (temporary / STATE_FILE).write_text(json.dumps(described, indent=1) + "\n")
            final = self.parent / step_name(step)
            name = publish(temporary, final, manifest, self.fence)
            keep = self.job.checkpoint
            prune(self.parent, final, keep.keep_last, keep.keep_best)
        except SupersededError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        except BaseException as error:  # torch's CheckpointException is no Exception
            if self.fence is None:
                return Saved(step, time.perf_counter() - began, error=str(error))
            message = f"{self.parent / step_name(step)}: {_reason(error)}{_space(self.parent)}"
            shutil.rmtree(temporary, ignore_errors=True)
            return Saved(step, time.perf_counter() - began, error=message)
        ref = CheckpointRef(step=step, digest=name, time=manifest.created)
        return Saved(step, time.perf_counter() - began, ref=ref)


def has_checkpoints(run_dir: Path) -> bool:
    """Whether any step directory exists, valid or not."""
    return next(steps(run_dir / CHECKPOINTS), None) is not None


def _reason(error: BaseException) -> str:
    """The operating system's words for it, however deep torch has wrapped them."""
    pending = [error]
    while pending:
        cause = pending.pop()
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        for wrapped in getattr(cause, "failures", {}).values():
            pending.append(wrapped[0])
        pending.extend(e for e in (cause.__cause__, cause.__context__) if e is not None)
    text = " ".join(str(error).split())
    full = os.strerror(errno.ENOSPC)
    # torch's own writer reports a failed write as a RuntimeError of its zip code.
    return full if full in text else text[:300]


def _space(path: Path) -> str:
    with contextlib.suppress(OSError):
        return f" ({shutil.disk_usage(path).free / 2**20:,.0f} MiB free)"
    return ""
