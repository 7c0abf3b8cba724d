"""`trainyard run`, `retry`, `suspend` and `delete`, and the summary that they print of a run."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from trainyard_api.checkpoint import CHECKPOINTS, MODELS
from trainyard_api.run import TrainingRun
from trainyard_api.status import FINISHED
from trainyard_cli.display import new_display
from trainyard_cli.serve import app_of_model
from trainyard_lifecycle.policy import past_deadline, request_to_continue
from trainyard_lifecycle.status import format_count
from trainyard_local import gpus, preflight
from trainyard_local.backend import LocalBackend
from trainyard_local.display import Display
from trainyard_local.driver import (
    Stop,
    apply_manifest,
    drive,
    end_driver,
    request_retry,
    set_suspend,
)
from trainyard_local.manifest import load_run
from trainyard_local.store import MANIFEST, RunDir, UserError
from trainyard_local.workers import Workers
from trainyard_storage.checkpoints import InvalidCheckpointError, read_manifest, steps

EXIT_INTERRUPTED = 130


def run_manifest(path: Path) -> int:
    """Start the run in the manifest, or resume it; returns the exit status when it stops."""
    wanted = load_run(path)
    if wanted.spec.recipe is not None:
        preflight.require_extra("trainer", "trainyard run")
    wanted.metadata.annotations[MANIFEST] = str(path)
    with RunDir(wanted.name).locked():
        backend = LocalBackend(RunDir(wanted.name))
        run = apply_manifest(backend, wanted)
        return _drive_to_the_end(backend, run)


def retry(run_dir: RunDir) -> int:
    """Start the next attempt of a run that failed, from its newest checkpoint; its exit status."""
    with run_dir.locked():
        backend = LocalBackend(run_dir)
        run = backend.load()
        if run.status.phase == "Succeeded":
            raise UserError(_already_finished(run))
        if run.status.phase == "Suspended":
            raise UserError(
                f"{run.name} is suspended; to resume it: trainyard run {_manifest_file(run)}"
            )
        if run.spec.recipe is not None:
            preflight.require_extra("trainer", "trainyard retry")
        return _drive_to_the_end(backend, request_retry(backend, run))


def _drive_to_the_end(backend: LocalBackend, run: TrainingRun) -> int:
    """Drive the run until it stops, and print how it ended; returns the exit status."""
    display = new_display()
    if run.status.phase in FINISHED and request_to_continue(run, run.status) is None:
        display.say(_already_finished(run))
        return 0 if run.status.phase == "Succeeded" else 1
    for name in preflight.ignored_settings(run):
        display.say(f"note: {name} has no effect on one machine and is ignored")
    if unused := gpus.unused(run):
        display.say(f"note: {unused}")
    with stop_on_signals() as stop, display:
        run = drive(backend, run, display, stop)
    display.say(summary(backend, run, by_manifest=run.spec.suspend and not stop.requests))
    if run.status.phase == "Suspended" and stop.requests:
        return EXIT_INTERRUPTED
    return 0 if run.status.phase == "Succeeded" else 1


def suspend(run_dir: RunDir) -> str:
    """Stop a run so that it can be resumed later; returns its summary."""
    if (pid := run_dir.holder()) is not None:
        end_driver(run_dir, pid)
    with run_dir.locked():
        backend = LocalBackend(run_dir)
        run = backend.load()
        if run.status.phase in FINISHED:
            return _already_finished(run)
        run = drive(backend, set_suspend(run), Display(), Stop())
        return summary(backend, run)


def describe_loss(run_dir: RunDir, *, keep_data: bool = False) -> str:
    """What deleting the run would destroy, in one line; empty if that is nothing of value."""
    run = run_dir.read()
    data = run_dir.data(run)
    if keep_data or run_dir.keeps_data(run):
        return ""
    checkpoints, models = [*steps(data / CHECKPOINTS)], [*steps(data / MODELS)]
    parts = []
    if checkpoints:
        newest = _newest_step(data)
        parts.append(format_count(len(checkpoints), "checkpoint"))
        if newest is not None:
            parts[-1] += f", the newest of step {newest}"
    if models:
        parts.append(format_count(len(models), "model"))
    if not parts and run["spec"].get("command"):
        sizes = [path.stat().st_size for path in data.rglob("*") if path.is_file()]
        if sizes:
            parts.append(f"{format_count(len(sizes), 'file')} ({_size_text(sum(sizes))})")
    return " and ".join(parts)


def confirms(name: str, loss: str) -> bool:
    """Ask on a terminal whether this may be destroyed; elsewhere it takes --yes."""
    if not sys.stdin.isatty():
        raise UserError(f"deleting {name} destroys {loss}: add --yes, or --keep-data to keep them")
    print(f"deleting {name} destroys {loss} (--keep-data would keep them)")
    try:
        answer = input("delete? [y/N] ")
    except EOFError:  # Ctrl-D
        answer = ""
    return answer.strip().lower() in ("y", "yes")


def delete(run_dir: RunDir, *, keep_data: bool = False) -> str:
    """Stop the run and delete its directory; returns a line about it."""
    if (pid := run_dir.holder()) is not None:
        end_driver(run_dir, pid, force=True)
    with run_dir.locked():
        Workers(run_dir).kill_all()
        freed, kept = run_dir.remove(run_dir.read(), keep_data=keep_data)
    kept_text = f"; its data is kept in {kept}" if kept else ""
    return f"deleted {run_dir.name}: {_size_text(freed)} freed{kept_text}"


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Count Ctrl-C and SIGTERM instead of being terminated by them."""
    stop = Stop()

    def count(_signal: int, _frame: FrameType | None) -> None:
        stop.requests += 1

    previous = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def summary(backend: LocalBackend, run: TrainingRun, *, by_manifest: bool = False) -> str:
    """A few lines about a run that stopped: its outcome, where its files are, what to do next.

    by_manifest: the run is suspended by its manifest.
    """
    phase = run.status.phase
    if phase == "Succeeded":
        return "\n".join(_succeeded(backend, run))
    if phase == "Failed":
        return "\n".join(_failed(backend, run))
    return "\n".join(_suspended(backend, run, by_manifest))


def _already_finished(run: TrainingRun) -> str:
    ended = "succeeded" if run.status.phase == "Succeeded" else "failed"
    why = f": {run.status.message}" if run.status.message else ""
    if run.status.phase == "Failed":
        fix = f"fix {_manifest_file(run)} and run it again"
        again = fix
        if not past_deadline(run, run.status):
            again += f", or retry without a change: trainyard retry {run.name}"
    else:
        again = "to train it further, raise config.max_steps"
    serve = f"; to serve its model: trainyard serve {run.name}" if run.status.model else ""
    return f"{run.name} has already {ended}{why}; {again}{serve}"


def _succeeded(backend: LocalBackend, run: TrainingRun) -> list[str]:
    status, data = run.status, backend.dir.data(run.to_wire())
    lines = [f"{run.name} succeeded: {status.message}"]
    losses = backend.losses
    if losses and status.loss is not None:
        final = f"{status.loss:.3f} at step {status.step}"
        evaluated = f", evaluation {status.eval_loss:.3f}" if status.eval_loss is not None else ""
        first = f"{losses[0].loss:.3f} at step {losses[0].step}"
        lines.append(f"  loss    {first} -> {final}{evaluated}")
    if (data / "loss.png").is_file():
        lines.append(f"  curve   {data / 'loss.png'}")
    if status.model:
        lines.append(f"  model   {data / status.model.path}  ({status.model.digest[:19]})")
    else:
        lines.append(f"  data    {data}")
    lines.append(f"  logs    {backend.dir.logs}")
    if status.model and app_of_model(data / status.model.path):
        lines.append(f"  next    trainyard serve {run.name}")
    best = status.best_model
    if status.model and best and best.digest != status.model.digest:
        loss = "" if best.eval_loss is None else f"  (evaluation {best.eval_loss:.3f})"
        lines.append(f"  best    {data / best.path}{loss}")
        if app_of_model(data / best.path):
            lines.append(f"  or      trainyard serve {run.name} --model best")
    return lines


def _failed(backend: LocalBackend, run: TrainingRun) -> list[str]:
    status = run.status
    lines = [f"{run.name} failed: {status.reason}: {status.message}"]
    attempt = status.attempts[-1] if status.attempts else None
    node = attempt.pod.rpartition("-")[2] if attempt and attempt.pod else "0"
    log = backend.dir.log_file(status.attempt, int(node))
    if log.is_file():
        lines.append(f"  log     {log}")
    # A save may have ended after the last report: read the step from the data.
    step = _newest_step(backend.dir.data(run.to_wire()))
    if step is not None:
        lines.append(f"  kept    checkpoint of step {step}")
    lines.append(f"  fixed   trainyard run {_manifest_file(run)}")
    if not past_deadline(run, status):
        lines.append(f"  retry   trainyard retry {run.name}")
    return lines


def _manifest_file(run: TrainingRun) -> str:
    return run.metadata.annotations.get(MANIFEST, "FILE")


def _suspended(backend: LocalBackend, run: TrainingRun, by_manifest: bool) -> list[str]:
    # Workers save their last step while they stop, after the last report: read it from the data.
    step = _newest_step(backend.dir.data(run.to_wire()))
    start = "from the beginning" if step is None else f"from the checkpoint of step {step}"
    file = _manifest_file(run)
    first = "set spec.suspend to false, then " if by_manifest else ""
    lines = [f"{run.name} is suspended; no worker is running"]
    lines.append(f"  resume  {first}trainyard run {file}  ({start})")
    if backend.dir.logs.is_dir():
        lines.append(f"  logs    {backend.dir.logs}")
    return lines


def _newest_step(data: Path) -> int | None:
    """The step of the newest complete checkpoint in a run's data directory."""
    for directory in steps(data / CHECKPOINTS):
        with contextlib.suppress(InvalidCheckpointError):
            return read_manifest(directory).step
    return None


def _size_text(size: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size //= 1024
    return f"{size} GiB"
