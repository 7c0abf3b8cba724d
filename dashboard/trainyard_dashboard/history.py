"""What a run has logged: curves, text samples and evaluations, and what of it a caller has."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

from trainyard_dashboard.devices import Device

RANK_SECONDS = "rank_step_seconds"
# Curves that say where each step lies on another axis than that of steps.
SECONDS_AXIS = "axis:seconds"  # since the run's start, with the waits between its attempts
SAMPLES_AXIS = "axis:samples"
TOKENS_AXIS = "axis:tokens"

Origin = Literal["measured", "projected", "entered"]


class Curve(BaseModel):
    """One metric of one run."""

    run: str = Field(description="The run's id.")
    metric: str
    part: str = Field(default="", description="The rank or GPU, for a metric with several curves.")
    x: list[float]
    y: list[float]
    x_is: Literal["step", "seconds"] = "step"
    since: float | None = Field(
        default=None, description="Only points from this x on: the caller has the others."
    )
    count: int = Field(description="Number of points before downsampling.")
    rate: float | None = Field(default=None, description="Mean over the run, for a throughput.")
    origin: Origin = "measured"


class TextSample(BaseModel):
    """Text that the model generated during training."""

    step: int
    text: str


class Evaluation(BaseModel):
    """All metrics of one evaluation."""

    step: int | None = None
    time: float | None = Field(default=None, description="Unix time.")
    metrics: dict[str, float]


@dataclass(frozen=True)
class Known:
    """What a caller has of a run's history already: everything up to a step, of one version."""

    version: str
    step: float

    @classmethod
    def parse(cls, text: str) -> "Known | None":
        """From VERSION@STEP; None if it is empty."""
        version, _, step = text.partition("@")
        return cls(version, float(step)) if step else None


class RunHistory(BaseModel):
    """What a run has logged."""

    curves: list[Curve] = Field(default_factory=list)
    metrics: list[str] = Field(
        default_factory=list, description="Every metric that it has, requested or not."
    )
    evaluation: list[str] = Field(
        default_factory=list, description="Those of them that evaluations have measured."
    )
    device: Device | None = Field(default=None, description="What its newest attempt trains on.")
    version: str = Field(
        default="", description="Another one: what was logged before may have been replaced."
    )
    problems: list[str] = Field(
        default_factory=list, exclude=True, description="What of its log is not in the curves."
    )
    evaluations: list[Evaluation] = Field(
        default_factory=list, exclude=True, description="The newest, in order."
    )
    samples: list[TextSample] = Field(default_factory=list)
    resumed_at: list[int] = Field(default_factory=list, description="Steps it resumed from.")
