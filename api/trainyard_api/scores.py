"""Scores of a model on tasks, beside it in a run's directory: scores/step-00000500.json."""

from datetime import datetime

from pydantic import Field

from trainyard_api.base import Record

SCORES = "scores"


class TaskScores(Record):
    """What one task has found."""

    metrics: dict[str, float] = Field(description="Metric -> value, as the harness names them.")
    errors: dict[str, float] = Field(
        default_factory=dict, description="Metric -> its standard error, where it has one."
    )
    samples: int = Field(ge=0, description="How many samples of the task were scored.")
    complete: bool = Field(default=True, description="False if others were left out (--limit).")
    version: str = Field(default="", description="The task's own.")
    time: datetime


class Scores(Record):
    """All scores of one model."""

    step: int = Field(ge=0)
    digest: str = Field(description="Of the model: scores of other files say nothing about it.")
    harness: str = Field(description="Name and version of the program that computed them.")
    tasks: dict[str, TaskScores] = Field(default_factory=dict)

    @property
    def by_name(self) -> dict[str, float]:
        """`task/metric` -> value, of complete tasks only."""
        return {
            f"{task}/{metric}": value
            for task, found in self.tasks.items()
            if found.complete
            for metric, value in found.metrics.items()
        }
