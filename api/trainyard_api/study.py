"""ScalingStudy: a matrix of training runs to be measured side by side, as a user writes it."""

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from trainyard_api.base import Rule, SpecModel, matches
from trainyard_api.immutable import immutable
from trainyard_api.resource import Resource, name_rules
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
    """Whether two values of a matrix are the same one: unlike in Python, True is not 1."""
    return type(one) is type(other) and one == other


class RunTemplate(SpecModel):
    """The TrainingRun to measure; the matrix fills in its name and parts of its spec."""

    spec: dict[str, Any] = Field(
        description="A TrainingRun's spec. It is validated when the cells are made."
    )


class Cost(SpecModel):
    """What the hardware costs. Trainyard looks up no prices."""

    per_process_hour: Annotated[
        float,
        Rule("self >= 0.0", "must not be negative", lambda value: value >= 0),
    ] = Field(description="Price of one process (one GPU) for an hour.")
    currency: Annotated[
        str, matches("[A-Z]{3}", "must be a currency's three letters, for example USD")
    ] = Field(default="USD", max_length=3, description="Currency of the price, as three letters.")


class ScalingStudySpec(SpecModel):
    """What to measure. Every combination of the matrix is a cell, run `repeats` times."""

    noun: ClassVar = "study"

    template: RunTemplate
    matrix: Annotated[dict[str, Values], AfterValidator(_check_matrix)] = Field(
        max_length=MAX_PATHS,
        description="Values to try, by dotted path in the template's spec, for example"
        " {numProcPerNode: [1, 2], config.batch_size: [32, 64]}. null keeps the template's value.",
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list,
        max_length=MAX_RUNS,
        description="Combinations to leave out. A cell that has all values of an entry is not run.",
    )
    repeats: int = immutable(default=3, ge=1, le=100, description="How often each cell is run.")
    steps: int = immutable(
        default=50, ge=1, le=10_000, description="Optimizer steps that are measured in each run."
    )
    warmup_steps: int = immutable(
        default=10,
        ge=0,
        le=10_000,
        description="Optimizer steps at the start of each run that are not measured.",
    )
    parallelism: int = Field(
        default=1,
        ge=1,
        le=100,
        description="How many runs may run at the same time. Use more than 1 only if they share no"
        " hardware. On one machine it is always 1.",
    )
    cost: Cost | None = None
    project_to: list[Annotated[int, Field(ge=1, le=100_000)]] = Field(
        default_factory=list,
        max_length=32,
        description="Numbers of processes to project to. Default: 2, 4 and 8 times the largest size"
        " measured.",
    )
    suspend: bool = Field(
        default=False,
        description="Set to true to stop the study, and to false to resume it with the runs that"
        " are not measured yet.",
    )

    def fingerprint(self) -> str:
        """Identifies what is measured: CEL can't see changes inside the template and the matrix."""
        measured = self.model_dump(
            mode="json",
            include={"template", "matrix", "exclude", "repeats", "steps", "warmup_steps"},
        )
        return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()[:16]


class ScalingStudy(Resource):
    """A matrix of training runs, measured side by side."""

    rules: ClassVar = name_rules(MAX_STUDY_NAME, "its runs add cell and repeat to it")

    kind: Literal["ScalingStudy"]
    spec: ScalingStudySpec
    status: ScalingStudyStatus = Field(default_factory=ScalingStudyStatus)
