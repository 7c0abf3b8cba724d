"""The decision: what a run's status should read and what to do next. Pure: no clock, no network.

Every path returns a Plan made only from what was observed. Decisions that must happen once (start
an attempt, count a restart) are written to the status before they are acted on, so that deciding
again repairs a crash anywhere.
"""

from dataclasses import replace

from trainyard_api.labels import RETRY
from trainyard_api.progress import ProgressReport
from trainyard_api.status import FINISHED, Phase, TrainingRunStatus
from trainyard_lifecycle.collectives import find_missing
from trainyard_lifecycle.diagnosis import (
    MAX_MESSAGE,
    Failure,
    diagnose_failure,
    find_root_cause,
    missing_worker_failure,
    shorten,
    start_timeout_failure,
)
from trainyard_lifecycle.pending import (
    diagnose_pending,
    overdue,
    record_progress,
)
from trainyard_lifecycle.plan import Event, Observed, Plan, Worker, WorkerKey, worker_name
from trainyard_lifecycle.policy import pods_digest, request_to_continue
from trainyard_lifecycle.status import apply_report, current_attempt, format_count, set_condition
from trainyard_lifecycle.transitions import (
    POLL_STARTING,
    active_seconds,
    clean_up_finished,
    complete_run,
    continue_run,
    end_attempt,
    fail_attempt,
    fail_run,
    leftover_workers,
    next_attempt_nodes,
    note_spec,
    replace_pending,
    resize_run,
    schedule_retry,
    stale_workers,
    start_attempt,
    suspend_run,
    workers_still_ending,
)

NO_REPORT = "progress unknown: no report"
MISSING_SECONDS = 30.0  # without a report, until the run's progress counts as unknown
POLL_RUNNING = 5.0  # seconds between readings of rank 0's report
# A rank that lost its peer fails at once, while evidence of what happened to the peer (above all a
# lost node) arrives later: wait this long for it before blaming the network, or a rank that hangs.
# Kubernetes gives a node up 50 to 55 s after its last heartbeat, and we list nodes every 5 s.
ROOT_CAUSE_SECONDS = 65.0
RETRY_CLAIM = 30.0  # seconds until the claim's owner is changed again, where that was refused
# For so long a gang whose pods are not all accepted (a quota, a webhook) keeps those that are.
PARTIAL_SECONDS = 30.0


def reconcile(observed: Observed) -> Plan:
    """Decide about one run."""
    plan = _with_claim(observed, _decide(observed))
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
    if any(c.type == "Unsupported" and c.status == "True" for c in status.conditions):
        set_condition(status, "Unsupported", False, "Supported", "", now)
    if status.phase in FINISHED:
        why = request_to_continue(run, status)
        if why is not None and workers_still_ending(observed, status):
            return _wait_for_workers(observed, status, why)
        status.observed_generation = run.metadata.generation
        if why is None:
            return clean_up_finished(observed, status)
        status.retried = run.metadata.annotations.get(RETRY, "")
        return continue_run(observed, status, why)
    status.observed_generation = run.metadata.generation
    if run.spec.suspend:
        return suspend_run(observed, status)
    asked_again = run.metadata.annotations.get(RETRY, "") != status.retried
    status.retried = run.metadata.annotations.get(RETRY, "")
    if status.attempt == 0 or status.phase == "Suspended":
        return _start_next(observed, status, run.spec.num_nodes)
    limit = run.spec.active_deadline_seconds
    if limit is not None and active_seconds(status, now) > limit:
        message = f"active for more than {limit} s: raise activeDeadlineSeconds to continue"
        return fail_run(observed, status, "DeadlineExceeded", message)
    if status.next_attempt_time is None:
        return _reconcile_attempt(observed, status)
    wait = (status.next_attempt_time - now).total_seconds()
    if wait > 0 and not asked_again:
        return Plan(status, delete=leftover_workers(observed, status), requeue_after=wait)
    return _start_next(observed, status, next_attempt_nodes(observed, status))


def _with_claim(observed: Observed, plan: Plan) -> Plan:
    """The plan, with a changed storage.whenDeleted carried out.

    The status says Changing from before the claim is changed until after: a crash between any two
    steps, or a change back in the meantime, only has the claim looked at again.
    """
    run, status = observed.run, plan.status
    wanted, done = run.when_deleted, run.status.when_deleted
    if run.metadata.deletion_timestamp is not None or status.attempt == 0:
        return plan
    # A new claim is made as the spec says. Of one that an older version made it isn't known what it
    # follows; a run may use one that an earlier run left, and never begins to own it by itself.
    if run.status.attempt == 0 or wanted == done or (done is None and wanted == "Delete"):
        status.when_deleted = wanted
        return plan
    status.when_deleted = "Changing"
    again = RETRY_CLAIM if plan.requeue_after is None else plan.requeue_after
    if plan.delete_run:  # not before the claim is out of the garbage collector's reach
        again = POLL_STARTING
    return replace(plan, claim=wanted, delete_run=False, requeue_after=again)


def _start_next(observed: Observed, status: TrainingRunStatus, nodes: int) -> Plan:
    """Start an attempt, once the workers of the last one have had their time to save."""
    if not workers_still_ending(observed, status):
        return start_attempt(observed, status, nodes)
    if status.phase == "Restarting":  # the time has come, also where it was brought forward
        status.next_attempt_time = observed.now
    return _wait_for_workers(observed, status, status.attempts[-1].message)


def _wait_for_workers(observed: Observed, status: TrainingRunStatus, why: str) -> Plan:
    """Let the workers of the last attempt end, and say so. `why`: there is a next one."""
    ending = format_count(len(workers_still_ending(observed, status)), "worker")
    text = f"attempt {status.attempt + 1} starts when the last one has ended: {ending} left"
    status.message = f"{why}; {text}" if why else text
    return Plan(status, delete=leftover_workers(observed, status), requeue_after=POLL_STARTING)


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
        return resize_run(observed, status, text)
    waiting = missing or any(worker.phase == "Pending" for worker in gang)
    if attempt and waiting and attempt.pods_digest not in ("", pods_digest(run.spec)):
        if gang:
            return replace_pending(observed, status)
        note_spec(attempt, run)

    if report := observed.report_of(status.attempt):
        apply_report(status, report)
    if missing:  # and not all were created before, else it would be a failure
        return _create_missing(observed, status, gang, missing)
    status.created = True
    if failure and wait is not None:
        status.message = failure.message
        return Plan(status, delete=stale_workers(observed, status), requeue_after=wait)
    if any(worker.phase == "Pending" for worker in gang):
        return _reconcile_pending(observed, status, gang)
    return _reconcile_started(observed, status, gang)


def _create_missing(
    observed: Observed, status: TrainingRunStatus, gang: list[Worker], missing: list[int]
) -> Plan:
    attempt = current_attempt(status)
    late = attempt and overdue(attempt, observed.run.spec, observed.now, queued=False)
    if attempt and late:
        return _give_back(observed, status, attempt.nodes, f"{late}: {status.message}")
    # The executor wrote why it could not create them.
    if attempt and gang and status.reason == "Rejected":
        age = (observed.now - attempt.start_time).total_seconds()
        if age > PARTIAL_SECONDS:
            what = f"{len(gang)} of {status.nodes} workers could be created"
            return _give_back(observed, status, len(gang), f"{what}: {status.message}")
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
    failures = [failure for worker in gang if (failure := diagnose_failure(worker))]
    if status.created:
        names = (worker_name(observed.run.name, status.attempt, node) for node in missing)
        failures += [missing_worker_failure(name) for name in names]
    hang = find_missing(gang, status.nodes * observed.run.nproc)
    if failures and hang:
        failures.append(hang)
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
    attempt = current_attempt(status)
    if attempt:
        record_progress(attempt, gang, observed.now)
        status.active_since = attempt.scheduled_time
        queued = any(worker.gated for worker in gang)
        late = overdue(attempt, observed.run.spec, observed.now, queued)
        if late and queued:
            return fail_run(observed, status, "QueueTimeout", f"{late}: {pending.message}")
        if late:
            nodes = sum(worker.scheduled for worker in gang)
            return _give_back(observed, status, nodes, f"{late}: {pending.message}")
    scheduled = all(worker.scheduled for worker in gang)
    set_condition(status, "Scheduled", scheduled, pending.reason, pending.message, observed.now)
    events = _set_phase(status, "Pending", pending.reason, pending.message)
    return Plan(status, events, delete=stale_workers(observed, status), requeue_after=POLL_RUNNING)


def _give_back(observed: Observed, status: TrainingRunStatus, nodes: int, message: str) -> Plan:
    """End an attempt that could not start, and try again later: meanwhile it holds no places.

    `nodes`: how many found a place; an elastic run may continue with as many.
    """
    end_attempt(status, observed.now, "GivenBack", "GivenBack", message)
    status.attempts[-1].nodes = nodes
    given_back = 0
    for record in reversed(status.attempts):
        if record.outcome != "GivenBack":
            break
        given_back += 1
    return schedule_retry(observed, status, given_back, "GivenBack", message)


def _reconcile_started(observed: Observed, status: TrainingRunStatus, gang: list[Worker]) -> Plan:
    """Every container runs: Starting until every rank has joined, then Running."""
    run, now = observed.run, observed.now
    attempt = current_attempt(status)
    if attempt:
        record_progress(attempt, gang, now)
        status.active_since = attempt.scheduled_time
    ranks = status.nodes * run.nproc
    set_condition(status, "Scheduled", True, "Scheduled", "every worker is scheduled", now)
    report = observed.report_of(status.attempt)
    joined = report.ranks_joined if report else 0
    if run.spec.command:
        if report:
            _note_missing_report(observed, status, late=False)
            status.world_size = ranks
            return _mark_script(observed, status, report)
        # All that is known of a script that reports nothing is that its containers run.
        unknown = ""
        if observed.report_error:
            unknown = _note_missing_report(observed, status, late=False)
        return _mark_running(observed, status, "PodsRunning", unknown or NO_REPORT)
    late = attempt and overdue(attempt, run.spec, now, queued=False)
    unknown = _note_missing_report(observed, status, late=bool(late))
    if joined == ranks or status.phase == "Running":
        status.world_size = ranks
        reason = report.phase.capitalize() if report else status.reason
        return _mark_running(observed, status, reason, report.message if report else unknown)
    if report is None and late:
        # Unreachable is not dead: torchrun ends a worker whose peers never come.
        return _mark_running(observed, status, "ProgressUnknown", unknown)
    if report is None:
        message = "waiting for rank 0's report"
    else:
        message = report.message or f"{joined} of {ranks} ranks have joined"
    if late:
        return fail_attempt(observed, status, start_timeout_failure(f"{late}: {message}"))
    events = _set_phase(status, "Starting", "Joining", message)
    return Plan(status, events, delete=stale_workers(observed, status), requeue_after=POLL_STARTING)


def _mark_script(observed: Observed, status: TrainingRunStatus, report: ProgressReport) -> Plan:
    """A script that reports, or whose agent has found a hang."""
    hang = shorten(report.hang, MAX_MESSAGE)
    old = next((c for c in status.conditions if c.type == "Hanging"), None)
    was_hanging = old is not None and old.status == "True"
    if hang or old:
        reason = "Hang" if hang else "Progressing"
        set_condition(status, "Hanging", bool(hang), reason, hang, observed.now)
    if hang:
        plan = _mark_running(observed, status, "Hang", hang)
        if was_hanging:
            return plan
        key = f"{status.attempt}-hang-{observed.now:%Y%m%d%H%M%S}"
        event = Event("Warning", "Hang", f"attempt {status.attempt}: {hang}", key)
        return replace(plan, events=(*plan.events, event))
    if report.step is None and report.progress_percent is None:
        return _mark_running(observed, status, "PodsRunning", NO_REPORT)
    return _mark_running(observed, status, report.phase.capitalize(), report.message)


def _note_missing_report(observed: Observed, status: TrainingRunStatus, *, late: bool) -> str:
    """Keep the condition ProgressUnknown; returns its message while it is true, else "".

    One unanswered request changes nothing: first the condition is Unknown, later True.
    """
    now = observed.now
    old = next((c for c in status.conditions if c.type == "ProgressUnknown"), None)
    if observed.report_of(status.attempt):
        if old:
            set_condition(status, "ProgressUnknown", False, "Reported", "", now)
        return ""
    if status.phase != "Running" and not late:
        return ""
    since = old.last_transition_time if old and old.status != "False" else None
    missed = (now - since).total_seconds() if since else 0.0
    message = "rank 0's report can't be fetched"
    if observed.report_error:
        message = f"{message}: {observed.report_error}"
    if observed.run.spec.command:
        message += "; progress of a script needs the agent, which needs Python 3.8 in the image"
    known: bool | None = True if late or missed >= MISSING_SECONDS else None
    if old and old.status == "True":
        known = True
    set_condition(status, "ProgressUnknown", known, "NoReport", message, now)
    return message if known else ""


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
