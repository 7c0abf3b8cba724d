"""Who hears of the training on this rank."""

from dataclasses import dataclass
from typing import Any

from trainyard_trainer.console import Console
from trainyard_trainer.history import History
from trainyard_trainer.report import Reporter


@dataclass
class Listeners:
    """The console, and on rank 0 the reporter and the history."""

    console: Console
    reporter: Reporter | None
    history: History | None

    def report(self, **values: Any) -> None:
        """Set fields of the progress report."""
        if self.reporter:
            self.reporter.update(**values)

    def record(self, **record: Any) -> None:
        """Add a line to the history."""
        if self.history:
            self.history.add(**record)

    def beat(self) -> None:
        """Something was done that isn't a step."""

    def stepped(self, step: int, seconds: float) -> None:
        """An optimizer step is done."""
        if self.reporter:
            self.reporter.update(step=step)
            self.reporter.metrics.step_seconds.observe(seconds)

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
