"""What the sources tell and the page shows: runs, curves, samples of text."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from pydantic import BaseModel, Field

from trainyard_api.study import ScalingStudy

Origin = Literal["measured", "projected", "entered"]


class SourceError(Exception):
    """A source can't be read; the message is one line that says which, and why."""


class RunRow(BaseModel):
    """A run as its status tells it. What is not known is absent."""

    id: str = Field(description="SOURCE/NAMESPACE/NAME")
    name: str
    namespace: str
    source: Literal["local", "cluster", "prometheus"]
    recipe: str | None = None
    phase: str | None = None
    message: str = ""
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: int | None = None
    restarts: int | None = None
    processes: int | None = None
    checkpoint_step: int | None = None
    start_time: datetime | None = None
    completion_time: datetime | None = None


class CurveData(BaseModel):
    """One metric of one run."""

    run: str = Field(description="The run's id.")
    metric: str
    part: str = Field(default="", description="Which rank or GPU, if the metric has several.")
    x: list[float]
    y: list[float]
    x_is: Literal["step", "seconds"] = "step"
    count: int = Field(description="Points there were before they were thinned out.")
    rate: float | None = Field(default=None, description="What a rate comes to, over all of it.")
    origin: Origin = "measured"


class TextSample(BaseModel):
    """What the model wrote while it was trained."""

    step: int
    text: str


class RunHistory(BaseModel):
    """What a run has logged."""

    curves: list[CurveData] = Field(default_factory=list)
    samples: list[TextSample] = Field(default_factory=list)
    resumed_at: list[int] = Field(default_factory=list, description="Steps it was resumed from.")


class Source(Protocol):
    """Where runs and studies are read from."""

    where: str

    def runs(self) -> tuple[list[RunRow], list[str]]:
        """The runs, and a line for each that can't be read. Raises SourceError."""

    def history(self, run: RunRow, metrics: Sequence[str]) -> RunHistory:
        """What is known of these metrics of a run. Raises SourceError."""

    def studies(self) -> tuple[list[tuple[str, ScalingStudy]], list[str]]:
        """The studies by id, and a line for each that can't be read. Raises SourceError."""


def run_row(
    run: dict[str, Any], source: Literal["local", "cluster"], name: str | None = None
) -> RunRow:
    """The row of a TrainingRun in wire form; `name` is what it is kept under, if not its own.

    Read field by field: a newer operator may say more than this dashboard knows. Raises
    ValueError.
    """
    metadata, spec, status = (run.get(part) or {} for part in ("metadata", "spec", "status"))
    namespace = metadata.get("namespace") or "default"
    name = name or metadata["name"]
    return RunRow(
        id=f"{source}/{namespace}/{name}",
        name=name,
        namespace=namespace,
        source=source,
        recipe=spec.get("recipe"),
        phase=status.get("phase") or "Pending",
        message=status.get("message") or "",
        step=status.get("step"),
        total_steps=status.get("totalSteps"),
        loss=status.get("loss"),
        eval_loss=status.get("evalLoss"),
        samples_per_second=status.get("samplesPerSecond"),
        tokens_per_second=status.get("tokensPerSecond"),
        eta_seconds=status.get("etaSeconds"),
        restarts=status.get("restarts"),
        processes=status.get("worldSize"),
        checkpoint_step=(status.get("lastCheckpoint") or {}).get("step"),
        start_time=status.get("startTime") or metadata.get("creationTimestamp"),
        completion_time=status.get("completionTime"),
    )
