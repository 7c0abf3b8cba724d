"""TrainConfig: the settings of every recipe, and their validation."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trainyard_api.profile import MAX_STEPS
from trainyard_api.recipes import Location, unknown_key
from trainyard_trainer.errors import ConfigError


@dataclass(frozen=True)
class Mark:
    """What holds of a setting when a run resumes, or starts from another run's checkpoint."""

    word: str


CHANGEABLE = Mark("changeable")
ARCHITECTURE = Mark("architecture")
T = TypeVar("T")

# A setting may change when the run resumes; the change is recorded. An unmarked one may not: the
# state or the position in the data would no longer fit. It may in a new run with spec.startFrom.
Changeable = Annotated[T, CHANGEABLE]
# Weights fit only a model with the same value: it may not change in a run with startFrom either.
Architecture = Annotated[T, ARCHITECTURE]


# The other way on, where a change is refused: what a refusal says after "or".
BRANCH = "start a run under another name with startFrom: {run: NAME OF THIS ONE}"


class Profile(BaseModel):
    """The `profile` setting."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    steps: list[int]
    """First and last step to record, such as [100, 102]; at most ten steps."""

    ranks: list[int] = [0]
    """Ranks that record, each into a file of its own."""

    @field_validator("steps")
    @classmethod
    def _check_steps(cls, steps: list[int]) -> list[int]:
        if len(steps) != 2:
            raise ValueError(f"give the first and the last step, such as [100, 102], not {steps}")
        first, last = steps
        if not 1 <= first <= last:
            raise ValueError(f"give the first step, from 1 on, and then the last, not {steps}")
        if (count := last - first + 1) > MAX_STEPS:
            raise ValueError(
                f"{steps} are {count} steps; record at most {MAX_STEPS}: a trace has every"
                " operation of each, and a larger one opens in no browser"
            )
        return steps

    @field_validator("ranks")
    @classmethod
    def _check_ranks(cls, ranks: list[int]) -> list[int]:
        if min(ranks, default=-1) < 0:
            raise ValueError(f"name one rank at least, counted from 0, not {ranks}")
        return ranks


class TrainConfig(BaseModel):
    """Settings of any recipe. Names are those of the Hugging Face Trainer where it has one."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    max_steps: Changeable[int] = Field(default=500, ge=1)
    """Optimizer steps of the whole run."""

    num_epochs: Changeable[float | None] = Field(default=None, gt=0)
    """Passes over the training samples, instead of max_steps. Each pass ends with an evaluation and
    a checkpoint."""

    batch_size: int = Field(default=32, ge=1)
    """Samples per optimizer step, over all ranks and accumulation steps."""

    gradient_accumulation_steps: Changeable[int] = Field(default=1, ge=1)
    """Micro-batches per rank and optimizer step."""

    learning_rate: Changeable[float] = Field(default=1e-3, ge=0)
    """Peak learning rate, reached after the warm-up."""

    lr_scheduler_type: Changeable[Literal["cosine", "linear", "constant"]] = "cosine"
    """Shape of the learning rate's decay after the warm-up."""

    min_learning_rate: Changeable[float | None] = Field(default=None, ge=0)
    """Learning rate at the end of the schedule. Default: a tenth of learning_rate."""

    warmup_steps: Changeable[int] = Field(default=0, ge=0)
    """Steps of linear warm-up: the first has 1/warmup_steps of the learning rate, the last all."""

    lr_decay_steps: Changeable[int | None] = Field(default=None, ge=1)
    """Step at which the schedule reaches min_learning_rate. Default: max_steps."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov and Hutter, 2019), or SGD with Nesterov momentum."""

    momentum: Changeable[float] = Field(default=0.9, ge=0, lt=1)
    """SGD's momentum."""

    weight_decay: Changeable[float] = Field(default=0.1, ge=0)
    """Weight decay, on matrices only (decoupled in AdamW)."""

    adam_beta1: Changeable[float] = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's mean of the gradient."""

    adam_beta2: Changeable[float] = Field(default=0.99, ge=0, lt=1)
    """Decay of AdamW's mean of the squared gradient."""

    max_grad_norm: Changeable[float] = Field(default=1.0, ge=0)
    """Clip gradients to this norm; 0 disables clipping."""

    compile: Changeable[bool] = False
    """torch.compile the model's blocks: faster steps after a slow first one, whose kernels are kept
    for the next attempt. The log says what was compiled; if nothing was, that is an error."""

    activation_checkpointing: Changeable[bool] = False
    """Recompute each block's activations in the backward pass instead of keeping them."""

    deterministic: Changeable[bool] = False
    """Use only operations that give the same results every time, on GPUs too, so that there, as on
    CPUs anyway, a resumed run is bitwise the uninterrupted one. Slower; an operation that can't is
    an error."""

    sharding_strategy: Changeable[Literal["FULL_SHARD", "SHARD_GRAD_OP"]] = "FULL_SHARD"
    """With strategy fsdp: free a block's gathered parameters after its forward pass, or keep them
    until its backward pass (more memory, less traffic)."""

    dataloader_num_workers: Changeable[int] = Field(default=0, ge=0, le=64)
    """Worker processes per rank that load batches ahead; 0 loads them in the training process."""

    eval_steps: Changeable[int] = Field(default=100, ge=0)
    """Steps between evaluations; 0 evaluates only at the end (and after each epoch)."""

    eval_batches: Changeable[int | None] = Field(default=16, ge=1)
    """Global batches of held-out data in one evaluation, always the same; null for all."""

    eval_on_start: Changeable[bool] = False
    """Also evaluate the model before the first step, for comparison."""

    export_steps: Changeable[int] = Field(default=0, ge=0)
    """Steps between exports of the model, for servers that follow the run; the last three and the
    best are kept. 0 exports models only at the end."""

    log_steps: Changeable[int] = Field(default=10, ge=1)
    """Steps between progress lines (and device synchronisations)."""

    report_to: Changeable[list[Literal["mlflow", "tensorboard"]]] = []
    """Trackers for the run's metrics, besides metrics.jsonl: mlflow (at MLFLOW_TRACKING_URI),
    tensorboard (in the run's directory)."""

    sample_steps: Changeable[int] = Field(default=0, ge=0)
    """Steps between samples of generated output; 0 for a single one at the end."""

    timing_warmup_steps: Changeable[int] = Field(default=1, ge=0)
    """First steps of an attempt, which are excluded from the statistics of step times."""

    profile: Changeable[Profile | None] = None
    """Record steps with torch.profiler into profiles/ of the run's directory, for Perfetto: {steps:
    [first, last], ranks: [0]}. These steps take longer, and give the same results."""

    hang_timeout_seconds: Changeable[float] = Field(default=20, ge=0)
    """When a rank is stopped, or does not reach a collective that the others wait in, the attempt
    fails after this time with an error that names the rank. Slow steps are allowed five times their
    recent duration. 0 disables the watchdog, for debuggers."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """A recipe that only changes a setting's default inherits its description."""
        for name, field in TrainConfig.model_fields.items():
            own = cls.model_fields[name]
            own.description = own.description or field.description

    @classmethod
    def marked(cls, mark: Mark) -> frozenset[str]:
        """The settings with that mark, also where a recipe only gives them another default."""
        bases = [base for base in cls.__mro__ if issubclass(base, TrainConfig)]
        return frozenset(
            name
            for name in cls.model_fields
            if any(
                mark in base.model_fields[name].metadata
                for base in bases
                if name in base.model_fields
            )
        )

    @model_validator(mode="after")
    def _fill_defaults(self) -> Self:
        # Resolved here, so that the checkpoint records the values used.
        if self.min_learning_rate is None:
            object.__setattr__(self, "min_learning_rate", self.learning_rate / 10)
        if self.num_epochs is not None and "max_steps" in self.model_fields_set:
            if "num_epochs" in self.model_fields_set:
                raise ValueError("set num_epochs or max_steps, not both")
            object.__setattr__(self, "num_epochs", None)  # a recipe's default
        return self

    def for_samples(self, num_samples: int) -> Self:
        """These settings with the lengths that depend on the number of training samples.

        Raises ConfigError if one step's batch would need a sample twice.
        """
        if num_samples < self.batch_size:
            raise ConfigError(
                f"config.batch_size: {self.batch_size} samples make a step, but there are only"
                f" {num_samples} to train on; lower it, or give more data"
            )
        steps = self.max_steps
        if self.num_epochs is not None:
            steps = math.ceil(self.num_epochs * num_samples / self.batch_size)
        return self.model_copy(
            update={"max_steps": steps, "lr_decay_steps": self.lr_decay_steps or steps}
        )


C = TypeVar("C", bound=TrainConfig)


def parse_config(cls: type[C], raw: dict[str, Any]) -> C:
    """Validate `raw`; raises ConfigError, which names every wrong key in one line."""
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(line for _, line in problems(cls, error))) from None


def problems(cls: type[TrainConfig], error: ValidationError) -> list[tuple[Location, str]]:
    """What is wrong with settings: where in the config, and a line about it."""
    return [(item["loc"], _error_message(cls, item)) for item in error.errors()]


def _error_message(cls: type[TrainConfig], item: Any) -> str:
    where = ".".join(["config", *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        return unknown_key(item["loc"], _fields_at(cls, item["loc"][:-1]))
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    got = item.get("input")
    shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) else ""
    return f"{where}: {message}{shown}"


def _fields_at(cls: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys of the settings at `path` in `cls`; each part of the path is an optional model."""
    for part in path:
        annotation = cls.model_fields[str(part)].annotation
        choices = (annotation, *get_args(annotation))
        cls = next(c for c in choices if isinstance(c, type) and issubclass(c, BaseModel))
    return list(cls.model_fields)


def check_batch_size(config: TrainConfig, world_size: int) -> None:
    """Raise ConfigError unless every rank gets the same number of samples in each micro-batch."""
    accumulation = config.gradient_accumulation_steps
    divisor = world_size * accumulation
    if config.batch_size % divisor:
        below = config.batch_size // divisor * divisor
        use = f"{below} or {below + divisor}" if below else str(divisor)
        raise ConfigError(
            f"config.batch_size: {config.batch_size} samples can't be shared evenly by"
            f" {processes(world_size)} x {accumulation} accumulation steps; use {use}"
        )


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each setting that both have and that differs, sorted by name.

    A setting that only one of them has is that of another version, with its default.
    """
    shared = sorted(old.keys() & new.keys())
    return {key: (old[key], new[key]) for key in shared if old[key] != new[key]}


def check_resumable(
    where: str, changed: dict[str, tuple[Any, Any]], config: type[TrainConfig], step: int
) -> None:
    """Raise ConfigError if a run can't resume from its own checkpoint with these changes.

    `where`: config, whose settings declare whether they may change, or spec, whose can't.
    """
    fixed = frozenset() if where == "spec" else config.marked(CHANGEABLE)
    for key in sorted(changed.keys() - fixed):
        old, new = changed[key]
        other = BRANCH
        if key in config.marked(ARCHITECTURE) or key == "recipe":
            other = "start a run under another name from step 0: the weights don't fit"
        raise ConfigError(
            f"{where}.{key}: {new!r}, but the checkpoint of step {step} was trained with {old!r};"
            f" set it back, or {other}"
        )


def check_branch(
    changed: dict[str, tuple[Any, Any]], config: type[TrainConfig], weights_only: bool, source: str
) -> None:
    """Raise ConfigError if a run can't start from the checkpoint `source` with these changes."""
    fixed = config.marked(ARCHITECTURE) | (frozenset() if weights_only else {"optimizer"})
    for key in sorted(changed.keys() & fixed):
        old, new = changed[key]
        other = ", or set startFrom.what to weights" if key == "optimizer" else ""
        raise ConfigError(
            f"config.{key}: {new!r}, but {source} was trained with {old!r}, which its state needs;"
            f" set it to {old!r}{other}"
        )


def processes(count: int) -> str:
    """1 process, 2 processes."""
    return "1 process" if count == 1 else f"{count} processes"
