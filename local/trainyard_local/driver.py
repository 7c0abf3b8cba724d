"""Drives runs on this machine: watch, observe, decide, apply, until nothing is left to do."""

import os
import signal
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from trainyard_api.run import TrainingRun
from trainyard_api.spec import immutable_changes
from trainyard_api.status import FINISHED
from trainyard_lifecycle.plan import Plan
from trainyard_lifecycle.reconcile import reconcile
from trainyard_local.backend import LocalBackend
from trainyard_local.display import Display, View
from trainyard_local.store import WORKING_DIRECTORY, RunDir, UserError

POLL_SECONDS = 0.25
DRIVER_SECONDS = 60


@dataclass
class Stop:
    """What Ctrl-C or SIGTERM asked for so far: once is in good order, twice is at once."""

    requests: int = 0


def drive(backend: LocalBackend, run: TrainingRun, display: Display, stop: Stop) -> TrainingRun:
    """watch -> observe -> decide -> apply, until nothing is left to do for now."""
    killed = False
    while True:
        if stop.requests and not run.spec.suspend:
            run = suspended(run)
        if stop.requests > 1 and not killed:
            backend.workers.kill_all()
            killed = True
        observed = backend.observe(run)
        plan = reconcile(observed)
        run, events = backend.apply(run, plan)
        display.show(View(run, observed.report, backend.losses, stop.requests), events)
        busy = any(not worker.finished for worker in backend.workers.observe())
        if _settled(run, plan) and not busy:
            return run
        time.sleep(POLL_SECONDS)


def suspended(run: TrainingRun) -> TrainingRun:
    """The run as `kubectl patch` would leave it: suspended, one generation on."""
    spec = run.spec.model_copy(update={"suspend": True})
    return _new_generation(run, spec=spec)


def _settled(run: TrainingRun, plan: Plan) -> bool:
    over = run.status.phase in (*FINISHED, "Suspended")
    return over and not plan.delete and not plan.create


def apply_manifest(backend: LocalBackend, wanted: TrainingRun) -> TrainingRun:
    """Create the run, or change an existing one as far as that is allowed."""
    if backend.dir.exists():
        old = backend.load()
        _, plan = old, reconcile(backend.observe(old))
        if not plan.delete_run:
            return _update(backend, old, wanted)
        backend.dir.remove(old.to_wire())  # outlived ttlSecondsAfterFinished
    return create(backend, wanted)


def create(backend: LocalBackend, wanted: TrainingRun) -> TrainingRun:
    """The run as new, as the API server would make it; its paths begin in this directory."""
    metadata = wanted.metadata.model_copy(
        update={
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "creation_timestamp": datetime.now(UTC),
            "annotations": {**wanted.metadata.annotations, WORKING_DIRECTORY: os.getcwd()},
        }
    )
    run = TrainingRun(
        api_version=wanted.api_version, kind=wanted.kind, metadata=metadata, spec=wanted.spec
    )
    backend.save(run)
    return run


def _update(backend: LocalBackend, old: TrainingRun, wanted: TrainingRun) -> TrainingRun:
    if changed := immutable_changes(old.spec, wanted.spec):
        raise UserError(
            f"{old.name} exists with another {', '.join(changed)}, which can't change:"
            f" give the manifest another metadata.name, or remove the run first"
            f" (trainyard delete {old.name})"
        )
    if old.status.phase in FINISHED or old.spec == wanted.spec:
        return old
    run = _new_generation(old, spec=wanted.spec)
    backend.save(run)
    return run


def _new_generation(run: TrainingRun, **changes: object) -> TrainingRun:
    generation = (run.metadata.generation or 0) + 1
    metadata = run.metadata.model_copy(update={"generation": generation})
    return run.model_copy(update={"metadata": metadata, **changes})


def end_driver(run_dir: RunDir, pid: int, *, at_once: bool = False) -> None:
    """Have the process that drives the run stop it, as Ctrl-C does, and wait for that.

    at_once: as a second Ctrl-C does: the workers get no time to save.
    """
    deadline = time.monotonic() + DRIVER_SECONDS
    asked = 0
    while run_dir.holder() == pid:
        if asked == 0 or (at_once and asked == 1):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            asked += 1
        if time.monotonic() > deadline:
            raise UserError(
                f"process {pid} still drives {run_dir.name} after {DRIVER_SECONDS} s: end it first"
            )
        time.sleep(0.05)
