"""`trainyard profile`: asks a running run, here or in a cluster, for a trace of its next steps."""

import json
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from trainyard_api.profile import MAX_STEPS, REQUEST, VIEWER
from trainyard_api.spec import CONTAINER
from trainyard_cli.machine_checks import error_text, run_program
from trainyard_lifecycle.plan import worker_name
from trainyard_local.store import RunDir, UserError
from trainyard_storage.files import write_text_atomic

POLL_SECONDS = 0.2
KUBECTL_SECONDS = 30.0
HINT_SECONDS = 60.0


class Target(Protocol):
    """A run, on this machine or in a cluster."""

    name: str
    poll_seconds: float
    logs: str
    """The command that prints its log."""

    def read(self) -> dict[str, Any]:
        """The TrainingRun. Raises UserError."""

    def is_driven(self) -> bool:
        """Whether its status is kept up to date."""

    def ask(self, run: dict[str, Any], steps: int) -> None:
        """Leave the request in the run's directory. Raises UserError or OSError."""

    def found(self, run: dict[str, Any]) -> str:
        """Where its newest trace is, and how to get it."""


def profile(target: Target, steps: int) -> None:
    """Ask for a trace of rank 0's next `steps` steps, wait for it, and print where it is."""
    if not 1 <= steps <= MAX_STEPS:
        raise UserError(
            f"--steps {steps}: give 1 to {MAX_STEPS}: a trace has every operation of each step"
        )
    run = target.read()
    if not run["spec"].get("recipe"):
        raise UserError(
            f"{target.name} runs a command of its own: use torch.profiler in the script"
        )
    status = _running(target, run)
    before, attempt = status.get("profile"), status.get("attempt")
    target.ask(run, steps)
    print(f"waiting for {target.name} to record {steps} steps; its log: {target.logs}", flush=True)
    hint_at = time.monotonic() + HINT_SECONDS
    while True:
        time.sleep(target.poll_seconds)
        if time.monotonic() > hint_at:
            hint_at = float("inf")
            print(
                "no trace yet: steps may take long; the log says if recording failed. An image or"
                " an operator of an older version records none (Ctrl-C ends the wait)",
                flush=True,
            )
        run = target.read()
        status = run.get("status", {})
        if status.get("profile") and status["profile"] != before:
            print(f"{target.found(run)}\nopen it at {VIEWER} or in Chrome at chrome://tracing")
            return
        _running(target, run, attempt)


def _running(target: Target, run: dict[str, Any], attempt: int | None = None) -> dict[str, Any]:
    """The status of a run that trains, still in that attempt. Raises UserError."""
    status: dict[str, Any] = run.get("status", {})
    phase = status.get("phase", "Pending")
    if phase != "Running" or not target.is_driven():
        instead = phase if phase != "Running" else "not being trained by any process"
        raise UserError(f"{target.name} is {instead}: only a run that is Running can be recorded")
    if attempt is not None and status.get("attempt") != attempt:
        raise UserError(
            f"{target.name} is in attempt {status.get('attempt')} now; if it has recorded nothing,"
            f" ask again. The log says more: {target.logs}"
        )
    return status


class LocalRun:
    """A run of this machine."""

    poll_seconds = POLL_SECONDS

    def __init__(self, run_dir: RunDir) -> None:
        self.name = run_dir.name
        self.logs = f"trainyard logs {run_dir.name}"
        self._dir = run_dir

    def read(self) -> dict[str, Any]:
        with suppress(FileNotFoundError):
            return self._dir.read()
        raise UserError(f"{self.name} has been deleted")

    def is_driven(self) -> bool:
        return self._dir.holder() is not None

    def ask(self, run: dict[str, Any], steps: int) -> None:
        write_text_atomic(self._dir.data(run) / REQUEST, f"{steps}\n", durable=False)

    def found(self, run: dict[str, Any]) -> str:
        return f"recorded in {self._dir.data(run) / run['status']['profile']}"


class ClusterRun:
    """A run in a cluster, reached by the user's kubectl; `exec` is the right that it takes."""

    poll_seconds = 2.0

    def __init__(self, name: str, context: str | None, namespace: str | None) -> None:
        self.name = name
        self._kubectl = ["kubectl"]
        self._kubectl += ["--context", context] if context else []
        self._kubectl += ["--namespace", namespace] if namespace else []
        self.logs = f"{' '.join(self._kubectl)} logs --tail=-1 -l trainyard.dev/run={name}"

    def read(self) -> dict[str, Any]:
        run: dict[str, Any] = json.loads(self._run("get", "trainingrun", self.name, "-o", "json"))
        return run

    def is_driven(self) -> bool:
        return True

    def ask(self, run: dict[str, Any], steps: int) -> None:
        # A file that is moved into place is never read half-written.
        write = f'cd "$TRAINYARD_RUN_DIR" && echo {steps} > .{REQUEST} && mv .{REQUEST} {REQUEST}'
        self._run("exec", self._pod(run), "-c", CONTAINER, "--", "sh", "-c", write)

    def found(self, run: dict[str, Any]) -> str:
        trace = run["status"]["profile"]
        copy = f"{self.name}-{Path(trace).parent.name}.json.gz"
        return (
            f"recorded in {trace} of the run's directory; to copy it:\n  {' '.join(self._kubectl)}"
            f" exec {self._pod(run)} -c {CONTAINER} --"
            f" sh -c 'cat \"$TRAINYARD_RUN_DIR/{trace}\"' > {copy}"
        )

    def _pod(self, run: dict[str, Any]) -> str:
        return worker_name(self.name, run["status"]["attempt"], node=0)

    def _run(self, *arguments: str) -> str:
        try:
            return run_program([*self._kubectl, *arguments], timeout=KUBECTL_SECONDS)
        except FileNotFoundError:
            raise UserError("kubectl is not installed: --cluster uses it") from None
        except (OSError, subprocess.SubprocessError) as error:
            raise UserError(f"kubectl {arguments[0]}: {error_text(error)[:300]}") from None
