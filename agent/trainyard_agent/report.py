"""Turns the status that a script posts (Kubeflow Trainer's format) into a report and metrics.

transformers' Trainer, and what is built on it, posts this status where the environment asks for it.
So does `import trainyard`, with what is not a number beside it: a sample of text, the newest
checkpoint and model, the step that the attempt resumed from, and what it took from another run.
Values come from the script, so their number and size are limited, and only finite numbers are kept.
"""

from __future__ import annotations

import math
import re
import threading
import time
from datetime import datetime, timezone
from typing import Any

from trainyard_agent.exposition import family
from trainyard_agent.foreign import Found

MAX_METRICS = 256  # as many as Kubeflow's SDK sends
MAX_EVALUATION = 64
MAX_NAME = 100
MAX_EXPORTED = 32  # evaluation metrics in /metrics, as the trainer exports at most
MAX_STEP = 2**53
PEAK_GROWTH = 1.05
# Names that scripts use for the same thing; the first one present is used.
STEP = ("current_step", "global_step", "step")
TOTAL_STEPS = ("total_steps", "max_steps")
# Counts that are shown as rates; of those with the same rate the first. transformers counts tokens
# from the start of the run, TRL, by a name of its own, from the start of the attempt.
COUNTS = {
    "num_input_tokens_seen": "tokensPerSecond",
    "num_tokens": "tokensPerSecond",
    "num_input_samples_seen": "samplesPerSecond",
}
MAX_SAMPLE = 2000  # characters
MAX_STARTED_FROM = 1200  # characters: spec.startFrom.path may have 1024
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MODEL_PATH = re.compile(r"models/step-[0-9]{8,16}")
# Series of /metrics by the report's field. The trainer exports the same ones.
SERIES = {
    "attempt": "trainyard_attempt",
    "step": "trainyard_step",
    "totalSteps": "trainyard_total_steps",
    "loss": "trainyard_loss",
    "evalLoss": "trainyard_eval_loss",
    "learningRate": "trainyard_learning_rate",
    "gradNorm": "trainyard_grad_norm",
    "tokensPerSecond": "trainyard_tokens_per_second",
    "samplesPerSecond": "trainyard_samples_per_second",
    "worldSize": "trainyard_world_size",
}
EVALUATION = "trainyard_evaluation"
ONLY_METRICS = {"learningRate", "gradNorm"}


class Report:
    """The newest state of a script; nothing until it has posted one.

    Attributes:
        hang: which rank the others wait for; empty unless no rank has worked for a long time.
        changes: how often a status has brought something new.
        peak_memory: most bytes that a rank has used: on its GPU if it has one, else in memory. It
            grows in steps of 5%, because a status is stored each time that it changes.
        checkpoint: the newest complete checkpoint that transformers' Trainer or Lightning wrote.
    """

    def __init__(self, run: str, attempt: int) -> None:
        self.run = run
        self.attempt = attempt
        self.hang: str | None = None
        self.changes = 0
        self.peak_memory = 0
        self.checkpoint: Found | None = None
        self._lock = threading.Lock()
        self._usage: dict[str, Any] | None = None
        self._state: dict[str, Any] = {}
        self._evaluation: dict[str, float] = {}
        self._counted: dict[str, tuple[float, float]] = {}  # the newest counts, and when
        self._first: tuple[int, float] | None = None  # the first step reported, and when

    def update(self, body: Any, world_size: int) -> None:
        """Merge a status; omitted values are kept. Raises ValueError if it isn't one."""
        status = body.get("trainerStatus") if isinstance(body, dict) else None
        if not isinstance(status, dict):
            raise ValueError("trainerStatus is missing")
        metrics, now = _metrics(status.get("metrics")), time.monotonic()
        new: dict[str, Any] = {
            "worldSize": world_size,
            "ranksJoined": world_size,
            "step": _whole(metrics, STEP),
            "totalSteps": _whole(metrics, TOTAL_STEPS),
            "loss": metrics.get("loss"),
            "learningRate": metrics.get("learning_rate"),
            "gradNorm": metrics.get("grad_norm"),
            "progressPercent": _count(status.get("progressPercentage"), 100),
            "etaSeconds": _count(status.get("estimatedRemainingSeconds"), 10**9),
        }
        with self._lock:
            self.changes += any(
                value is not None and value != self._state.get(name)
                for name, value in new.items()
                if name != "etaSeconds"
            )
            for name, value in metrics.items():
                known = name in self._evaluation or len(self._evaluation) < MAX_EVALUATION
                if name.startswith("eval_") and known:
                    self._evaluation[name] = value
            new["evalLoss"] = self._evaluation.get("eval_loss")
            for name, field in COUNTS.items():
                rate = self._rate(name, metrics.get(name), now)
                if new.get(field) is None:
                    new[field] = rate
            if new["etaSeconds"] is None:
                new["etaSeconds"] = self._eta(new, now)
            if isinstance(body.get("sample"), str):
                new["sample"] = body["sample"][:MAX_SAMPLE]
            new["lastCheckpoint"] = _checkpoint(body.get("checkpoint"))
            new["model"] = _model(body.get("model"))
            new["bestModel"] = _model(body.get("bestModel"))
            new["resumedFromStep"] = _count(body.get("resumedFromStep"), MAX_STEP)
            new["startedFrom"] = _line(body.get("startedFrom"), MAX_STARTED_FROM)
            self._state.update((name, value) for name, value in new.items() if value is not None)
            if new["progressPercent"] == 100 and "totalSteps" in self._state:
                self._state["step"] = self._state["totalSteps"]  # the last status has no step

    def saw_memory(self, peak: int) -> None:
        """A rank has used this many bytes."""
        with self._lock:
            if peak > PEAK_GROWTH * self.peak_memory:
                self.peak_memory = peak

    def saw_usage(self, usage: dict[str, Any], peak: int) -> None:
        """What the ranks of all nodes use now, and the most memory that one of them has used."""
        self.saw_memory(peak)
        with self._lock:
            self._usage = usage

    def _rate(self, name: str, count: float | None, now: float) -> float | None:
        """By how much it has grown per second since the last time."""
        if count is None:
            return None
        before, since = self._counted.get(name, (count, now))
        if count == before and name in self._counted:
            return None
        self._counted[name] = count, now
        # A smaller count began again, as a loop over epochs may have it.
        return (count - before) / (now - since) if count > before and now > since else None

    def _eta(self, new: dict[str, Any], now: float) -> int | None:
        """Seconds left, from the mean pace since the first step reported."""
        step: int | None = new["step"]
        total: int | None = new["totalSteps"] or self._state.get("totalSteps")
        if step is None:
            return None
        if self._first is None or step < self._first[0]:
            self._first = step, now
        done, seconds = step - self._first[0], now - self._first[1]
        if total is None or not done:
            return None
        return round(max(0, total - step) * seconds / done)

    def document(self) -> dict[str, Any] | None:
        """A ProgressReport; None while nothing is known."""
        with self._lock:
            # What the script reports replaces it.
            known = {"lastCheckpoint": self.checkpoint.to_wire()} if self.checkpoint else {}
            # What ranks use is known even if the script reports nothing.
            if not (self._state or known or self.peak_memory) and self.hang is None:
                return None
            document = {
                "run": self.run,
                "attempt": self.attempt,
                "phase": "training",
                "worldSize": 0,
                "ranksJoined": 0,
                **known,
                **self._state,
                "hang": self.hang or "",
                "peakMemoryBytes": self.peak_memory or None,
                "usage": self._usage,
                "evaluation": dict(self._evaluation),
                "time": datetime.now(timezone.utc).isoformat(),
            }
        return {
            name: value
            for name, value in document.items()
            if name not in ONLY_METRICS and value is not None
        }

    def metrics(self) -> str:
        """The same in Prometheus' text format."""
        with self._lock:
            values = {"attempt": self.attempt, **self._state}
            evaluation = dict(self._evaluation)
        run = {"run": self.run}
        shown = [(name, values[field]) for field, name in SERIES.items() if field in values]
        named = [
            ({"run": self.run, "metric": name}, value)
            for name, value in sorted(evaluation.items())[:MAX_EXPORTED]
        ]
        return "".join(family(name, [(run, value)]) for name, value in shown) + family(
            EVALUATION, named
        )


def _metrics(listed: Any) -> dict[str, float]:
    """The finite ones of [{"name": ..., "value": "0.5"}], by name."""
    found: dict[str, float] = {}
    for entry in listed if isinstance(listed, list) else []:
        if not isinstance(entry, dict) or len(found) == MAX_METRICS:
            continue
        name, value = str(entry.get("name", "")), _number(entry.get("value"))
        if 0 < len(name) <= MAX_NAME and value is not None:
            found[name] = value
    return found


def _number(value: Any) -> float | None:
    """A finite number, also one that is written as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _checkpoint(value: Any) -> dict[str, Any] | None:
    """A CheckpointRef; None unless all of it is sound."""
    found = _saved(value)
    try:
        time = datetime.fromisoformat(value["time"]) if found else None
    except (KeyError, TypeError, ValueError):
        return None
    if found is None or time is None or time.tzinfo is None:
        return None
    return {**found, "time": time.isoformat()}


def _model(value: Any) -> dict[str, Any] | None:
    """A ModelRef; None unless all of it is sound."""
    found, path = _saved(value), value.get("path") if isinstance(value, dict) else None
    if found is None or not isinstance(path, str) or not MODEL_PATH.fullmatch(path):
        return None
    loss = _number(value.get("evalLoss"))
    return {**found, "path": path, **({} if loss is None else {"evalLoss": loss})}


def _saved(value: Any) -> dict[str, Any] | None:
    """The step and the digest of what was saved."""
    if not isinstance(value, dict):
        return None
    step, digest = value.get("step"), value.get("digest")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= MAX_STEP:
        return None
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        return None
    return {"step": step, "digest": digest}


def _line(value: Any, at_most: int) -> str | None:
    """A text as one printable line; None for anything else, or an empty one."""
    if not isinstance(value, str):
        return None
    return "".join(filter(str.isprintable, " ".join(value.split())))[:at_most] or None


def _count(value: Any, at_most: int) -> int | None:
    number = _number(value)
    return None if number is None else int(min(max(number, 0), at_most))


def _whole(metrics: dict[str, float], names: tuple[str, ...]) -> int | None:
    return next((_count(metrics[name], MAX_STEP) for name in names if name in metrics), None)
