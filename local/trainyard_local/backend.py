"""The local executor: observes a run's processes and carries out the plans of `reconcile`."""

import http.client
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainyard_api.base import is_unknown, parse_known, validation_message
from trainyard_api.progress import ProgressReport
from trainyard_api.run import TrainingRun
from trainyard_lifecycle.plan import Event, Observed, Plan, Worker
from trainyard_local.store import RunDir, UserError, append_json_line
from trainyard_local.workers import Workers

REPORT_TIMEOUT_SECONDS = 1.0
MAX_REPORT_BYTES = 1 << 20


@dataclass(frozen=True)
class LossPoint:
    """The loss at one step."""

    step: int
    loss: float


class LocalBackend:
    """One run on this machine. Use it only with the run's lock held."""

    def __init__(self, run_dir: RunDir) -> None:
        self.dir = run_dir
        self.workers = Workers(run_dir)
        self.losses: list[LossPoint] = []
        for item in run_dir.history():
            _append(self.losses, LossPoint(item["step"], item["loss"]))
        self._events = {event["key"] for event in run_dir.events()}
        self._written: dict[str, Any] | None = None

    def load(self) -> TrainingRun:
        """The run as last written. Raises UserError if it is not valid."""
        try:
            return TrainingRun.model_validate(self.dir.read())
        except ValidationError as error:
            raise UserError(unreadable(self.dir.run_file, error)) from None

    def save(self, run: TrainingRun) -> None:
        """Write the run if it has changed."""
        wire = run.to_wire()
        if wire != self._written:
            self.dir.write(wire)
            self._written = wire

    def observe(self, run: TrainingRun) -> Observed:
        """Everything that the next decision depends on."""
        workers = self.workers.observe()
        # `keeps_data` reads the spec: here whenDeleted is carried out as soon as it is written.
        status = run.status.model_copy(update={"when_deleted": run.when_deleted})
        run = run.model_copy(update={"status": status})
        return Observed(run, datetime.now(UTC), workers, self._report(run, workers))

    def apply(self, run: TrainingRun, plan: Plan) -> tuple[TrainingRun, list[Event]]:
        """Carry out the plan, in its order; returns the updated run, and the new events."""
        events = [event for event in plan.events if self._record(event)]
        run = run.model_copy(update={"status": plan.status})
        self._record_loss(run)
        self.save(run)
        for name in plan.delete:
            self.workers.delete(name)
        for key in plan.create:
            self.workers.create(run, key, plan.nodes)
        if plan.delete_run:
            self.dir.remove(run.to_wire())
        return run, events

    def _record(self, event: Event) -> bool:
        """Append an event to events.jsonl; False if it was recorded before."""
        if event.key in self._events:
            return False
        entry = {
            "time": datetime.now(UTC).isoformat(),
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "key": event.key,
        }
        append_json_line(self.dir.events_file, entry)
        self._events.add(event.key)
        return True

    def _record_loss(self, run: TrainingRun) -> None:
        """Append the newest loss; between two logged steps it does not change."""
        step, loss = run.status.step, run.status.loss
        if step is None or loss is None or (self.losses and self.losses[-1].loss == loss):
            return
        append_json_line(self.dir.history_file, {"step": step, "loss": loss})
        _append(self.losses, LossPoint(step, loss))

    def _report(self, run: TrainingRun, workers: Sequence[Worker]) -> ProgressReport | None:
        """Rank 0's report, if there is one and it is from this attempt."""
        attempt = run.status.attempt
        running = any(
            worker.attempt == attempt and worker.node == 0 and worker.phase == "Running"
            for worker in workers
        )
        if not running:
            return None
        text = _get(self.workers.report_port(attempt), "/progress")
        if text is None:
            return None
        try:
            report = parse_known(ProgressReport, json.loads(text))
        except ValueError:
            return None
        # Another run's process may listen on the port by now.
        own = report is not None and (report.run, report.attempt) == (run.name, attempt)
        return report if own else None


def unreadable(file: Path, error: ValidationError) -> str:
    """Why a stored object can't be read, in one line."""
    hint = ": use the newer version of trainyard that wrote it" if is_unknown(error) else ""
    return f"{file}: {validation_message(error)}{hint}"


def _append(losses: list[LossPoint], point: LossPoint) -> None:
    """Append a point. After a resume, steps since the checkpoint repeat: theirs are replaced."""
    while losses and losses[-1].step >= point.step:
        losses.pop()
    losses.append(point)


def _get(port: int, path: str) -> bytes | None:
    """The body of a successful GET from this machine, never through a proxy; else None."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REPORT_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(MAX_REPORT_BYTES)
        return body if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
