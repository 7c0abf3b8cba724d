"""ProgressReport: what rank 0 of a run reports at /progress."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from trainyard_api.base import Model
from trainyard_api.profile import known_trace
from trainyard_api.status import CheckpointRef, ModelRef, StepSeconds

# In a pod; on one machine each run gets free ports.
REPORT_PORT = 9400
TRAINER_PORT = 9401  # on loopback: what a recipe's rank 0 serves to the agent beside it

TrainerPhase = Literal[
    "joining", "loading", "training", "evaluating", "saving", "exporting", "finished", "failed"
]


class SlowestRank(Model):
    """The rank whose own work takes longest: in lock-step training all others wait for it."""

    rank: int
    host: str
    step_seconds: float = Field(description="Its own work in a step, without waiting for others.")
    factor: float = Field(description="Times the median of the other ranks.")


class Extremes(Model):
    """The lowest and the highest value of all ranks, and the ranks that have them."""

    lowest: float = Field(allow_inf_nan=False)
    lowest_rank: int
    highest: float = Field(allow_inf_nan=False)
    highest_rank: int


class Usage(Model):
    """What ranks use, as their agents see it. It changes once a minute at most."""

    ranks: int = Field(description="Number of the ranks that this is about.")
    cpu_cores: Extremes | None = Field(
        default=None, description="With the processes that a rank has started."
    )
    memory_bytes: Extremes | None = Field(default=None, description="Resident, of these processes.")
    gpu_utilization: Extremes | None = Field(
        default=None, description="Share of time in which a kernel ran, 0 to 1."
    )
    gpu_memory_bytes: Extremes | None = None


def _known(metrics: Any) -> Any:
    """Without what isn't a finite number, which JSON writes as null."""
    if not isinstance(metrics, dict):
        return metrics
    return {name: value for name, value in metrics.items() if value is not None}


class ProgressReport(Model):
    """The state of a run as its rank 0 sees it. Unknown values are absent, never invented."""

    run: str
    attempt: int
    phase: str = Field(description="A TrainerPhase, or one of a newer trainer.")
    ranks_joined: int = Field(description="Ranks in the process group; 0 before it exists.")
    world_size: int
    step: int | None = None
    total_steps: int | None = None
    progress_percent: int | None = Field(
        default=None, description="Of a script that counts in no steps."
    )
    loss: float | None = Field(default=None, description="Training loss of the newest logged step.")
    eval_loss: float | None = None
    evaluation: Annotated[dict[str, float], BeforeValidator(_known)] = Field(
        default_factory=dict, description="Every metric of the newest evaluation, by name."
    )
    batch_size: int | None = Field(
        default=None, description="Samples of one optimizer step, all ranks together."
    )
    step_seconds: StepSeconds | None = None
    slowest_rank: SlowestRank | None = Field(
        default=None, description="Since the last log line; absent where it can't be measured."
    )
    peak_memory_bytes: int | None = Field(
        default=None, description="Most memory any rank has used: of its GPU, else of the process."
    )
    usage: Usage | None = Field(default=None, description="What the ranks use now.")
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: int | None = None
    resumed_from_step: int | None = None
    changed: list[str] = Field(
        default_factory=list,
        description="Settings that have changed since the checkpoint that it resumed from.",
    )
    started_from: str | None = Field(
        default=None, description="The other run's checkpoint or model that this run began with."
    )
    last_checkpoint: CheckpointRef | None = None
    model: ModelRef | None = None
    best_model: ModelRef | None = None
    profile: Annotated[str | None, BeforeValidator(known_trace)] = Field(
        default=None, description="Newest trace of rank 0's steps, a file in the run's directory."
    )
    sample: str | None = Field(default=None, description="Newest sample of generated text.")
    message: str = ""
    hang: str = Field(
        default="",
        description="That no rank of a script works, and which one the others wait for.",
    )
    time: datetime
