"""What to tell the user when a run stops: how it went, where things are, what to do next."""

import contextlib
from pathlib import Path

from trainyard_api.checkpoint import CHECKPOINTS
from trainyard_api.run import TrainingRun
from trainyard_cli.serving_apps import BY_RECIPE
from trainyard_local.backend import LocalBackend
from trainyard_local.store import MANIFEST
from trainyard_storage.checkpoints import InvalidCheckpointError, read_manifest, steps


def summary(backend: LocalBackend, run: TrainingRun, *, by_manifest: bool = False) -> str:
    """A few lines; the first one is the outcome, with the root cause of a failure.

    by_manifest: it is the manifest that suspends the run.
    """
    phase = run.status.phase
    if phase == "Succeeded":
        return "\n".join(_succeeded(backend, run))
    if phase == "Failed":
        return "\n".join(_failed(backend, run))
    return "\n".join(_suspended(backend, run, by_manifest))


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
    if status.model and run.spec.recipe in BY_RECIPE:
        lines.append(f"  next    trainyard serve {run.name}")
    return lines


def _failed(backend: LocalBackend, run: TrainingRun) -> list[str]:
    status = run.status
    lines = [f"{run.name} failed: {status.reason}: {status.message}"]
    attempt = status.attempts[-1] if status.attempts else None
    node = attempt.pod.rpartition("-")[2] if attempt and attempt.pod else "0"
    log = backend.dir.log_file(status.attempt, int(node))
    if log.is_file():
        lines.append(f"  log     {log}")
    if status.last_checkpoint:
        lines.append(f"  newest  checkpoint of step {status.last_checkpoint.step} is kept")
    file = run.metadata.annotations.get(MANIFEST, "FILE")
    lines.append(f"  again   trainyard delete {run.name} && trainyard run {file}")
    return lines


def _suspended(backend: LocalBackend, run: TrainingRun, by_manifest: bool) -> list[str]:
    # The workers save their last step while they end, and nobody is left to report it.
    step = _newest_step(backend.dir.data(run.to_wire()))
    there = "from the beginning" if step is None else f"from the checkpoint of step {step}"
    file = run.metadata.annotations.get(MANIFEST, "FILE")
    first = "set spec.suspend to false, then " if by_manifest else ""
    lines = [f"{run.name} is suspended; none of its workers runs"]
    lines.append(f"  go on   {first}trainyard run {file}  ({there})")
    if backend.dir.logs.is_dir():
        lines.append(f"  logs    {backend.dir.logs}")
    return lines


def _newest_step(data: Path) -> int | None:
    """The step of the newest complete checkpoint in a run's directory."""
    for directory in steps(data / CHECKPOINTS):
        with contextlib.suppress(InvalidCheckpointError):
            return read_manifest(directory).step
    return None
