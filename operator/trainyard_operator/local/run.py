"""`trainyard run`: applies a manifest to this machine and drives the run in the foreground."""

import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from trainyard_api.run import TrainingRun
from trainyard_api.spec import immutable_changes
from trainyard_api.status import FINISHED
from trainyard_operator.local import manifest, preflight
from trainyard_operator.local.backend import LocalBackend
from trainyard_operator.local.delete import end_driver
from trainyard_operator.local.display import Display, View, new_display
from trainyard_operator.local.store import (
    MANIFEST,
    WORKING_DIRECTORY,
    RunDir,
    UserError,
)
from trainyard_operator.local.summary import summary
from trainyard_operator.plan import Plan
from trainyard_operator.reconcile import reconcile

POLL_SECONDS = 0.25
EXIT_INTERRUPTED = 130


@dataclass
class Stop:
    """What Ctrl-C or SIGTERM asked for so far: once is in good order, twice is at once."""

    requests: int = 0


def run_manifest(path: Path) -> int:
    """Apply the manifest and drive the run until it ends; returns the exit status."""
    wanted = manifest.load(path)
    wanted.metadata.annotations[MANIFEST] = str(path)
    with RunDir(wanted.name).locked():
        backend = LocalBackend(RunDir(wanted.name))
        run = _apply_manifest(backend, wanted)
        display = new_display()
        if run.status.phase in FINISHED:
            display.say(_already_finished(run))
            return 0 if run.status.phase == "Succeeded" else 1
        for name in preflight.ignored(run):
            display.say(f"note: {name} means nothing on one machine and is ignored")
        with stop_on_signals() as stop, display:
            run = drive(backend, run, display, stop)
        display.say(summary(backend, run, by_manifest=wanted.spec.suspend))
        if run.status.phase == "Suspended" and stop.requests:
            return EXIT_INTERRUPTED
        return 0 if run.status.phase == "Succeeded" else 1


def suspend(run_dir: RunDir) -> str:
    """Stop a run so that it can go on later; returns what to tell the user."""
    if (pid := run_dir.holder()) is not None:
        end_driver(run_dir, pid)
    with run_dir.locked():
        backend = LocalBackend(run_dir)
        run = backend.load()
        if run.status.phase in FINISHED:
            return _already_finished(run)
        run = drive(backend, suspended(run), Display(), Stop())
        return summary(backend, run)


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


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Count Ctrl-C and SIGTERM instead of dying of them."""
    stop = Stop()

    def count(_signal: int, _frame: FrameType | None) -> None:
        stop.requests += 1

    former = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _settled(run: TrainingRun, plan: Plan) -> bool:
    over = run.status.phase in (*FINISHED, "Suspended")
    return over and not plan.delete and not plan.create


def _apply_manifest(backend: LocalBackend, wanted: TrainingRun) -> TrainingRun:
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


def _already_finished(run: TrainingRun) -> str:
    ended = "succeeded" if run.status.phase == "Succeeded" else "failed"
    why = f": {run.status.message}" if run.status.message else ""
    again = f"to train anew: trainyard delete {run.name}"
    serve = f"; to serve its model: trainyard serve {run.name}" if run.status.model else ""
    return f"{run.name} has already {ended}{why}; {again}{serve}"
