"""BenchSpec: a matrix of training runs to be measured side by side, as a user writes it."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from trainyard_api.base import SpecModel, matches
from trainyard_api.spec import NAME_PATTERN

# Set by steps and warmupSteps, in every cell alike.
STEP_BUDGET = ("config.max_steps", "config.num_epochs", "config.timing_warmup_steps")


def _check_values(values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError("list at least one value")
    for index, value in enumerate(values):
        if any(same(value, other) for other in values[:index]):
            raise ValueError(f"{value!r} is listed twice")
    return values


def _check_matrix(matrix: dict[str, Any]) -> dict[str, Any]:
    if not matrix:
        raise ValueError("name at least one path of the spec, with the values to try")
    return matrix


def same(one: Any, other: Any) -> bool:
    """Whether two values of a matrix are the same one; to Python True is also 1."""
    return type(one) is type(other) and one == other


class RunTemplate(SpecModel):
    """A TrainingRun that gets its name, and a part of its spec, from the matrix."""

    spec: dict[str, Any] = Field(description="As a TrainingRun's; checked once a cell is made.")


class BenchSpec(SpecModel):
    """Every combination of the matrix is a cell: one TrainingRun, measured `repeats` times."""

    name: (
        Annotated[
            str, matches(NAME_PATTERN, "must hold only lower-case letters, digits and dashes")
        ]
        | None
    ) = Field(default=None, max_length=63, description="Default: the file's name.")
    template: RunTemplate
    matrix: Annotated[
        dict[str, Annotated[list[Any], AfterValidator(_check_values)]],
        AfterValidator(_check_matrix),
    ] = Field(
        description="Dotted paths in the template's spec, each with the values to try:"
        " {strategy: [ddp, fsdp], config.batch_size: [32, 64]}. null: as the template has it.",
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Combinations to leave out: a cell that has all values of an entry.",
    )
    repeats: int = Field(default=3, ge=1, le=100, description="Runs of every cell.")
    steps: int = Field(default=50, ge=1, le=10_000, description="Optimizer steps measured.")
    warmup_steps: int = Field(
        default=10, ge=0, le=10_000, description="Optimizer steps before them, not measured."
    )
