"""Who hears of the training on this rank."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from trainyard_api.progress import SlowestRank
from trainyard_trainer.reporting.console import Console
from trainyard_trainer.reporting.history import History
from trainyard_trainer.reporting.http_report import Reporter
from trainyard_trainer.reporting.liveness import Position
from trainyard_trainer.reporting.timing import Stragglers, slowest
from trainyard_trainer.reporting.trackers.launcher import Forwarding


@dataclass
class Listeners:
    """The console; what watches for hangs; on rank 0 the reporter, the history and trackers."""

    console: Console
    reporter: Reporter | None
    history: History | None
    position: Position = field(default_factory=Position)
    stragglers: Stragglers | None = None
    forwarding: Forwarding | None = None
    _evaluating: float = 0.0  # since when

    def report(self, **values: Any) -> None:
        """Set fields of the progress report."""
        self.position.step = values.get("step", self.position.step)
        if "phase" in values:
            self.position.enter(values["phase"])
            if values["phase"] == "evaluating":
                self._evaluating = time.perf_counter()
        if self.reporter:
            self.reporter.update(**values)

    def record(self, **record: Any) -> None:
        """Add a line to the history."""
        if self.history:
            self.history.add(**record)

    def beat(self) -> None:
        """Something was done that isn't a step: the rank doesn't hang."""
        self.position.tick()

    def doing(self, phase: str) -> AbstractContextManager[None]:
        """What this rank does for a while, beside the phases of the report."""
        return self.position.doing(phase)

    def stepped(self, step: int) -> None:
        """An optimizer step is done."""
        self.position.step = step
        self.position.tick()
        if self.reporter:
            self.reporter.update(step=step)
            self.reporter.metrics.step.set(step)

    def timed(self, step: int, seconds: float) -> None:
        """What one of the steps since the last line of progress took."""
        if self.reporter:
            self.reporter.metrics.step_seconds.observe(seconds)
            # One that an earlier attempt has done, too, brings the run no further.
            if self.history is None or step > self.history.furthest:
                self.reporter.metrics.productive_seconds.inc(seconds)

    def checkpointed(self, step: int, when: datetime) -> None:
        """The newest checkpoint that is complete."""
        if self.reporter:
            self.reporter.metrics.checkpoint_step.set(step)
            self.reporter.metrics.checkpoint_time.set(when.timestamp())

    def worked(self, seconds: list[float], steps: int) -> None:
        """Each rank's own work in a step, the mean of those since the last line of progress."""
        if self.reporter:
            self.reporter.metrics.worked(seconds)
        if self.stragglers and (found := slowest(seconds)):
            self.stragglers.judge(found, steps)
            host = self.stragglers.hosts[found.rank]
            slow = SlowestRank(
                rank=found.rank, host=host, step_seconds=found.seconds, factor=found.factor
            )
            self.report(slowest_rank=slow)

    def evaluated(
        self, step: int, results: dict[str, float], details: dict[str, Any] | None, attempt: int
    ) -> None:
        """The model was measured."""
        self.report(phase="training", eval_loss=results.get("eval_loss"), evaluation=results)
        self.record(step=step, **results, attempt=attempt)
        if self.history and details is not None:
            self.history.keep_evaluation({"step": step} | results | details)
        if self.reporter:
            self.reporter.metrics.evaluated(results)
            seconds = time.perf_counter() - self._evaluating
            self.reporter.metrics.evaluation_seconds.inc(seconds)

    def ended(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """This attempt is over. One that went well leaves its report and sees the trackers off."""
        if self.history:
            self.history.end(self.position.step, status)
        if self.reporter and status == "FINISHED":
            self.reporter.write_result()
        if self.forwarding and status == "FINISHED":
            self.forwarding.finish()
