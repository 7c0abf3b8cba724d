"""TrainingRun status: what is true of a run, each field only while it is known."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from trainyard_api.base import Model

Phase = Literal[
    "Pending",  # pods are not all there yet; reason says what they wait for
    "Starting",  # every pod runs, but not every rank has joined
    "Running",  # every rank has joined
    "Restarting",  # an attempt failed; the next one starts at nextAttemptTime
    "Suspended",
    "Succeeded",
    "Failed",
]
FINISHED: tuple[Phase, ...] = ("Succeeded", "Failed")  # a study's final phases, too

ConditionType = Literal["Scheduled", "Running", "Suspended", "Succeeded", "Failed"]


class Condition(Model):
    """A Kubernetes condition."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str = ""
    message: str = ""
    last_transition_time: datetime | None = None


class CheckpointRef(Model):
    """The newest complete checkpoint."""

    step: int
    digest: str = Field(description="sha256 of the manifest, sha256:HEX.")
    time: datetime


class ModelRef(Model):
    """The exported model, in Hugging Face form."""

    step: int
    digest: str
    path: str = Field(description="Relative to the run's directory.")


class StepSeconds(Model):
    """Seconds of an optimizer step on rank 0, over the newest 10,000 of this attempt.

    The first ones (config.timing_warmup_steps) are left out.
    """

    mean: float
    p50: float
    p99: float


class Attempt(Model):
    """One gang of pods, from creation to its end."""

    number: int
    start_time: datetime
    end_time: datetime | None = None
    nodes: int = Field(default=1, description="Size of the gang.")
    wanted_nodes: int = Field(default=1, description="spec.numNodes when it began.")
    outcome: Literal["Succeeded", "Failed", "GivenBack", "Suspended", "Resized"] | None = None
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    pod: str = ""
    resumed_from_step: int | None = None


class TrainingRunStatus(Model):
    """Phase, progress and history."""

    observed_generation: int | None = None
    phase: Phase | None = None
    reason: str = Field(default="", description="One word for why the phase is what it is.")
    message: str = Field(default="", description="One line: the root cause or what is awaited.")
    conditions: list[Condition] = Field(default_factory=list)

    attempt: int = Field(default=0, description="Number of the current attempt, from 1.")
    attempts: list[Attempt] = Field(default_factory=list, description="The newest ten.")
    restarts: int = Field(default=0, description="Failed attempts counted against maxRestarts.")
    created: bool = Field(default=False, description="Every pod of this attempt was created.")
    nodes: int = Field(default=0, description="Pods of the current attempt.")
    world_size: int | None = None
    next_attempt_time: datetime | None = None
    start_time: datetime | None = None
    completion_time: datetime | None = None
    active_seconds: int = Field(default=0, description="Time active before the last suspension.")
    active_since: datetime | None = None

    step: int | None = None
    total_steps: int | None = None
    progress: str = Field(default="", description="step/total, for people.")
    loss: float | None = None
    eval_loss: float | None = None
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    throughput: str = Field(default="", description="tokens/s or samples/s, for people.")
    eta_seconds: int | None = None
    eta: str = ""
    batch_size: int | None = Field(
        default=None, description="Samples of one optimizer step, all ranks together."
    )
    tokens_per_batch: int | None = Field(default=None, description="Where there are tokens.")
    step_seconds: StepSeconds | None = None
    peak_memory_bytes: int | None = Field(
        default=None, description="Most memory any rank has used: of its GPU, else of the process."
    )
    resumed_from_step: int | None = None
    last_checkpoint: CheckpointRef | None = None
    model: ModelRef | None = None
