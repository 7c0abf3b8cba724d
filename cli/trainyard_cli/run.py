"""`trainyard run` and `trainyard suspend`: drives a run in the foreground, or stops one."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from trainyard_api.run import TrainingRun
from trainyard_api.status import FINISHED
from trainyard_cli.display import new_display
from trainyard_cli.summary import summary
from trainyard_local import manifest, preflight
from trainyard_local.backend import LocalBackend
from trainyard_local.display import Display
from trainyard_local.driver import Stop, apply_manifest, drive, end_driver, suspended
from trainyard_local.store import MANIFEST, RunDir

EXIT_INTERRUPTED = 130


def run_manifest(path: Path) -> int:
    """Apply the manifest and drive the run until it ends; returns the exit status."""
    wanted = manifest.load(path)
    wanted.metadata.annotations[MANIFEST] = str(path)
    with RunDir(wanted.name).locked():
        backend = LocalBackend(RunDir(wanted.name))
        run = apply_manifest(backend, wanted)
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


def _already_finished(run: TrainingRun) -> str:
    ended = "succeeded" if run.status.phase == "Succeeded" else "failed"
    why = f": {run.status.message}" if run.status.message else ""
    again = f"to train anew: trainyard delete {run.name}"
    serve = f"; to serve its model: trainyard serve {run.name}" if run.status.model else ""
    return f"{run.name} has already {ended}{why}; {again}{serve}"
