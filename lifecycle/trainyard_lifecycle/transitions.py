"""The transitions between phases: start, retry, suspend, complete, fail. Pure, as reconcile is.

Each writes the new status and returns the Plan that carries it out.
"""

import json
from dataclasses import replace
from datetime import datetime, timedelta

from trainyard_api.base import parse_known
from trainyard_api.progress import ProgressReport
from trainyard_api.run import TrainingRun
from trainyard_api.status import Attempt, TrainingRunStatus
from trainyard_lifecycle.diagnosis import Failure
from trainyard_lifecycle.plan import Event, Observed, Plan, Worker, WorkerKey
from trainyard_lifecycle.policy import (
    chosen_action,
    failures_in_a_row,
    judge,
    pods_digest,
    spec_digest,
)
from trainyard_lifecycle.status import (
    add_attempt,
    apply_report,
    clear_rates,
    current_attempt,
    format_count,
    format_duration,
    set_condition,
)

POLL_STARTING = 1.0  # seconds between reconciles while a gang is starting
_OF_REPORT = ("ProgressUnknown", "Hanging")  # conditions about one attempt's report
OVERDUE_SECONDS = 10.0  # after its grace period a pod that is still there is not waited for


def start_attempt(observed: Observed, status: TrainingRunStatus, nodes: int) -> Plan:
    """Start the next attempt with `nodes` workers."""
    run, now = observed.run, observed.now
    number = status.attempt + 1
    status.start_time = status.start_time or now
    status.next_attempt_time = None
    status.created = False
    status.nodes = nodes
    status.world_size = None
    clear_rates(status)
    add_attempt(
        status,
        Attempt(
            number=number,
            start_time=now,
            nodes=nodes,
            wanted_nodes=run.spec.num_nodes,
            generation=run.metadata.generation,
            spec_digest=spec_digest(run.spec),
            pods_digest=pods_digest(run.spec),
        ),
    )
    set_condition(status, "Running", False, "Starting", f"attempt {number} is starting", now)
    if any(condition.type == "Suspended" for condition in status.conditions):
        set_condition(status, "Suspended", False, "Resumed", "", now)
    message = f"attempt {number}: creating {format_count(nodes, 'worker')}"
    status.phase, status.reason, status.message = "Pending", "Creating", message
    return Plan(
        status,
        events=(Event("Normal", "AttemptStarted", message, f"{number}-started"),),
        delete=stale_workers(observed, status),
        create=tuple(WorkerKey(number, node) for node in range(nodes)),
        nodes=nodes,
        requeue_after=POLL_STARTING,
    )


def resize_run(observed: Observed, status: TrainingRunStatus, text: str) -> Plan:
    """End the attempt, and start one of another size once its workers have saved their step."""
    return _start_over(observed, status, "Resized", "Resized", text)


def replace_pending(observed: Observed, status: TrainingRunStatus) -> Plan:
    """End an attempt whose pods wait to start, perhaps for what the changed spec asks for."""
    return _start_over(observed, status, "GivenBack", "SpecChanged", "the spec was changed")


def note_spec(attempt: Attempt, run: TrainingRun) -> None:
    """The attempt's pods, of which there is none yet, are made from the spec as it is now."""
    attempt.generation = run.metadata.generation
    attempt.spec_digest, attempt.pods_digest = spec_digest(run.spec), pods_digest(run.spec)


def _start_over(
    observed: Observed, status: TrainingRunStatus, outcome: str, reason: str, text: str
) -> Plan:
    end_attempt(status, observed.now, outcome, reason, text)
    clear_rates(status)
    set_condition(status, "Running", False, reason, text, observed.now)
    status.next_attempt_time = observed.now
    status.phase, status.reason, status.message = "Restarting", reason, text
    event = Event("Normal", reason, text, f"{status.attempt}-{reason.lower()}")
    delete = _active_workers(observed.workers)
    return Plan(status, (event,), delete=delete, requeue_after=POLL_STARTING)


def continue_run(observed: Observed, status: TrainingRunStatus, why: str) -> Plan:
    """Start the next attempt of a run that has finished, with new budgets."""
    now = observed.now
    status.completion_time = None
    status.failures = status.disruptions = 0
    for kind in ("Failed", "Succeeded"):
        if any(condition.type == kind for condition in status.conditions):
            set_condition(status, kind, False, "Continued", why, now)
    plan = start_attempt(observed, status, observed.run.spec.num_nodes)
    event = Event("Normal", "Continued", why, f"{status.attempt}-continued")
    return replace(plan, events=(event, *plan.events))


def fail_attempt(observed: Observed, status: TrainingRunStatus, failure: Failure) -> Plan:
    """End the attempt after a failure, and do what the policy says."""
    spec = observed.run.spec
    if report := observed.report_of(status.attempt):
        apply_report(status, report)
    end_attempt(status, observed.now, "Failed", failure.reason, failure.message, failure)
    status.attempts[-1].counted = chosen_action(failure, spec) != "Ignore"
    verdict = judge(failure, spec, status)
    if verdict.counted:
        status.failures = failures_in_a_row(status)
    if not verdict.restart:
        note = f" ({verdict.note})" if verdict.note else ""
        return fail_run(observed, status, failure.reason, failure.message + note)
    if verdict.counted:
        status.restarts += 1
        status.failures += 1
    else:
        status.disruptions += 1
    tries = status.failures if verdict.counted else _uncounted_in_a_row(status)
    return schedule_retry(observed, status, tries, failure.reason, failure.message)


def _uncounted_in_a_row(status: TrainingRunStatus) -> int:
    """How many of the newest attempts ended without being counted, and got no further."""
    tries = 0
    for record in reversed(status.attempts):
        if record.counted is not False or (tries and record.step != status.attempts[-1].step):
            break
        tries += 1
    return max(1, tries)


def schedule_retry(
    observed: Observed, status: TrainingRunStatus, tries: int, reason: str, message: str
) -> Plan:
    """Start the next attempt after the backoff of the `tries`-th retry."""
    backoff = observed.run.spec.backoff
    # Beyond 2**20 the cap has long been reached; this only keeps the number small.
    wait = min(backoff.initial_seconds * 2 ** min(tries - 1, 20), backoff.max_seconds)
    status.next_attempt_time = observed.now + timedelta(seconds=wait)
    clear_rates(status)
    set_condition(status, "Running", False, reason, message, observed.now)
    text = f"{message}; attempt {status.attempt + 1} starts in {wait} s"
    status.phase, status.reason, status.message = "Restarting", reason, text
    event = Event("Warning", reason, f"attempt {status.attempt}: {text}", f"{status.attempt}-end")
    return Plan(
        status,
        (event,),
        delete=_active_workers(observed.workers),
        requeue_after=max(wait, 0.1),
    )


def suspend_run(observed: Observed, status: TrainingRunStatus) -> Plan:
    """Stop the workers, and stop counting active time."""
    if status.phase == "Suspended":
        # The workers save their last step while they end.
        if report := observed.report_of(status.attempt):
            status.last_checkpoint = report.last_checkpoint or status.last_checkpoint
        return Plan(status, delete=_active_workers(observed.workers))
    now = observed.now
    if status.attempt and current_attempt(status) and status.attempts[-1].outcome is None:
        end_attempt(status, now, "Suspended", "Suspended", "spec.suspend is true")
    status.next_attempt_time = None
    clear_rates(status)
    message = "spec.suspend is true; set it to false to resume from the newest checkpoint"
    set_condition(status, "Suspended", True, "Suspended", message, now)
    set_condition(status, "Running", False, "Suspended", message, now)
    status.phase, status.reason, status.message = "Suspended", "Suspended", message
    event = Event("Normal", "Suspended", message, f"{status.attempt}-suspended")
    return Plan(status, (event,), delete=_active_workers(observed.workers))


def complete_run(observed: Observed, status: TrainingRunStatus, gang: list[Worker]) -> Plan:
    """Every worker succeeded: take over the final report."""
    first = next(worker for worker in gang if worker.node == 0)
    report = _parse_final_report(first.termination_message) or observed.report
    if report and report.attempt == status.attempt:
        apply_report(status, report)
    clear_rates(status)
    now = observed.now
    end_attempt(status, now, "Succeeded", "Succeeded", "")
    status.completion_time = now
    config = observed.run.spec.config or {}
    max_steps, epochs = config.get("max_steps"), config.get("num_epochs")
    status.finished_max_steps = max_steps if isinstance(max_steps, int) else status.total_steps
    status.finished_num_epochs = epochs if isinstance(epochs, int | float) else None
    took = format_duration((now - (status.start_time or now)).total_seconds())
    restarts = f", {format_count(status.restarts, 'restart')}" if status.restarts else ""
    message = f"finished in {took}{restarts}"
    set_condition(status, "Succeeded", True, "Succeeded", message, now)
    set_condition(status, "Running", False, "Succeeded", message, now)
    status.phase, status.reason, status.message = "Succeeded", "Succeeded", message
    event = Event("Normal", "Succeeded", message, f"{status.attempt}-succeeded")
    return Plan(
        status,
        (event,),
        delete=_active_workers(observed.workers),  # a sidecar that outlives the trainer
        requeue_after=_seconds_until_ttl(observed, status),
    )


def fail_run(observed: Observed, status: TrainingRunStatus, reason: str, message: str) -> Plan:
    """End the run as failed; its finished pods stay for their logs."""
    now = observed.now
    attempt = current_attempt(status)
    if attempt and attempt.outcome is None:
        end_attempt(status, now, "Failed", reason, message)
    # That of the pods: a spec that was corrected in the meantime has not failed yet.
    run = observed.run
    status.failed_generation = run.metadata.generation
    status.failed_spec_digest = spec_digest(run.spec)
    if attempt and attempt.generation is not None and reason != "DeadlineExceeded":
        status.failed_generation = attempt.generation
        status.failed_spec_digest = attempt.spec_digest
    clear_rates(status)
    status.next_attempt_time = None
    status.completion_time = now
    set_condition(status, "Failed", True, reason, message, now)
    set_condition(status, "Running", False, reason, message, now)
    status.phase, status.reason, status.message = "Failed", reason, message
    event = Event("Warning", "Failed", f"{reason}: {message}", f"{status.attempt}-failed")
    return Plan(
        status,
        (event,),
        delete=_active_workers(observed.workers),
        requeue_after=_seconds_until_ttl(observed, status),
    )


def clean_up_finished(observed: Observed, status: TrainingRunStatus) -> Plan:
    """Remove workers that are still active and, after its TTL, the finished run itself."""
    left = _seconds_until_ttl(observed, status)
    return Plan(
        status,
        delete=_active_workers(observed.workers),
        delete_run=left is not None and left <= 0,
        requeue_after=left if left is not None and left > 0 else None,
    )


def end_attempt(
    status: TrainingRunStatus,
    now: datetime,
    outcome: str,
    reason: str,
    message: str,
    failure: Failure | None = None,
) -> None:
    """Write the current attempt's end into its record."""
    attempt = current_attempt(status)
    if attempt is None:
        return
    status.attempts[-1] = attempt.model_copy(
        update={
            "end_time": now,
            "outcome": outcome,
            "reason": reason,
            "message": message,
            "exit_code": failure.exit_code if failure else None,
            "pod": failure.worker if failure else "",
            "step": status.step,
            "checkpoint_step": status.last_checkpoint.step if status.last_checkpoint else None,
        }
    )
    status.active_seconds = round(active_seconds(status, now))
    status.active_since = None
    status.conditions = [c for c in status.conditions if c.type not in _OF_REPORT]


def next_attempt_nodes(observed: Observed, status: TrainingRunStatus) -> int:
    """Nodes of the next attempt: numNodes, or fewer for an elastic run that couldn't get them."""
    spec = observed.run.spec
    last = status.attempts[-1] if status.attempts else None
    if spec.elastic and last and last.outcome == "GivenBack" and last.nodes:
        return max(spec.elastic.min_nodes, min(last.nodes, spec.num_nodes))
    return spec.num_nodes


def stale_workers(observed: Observed, status: TrainingRunStatus) -> tuple[str, ...]:
    """Active workers of other attempts, and finished ones that are two attempts old.

    The previous attempt's finished pods stay: their logs say what went wrong.
    """
    others = [worker for worker in observed.workers if worker.attempt != status.attempt]
    old = [w.name for w in others if w.finished and w.attempt < status.attempt - 1]
    return (*_active_workers(others), *old)


def leftover_workers(observed: Observed, status: TrainingRunStatus) -> tuple[str, ...]:
    """Once the current attempt is over: its active workers, too.

    The plan that ended it deletes them, but its executor may have died before it did.
    """
    stale = stale_workers(observed, status)
    return (*stale, *(name for name in _active_workers(observed.workers) if name not in stale))


def _active_workers(workers: tuple[Worker, ...] | list[Worker]) -> tuple[str, ...]:
    return tuple(w.name for w in workers if not w.deleting and (w.lingering or not w.finished))


def workers_still_ending(observed: Observed, status: TrainingRunStatus) -> list[Worker]:
    """Workers of attempts that are over, which may still be saving their last step.

    Nobody can confirm the end of those on a lost node, and some are overdue: they hold up nothing.
    """

    def may_save(worker: Worker) -> bool:
        if worker.finished or worker.host_lost:
            return False
        if not worker.deleting:
            return True
        if worker.gone_by is None:
            return False
        return (observed.now - worker.gone_by).total_seconds() < OVERDUE_SECONDS

    return [w for w in observed.workers if w.attempt <= status.attempt and may_save(w)]


def active_seconds(status: TrainingRunStatus, now: datetime) -> float:
    """Seconds that attempts were active in all, each from when all its pods were scheduled."""
    since = (now - status.active_since).total_seconds() if status.active_since else 0.0
    return status.active_seconds + since


def _seconds_until_ttl(observed: Observed, status: TrainingRunStatus) -> float | None:
    ttl = observed.run.spec.ttl_seconds_after_finished
    if ttl is None or status.completion_time is None:
        return None
    return ttl - (observed.now - status.completion_time).total_seconds()


def _parse_final_report(text: str) -> ProgressReport | None:
    try:
        return parse_known(ProgressReport, json.loads(text))
    except ValueError:
        return None
