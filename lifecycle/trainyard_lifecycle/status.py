"""Parts of a status: conditions, attempts, progress, and figures as text for people. Pure."""

from collections.abc import Callable
from datetime import datetime

from trainyard_api.progress import Extremes, ProgressReport, Usage
from trainyard_api.status import Attempt, Condition, ConditionType, TrainingRunStatus
from trainyard_api.study_status import ScalingStudyStatus

MAX_ATTEMPTS_KEPT = 10
MAX_CHANGES_KEPT = 20  # of an attempt's settings, each of at most MAX_CHANGE characters
MAX_CHANGE = 200


def set_condition(
    status: TrainingRunStatus | ScalingStudyStatus,
    kind: ConditionType,
    value: bool | None,
    reason: str,
    message: str,
    now: datetime,
) -> None:
    """Set a condition (None: Unknown); lastTransitionTime moves only when its status does."""
    new = Condition(
        type=kind,
        status="Unknown" if value is None else "True" if value else "False",
        reason=reason,
        message=message,
        last_transition_time=now,
    )
    for index, old in enumerate(status.conditions):
        if old.type == kind:
            if old.status == new.status:
                new.last_transition_time = old.last_transition_time
            status.conditions[index] = new
            return
    status.conditions.append(new)


def current_attempt(status: TrainingRunStatus) -> Attempt | None:
    """The record of the attempt that status.attempt names."""
    if status.attempts and status.attempts[-1].number == status.attempt:
        return status.attempts[-1]
    return None


def add_attempt(status: TrainingRunStatus, attempt: Attempt) -> None:
    """Append to the history, keeping the newest ones and the last failure that was counted.

    Whether training has got further is judged from that one, however many disruptions follow.
    """
    status.attempt = attempt.number
    records = [*status.attempts, attempt]
    counted = next((each for each in reversed(records) if each.counted), None)
    older, newer = records[:-MAX_ATTEMPTS_KEPT], records[-MAX_ATTEMPTS_KEPT:]
    if counted is not None and any(each is counted for each in older):
        newer[0] = counted
    status.attempts = newer


def clear_rates(status: TrainingRunStatus) -> None:
    """Forget throughput, ETA and usage, which are known only while the run is training."""
    status.samples_per_second = None
    status.tokens_per_second = None
    status.throughput = ""
    status.eta_seconds = None
    status.eta = ""
    status.usage = ""


def apply_report(status: TrainingRunStatus, report: ProgressReport) -> None:
    """Take over rank 0's figures; those it doesn't report keep their last known value."""
    for name in (
        "step",
        "total_steps",
        "loss",
        "eval_loss",
        "samples_per_second",
        "tokens_per_second",
        "eta_seconds",
        "batch_size",
        "step_seconds",
        "peak_memory_bytes",
        "resumed_from_step",
        "started_from",
        "last_checkpoint",
        "model",
        "best_model",
        "profile",
    ):
        value = getattr(report, name)
        if value is not None:
            setattr(status, name, _rounded(value) if isinstance(value, float) else value)
    if report.batch_size and report.samples_per_second and report.tokens_per_second:
        tokens_per_sample = report.tokens_per_second / report.samples_per_second
        status.tokens_per_batch = round(report.batch_size * tokens_per_sample)
    attempt = current_attempt(status)
    if attempt and report.resumed_from_step is not None:
        attempt.resumed_from_step = report.resumed_from_step
        attempt.changed = [text[:MAX_CHANGE] for text in report.changed[:MAX_CHANGES_KEPT]]
    if status.step is not None:
        status.progress = f"{status.step}/{status.total_steps or '?'}"
    elif report.progress_percent is not None:
        status.progress = f"{report.progress_percent}%"
    status.throughput = format_throughput(status.tokens_per_second, status.samples_per_second)
    status.eta = format_duration(status.eta_seconds) if status.eta_seconds is not None else ""
    if report.usage is not None:
        status.usage = format_usage(report.usage)


def format_throughput(tokens: float | None, samples: float | None) -> str:
    """`12.3k tokens/s`, or samples where there are no tokens."""
    if tokens is not None:
        return format_rate(tokens, "tokens")
    return format_rate(samples, "samples") if samples is not None else ""


def format_rate(value: float, unit: str) -> str:
    """`12.3k tokens/s`."""
    return f"{_with_prefix(value)} {unit}/s"


def format_duration(seconds: float) -> str:
    """`45s`, `2m10s`, `3h05m`, as kubectl writes ages."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def format_usage(usage: Usage) -> str:
    """`8 ranks: CPU cores 0.2 (rank 5) to 1.0 (rank 3), memory 2.3 GiB, GPU 97%`."""
    parts = [
        f"{name} {_format_extremes(extremes, form)}"
        for name, extremes, form in (
            ("CPU cores", usage.cpu_cores, lambda cores: f"{cores:.1f}"),
            ("memory", usage.memory_bytes, format_bytes),
            ("GPU", usage.gpu_utilization, lambda share: f"{share:.0%}"),
            ("GPU memory", usage.gpu_memory_bytes, format_bytes),
        )
        if extremes
    ]
    return f"{format_count(usage.ranks, 'rank')}: {', '.join(parts)}"


def format_bytes(size: float) -> str:
    """`412 MiB`, `4.2 GiB`."""
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"


def format_count(number: int, noun: str) -> str:
    """`1 restart`, `2 restarts`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _format_extremes(found: Extremes, form: Callable[[float], str]) -> str:
    lowest, highest = form(found.lowest), form(found.highest)
    if lowest == highest:
        return lowest
    return f"{lowest} (rank {found.lowest_rank}) to {highest} (rank {found.highest_rank})"


def _rounded(value: float) -> float:
    """Five significant digits: `kubectl get` shows the status's numbers as they are."""
    return float(f"{value:.5g}")


def _with_prefix(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"
