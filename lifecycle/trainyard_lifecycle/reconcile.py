"""The decision: what a run's status should read and what to do next. Pure: no clock, no network.

Every path returns a Plan made only from what was observed. Decisions that must happen once (start
an attempt, count a restart) are written to the status before they are acted on, so that deciding
again repairs a crash anywhere.
"""

from dataclasses import replace

from trainyard_api.status import FINISHED, Phase, TrainingRunStatus
from trainyard_lifecycle.diagnosis import (
    Failure,
    PendingReason,
    diagnose_failure,
    diagnose_pending,
    find_root_cause,
    missing_worker_failure,
    start_timeout_failure,
)
from trainyard_lifecycle.plan import Event, Observed, Plan, Worker, WorkerKey, worker_name
from trainyard_lifecycle.status import apply_report, current_attempt, format_count, set_condition
from trainyard_lifecycle.transitions import (
    POLL_STARTING,
    active_seconds,
    clean_up_finished,
    complete_run,
    end_attempt,
    fail_attempt,
    fail_run,
    next_attempt_nodes,
    schedule_retry,
    stale_workers,
    start_attempt,
    suspend_run,
)

POLL_RUNNING = 5.0  # seconds between readings of rank 0's report
# A rank that lost its peer fails at once, while evidence of what happened to the peer (above all a
# lost node) arrives later: wait this long for it before blaming the network, or a rank that hangs.
# Kubernetes gives a node up 50 to 55 s after its last heartbeat, and we list nodes every 5 s.
ROOT_CAUSE_SECONDS = 65.0


def reconcile(observed: Observed) -> Plan:
    """Decide about one run."""
    plan = _decide(observed)
    limit = observed.run.spec.active_deadline_seconds
    if limit is None or plan.requeue_after is None or plan.status.active_since is None:
        return plan
    left = max(0.0, limit - active_seconds(plan.status, observed.now))
    return replace(plan, requeue_after=min(plan.requeue_after, left + 0.1))


def _decide(observed: Observed) -> Plan:
    run, now = observed.run, observed.now
    status = run.status.model_copy(deep=True)
    if run.metadata.deletion_timestamp is not None:
        return Plan(status)  # ownerReferences clean up
    status.observed_generation = run.metadata.generation
    if status.phase in FINISHED:
        return clean_up_finished(observed, status)
    if run.spec.suspend:
        return suspend_run(observed, status)
    if status.attempt == 0 or status.phase == "Suspended":
        status.active_since = now
        return start_attempt(observed, status, run.spec.num_nodes)
    limit = run.spec.active_deadline_seconds
    if limit is not None and active_seconds(status, now) > limit:
        return fail_run(observed, status, "DeadlineExceeded", f"active for more than {limit} s")
    if status.next_attempt_time is None:
        return _reconcile_attempt(observed, status)
    wait = (status.next_attempt_time - now).total_seconds()
    if wait > 0:
        return Plan(status, delete=stale_workers(observed, status), requeue_after=wait)
    return start_attempt(observed, status, next_attempt_nodes(observed, status))


def _reconcile_attempt(observed: Observed, status: TrainingRunStatus) -> Plan:
    """Move the current attempt on: end it if it failed or succeeded, create missing workers."""
    run = observed.run
    gang = [worker for worker in observed.workers if worker.attempt == status.attempt]
    existing = {worker.node for worker in gang}
    missing = [node for node in range(status.nodes) if node not in existing]

    failure, wait = _find_failure(observed, status, gang, missing)
    if failure and wait is None:
        return fail_attempt(observed, status, failure)
    if not missing and gang and all(worker.phase == "Succeeded" for worker in gang):
        return complete_run(observed, status, gang)
    attempt = current_attempt(status)
    if attempt and attempt.wanted_nodes != run.spec.num_nodes:
        text = f"numNodes changed from {attempt.wanted_nodes} to {run.spec.num_nodes}"
        end_attempt(status, observed.now, "Resized", "Resized", text)
        return start_attempt(observed, status, run.spec.num_nodes)

    if report := observed.report_of(status.attempt):
        apply_report(status, report)
    if missing:  # and not all were created before, else it would be a failure
        return _create_missing(observed, status, missing)
    status.created = True
    if failure and wait is not None:
        status.message = failure.message
        return Plan(status, delete=stale_workers(observed, status), requeue_after=wait)
    if any(worker.phase == "Pending" for worker in gang):
        return _reconcile_pending(observed, status, gang)
    return _reconcile_started(observed, status)


def _create_missing(observed: Observed, status: TrainingRunStatus, missing: list[int]) -> Plan:
    if _is_past_start_deadline(observed, status):
        limit = observed.run.spec.start_deadline_seconds
        message = f"not created within {limit} s: {status.message}"
        return fail_run(observed, status, status.reason or "Creating", message)
    return Plan(
        status,
        delete=stale_workers(observed, status),
        create=tuple(WorkerKey(status.attempt, node) for node in missing),
        nodes=status.nodes,
        requeue_after=POLL_STARTING,
    )


def _find_failure(
    observed: Observed, status: TrainingRunStatus, gang: list[Worker], missing: list[int]
) -> tuple[Failure | None, float | None]:
    """The gang's root cause, and seconds to wait while it may turn out to be a consequence."""
    failures = [
        failure
        for worker in gang
        if (failure := diagnose_failure(worker, host_lost=worker.host in observed.lost_hosts))
    ]
    if status.created:
        names = (worker_name(observed.run.name, status.attempt, node) for node in missing)
        failures += [missing_worker_failure(name) for name in names]
    cause = find_root_cause(failures)
    if cause is None or cause.reason not in ("PeerLost", "Hang", "Unknown"):
        return cause, None
    ended = [worker.finished_at for worker in gang if worker.phase == "Failed"]
    known = [when for when in ended if when is not None]
    if all(worker.finished for worker in gang) or not known:
        return cause, None
    left = ROOT_CAUSE_SECONDS - (observed.now - min(known)).total_seconds()
    return cause, min(left, POLL_STARTING) if left > 0 else None


def _reconcile_pending(observed: Observed, status: TrainingRunStatus, gang: list[Worker]) -> Plan:
    pending = diagnose_pending(gang, status.nodes)
    if pending.permanent:
        return fail_run(observed, status, pending.reason, pending.message)
    scheduled = not any(worker.unschedulable for worker in gang)
    set_condition(status, "Scheduled", scheduled, pending.reason, pending.message, observed.now)
    if _is_past_start_deadline(observed, status):
        return _end_pending_attempt(observed, status, gang, pending)
    events = _set_phase(status, "Pending", pending.reason, pending.message)
    return Plan(status, events, delete=stale_workers(observed, status), requeue_after=POLL_RUNNING)


def _end_pending_attempt(
    observed: Observed, status: TrainingRunStatus, gang: list[Worker], pending: PendingReason
) -> Plan:
    limit = observed.run.spec.start_deadline_seconds
    message = f"not started within {limit} s: {pending.message}"
    if not pending.retryable:
        return fail_run(observed, status, pending.reason, message)
    end_attempt(status, observed.now, "GivenBack", "Unschedulable", message)
    # An elastic run may continue with as many.
    status.attempts[-1].nodes = sum(not worker.unschedulable for worker in gang)
    given_back = 0
    for record in reversed(status.attempts):
        if record.outcome != "GivenBack":
            break
        given_back += 1
    return schedule_retry(observed, status, given_back, "GivenBack", message)


def _reconcile_started(observed: Observed, status: TrainingRunStatus) -> Plan:
    """Every container runs: Starting until every rank has joined, then Running."""
    run, now = observed.run, observed.now
    ranks = status.nodes * run.nproc
    set_condition(status, "Scheduled", True, "Scheduled", "every worker is scheduled", now)
    report = observed.report_of(status.attempt)
    joined = report.ranks_joined if report else 0
    if run.spec.command:
        # The user's own script reports nothing: all we can know is that its containers run.
        return _mark_running(observed, status, "PodsRunning", "progress unknown: no report")
    if joined == ranks or status.phase == "Running":
        status.world_size = ranks
        reason = report.phase.capitalize() if report else status.reason
        return _mark_running(observed, status, reason, report.message if report else "")
    if report is None:
        message = "waiting for rank 0's report"
    else:
        message = report.message or f"{joined} of {ranks} ranks have joined"
    if _is_past_start_deadline(observed, status):
        limit = run.spec.start_deadline_seconds
        failure = start_timeout_failure(f"ranks didn't join within {limit} s: {message}")
        return fail_attempt(observed, status, failure)
    events = _set_phase(status, "Starting", "Joining", message)
    return Plan(status, events, delete=stale_workers(observed, status), requeue_after=POLL_STARTING)


def _mark_running(observed: Observed, status: TrainingRunStatus, reason: str, message: str) -> Plan:
    ranks = format_count(status.nodes * observed.run.nproc, "rank")
    text = f"attempt {status.attempt} trains on {ranks}"
    set_condition(status, "Running", True, "Running", text, observed.now)
    events = _set_phase(status, "Running", reason, message, text)
    return Plan(status, events, delete=stale_workers(observed, status), requeue_after=POLL_RUNNING)


def _set_phase(
    status: TrainingRunStatus, phase: Phase, reason: str, message: str, event: str = ""
) -> tuple[Event, ...]:
    """Move to `phase`; an event only when the phase or, while pending, the reason is new."""
    changed = status.phase != phase or (phase == "Pending" and status.reason != reason)
    status.phase, status.reason, status.message = phase, reason, message
    if not changed:
        return ()
    is_warning = phase == "Pending" and reason != "Creating"
    name = reason if phase == "Pending" else phase
    key = f"{status.attempt}-{phase}-{reason if phase == 'Pending' else ''}".lower().strip("-")
    text = event or f"attempt {status.attempt}: {message}"
    return (Event("Warning" if is_warning else "Normal", name, text, key),)


def _is_past_start_deadline(observed: Observed, status: TrainingRunStatus) -> bool:
    attempt = current_attempt(status)
    if attempt is None or status.phase == "Running":
        return False
    waited = (observed.now - attempt.start_time).total_seconds()
    return waited > observed.run.spec.start_deadline_seconds
