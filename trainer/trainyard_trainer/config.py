"""TrainConfig: the settings of every recipe, and their validation."""

import difflib
import math
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainyard_trainer.errors import ConfigError


class TrainConfig(BaseModel):
    """Settings of any recipe. Names are those of the Hugging Face Trainer where it has one."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    # Settings that may change between attempts: they don't change the results of a step.
    changeable_on_resume: ClassVar[frozenset[str]] = frozenset(
        {
            "max_steps",  # the schedule depends on lr_decay_steps
            "num_epochs",
            "gradient_accumulation_steps",  # the same samples, summed in another order
            "activation_checkpointing",  # the same numbers, computed twice
            "sharding_strategy",
            "dataloader_num_workers",
            "eval_steps",
            "eval_batches",
            "export_steps",
            "log_steps",
            "report_to",
            "sample_steps",
            "hang_timeout_seconds",
            "timing_warmup_steps",
        }
    )

    max_steps: int = Field(default=500, ge=1)
    """Optimizer steps of the whole run."""

    num_epochs: float | None = Field(default=None, gt=0)
    """Passes over the training samples, instead of max_steps. Each pass ends with an evaluation and
    a checkpoint."""

    batch_size: int = Field(default=32, ge=1)
    """Samples per optimizer step, over all ranks and accumulation steps."""

    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches per rank and optimizer step."""

    learning_rate: float = Field(default=1e-3, ge=0)
    """Peak learning rate, reached after the warm-up."""

    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate's decay after the warm-up."""

    min_learning_rate: float | None = Field(default=None, ge=0)
    """Learning rate at the end of the schedule. Default: a tenth of learning_rate."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from 0."""

    lr_decay_steps: int | None = Field(default=None, ge=1)
    """Step at which the schedule reaches min_learning_rate. Default: max_steps."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov and Hutter, 2019), or SGD with Nesterov momentum."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD's momentum."""

    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay, on matrices only (decoupled in AdamW)."""

    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's mean of the gradient."""

    adam_beta2: float = Field(default=0.99, ge=0, lt=1)
    """Decay of AdamW's mean of the squared gradient."""

    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip gradients to this norm; 0 disables clipping."""

    compile: bool = False
    """torch.compile the model's blocks: faster steps after a slow first one."""

    activation_checkpointing: bool = False
    """Recompute each block's activations in the backward pass instead of keeping them."""

    sharding_strategy: Literal["FULL_SHARD", "SHARD_GRAD_OP"] = "FULL_SHARD"
    """With strategy fsdp: free a block's gathered parameters after its forward pass, or keep them
    until its backward pass (more memory, less traffic)."""

    dataloader_num_workers: int = Field(default=0, ge=0, le=64)
    """Worker processes per rank that load batches ahead; 0 loads them in the training process."""

    eval_steps: int = Field(default=100, ge=0)
    """Steps between evaluations; 0 evaluates only at the end (and after each epoch)."""

    eval_batches: int | None = Field(default=16, ge=1)
    """Global batches of held-out data in one evaluation, always the same; null for all."""

    eval_on_start: bool = False
    """Also evaluate the model before the first step, for comparison."""

    export_steps: int = Field(default=0, ge=0)
    """Steps between exports of the model, for servers that follow the run; the last three are kept.
    0 exports only the finished one."""

    log_steps: int = Field(default=10, ge=1)
    """Steps between progress lines (and device synchronisations)."""

    report_to: list[Literal["mlflow", "tensorboard"]] = []
    """Trackers for the run's metrics, besides metrics.jsonl: mlflow (at MLFLOW_TRACKING_URI),
    tensorboard (in the run's directory)."""

    sample_steps: int = Field(default=0, ge=0)
    """Steps between samples of generated output; 0 for a single one at the end."""

    timing_warmup_steps: int = Field(default=1, ge=0)
    """First steps of an attempt, which are excluded from the statistics of step times."""

    hang_timeout_seconds: float = Field(default=20, ge=0)
    """When a rank is stopped, or does not reach a collective that the others wait in, the attempt
    fails after this time with an error that names the rank. Slow steps are allowed five times their
    recent duration. 0 disables the watchdog, for debuggers."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """A recipe that only changes a setting's default inherits its description."""
        for name, field in TrainConfig.model_fields.items():
            own = cls.model_fields[name]
            own.description = own.description or field.description

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
        raise ConfigError("; ".join(_error_message(cls, item) for item in error.errors())) from None


def _error_message(cls: type[TrainConfig], item: Any) -> str:
    where = ".".join(["config", *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        key, known = str(item["loc"][-1]), _fields_at(cls, item["loc"][:-1])
        close = difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else f" (known: {', '.join(known)})"
        return f"{where}: unknown key{hint}"
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


def check_unchanged(
    old: dict[str, Any], new: dict[str, Any], changeable: frozenset[str], where: str, step: int
) -> None:
    """Raise ConfigError if settings that define the run differ from the checkpoint's."""
    for key in sorted(old.keys() & new.keys() - changeable):
        if old[key] != new[key]:
            hint = ""
            if key == "lr_decay_steps":
                hint = " (its default is max_steps: set it yourself to train longer)"
            raise ConfigError(
                f"{where}.{key}: {new[key]!r}, but the checkpoint of step {step} was trained with"
                f" {old[key]!r}; set it back{hint}, or start a run under another name"
            )


def processes(count: int) -> str:
    """1 process, 2 processes."""
    return "1 process" if count == 1 else f"{count} processes"
