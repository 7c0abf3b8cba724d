"""TrainConfig: the settings every recipe has, and how a manifest's `config` becomes one."""

import difflib
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainyard_trainer.console import processes
from trainyard_trainer.errors import ConfigError


class TrainConfig(BaseModel):
    """Settings of any recipe. Names are those of the Hugging Face Trainer where it has one."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    # Settings that may change between attempts: they don't touch the numbers of a step.
    free: ClassVar[frozenset[str]] = frozenset(
        {
            "max_steps",  # lr_decay_steps is what shapes the schedule
            "gradient_accumulation_steps",  # the same samples, summed in another order
            "eval_steps",
            "eval_batches",
            "log_steps",
            "sample_steps",
        }
    )

    max_steps: int = Field(default=500, ge=1)
    """Optimizer steps of the whole run."""

    batch_size: int = Field(default=32, ge=1)
    """Samples of one optimizer step, all ranks and accumulation steps together."""

    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches each rank runs, one after another, for one optimizer step."""

    learning_rate: float = Field(default=1e-3, ge=0)
    """Highest learning rate, reached after the warm-up."""

    min_learning_rate: float | None = Field(default=None, ge=0)
    """Where the cosine ends. Default: a tenth of learning_rate."""

    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from 0."""

    lr_decay_steps: int | None = Field(default=None, ge=1)
    """Step at which the cosine reaches min_learning_rate. Default: max_steps."""

    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's decoupled weight decay, on matrices only."""

    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of AdamW's mean of the gradient."""

    adam_beta2: float = Field(default=0.99, ge=0, lt=1)
    """Decay of AdamW's mean of the squared gradient."""

    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 switches clipping off."""

    eval_steps: int = Field(default=100, ge=0)
    """Steps between evaluations; 0 evaluates only at the end."""

    eval_batches: int = Field(default=16, ge=1)
    """Global batches of held-out data in one evaluation, always the same ones."""

    log_steps: int = Field(default=10, ge=1)
    """Steps between two lines of progress (and reads from the device)."""

    sample_steps: int = Field(default=0, ge=0)
    """Steps between samples of what the model makes; 0 for only one, at the end."""

    @model_validator(mode="after")
    def _fill_defaults(self) -> Self:
        # Resolved once, here, so that the checkpoint records the values that were used.
        if self.min_learning_rate is None:
            object.__setattr__(self, "min_learning_rate", self.learning_rate / 10)
        if self.lr_decay_steps is None:
            object.__setattr__(self, "lr_decay_steps", self.max_steps)
        return self


C = TypeVar("C", bound=TrainConfig)


def parse_config(cls: type[C], raw: dict[str, Any]) -> C:
    """`raw` as a `cls`; ConfigError names every wrong key in one line."""
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(cls, item) for item in error.errors())) from None


def _explain(cls: type[TrainConfig], item: Any) -> str:
    where = ".".join(["config", *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        key = str(item["loc"][-1])
        close = difflib.get_close_matches(key.lower(), cls.model_fields, n=1, cutoff=0.5)
        hint = (
            f"; did you mean {close[0]}?" if close else f" (known: {', '.join(cls.model_fields)})"
        )
        return f"{where}: unknown key{hint}"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    got = item.get("input")
    shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) else ""
    return f"{where}: {message}{shown}"


def check_batch_size(config: TrainConfig, world_size: int) -> None:
    """Every rank must get the same number of samples in every micro-batch."""
    accumulation = config.gradient_accumulation_steps
    shares = world_size * accumulation
    if config.batch_size % shares:
        below = config.batch_size // shares * shares
        use = f"{below} or {below + shares}" if below else str(shares)
        raise ConfigError(
            f"config.batch_size: {config.batch_size} samples can't be shared evenly by"
            f" {processes(world_size)} x {accumulation} accumulation steps; use {use}"
        )


def check_unchanged(
    old: dict[str, Any], new: dict[str, Any], free: frozenset[str], where: str, step: int
) -> None:
    """Refuse to resume with settings that would make the run another run."""
    for key in sorted(old.keys() & new.keys() - free):
        if old[key] != new[key]:
            hint = ""
            if key == "lr_decay_steps":
                hint = " (its default is max_steps: set it yourself to train longer)"
            raise ConfigError(
                f"{where}.{key}: {new[key]!r}, but the checkpoint of step {step} was trained with"
                f" {old[key]!r}; set it back{hint}, or start a run under another name"
            )
