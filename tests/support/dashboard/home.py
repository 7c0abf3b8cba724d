"""Writes a TRAINYARD_HOME like `trainyard run` and `trainyard study`, for tests and benchmarks."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

from trainyard_api.checkpoint import MANIFEST, Manifest, step_name
from trainyard_storage.checkpoints import describe_files, digest, manifest_bytes
from trainyard_study.fit import fit

# Tokens per second with 1, 2 and 4 processes, three repeats each.
MEASURED = {
    1: [1000.0, 1010.0, 990.0],
    2: [1900.0, 1880.0, 1930.0],
    4: [3400.0, 3300.0, 3450.0],
}


def write_run(
    home: Path,
    name: str,
    *,
    phase: str = "Succeeded",
    points: int = 40,
    ranks: int = 2,
    **status: Any,
) -> Path:
    """Write a run with `points` log lines; returns the path of its metrics.jsonl."""
    directory = home / "runs" / name
    (directory / "data").mkdir(parents=True, exist_ok=True)
    run = {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"recipe": "char-gpt"},
        "status": {
            "phase": phase,
            "step": points * 10,
            "totalSteps": points * 10,
            "loss": 1.5,
            "restarts": 0,
            "worldSize": ranks,
            "startTime": "2026-01-01T00:00:05Z",
            **status,
        },
    }
    (directory / "run.json").write_text(json.dumps(run))
    history = directory / "data" / "metrics.jsonl"
    with history.open("w") as file:
        file.write(json.dumps({"step": 0, "event": "started", "attempt": 1, "time": 1.0}) + "\n")
        for i in range(1, points + 1):
            file.write(json.dumps(record(i, ranks)) + "\n")
        file.write(json.dumps({"step": points * 10, "eval_loss": 1.6, "attempt": 1}) + "\n")
        sample = {"step": points * 10, "sample": "to be <b>or</b> not", "attempt": 1}
        file.write(json.dumps(sample) + "\n")
    return history


def record(i: int, ranks: int = 2) -> dict[str, Any]:
    """The i-th line of a metrics.jsonl."""
    return {
        "step": i * 10,
        "loss": 4 / math.sqrt(i) + 0.1 * math.sin(i),
        "learning_rate": 0.001 * (1 - i / 10_000),
        "grad_norm": 1 + 0.5 * math.cos(i),
        "tokens_per_second": 2000.0 + i % 7,
        "samples_per_second": 20.0,
        "attempt": 1,
        "time": 1767225600.0 + i,
        "rank_step_seconds": [0.01 + 0.001 * rank for rank in range(ranks)],
    }


def write_model(data: Path, step: int, metrics: dict[str, float] | None = None) -> str:
    """An exported model of 5 bytes in a run's directory; returns its digest."""
    model = data / "models" / step_name(step)
    model.mkdir(parents=True)
    (model / "weights").write_text("12345")
    manifest = Manifest(
        kind="model",
        run="bard",
        attempt=1,
        recipe="char-gpt",
        step=step,
        created=datetime(2026, 1, 1, tzinfo=UTC),
        metrics=metrics or {},
        files=describe_files(model),
    )
    (model / MANIFEST).write_bytes(manifest_bytes(manifest))
    return digest(model)


@contextmanager
def driven(home: Path, name: str) -> Iterator[None]:
    """Hold the run's lock, like the process that drives it."""
    with (home / "runs" / name / "lock").open("w") as file:
        flock(file, LOCK_EX)
        yield


def study(name: str = "sizes", measured: dict[int, list[float]] | None = None) -> dict[str, Any]:
    """A finished ScalingStudy in wire form."""
    measured = MEASURED if measured is None else measured
    cells = [
        {
            "number": number,
            "values": {"numProcPerNode": processes},
            "label": f"numProcPerNode={processes}",
            "processes": processes,
            "phase": "Succeeded",
            "measurements": [
                {
                    "repeat": repeat,
                    "batchSize": 16,
                    "samplesPerSecond": rate / 64,
                    "tokensPerSecond": rate,
                    "stepSeconds": {"mean": 0.1, "p50": 0.1, "p99": 0.2},
                    "seconds": 20.0,
                }
                for repeat, rate in enumerate(rates, start=1)
            ],
        }
        for number, (processes, rates) in enumerate(measured.items(), start=1)
    ]
    curve: dict[str, Any] = {"configuration": {}, "label": "", "unit": "tokens", "points": []}
    if len(measured) > 1:
        curve["law"] = fit(measured).to_wire()
    return {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "ScalingStudy",
        "metadata": {"name": name},
        "spec": {
            "template": {"spec": {"recipe": "char-gpt"}},
            "matrix": {"numProcPerNode": list(measured)},
            "cost": {"perProcessHour": 2.0, "currency": "EUR"},
        },
        "status": {
            "phase": "Succeeded",
            "progress": "9/9",
            "headline": "3.40x on 4",
            "cells": cells,
            "curves": [curve],
        },
    }


def write_study(home: Path, name: str = "sizes", **changes: Any) -> Path:
    path = home / "studies" / name / "study.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(study(name, **changes)))
    return path
