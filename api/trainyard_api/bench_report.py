"""BenchReport: what a bench measured, figure by figure, and what follows from it."""

from datetime import datetime
from typing import Any

from pydantic import Field

from trainyard_api.base import Model
from trainyard_api.bench import BenchSpec
from trainyard_api.progress import StepSeconds


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
    log: str | None = Field(default=None, description="Relative to the report's directory.")


class Spread(Model):
    """A figure over the repeats."""

    median: float
    min: float
    max: float


class CellResult(Model):
    """One cell: the values it has of the matrix, its runs, and what follows from them."""

    values: dict[str, Any]
    processes: int
    measurements: list[Measurement] = Field(default_factory=list)
    failure: CellFailure | None = None

    samples_per_second: Spread | None = None
    tokens_per_second: Spread | None = None
    step_seconds: Spread | None = Field(default=None, description="Of the runs' mean step times.")
    step_seconds_p99: Spread | None = Field(default=None, description="Of the runs' 99th centiles.")
    peak_memory_bytes: int | None = Field(default=None, description="The most of any run.")
    speedup: float | None = Field(default=None, description="Throughput / the first cell's.")
    efficiency: float | None = Field(
        default=None,
        description="Throughput / (processes x throughput of the same cell with 1 process).",
    )


class Machine(Model):
    """Where it was measured."""

    cpu: str
    cores: int
    memory_bytes: int | None = None
    gpus: list[str] = Field(default_factory=list)
    system: str
    python: str
    torch: str | None = None
    trainyard: str
    load: float | None = Field(default=None, description="Load average when the bench began.")


class BenchReport(Model):
    """The whole of bench.json."""

    name: str
    command: str
    commit: str | None = Field(default=None, description="Of the git checkout it was started in.")
    start_time: datetime
    end_time: datetime | None = Field(default=None, description="Absent: it was interrupted.")
    threads_per_process: str = Field(description="OMP_NUM_THREADS, the same in every cell.")
    machine: Machine
    spec: BenchSpec
    cells: list[CellResult]
