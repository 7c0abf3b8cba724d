"""ScalingStudy: a matrix of training runs to be measured side by side, as a user writes it."""

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from trainyard_api.base import Rule, SpecModel, matches
from trainyard_api.resource import Resource, name_rules
from trainyard_api.spec import immutable
from trainyard_api.study_status import ScalingStudyStatus

STUDY_KIND = "ScalingStudy"
STUDY_PLURAL = "scalingstudies"

MAX_STUDY_NAME = 40  # its runs are NAME-CELL-REPEAT, and their names are limited too
MAX_RUNS = 1000  # cells x repeats: the status must fit into one object
MAX_PATHS = 16  # of the matrix
MAX_VALUES = 64  # of a path
# Set by steps and warmupSteps, in every cell alike.
STEP_BUDGET = ("config.max_steps", "config.num_epochs", "config.timing_warmup_steps")


def _check_values(values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError("list at least one value")
    for index, value in enumerate(values):
        if any(same(value, other) for other in values[:index]):
            raise ValueError(f"{value!r} is listed twice")
    return values


Values = Annotated[list[Any], Field(max_length=MAX_VALUES), AfterValidator(_check_values)]


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


class Cost(SpecModel):
    """What the hardware costs: entered by the user, never guessed."""

    per_process_hour: Annotated[
        float,
        Rule("self >= 0.0", "must not be negative", lambda value: value >= 0),
    ] = Field(description="Price of one process's share (a GPU) for an hour.")
    currency: Annotated[
        str, matches("[A-Z]{3}", "must be a currency's three letters, for example USD")
    ] = Field(default="USD", max_length=3)


class ScalingStudySpec(SpecModel):
    """Every combination of the matrix is a cell: one TrainingRun, measured `repeats` times."""

    noun: ClassVar = "study"

    template: RunTemplate
    matrix: Annotated[dict[str, Values], AfterValidator(_check_matrix)] = Field(
        max_length=MAX_PATHS,
        description="Dotted paths in the template's spec, each with the values to try:"
        " {numProcPerNode: [1, 2], config.batch_size: [32, 64]}. null: as the template has it.",
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list,
        max_length=MAX_RUNS,
        description="Combinations to leave out: a cell that has all values of an entry.",
    )
    repeats: int = immutable(default=3, ge=1, le=100, description="Runs of every cell.")
    steps: int = immutable(default=50, ge=1, le=10_000, description="Optimizer steps measured.")
    warmup_steps: int = immutable(
        default=10, ge=0, le=10_000, description="Optimizer steps before them, not measured."
    )
    parallelism: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Runs at once. More than 1 only where they don't share hardware. On one"
        " machine always 1.",
    )
    cost: Cost | None = None
    project_to: list[Annotated[int, Field(ge=1, le=100_000)]] = Field(
        default_factory=list,
        max_length=32,
        description="Numbers of processes to project to. Default: 2, 4 and 8 times the largest"
        " measured.",
    )
    suspend: bool = Field(default=False, description="Stop; go on with the runs not yet measured.")

    def fingerprint(self) -> str:
        """Of what is measured. CEL can't see into the template and the matrix, so this tells when
        they were changed."""
        measured = self.model_dump(
            mode="json",
            include={"template", "matrix", "exclude", "repeats", "steps", "warmup_steps"},
        )
        return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()[:16]


class ScalingStudy(Resource):
    """A study: what to measure, and what was found."""

    rules: ClassVar = name_rules(MAX_STUDY_NAME, "its runs add cell and repeat to it")

    kind: Literal["ScalingStudy"]
    spec: ScalingStudySpec
    status: ScalingStudyStatus = Field(default_factory=ScalingStudyStatus)
