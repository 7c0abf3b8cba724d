"""ScalingStudy status: what was measured, figure by figure, and what follows from it."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from trainyard_api.base import Model
from trainyard_api.status import Condition, StepSeconds

StudyPhase = Literal[
    "Pending",  # nothing runs yet
    "Running",
    "Suspended",
    "Succeeded",  # every run of every cell was measured
    "Failed",  # it is over, and at least one cell has failed
]
CellPhase = Literal["Pending", "Running", "Succeeded", "Failed"]
Unit = Literal["tokens", "samples"]


LawKind = Literal["linear", "amdahl", "allreduce", "tree", "usl"]
LAW_NAMES: Mapping[LawKind, str] = {
    "linear": "linear scaling",
    "amdahl": "Amdahl's law",
    "allreduce": "ring all-reduce",
    "tree": "tree all-reduce",
    "usl": "universal scalability law",
}

WORTH_A_WORD = 0.05  # probability from which a law that wasn't chosen is named
TOO_WIDE = 2.0  # high / low of an interval whose middle no one should plan with


class Interval(Model):
    """A figure, and where it lies with a probability of 90%."""

    value: float
    low: float
    high: float

    @property
    def too_wide(self) -> bool:
        """The middle says nothing: the ends are more than a factor of two apart."""
        return self.high > TOO_WIDE * self.low


class ScalingLaw(Model):
    """What was fitted: the most probable law, and how probable the others are.

    Throughput is in the measurements' unit. Projections need the other laws, too, which are not
    stored: fit the measurements again (trainyard_study.scaling_law.fit).
    """

    kind: LawKind = Field(description="The most probable law.")
    single: Interval = Field(description="X(1): throughput of one process.")
    sigma: Interval = Field(
        description="Contention: the share that does not run in parallel. Of all-reduce laws: what"
        " it costs, relative to the step of one process."
    )
    kappa: Interval = Field(description="Coherency: what every pair of processes costs.")
    residual: float = Field(
        description="Root mean square of the relative error over the measured sizes."
    )
    sizes: list[int] = Field(description="Numbers of processes measured.")
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="How probable each law is (Bayesian information criterion): its part in the"
        " projections.",
    )

    @property
    def best_processes(self) -> float:
        """Beyond this number more processes make it slower; infinite without coherency."""
        if self.kappa.value <= 0:
            return math.inf
        return math.sqrt(max(0.0, 1 - self.sigma.value) / self.kappa.value)

    @property
    def choice(self) -> str:
        """`Amdahl's law (72% likely; tree all-reduce 28%)`: which law, how sure, what else."""
        if not self.weights:
            return LAW_NAMES[self.kind]
        likely = {
            kind: f"{name} {self.weights[kind]:.0%}"
            for kind, name in LAW_NAMES.items()
            if self.weights.get(kind, 0) >= WORTH_A_WORD
        }
        if self.undecided:
            return f"law undecided ({', '.join(likely.values())})"
        del likely[self.kind]
        others = f"; {', '.join(likely.values())}" if likely else ""
        return f"{LAW_NAMES[self.kind]} ({self.weights[self.kind]:.0%} likely{others})"

    @property
    def undecided(self) -> bool:
        """No law is more likely than the others together."""
        return self.weights.get(self.kind, 1.0) < 0.5


class Measurement(Model):
    """One run of one cell."""

    repeat: int
    batch_size: int = Field(description="Samples of one optimizer step, all ranks together.")
    samples_per_second: float = Field(description="batch_size / step_seconds.mean")
    tokens_per_second: float | None = None
    step_seconds: StepSeconds
    peak_memory_bytes: int | None = Field(
        default=None, description="Most memory any rank has used: of its GPU, else of the process."
    )
    loss: float | None = Field(default=None, description="Training loss when it ended.")
    seconds: float = Field(description="The whole run, from start-up to export.")


class CellFailure(Model):
    """Why a cell has no (more) measurements."""

    repeat: int
    reason: str
    message: str
    run: str = Field(default="", description="The TrainingRun that failed; it is kept.")
    log: str | None = Field(default=None, description="On one machine: relative to the report.")


class Spread(Model):
    """A measured figure over the repeats."""

    median: float
    min: float
    max: float


class CellResult(Model):
    """One cell: the values it has of the matrix, its runs, and what follows from them."""

    number: int = Field(description="From 1, in the matrix's order.")
    values: dict[str, Any] = Field(description="Of the matrix, by path.")
    label: str = Field(description="What tells this cell from the others, for people.")
    processes: int = Field(description="Ranks of its runs.")
    phase: CellPhase = "Pending"
    measurements: list[Measurement] = Field(default_factory=list)
    failure: CellFailure | None = None

    samples_per_second: Spread | None = None
    tokens_per_second: Spread | None = None
    step_seconds: Spread | None = Field(default=None, description="Of the runs' mean step times.")
    step_seconds_p50: Spread | None = Field(default=None, description="Of the runs' medians.")
    step_seconds_p99: Spread | None = Field(default=None, description="Of the runs' 99th centiles.")
    peak_memory_bytes: int | None = Field(default=None, description="The most of any run.")
    versus_first: float | None = Field(default=None, description="Throughput / the first cell's.")
    speedup: float | None = Field(
        default=None,
        description="Throughput / that of the same configuration at its smallest size.",
    )
    efficiency: float | None = Field(
        default=None, description="Speedup / (processes / the smallest size's)."
    )
    cost_per_million: float | None = Field(
        default=None, description="Of tokens, or of samples where there are none; in the currency."
    )


class ScalingPoint(Model):
    """Throughput of one configuration at one number of processes."""

    processes: int
    source: Literal["measured", "projected"]
    throughput: Interval = Field(
        description="Per second. Measured: median, least and most; projected: what the laws lead"
        " to expect, and between what it lies with a probability of 90%."
    )
    too_wide: bool = Field(
        default=False,
        description="Projected, and the ends of the interval are more than a factor of two apart:"
        " the middles say nothing.",
    )
    speedup: float = Field(description="Throughput / that of the smallest measured size.")
    efficiency: float = Field(description="Speedup / (processes / the smallest measured size).")
    cost_per_million: float | None = None

    def speedup_at(self, rate: float) -> float:
        """The speedup if the throughput were this: of an end of its interval."""
        return self.speedup * rate / self.throughput.value


class ScalingCurve(Model):
    """How one configuration (every value of the matrix but its size) scales."""

    configuration: dict[str, Any] = Field(description="Values of the matrix, sizes left out.")
    label: str = Field(description="The configuration, for people; empty if there is just one.")
    unit: Unit
    law: ScalingLaw | None = Field(default=None, description="Absent when it can't be fitted.")
    why_no_law: str = Field(default="", description="One line, when there is none.")
    points: list[ScalingPoint] = Field(description="By processes, measured ones first.")


class Machine(Model):
    """Where a study was measured, when that was one machine."""

    cpu: str
    cores: int
    memory_bytes: int | None = None
    gpus: list[str] = Field(default_factory=list)
    system: str
    python: str
    torch: str | None = None
    trainyard: str
    load: float | None = Field(default=None, description="Load average when the study began.")


class ScalingStudyStatus(Model):
    """Phase, table and curves."""

    observed_generation: int | None = None
    phase: StudyPhase | None = None
    reason: str = ""
    message: str = Field(default="", description="One line: what it does, or what went wrong.")
    conditions: list[Condition] = Field(default_factory=list)
    progress: str = Field(default="", description="Runs done / all, for people.")
    headline: str = Field(
        default="", description="For people: `1.87x on 2 (93%), 12.3k tokens/s; 8: 6.1x projected`."
    )
    start_time: datetime | None = None
    completion_time: datetime | None = None
    fingerprint: str = Field(
        default="", description="Of what was measured: the spec's parts that may not change."
    )
    threads_per_process: int | None = Field(
        default=None, description="OMP_NUM_THREADS, the same in every cell."
    )
    cells: list[CellResult] = Field(default_factory=list)
    curves: list[ScalingCurve] = Field(default_factory=list)
    machine: Machine | None = None
    command: str = Field(default="", description="On one machine: what was typed.")
    commit: str | None = Field(default=None, description="Of the git checkout it was started in.")
