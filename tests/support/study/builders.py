"""Builders for studies' tests: a study, its runs, what a run leaves behind."""

from typing import Any

from tests.support.lifecycle.builders import T0
from trainyard_api import labels
from trainyard_api.run import TrainingRun
from trainyard_api.status import StepSeconds, TrainingRunStatus
from trainyard_api.study import ScalingStudy


def make_study(**spec: Any) -> ScalingStudy:
    """char-gpt on 1 and 2 processes, twice each, with `spec` (wire names) on top."""
    base: dict[str, Any] = {
        "template": {"spec": {"recipe": "char-gpt"}},
        "matrix": {"numProcPerNode": [1, 2]},
        "repeats": 2,
    }
    return ScalingStudy.model_validate(
        {
            "apiVersion": "trainyard.dev/v1alpha1",
            "kind": "ScalingStudy",
            "metadata": {"name": "s", "namespace": "ns", "uid": "study", "generation": 1},
            "spec": base | spec,
        }
    )


def started(run: TrainingRun, **status: Any) -> TrainingRun:
    """The run as stored, with this status."""
    return run.model_copy(update={"status": TrainingRunStatus(**status)})


def succeeded(run: TrainingRun, samples_per_second: float = 100.0) -> TrainingRun:
    """The run after it has trained batches of 10 at this rate, of 4 tokens each."""
    mean = 10 / samples_per_second
    return started(
        run,
        phase="Succeeded",
        batch_size=10,
        tokens_per_batch=40,
        step_seconds=StepSeconds(mean=mean, p50=mean * 0.9, p99=mean * 2),
        peak_memory_bytes=2**20,
        loss=1.5,
        start_time=T0,
        completion_time=T0,
    )


def failed(run: TrainingRun, message: str = "out of memory") -> TrainingRun:
    return started(run, phase="Failed", reason="OOMKilled", message=message)


def key_of(run: TrainingRun) -> tuple[int, int]:
    """(cell, repeat)."""
    return int(run.metadata.labels[labels.CELL]), int(run.metadata.labels[labels.REPEAT])
