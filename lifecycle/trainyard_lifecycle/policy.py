"""What follows from a failure: one pure decision from the failure, the run's policy and history.

A disruption (the cluster took a pod away, or the Hub gives no answer) is not a failure of the run:
it is tried again without being counted. A failure that another attempt can fix is counted against
maxRestarts, which starts again once training has got further. Everything else stops the run, which
then waits for its user: a changed spec or `trainyard retry` starts the next attempt from the newest
checkpoint.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Literal

from trainyard_api.labels import RETRY
from trainyard_api.policy import FailureReason, FailureRule, finds
from trainyard_api.run import TrainingRun
from trainyard_api.spec import TrainingRunSpec
from trainyard_api.status import Attempt, TrainingRunStatus
from trainyard_lifecycle.diagnosis import Failure

Action = Literal["Restart", "Ignore", "Fail"]

# What follows where failurePolicy says nothing. docs/start/concepts.md has the same table.
DEFAULT_ACTIONS: dict[FailureReason, Action] = {
    "ConfigError": "Fail",
    "UserException": "Fail",
    "ExitCode": "Fail",
    "DiskFull": "Fail",
    "HardwareError": "Restart",
    "OOMKilled": "Restart",
    "Hang": "Restart",
    "Signal": "Restart",
    "StartTimeout": "Restart",
    "StartError": "Restart",
    "PeerLost": "Restart",
    "Unknown": "Restart",
    "NodeLost": "Ignore",
    "Evicted": "Ignore",
    "Preempted": "Ignore",
    "PodDeleted": "Ignore",
    "HubUnreachable": "Ignore",
}
# After these the ranks still reach each other, and get their whole grace period to save the step.
GRACEFUL = frozenset({"Evicted", "Preempted", "PodDeleted"})

_STEP = re.compile(r"\bstep \d")
SAME_FAILURES = 3  # the same failure so often in a row, at the same step, is not tried again


@dataclass(frozen=True)
class Verdict:
    """What follows from a failure.

    Attributes:
        restart: start the next attempt after the backoff; else stop, and wait for the user.
        counted: it counts against maxRestarts.
        note: why no further attempt is made, where one would have been.
    """

    restart: bool
    counted: bool
    note: str = ""


def judge(failure: Failure, spec: TrainingRunSpec, status: TrainingRunStatus) -> Verdict:
    """What follows from the failure that has just ended the current attempt.

    `status.attempts` ends with that attempt's record; `status.failures` and `status.disruptions`
    are those before it.
    """
    action = chosen_action(failure, spec)
    if action == "Fail":
        return Verdict(restart=False, counted=True)
    if action == "Ignore":
        limit = spec.max_disruptions
        if limit is not None and status.disruptions >= limit:
            return Verdict(False, False, f"maxDisruptions {limit} reached")
        return Verdict(restart=True, counted=False)
    before = failures_in_a_row(status)
    if before + 1 >= SAME_FAILURES and _repeats(status.attempts):
        note = f"the same failure at the same step {SAME_FAILURES} times in a row: not tried again"
        return Verdict(False, True, note)
    if before >= spec.max_restarts:
        return Verdict(False, True, f"maxRestarts {spec.max_restarts} reached")
    return Verdict(restart=True, counted=True)


def chosen_action(failure: Failure, spec: TrainingRunSpec) -> Action:
    """The action of the first rule that applies, else the default of the failure's reason."""
    if spec.failure_policy:
        for rule in spec.failure_policy.failure_rules:
            if _applies(rule, failure):
                return rule.action
    return DEFAULT_ACTIONS[failure.reason]


def failures_in_a_row(status: TrainingRunStatus) -> int:
    """Counted failures before the current one, since training last got further.

    It has got further when the current attempt ended with a newer checkpoint than the last counted
    failure did. Without checkpoints (a user's own script) nothing is known, and all count.
    """
    failed = [attempt for attempt in status.attempts[:-1] if attempt.counted]
    current = status.attempts[-1] if status.attempts else None
    if current is None or current.checkpoint_step is None or not failed:
        return status.failures
    last = failed[-1].checkpoint_step
    return 0 if last is None or current.checkpoint_step > last else status.failures


def request_to_continue(run: TrainingRun, status: TrainingRunStatus) -> str | None:
    """Why a finished run should resume, in one line; None: it stays finished.

    A failed run resumes when its spec was changed after the pods that failed were created (but for
    what spec_digest leaves out), or when the annotation trainyard.dev/retry has a new value; after
    DeadlineExceeded only with a higher deadline. One that succeeded resumes only when it is asked
    for more steps: applying the same object again, or any other change, trains nothing.
    """
    if run.spec.suspend:
        return None
    if status.phase == "Failed":
        if past_deadline(run, status):
            return None
        if run.metadata.annotations.get(RETRY, "") not in ("", status.retried):
            return "retried on request"
        failed = status.failed_generation or status.observed_generation
        changed = failed is not None and (run.metadata.generation or 0) > failed
        differs = changed and spec_digest(run.spec) != status.failed_spec_digest
        return "the spec was changed" if differs else None
    config = run.spec.config or {}
    for key, before in (
        ("max_steps", status.finished_max_steps),
        ("num_epochs", status.finished_num_epochs),
    ):
        value = config.get(key)
        if isinstance(value, int | float) and before is not None and value > before:
            return f"config.{key} was raised from {before:g} to {value:g}"
    return None


def past_deadline(run: TrainingRun, status: TrainingRunStatus) -> bool:
    """Whether activeDeadlineSeconds ended the run, and would end its next attempt at once."""
    limit = run.spec.active_deadline_seconds
    return (
        status.reason == "DeadlineExceeded" and limit is not None and status.active_seconds >= limit
    )


def spec_digest(spec: TrainingRunSpec) -> str:
    """The sha256 of what attempts depend on: not suspend, nor what becomes of a finished run.

    Defaults are left out, so that a newer version with a new field computes the same.
    """
    return _digest(spec, _AFTERWARDS)


def pods_digest(spec: TrainingRunSpec) -> str:
    """The sha256 of what pods are made from: not how many there are, nor how hard to try."""
    return _digest(spec, _AFTERWARDS | _HOW_HARD)


_AFTERWARDS = frozenset({"suspend", "ttl_seconds_after_finished"})
_HOW_HARD = frozenset(
    {
        "num_nodes",
        "elastic",
        "max_restarts",
        "max_disruptions",
        "failure_policy",
        "backoff",
        "active_deadline_seconds",
        "deadlines",
        "start_deadline_seconds",
    }
)


def _digest(spec: TrainingRunSpec, without: frozenset[str]) -> str:
    wire = spec.model_dump(
        mode="json",
        by_alias=True,
        exclude_defaults=True,
        exclude=dict.fromkeys(without, True) | {"storage": {"when_deleted"}},
    )
    if not wire.get("storage"):
        wire.pop("storage", None)
    return hashlib.sha256(json.dumps(wire, sort_keys=True).encode()).hexdigest()


def _applies(rule: FailureRule, failure: Failure) -> bool:
    if rule.on_reasons is not None and failure.reason not in rule.on_reasons:
        return False
    if rule.on_exit_codes is not None:
        if failure.exit_code is None:
            return False
        listed = failure.exit_code in rule.on_exit_codes.values
        if listed != (rule.on_exit_codes.operator == "In"):
            return False
    if rule.on_exceptions is not None and failure.exception not in rule.on_exceptions:
        return False
    return rule.on_message is None or finds(rule.on_message, failure.words)


def _repeats(attempts: list[Attempt]) -> bool:
    """Whether the newest counted failures are the same one, at the same known step.

    The step is the last one reported, a few seconds before the end. Where a message names the step
    itself, that one counts.
    """
    newest = [attempt for attempt in attempts if attempt.counted][-SAME_FAILURES:]
    if len(newest) < SAME_FAILURES:
        return False
    steps = {"named" if _STEP.search(each.message) else each.step for each in newest}
    failures = {(each.reason, _words(each), each.exit_code) for each in newest}
    return len(failures) == len(steps) == 1 and None not in steps


def _words(attempt: Attempt) -> str:
    """The message without what differs in every attempt: the pod's name, process ids, ports."""
    return re.sub(r"(pid(?:\(s\))? |:)\d+", r"\1", attempt.message.removeprefix(f"{attempt.pod}: "))
