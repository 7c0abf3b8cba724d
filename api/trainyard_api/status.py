"""TrainingRun status: what is true of a run, each field only while it is known."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from trainyard_api.base import Record
from trainyard_api.spec import WhenDeleted

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

ConditionType = Literal[
    "Scheduled",
    "Running",
    "Suspended",
    "Succeeded",
    "Failed",
    "ProgressUnknown",
    "Hanging",
    "Unsupported",
]


class Condition(Record):
    """One aspect of the state, as a Kubernetes condition."""

    type: str = Field(
        description="Scheduled, Running, Suspended, Succeeded, Failed, ProgressUnknown, Hanging or"
        " Unsupported."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    reason: str = Field(
        default="", description="One word that says why the condition has this status."
    )
    message: str = Field(default="", description="One line for people.")
    last_transition_time: datetime | None = Field(
        default=None, description="When the status of the condition last changed."
    )


class CheckpointRef(Record):
    """The newest complete checkpoint."""

    step: int = Field(description="Optimizer steps done when it was saved.")
    digest: str = Field(
        description="The sha256 of the checkpoint's manifest.json, as sha256:HEX. Empty for one"
        " that a script's framework has written, which has no manifest."
    )
    time: datetime = Field(description="When it was complete.")


class ModelRef(Record):
    """An exported model, in Hugging Face format."""

    step: int = Field(description="Optimizer steps done when it was exported.")
    digest: str = Field(
        description="The sha256 of the model's manifest.json, as sha256:HEX. Servers report the "
        "same digest."
    )
    path: str = Field(description="Directory of the model, relative to the run's directory.")
    eval_loss: float | None = Field(
        default=None,
        description="Its evaluation loss. Absent if it was not evaluated at this step.",
    )


class StepSeconds(Record):
    """Time of an optimizer step on rank 0, over the newest 10,000 steps of this attempt.

    The first config.timing_warmup_steps are left out.
    """

    mean: float = Field(description="Mean, in seconds.")
    p50: float = Field(description="Median, in seconds.")
    p99: float = Field(description="99th percentile, in seconds.")


class Attempt(Record):
    """One gang of pods, from its creation to its end."""

    number: int = Field(description="Number of the attempt, counted from 1.")
    start_time: datetime = Field(description="When the attempt began.")
    admitted_time: datetime | None = Field(
        default=None, description="When no pod was held back by a queue any more."
    )
    scheduled_time: datetime | None = Field(
        default=None, description="When every pod had been scheduled."
    )
    running_time: datetime | None = Field(
        default=None, description="When every pod's container ran."
    )
    end_time: datetime | None = Field(
        default=None, description="When the attempt ended. Absent while it runs."
    )
    nodes: int = Field(default=1, description="Number of pods in the gang.")
    wanted_nodes: int = Field(
        default=1, description="Value of spec.numNodes when the attempt began."
    )
    outcome: str | None = Field(
        default=None,
        description="How the attempt ended: Succeeded, Failed, GivenBack, Suspended or Resized."
        " Absent while it runs.",
    )
    reason: str = Field(
        default="",
        description="Class of the failure, for example OOMKilled, Hang or UserException.",
    )
    message: str = Field(default="", description="Root cause, in one line.")
    exit_code: int | None = Field(
        default=None, description="Exit code of the process that failed first."
    )
    pod: str = Field(default="", description="Pod that failed first.")
    counted: bool | None = Field(
        default=None,
        description="Whether the failure counts against spec.maxRestarts. Absent unless failed.",
    )
    generation: int | None = Field(
        default=None, description="Generation of the spec that the pods were created from."
    )
    spec_digest: str = Field(
        default="",
        description="The sha256 of that spec, without what attempts don't depend on: suspend, the"
        " TTL and storage.whenDeleted.",
    )
    pods_digest: str = Field(
        default="",
        description="The sha256 of the part of that spec which pods are made from. While they wait"
        " to start, another one replaces them.",
    )
    step: int | None = Field(
        default=None, description="Optimizer steps done when the attempt ended, as far as known."
    )
    checkpoint_step: int | None = Field(
        default=None, description="Step of the newest checkpoint when the attempt ended."
    )
    resumed_from_step: int | None = Field(
        default=None, description="Step of the checkpoint that the attempt resumed from."
    )
    changed: list[str] = Field(
        default_factory=list,
        description="Settings that had changed since that checkpoint, with both values.",
    )


class TrainingRunStatus(Record):
    """What the operator knows about the run; unknown values are absent."""

    observed_generation: int | None = Field(
        default=None, description="Generation of the spec that this status describes."
    )
    phase: Phase | None = Field(
        default=None,
        description="Pending: not every pod runs yet. Starting: every pod runs, but not every"
        " rank has joined. Running: every rank has joined. Restarting: an attempt failed, and the"
        " next one starts at nextAttemptTime. Suspended. Succeeded. Failed.",
    )
    reason: str = Field(default="", description="One word that says why the run is in this phase.")
    message: str = Field(
        default="", description="One line: the root cause, or what the run is waiting for."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Scheduled, Running, Suspended, Succeeded and Failed, as Kubernetes "
        "conditions. ProgressUnknown: rank 0's report can't be fetched. Hanging: no rank"
        " of a script works. Unsupported: the spec has"
        " something that this version of the operator does not know.",
    )

    attempt: int = Field(default=0, description="Number of the current attempt, counted from 1.")
    attempts: list[Attempt] = Field(
        default_factory=list, description="The newest ten attempts, oldest first."
    )
    restarts: int = Field(
        default=0, description="Restarts after failures, in the whole life of the run."
    )
    failures: int = Field(
        default=0,
        description="Failures in a row, which spec.maxRestarts limits: 0 again once there is a"
        " newer checkpoint than at the last failure.",
    )
    disruptions: int = Field(
        default=0, description="Restarts after disruptions, which spec.maxDisruptions limits."
    )
    failed_generation: int | None = Field(
        default=None,
        description="Generation of the spec that failed. A newer one, with another digest, starts"
        " the next attempt.",
    )
    failed_spec_digest: str = Field(
        default="",
        description="The sha256 of the spec that failed, as in attempts.",
    )
    retried: str = Field(
        default="", description="Value of the annotation trainyard.dev/retry that was acted on."
    )
    finished_max_steps: int | None = Field(
        default=None,
        description="Value of config.max_steps when the run succeeded. A larger one starts the next"
        " attempt.",
    )
    finished_num_epochs: float | None = Field(
        default=None,
        description="Value of config.num_epochs when the run succeeded. A larger one starts the"
        " next attempt.",
    )
    created: bool = Field(
        default=False, description="Whether every pod of the current attempt has been created."
    )
    when_deleted: Literal[WhenDeleted, "Changing"] | None = Field(
        default=None,
        description="What becomes of the volume claim when the run is deleted: the value of"
        " spec.storage.whenDeleted, once it has been carried out. Absent before the first attempt,"
        " and with your own claim.",
    )
    nodes: int = Field(default=0, description="Number of pods in the current attempt.")
    world_size: int | None = Field(
        default=None, description="Number of ranks in the current attempt."
    )
    next_attempt_time: datetime | None = Field(
        default=None, description="When the next attempt starts, while the run is Restarting."
    )
    start_time: datetime | None = Field(default=None, description="When the first attempt began.")
    completion_time: datetime | None = Field(default=None, description="When the run finished.")
    active_seconds: int = Field(
        default=0, description="Seconds the run was active before its last suspension."
    )
    active_since: datetime | None = Field(
        default=None, description="When the run last became active. Absent while it is suspended."
    )

    step: int | None = Field(default=None, description="Optimizer steps done.")
    total_steps: int | None = Field(default=None, description="Optimizer steps of the whole run.")
    progress: str = Field(default="", description="Steps done and in all, for people: 471/1000.")
    loss: float | None = Field(default=None, description="Training loss of the newest logged step.")
    eval_loss: float | None = Field(default=None, description="Loss of the newest evaluation.")
    samples_per_second: float | None = Field(
        default=None,
        description="Samples per second, all ranks together. Absent while nothing runs.",
    )
    tokens_per_second: float | None = Field(
        default=None,
        description="Tokens per second, all ranks together. Absent for recipes without tokens.",
    )
    throughput: str = Field(
        default="", description="Tokens or samples per second, for people: 15.3k tokens/s."
    )
    eta_seconds: int | None = Field(
        default=None, description="Estimated seconds until the last step."
    )
    eta: str = Field(default="", description="The same, for people: 2m10s.")
    batch_size: int | None = Field(
        default=None, description="Samples of one optimizer step, all ranks together."
    )
    tokens_per_batch: int | None = Field(
        default=None,
        description="Tokens of one optimizer step, all ranks together. Absent for recipes "
        "without tokens.",
    )
    step_seconds: StepSeconds | None = None
    peak_memory_bytes: int | None = Field(
        default=None,
        description="Most memory that any rank has used, in bytes: GPU memory on GPUs, else "
        "memory of the process. Of a script to within 5 %.",
    )
    usage: str = Field(
        default="",
        description="What the ranks use, for people: CPU cores, memory and GPU, lowest"
        " and highest with their ranks. It changes when they change much; /metrics has every rank.",
    )
    resumed_from_step: int | None = Field(
        default=None, description="Step of the checkpoint that the current attempt resumed from."
    )
    started_from: str = Field(
        default="",
        description="The other run's checkpoint or model that the run began with (startFrom).",
    )
    last_checkpoint: CheckpointRef | None = None
    model: ModelRef | None = Field(
        default=None, description="The last exported model: after the run, that of its last step."
    )
    best_model: ModelRef | None = Field(
        default=None,
        description="The exported model with the lowest evaluation loss, which may be the last one."
        " Absent if none has an evaluation loss.",
    )
    profile: str = Field(
        default="",
        description="Rank 0's newest trace of its steps, a file in the run's directory, for"
        " Perfetto.",
    )
