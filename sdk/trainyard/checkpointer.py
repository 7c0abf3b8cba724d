"""trainyard.Checkpointer: checkpoints of a script, from which it resumes bitwise.

The same code saves, verifies and publishes the checkpoints of Trainyard's recipes.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import sys
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import datetime
from typing import Any

from trainyard import stop
from trainyard.needs import needs
from trainyard.reporting import finite
from trainyard.run import Run

with needs("trainyard.Checkpointer"):
    import numpy as np
    import safetensors  # noqa: F401 imported later, by what writes
    import torch
    from torch.utils.data import DataLoader

    from trainyard.data import StepSampler, own_generator
    from trainyard.modules import fix_all_buckets, group_of, is_sharded, unwrap
    from trainyard.publish import fence_of
    from trainyard.start import find_checkpoint
    from trainyard_api.checkpoint import CHECKPOINTS
    from trainyard_api.spec import CheckpointPolicy
    from trainyard_storage.checkpoints import digest
    from trainyard_trainer.checkpoint import objects
    from trainyard_trainer.checkpoint.checkpointer import Checkpointer as Engine
    from trainyard_trainer.checkpoint.checkpointer import Saved
    from trainyard_trainer.checkpoint.disk import reason
    from trainyard_trainer.checkpoint.objects import OptimizerSettings, Stateful
    from trainyard_trainer.checkpoint.publish import Origin, check_shared
    from trainyard_trainer.checkpoint.random_state import seed_rank
    from trainyard_trainer.checkpoint.resume import SCRIPT_FILE, Resume, find_newest
    from trainyard_trainer.checkpoint.state import Write, make_state_files
    from trainyard_trainer.errors import CheckpointError, ConfigError, UserError


class Checkpointer:
    """Saves and restores everything that a training loop depends on. Every rank creates one.

    It saves the model (plain, in DistributedDataParallel, or sharded by fully_shard), the
    optimizer, the scheduler, the loader's position on every rank, what `others` names, and the
    random states of every rank: torch's (CPU and this rank's GPU), Python's and NumPy's.

    Args:
        run: from `trainyard.init()`; checkpoints are written to its directory.
        model: the module that is trained, in its DistributedDataParallel if it has one, before the
            first step: its gradient buckets are fixed, or DDP's first step would add in another
            order than later ones.
        optimizer: the optimizer of the model's parameters.
        scheduler: the scheduler of the learning rate.
        data: where each rank's samples come from: a loader or data set with state_dict() and
            load_state_dict(), such as torchdata's StatefulDataLoader and datasets' IterableDataset,
            or a DataLoader whose batch_sampler is a `trainyard.StepSampler`.
        keep_last: how many of the newest checkpoints to keep.
        keep_best: whether to keep the one with the lowest `eval_loss` in its metrics, too.
        others: more objects with state_dict() and load_state_dict(), the same on all ranks, such
            as a GradScaler or a moving average of the weights.

    Raises ConfigError, which says what to change.
    """

    def __init__(
        self,
        run: Run,
        *,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Stateful | None = None,
        data: Any = None,
        keep_last: int = 3,
        keep_best: bool = False,
        **others: Stateful,
    ) -> None:
        self._run = run
        self._module = unwrap(model)
        self._data, self._sampler = _position(data)
        self._optimizer = type(optimizer).__name__
        settings = OptimizerSettings(self._module, optimizer)
        self._shared: dict[str, Stateful] = {"optimizer": settings, **others}
        if scheduler is not None:
            self._shared["scheduler"] = scheduler
        for name, each in self._shared.items():
            if not _is_stateful(each):
                raise ConfigError(f"{name}: it has no state_dict() and load_state_dict()")
        self._group = group = group_of(self._module)
        self._fence = group.run_or_fail_all(lambda: fence_of(run) if group.is_main else None)
        if sharded := is_sharded(self._module):
            writer = group.broadcast(self._fence.writer if self._fence else "")
            group.run_or_fail_all(lambda: check_shared(run.directory, writer))
        fix_all_buckets(model, *others.values())
        self._files = make_state_files(self._module, optimizer, group, sharded)
        self._parent = run.directory / CHECKPOINTS
        self._keep = CheckpointPolicy(keep_last=keep_last, keep_best=keep_best)
        self._captured: dict[str, Any] = {}
        self._unsaved: UserError | None = None  # on rank 0: why the newest save failed
        self._engine = self._make_engine(None)
        self._closed = False
        atexit.register(self._at_exit)

    def _make_engine(self, resume: Resume | None) -> Engine:
        origin = Origin(self._run.name, self._run.attempt, self._group.world_size)
        how = (self._keep, self._describe, resume)
        return Engine(self._parent, origin, self._files, self._fence, *how)

    def resume(self) -> int:
        """Restore the newest checkpoint that verifies; returns its step, 0 in a new run.

        Without a checkpoint of its own, a run restores the one that `startFrom` names, and saves it
        as its own before the first step; with `what: weights` only the weights, and 0 is returned.
        If the script has built its model from `run.start_from`, `what: weights` restores nothing,
        and `everything` restores the checkpoint of the other run if there is one.

        Call it once, on every rank, before the first step. With as many ranks as before, the next
        step is bitwise that of the saved run, on the same hardware with deterministic operations
        (on GPUs: after torch.use_deterministic_algorithms). With others each gets new random
        states, and `data` must use a StepSampler, or be None. On another kind of device, CPU or
        GPU, torch's random states are new.

        Raises CheckpointError, on every rank, if there are checkpoints but none is valid;
        ConfigError if it does not fit this script, or `startFrom` names none that exists.
        """
        group = self._group
        found = group.run_or_fail_all(
            lambda: self._find() if group.is_main else None  # the others may see no files
        )
        resume = group.broadcast(found)
        if resume is None:
            return 0
        if group.is_main:
            for skipped in resume.skipped:
                _warn(f"checkpoint skipped: {skipped}")
        group.run_or_fail_all(lambda: self._check(resume))
        try:
            self._restore(resume)
        except (UserError, KeyboardInterrupt):
            raise
        except BaseException as error:  # torch's CheckpointException is not an Exception
            why = reason(error, resume.directory)
            if resume.source and isinstance(error, ValueError):
                raise ConfigError(
                    f"startFrom: {resume.source} does not fit this script ({error}): use the same"
                    " model and optimizer, or name another run"
                ) from error
            raise CheckpointError(f"{resume.directory}: cannot be loaded: {why}") from error
        self._engine.close()
        self._engine = self._make_engine(resume)
        if group.is_main:
            self._announce(resume)
        if resume.source:  # from now on the run depends on no other
            self.save(resume.step, None if resume.weights_only else resume.manifest.metrics)
        return resume.step

    def _find(self) -> Resume | None:
        """The run's own newest checkpoint, else that of startFrom."""
        return find_newest(self._parent, SCRIPT_FILE) or find_checkpoint(self._run)

    def _announce(self, resume: Resume) -> None:
        """Report what the attempt begins with."""
        step: dict[str, Any] = {} if resume.weights_only else {"resumedFromStep": resume.step}
        if resume.source:
            what = ("the weights of " if resume.weights_only else "") + resume.source
            self._run._note({"current_step": resume.step}, startedFrom=what, **step)
            print(f"trainyard: starting from {what}", flush=True)
            return
        self._note(resume.step, digest(resume.directory), resume.manifest.created)
        self._run._note({"current_step": resume.step}, **step)
        print(f"trainyard: resuming from step {resume.step}", flush=True)

    def _check(self, resume: Resume) -> None:
        """Raise ConfigError or CheckpointError unless the checkpoint is this script's."""
        saved, where = resume.description, resume.directory
        another = "start the run under another name"
        if resume.source:
            another = "set startFrom.what to weights"
        if saved["format"] > objects.FORMAT:
            raise CheckpointError(
                f"{where}: format {saved['format']}, but this version of trainyard reads up to"
                f" {objects.FORMAT}: install the version that saved it, or a newer one"
            )
        if resume.weights_only:
            return
        if self._group.is_main:  # the others may not see the file
            objects.read_pickled(where, saved)
            if (was := saved.get("optimizer", self._optimizer)) != self._optimizer:
                raise ConfigError(
                    f"optimizer: {self._optimizer}, but {where} was saved with {was}: use that"
                    f" again, or {another}"
                )
            has, wanted = set(saved["shared"]), set(self._shared)
            has |= {"data"} & set(saved["ranks"][0])
            wanted |= {"data"} if self._data is not None or self._sampler else set()
            if missing := ", ".join(sorted(wanted - has)):
                raise ConfigError(f"{where} has no state of {missing}: leave it out, or {another}")
            if unknown := ", ".join(sorted(has - wanted)):
                raise ConfigError(
                    f"{where} has the state of {unknown}: pass it to trainyard.Checkpointer"
                )
            if "data" in wanted and (self._sampler is not None) != ("data" in saved["shared"]):
                was = "a StepSampler" if self._sampler is None else "no StepSampler"
                raise ConfigError(f"{where}: data was {was} when it was saved: use the same again")
        ranks = resume.manifest.world_size
        if self._data is not None and ranks != self._group.world_size:
            raise ConfigError(
                f"data: the checkpoint has the loader states of {ranks} ranks, which"
                f" {self._group.world_size} can't continue: use {ranks} again, or a"
                " trainyard.StepSampler, whose batches don't depend on the number of ranks"
            )

    def _restore(self, resume: Resume) -> None:
        group = self._group
        if resume.weights_only:
            self._files.read(resume.directory, optimizer=False, random=False)
            return
        same = resume.manifest.world_size == group.world_size
        self._files.others = self._capture_shared()[1]  # for their layout
        states = self._files.read(resume.directory, optimizer=True, random=same)
        # Rank 0 has read the values; the others may not see the files.
        shared, ranks = group.broadcast((resume.description["shared"], resume.description["ranks"]))
        for name, each in self._shared.items():
            if not objects.load(each, objects.decode(shared[name], states)) and group.is_main:
                print(f"trainyard: {name} was disabled when saved: it starts anew", flush=True)
        if self._sampler is not None and resume.source:
            self._sampler.start = resume.step  # of other data, or of other batches
        elif self._sampler is not None:
            self._sampler.load_state_dict(shared["data"] | {"step": resume.step})
        own = objects.decode(ranks[group.rank], {}) if same else {}
        if self._data is not None and "data" in own:
            self._data.load_state_dict(own["data"])
            if "loader" in own:
                # Starts the iterator, which draws; the numbers of later ones follow from the state.
                self._data.state_dict()
                self._data.generator.set_state(own["loader"])
        # Last: what is loaded may have drawn random numbers.
        restored = same and self._files.set_random(states)
        if not restored:
            seed_rank(torch.initial_seed() % 2**32, resume.step, group.rank)
        if same:
            _set_python_random(own)
        else:
            random.seed(torch.initial_seed())
            np.random.seed(torch.initial_seed() % 2**32)
        if same and not restored and group.is_main:
            print("trainyard: saved on another kind of device: new random states", flush=True)

    def save(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
        """Save the state after `step` steps; every rank calls it after the same step.

        It returns when the state has been copied, and the next step may begin; a thread writes the
        copy, and rank 0 then publishes it with one rename. If an earlier save is unfinished, it is
        waited for first. If a save fails (a full disk, weights that are not finite), rank 0 prints
        a warning and training continues; see `close`. Once `run.should_stop()` has returned True,
        save returns when the checkpoint is complete.

        Raises SupersededError, on rank 0, if a newer attempt of the run has started.
        """
        self._engine.wait()
        group = self._group
        shared, self._files.others = group.run_or_fail_all(self._capture_shared)
        own = group.run_or_fail_all(self._capture_own)
        if self._sampler is not None:
            shared["data"] = self._sampler.state_at(step)
        self._captured = {
            "format": objects.FORMAT,
            "step": step,
            "torch": torch.__version__,
            "optimizer": self._optimizer,
            "shared": shared,
            "ranks": group.gather(own),
        }
        numbers = {name: finite(value) for name, value in (metrics or {}).items()}
        known = {name: number for name, number in numbers.items() if number is not None}
        self._engine.save(step, self._run.total, known).add_done_callback(self._saved)
        self._engine.wait_copied()
        if stop.current is not None and stop.current.is_final:
            self._wait_for_all()

    def _capture_shared(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        tensors: dict[str, torch.Tensor] = {}
        shared = {}
        for name, each in self._shared.items():
            shared[name] = objects.encode(each.state_dict(), name, tensors)
            objects.check_loadable(name, shared[name])
        return shared, tensors

    def _capture_own(self) -> dict[str, Any]:
        own: dict[str, Any] = {"python": random.getstate()}
        if "numpy" in sys.modules:
            own["numpy"] = np.random.get_state()
        if self._data is not None:
            own["data"] = self._data.state_dict()
            if isinstance(self._data, DataLoader):
                own["loader"] = self._data.generator.get_state()
        encoded: dict[str, Any] = objects.encode(own, "data", None)
        for name, each in encoded.items():
            objects.check_loadable(name, each)
        return encoded

    def _describe(self, _step: int) -> Write:
        captured = self._captured
        return lambda directory: objects.write(directory, SCRIPT_FILE, captured)

    def _saved(self, done: Future[Saved]) -> None:
        """In the background, once a save has ended."""
        if self._fence is None or done.exception() is not None:
            return
        saved = done.result()
        self._unsaved = saved.failure(f"not saved: {saved.error}") if saved.error else None
        if saved.ref is not None:
            self._note(saved.step, saved.ref.digest, saved.ref.time)
        else:
            _warn(f"checkpoint not saved: {saved.error}; training continues")

    def _note(self, step: int, digest: str, time: datetime) -> None:
        """Report the newest checkpoint."""
        self._run._note(checkpoint={"step": step, "digest": digest, "time": time.isoformat()})

    def _wait_for_all(self) -> UserError | None:
        """Wait until rank 0 has published; why it could not, on every rank."""
        self._engine.wait()
        return self._group.broadcast(self._unsaved)

    def close(self) -> None:
        """Wait for the last save; every rank calls it, before the process group is destroyed.

        The end of a `with` block calls it. If the last save failed, its error is raised on
        every rank.
        """
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        unsaved = self._wait_for_all()
        self._engine.close()
        self._group.close()
        if unsaved is not None:
            raise unsaved

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:  # the other ranks may be gone, or still have to receive why this one fails
            self._finish()

    def _at_exit(self) -> None:
        if self._run.pid == os.getpid():
            self._finish()
            self._group.close()

    def _finish(self) -> None:
        """Wait for this rank's part of the last save, without the other ranks."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(UserError):
                self._engine.wait()
            self._engine.close()


def _position(data: Any) -> tuple[Any, StepSampler | None]:
    """What is saved of `data`: each rank's state, or the step of a StepSampler."""
    sampler = data if isinstance(data, StepSampler) else getattr(data, "batch_sampler", None)
    own_generator(data)
    if isinstance(sampler, StepSampler):
        return None, sampler
    if data is None or _is_stateful(data):
        return data, None
    raise ConfigError(
        f"data: a {type(data).__name__} has no state_dict(): use torchdata's StatefulDataLoader, or"
        " DataLoader(batch_sampler=trainyard.StepSampler(...))"
    )


def _is_stateful(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(
        getattr(value, "load_state_dict", None)
    )


def _set_python_random(own: dict[str, Any]) -> None:
    random.setstate(own["python"])
    if "numpy" in own:
        np.random.set_state(own["numpy"])


def _warn(message: str) -> None:
    print(f"warning: trainyard: {message}", file=sys.stderr, flush=True)
