"""Drives runs on this machine: observe, decide, apply, until nothing is left to do."""

import os
import signal
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from trainyard_api.immutable import immutable_changes
from trainyard_api.labels import RETRY
from trainyard_api.run import TrainingRun
from trainyard_api.status import FINISHED
from trainyard_lifecycle.plan import Plan
from trainyard_lifecycle.reconcile import reconcile
from trainyard_local.backend import LocalBackend
from trainyard_local.display import Display, View
from trainyard_local.store import WORKING_DIRECTORY, RunDir, UserError

POLL_SECONDS = 0.25
DRIVER_STOP_SECONDS = 60


@dataclass
class Stop:
    """How often Ctrl-C or SIGTERM was received: once stops gracefully, twice kills."""

    requests: int = 0


def drive(backend: LocalBackend, run: TrainingRun, display: Display, stop: Stop) -> TrainingRun:
    """Observe, decide, apply, until the run is finished or suspended. Returns the run."""
    killed = False
    while True:
        if stop.requests and not run.spec.suspend:
            run = set_suspend(run)
        if stop.requests > 1 and not killed:
            backend.workers.kill_all()
            killed = True
        observed = backend.observe(run)
        plan = reconcile(observed)
        run, events = backend.apply(run, plan)
        display.show(View(run, observed.report, backend.losses, stop.requests), events)
        busy = any(not worker.finished for worker in backend.workers.observe())
        if _is_settled(run, plan) and not busy:
            return run
        time.sleep(POLL_SECONDS)


def set_suspend(run: TrainingRun) -> TrainingRun:
    """The run with spec.suspend set and its generation increased, as after `kubectl patch`."""
    spec = run.spec.model_copy(update={"suspend": True})
    return _new_generation(run, spec=spec)


def _is_settled(run: TrainingRun, plan: Plan) -> bool:
    stopped = run.status.phase in (*FINISHED, "Suspended")
    return stopped and not plan.delete and not plan.create


def apply_manifest(backend: LocalBackend, wanted: TrainingRun) -> TrainingRun:
    """Create the run, or update an existing one with the changes that are allowed."""
    if backend.dir.exists():
        old = backend.load()
        if not reconcile(backend.observe(old)).delete_run:
            return _update(backend, old, wanted)
        backend.dir.remove(old.to_wire())  # ttlSecondsAfterFinished has passed
    return create(backend, wanted)


def create(backend: LocalBackend, wanted: TrainingRun) -> TrainingRun:
    """Save a new run with the metadata that the API server would set, and the working directory."""
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
            f"{old.name} exists with another {', '.join(changed)}, which can't be changed:"
            " set it back, or change metadata.name to start another run"
        )
    if old.spec == wanted.spec:
        return old
    run = _new_generation(old, spec=wanted.spec)
    backend.save(run)
    return run


def request_retry(backend: LocalBackend, run: TrainingRun) -> TrainingRun:
    """Ask for another attempt without a change of the spec, as `kubectl annotate` does."""
    annotations = {**run.metadata.annotations, RETRY: datetime.now(UTC).isoformat()}
    metadata = run.metadata.model_copy(update={"annotations": annotations})
    run = run.model_copy(update={"metadata": metadata})
    backend.save(run)
    return run


def _new_generation(run: TrainingRun, **changes: object) -> TrainingRun:
    generation = (run.metadata.generation or 0) + 1
    metadata = run.metadata.model_copy(update={"generation": generation})
    return run.model_copy(update={"metadata": metadata, **changes})


def end_driver(run_dir: RunDir, pid: int, *, force: bool = False) -> None:
    """Make the process that drives the run stop it, as Ctrl-C does, and wait until it exits.

    force: as a second Ctrl-C does; the workers get no time to save. Raises UserError if it does not
    exit in time.
    """
    deadline = time.monotonic() + DRIVER_STOP_SECONDS
    signals_sent = 0
    while run_dir.holder() == pid:
        if signals_sent == 0 or (force and signals_sent == 1):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            signals_sent += 1
        if time.monotonic() > deadline:
            raise UserError(
                f"process {pid} still drives {run_dir.name} after {DRIVER_STOP_SECONDS} s:"
                " stop it first"
            )
        time.sleep(0.05)
