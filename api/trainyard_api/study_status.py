"""ScalingStudy status: what was measured, figure by figure, and what follows from it."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from trainyard_api.base import Record
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
LAW_NAMES: Mapping[str, str] = {
    "linear": "linear scaling",
    "amdahl": "Amdahl's law",
    "allreduce": "ring all-reduce",
    "tree": "tree all-reduce",
    "usl": "universal scalability law",
}

WORTH_A_WORD = 0.05  # probability from which a law that wasn't chosen is named
TOO_WIDE = 2.0  # high / low of an interval whose middle no one should plan with


class Interval(Record):
    """A figure with an interval: 90% for what is estimated, smallest and largest if measured."""

    value: float = Field(description="The figure.")
    low: float = Field(description="Lower end.")
    high: float = Field(description="Upper end.")

    @property
    def too_wide(self) -> bool:
        """The middle says nothing: the ends are more than a factor of two apart."""
        return self.high > TOO_WIDE * self.low


class ScalingLaw(Record):
    """The most probable scaling law of a configuration, and how probable the others are.

    Throughput is in the measurements' unit. Projections need the other laws, too, which are not
    stored: fit the measurements again (trainyard_study.fit.fit).
    """

    kind: str = Field(
        description="The most probable law: linear, amdahl, allreduce (ring), tree, or usl "
        "(the universal scalability law)."
    )
    single: Interval = Field(description="Throughput of one process, per second.")
    sigma: Interval = Field(
        description="Contention: the share of the work that does not run in parallel. For the "
        "all-reduce laws: the cost of the all-reduce, relative to the step of one "
        "process."
    )
    kappa: Interval = Field(description="Coherency: what each pair of processes costs.")
    residual: float = Field(
        description="Root mean square of the relative error over the measured sizes."
    )
    sizes: list[int] = Field(description="Numbers of processes that were measured.")
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="Probability of each law, by the Bayesian information criterion. It is "
        "the law's weight in the projections.",
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
        name = LAW_NAMES.get(self.kind, self.kind)  # a newer version may know more laws
        if not self.weights:
            return name
        likely = {
            kind: f"{law} {self.weights[kind]:.0%}"
            for kind, law in LAW_NAMES.items()
            if self.weights.get(kind, 0) >= WORTH_A_WORD
        }
        if self.undecided:
            return f"law undecided ({', '.join(likely.values())})"
        likely.pop(self.kind, None)
        others = f"; {', '.join(likely.values())}" if likely else ""
        return f"{name} ({self.weights.get(self.kind, 1.0):.0%} likely{others})"

    @property
    def undecided(self) -> bool:
        """No law is more likely than the others together."""
        return self.weights.get(self.kind, 1.0) < 0.5


class Measurement(Record):
    """The figures of one run."""

    repeat: int = Field(description="Number of the repeat, counted from 1.")
    batch_size: int = Field(description="Samples of one optimizer step, all ranks together.")
    samples_per_second: float = Field(
        description="Samples per second, all ranks together: batchSize / stepSeconds.mean."
    )
    tokens_per_second: float | None = Field(
        default=None,
        description="Tokens per second, all ranks together. Absent for recipes without tokens.",
    )
    step_seconds: StepSeconds
    peak_memory_bytes: int | None = Field(
        default=None,
        description="Most memory that any rank has used, in bytes: GPU memory on GPUs, else "
        "memory of the process.",
    )
    loss: float | None = Field(default=None, description="Training loss at the end of the run.")
    seconds: float = Field(
        description="Duration of the whole run in seconds, from start-up to export."
    )


class CellFailure(Record):
    """Why the cell failed."""

    repeat: int = Field(description="Number of the repeat that failed, counted from 1.")
    reason: str = Field(description="Class of the failure, for example OOMKilled or ConfigError.")
    message: str = Field(description="Root cause, in one line.")
    run: str = Field(default="", description="Name of the TrainingRun that failed. It is kept.")
    log: str | None = Field(
        default=None,
        description="On one machine: path of its log, relative to the study's directory.",
    )


class Spread(Record):
    """A measured figure over the repeats."""

    median: float = Field(description="Median of the repeats.")
    min: float = Field(description="Smallest value.")
    max: float = Field(description="Largest value.")


class CellResult(Record):
    """One cell: its values of the matrix, its runs, and the figures derived from them."""

    number: int = Field(description="Number of the cell in the matrix's order, counted from 1.")
    values: dict[str, Any] = Field(description="The cell's values of the matrix, by path.")
    label: str = Field(description="What distinguishes this cell from the others, for people.")
    processes: int = Field(description="Number of ranks of the cell's runs.")
    phase: str = Field(default="Pending", description="Pending, Running, Succeeded or Failed.")
    measurements: list[Measurement] = Field(
        default_factory=list, description="One entry for each run that was measured."
    )
    failure: CellFailure | None = None
    unreported: list[str] = Field(
        default_factory=list,
        description="UIDs of runs that succeeded without figures, each of which was run again.",
    )

    samples_per_second: Spread | None = Field(
        default=None, description="Samples per second, all ranks together."
    )
    tokens_per_second: Spread | None = Field(
        default=None,
        description="Tokens per second, all ranks together. Absent for recipes without tokens.",
    )
    step_seconds: Spread | None = Field(
        default=None, description="Mean step times of the runs, in seconds."
    )
    step_seconds_p50: Spread | None = Field(
        default=None, description="Median step times of the runs, in seconds."
    )
    step_seconds_p99: Spread | None = Field(
        default=None, description="99th percentiles of the runs' step times, in seconds."
    )
    peak_memory_bytes: int | None = Field(
        default=None, description="Largest peak memory of the runs, in bytes."
    )
    versus_first: float | None = Field(
        default=None, description="Throughput divided by that of the first cell."
    )
    speedup: float | None = Field(
        default=None,
        description="Throughput divided by that of the same configuration at its smallest size.",
    )
    efficiency: float | None = Field(
        default=None, description="Speedup divided by how many times more processes the cell has."
    )
    cost_per_million: float | None = Field(
        default=None,
        description="Cost of a million tokens, or of a million samples where there are no "
        "tokens, in spec.cost.currency.",
    )


class ScalingPoint(Record):
    """Throughput of one configuration at one number of processes."""

    processes: int = Field(description="Number of processes.")
    source: Literal["measured", "projected"] = Field(
        description="Whether the point was measured or is a projection."
    )
    throughput: Interval = Field(
        description="Tokens or samples per second. Measured: median, smallest and largest "
        "value. Projected: the expected value and a 90% interval."
    )
    too_wide: bool = Field(
        default=False,
        description="Whether a projection's interval is so wide (more than a factor of two) "
        "that its expected value means nothing.",
    )
    speedup: float = Field(description="Throughput divided by that of the smallest measured size.")
    efficiency: float = Field(
        description="Speedup divided by (processes / smallest measured size)."
    )
    cost_per_million: float | None = Field(
        default=None, description="Cost of a million tokens or samples, in spec.cost.currency."
    )

    def speedup_at(self, rate: float) -> float:
        """The speedup if the throughput were this: of an end of its interval."""
        return self.speedup * rate / self.throughput.value


class ScalingCurve(Record):
    """How one configuration (all values of the matrix except its size) scales."""

    configuration: dict[str, Any] = Field(
        description="The configuration's values of the matrix, without those that are sizes."
    )
    label: str = Field(description="The configuration, for people. Empty if there is only one.")
    unit: Unit = Field(description="What throughput counts: tokens or samples.")
    law: ScalingLaw | None = Field(
        default=None, description="The fitted scaling law. Absent if none can be fitted."
    )
    why_no_law: str = Field(default="", description="Why no law can be fitted, in one line.")
    points: list[ScalingPoint] = Field(
        description="Points by number of processes, measured ones first."
    )


class Machine(Record):
    """The machine that the study was measured on. Absent on a cluster."""

    cpu: str = Field(description="Model of the CPU.")
    cores: int = Field(description="Number of CPU cores.")
    memory_bytes: int | None = Field(default=None, description="Memory, in bytes.")
    gpus: list[str] = Field(default_factory=list, description="Models of the GPUs.")
    system: str = Field(description="Operating system and version.")
    python: str = Field(description="Version of Python.")
    torch: str | None = Field(default=None, description="Version of PyTorch.")
    trainyard: str = Field(description="Version of Trainyard.")
    load: float | None = Field(default=None, description="Load average when the study began.")


class ScalingStudyStatus(Record):
    """What was measured, and the scaling laws fitted to it."""

    observed_generation: int | None = Field(
        default=None, description="Generation of the spec that this status describes."
    )
    phase: StudyPhase | None = Field(
        default=None, description="Pending, Running, Suspended, Succeeded or Failed."
    )
    reason: str = Field(
        default="", description="One word that says why the study is in this phase."
    )
    message: str = Field(
        default="", description="One line: what the study is doing, or what went wrong."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Running, Suspended, Succeeded and Failed, as Kubernetes conditions."
        " Unsupported: the study has something that this version of the operator does not know.",
    )
    progress: str = Field(default="", description="Runs done and in all, for people: 5/6.")
    headline: str = Field(
        default="",
        description="The result in one line, for people: 1.87x on 2 (93%), 12.3k tokens/s; 8: "
        "6.1x projected.",
    )
    start_time: datetime | None = Field(default=None, description="When the study began.")
    completion_time: datetime | None = Field(default=None, description="When the study finished.")
    fingerprint: str = Field(
        default="",
        description="Hash of the parts of the spec that must not change once the study has begun.",
    )
    threads_per_process: int | None = Field(
        default=None, description="OMP_NUM_THREADS of every process, the same in every cell."
    )
    cells: list[CellResult] = Field(
        default_factory=list, description="The table: one entry for each cell of the matrix."
    )
    curves: list[ScalingCurve] = Field(
        default_factory=list, description="One scaling curve for each configuration."
    )
    machine: Machine | None = None
    command: str = Field(
        default="", description="On one machine: the command that started the study."
    )
    commit: str | None = Field(
        default=None, description="Commit of the git checkout that the study was started in."
    )
