"""The decision: what a run's status should read and what to do next. Pure: no clock, no network.

Every path returns a Plan made only from what was observed. Decisions that must happen once (begin
an attempt, count a restart) are written to the status before they are acted on, so a crash
anywhere is mended by deciding again.
"""

from datetime import datetime, timedelta

from pydantic import ValidationError

from trainyard_api.progress import ProgressReport
from trainyard_api.status import FINISHED, Attempt, Phase, TrainingRunStatus
from trainyard_operator.failures import Failure, explain, gone, root_cause
from trainyard_operator.observed import Observed, Worker
from trainyard_operator.pending import Waiting, waiting_for
from trainyard_operator.plan import Plan, RunEvent, WorkerKey, worker_name
from trainyard_operator.status import (
    add_attempt,
    apply_report,
    current_attempt,
    duration_text,
    set_condition,
    stop_rates,
)

POLL_RUNNING = 5.0  # seconds between looks at rank 0's report
POLL_STARTING = 1.0
# A rank that lost its peer is heard at once, the peer's own story (a lost node above all) later:
# wait this long for it before calling the network the cause.
SETTLE_SECONDS = 40.0


def reconcile(observed: Observed) -> Plan:
    """Decide about one run."""
    run = observed.run
    status = run.status.model_copy(deep=True)
    if run.metadata.deletion_timestamp is not None:
        return Plan(status)  # ownerReferences clean up
    status.observed_generation = run.metadata.generation
    if status.phase in FINISHED:
        return _finished(observed, status)
    if run.spec.suspend:
        return _suspend(observed, status)
    if status.attempt == 0 or status.phase == "Suspended":
        status.active_since = observed.now
        return _begin(observed, status, run.spec.num_nodes)
    if _active_seconds(status, observed.now) > (run.spec.active_deadline_seconds or float("inf")):
        limit = run.spec.active_deadline_seconds
        return _fail(
            observed, status, "DeadlineExceeded", f"active for more than {limit} s", "Failed"
        )
    if status.next_attempt_time is not None:
        wait = (status.next_attempt_time - observed.now).total_seconds()
        if wait > 0:
            return Plan(status, delete=_stale(observed, status), requeue_after=wait)
        return _begin(observed, status, _next_size(observed, status))
    return _drive(observed, status)


def _drive(observed: Observed, status: TrainingRunStatus) -> Plan:
    """The current attempt: create what is missing, see how it goes."""
    run = observed.run
    gang = [worker for worker in observed.workers if worker.attempt == status.attempt]
    there = {worker.node for worker in gang}
    missing = [node for node in range(status.nodes) if node not in there]

    attempt = current_attempt(status)
    if attempt and attempt.wanted_nodes != run.spec.num_nodes:
        text = f"numNodes changed from {attempt.wanted_nodes} to {run.spec.num_nodes}"
        _end_attempt(status, observed.now, "Resized", "Resized", text)
        return _begin(observed, status, run.spec.num_nodes)

    failure, settle = _failure(observed, status, gang, missing)
    if failure:
        return _attempt_failed(observed, status, failure)
    if not missing and gang and all(worker.phase == "Succeeded" for worker in gang):
        return _succeed(observed, status, gang)

    if observed.report and observed.report.attempt == status.attempt:
        apply_report(status, observed.report)
    if missing and not status.created:
        keys = tuple(WorkerKey(status.attempt, node) for node in missing)
        return Plan(
            status,
            delete=_stale(observed, status),
            create=keys,
            nodes=status.nodes,
            requeue_after=POLL_STARTING,
        )
    status.created = True
    if settle is not None:
        return Plan(status, delete=_stale(observed, status), requeue_after=settle)
    if any(worker.phase == "Pending" for worker in gang):
        return _pending(observed, status, gang)
    return _running(observed, status)


def _failure(
    observed: Observed, status: TrainingRunStatus, gang: list[Worker], missing: list[int]
) -> tuple[Failure | None, float | None]:
    """The gang's root cause, or seconds to wait until it can be told from its consequences."""
    found = [
        failure
        for worker in gang
        if (failure := explain(worker, host_lost=worker.host in observed.lost_hosts))
    ]
    if status.created:
        names = (worker_name(observed.run.name, status.attempt, node) for node in missing)
        found += [gone(name) for name in names]
    cause = root_cause(found)
    if cause is None or cause.reason not in ("PeerLost", "Unknown"):
        return cause, None
    ended = [worker.finished_at for worker in gang if worker.phase == "Failed"]
    known = [when for when in ended if when is not None]
    if all(worker.finished for worker in gang) or not known:
        return cause, None
    left = SETTLE_SECONDS - (observed.now - min(known)).total_seconds()
    return (None, min(left, POLL_STARTING)) if left > 0 else (cause, None)


def _pending(observed: Observed, status: TrainingRunStatus, gang: list[Worker]) -> Plan:
    waiting = waiting_for(gang, status.nodes)
    if waiting.hopeless:
        return _fail(observed, status, waiting.reason, waiting.message, "Failed")
    scheduled = not any(worker.unschedulable for worker in gang)
    set_condition(status, "Scheduled", scheduled, waiting.reason, waiting.message, observed.now)
    if _past_start_deadline(observed, status):
        return _start_deadline(observed, status, gang, waiting)
    events = _phase(observed, status, "Pending", waiting.reason, waiting.message)
    return Plan(status, events, delete=_stale(observed, status), requeue_after=POLL_RUNNING)


def _start_deadline(
    observed: Observed, status: TrainingRunStatus, gang: list[Worker], waiting: Waiting
) -> Plan:
    limit = observed.run.spec.start_deadline_seconds
    message = f"not started within {limit} s: {waiting.message}"
    if not waiting.give_back:
        return _fail(observed, status, waiting.reason, message, "Failed")
    placed = sum(not worker.unschedulable for worker in gang)
    _end_attempt(status, observed.now, "GivenBack", "Unschedulable", message)
    attempt = status.attempts[-1]
    attempt.nodes = placed  # an elastic run may go on with as many
    given_back = 0
    for record in reversed(status.attempts):
        if record.outcome != "GivenBack":
            break
        given_back += 1
    return _wait_for_next(observed, status, given_back, "GivenBack", message)


def _running(observed: Observed, status: TrainingRunStatus) -> Plan:
    """Every container runs: Starting until every rank has joined, then Running."""
    run, now = observed.run, observed.now
    ranks = status.nodes * run.nproc
    set_condition(status, "Scheduled", True, "Scheduled", "every pod has its node", now)
    report = observed.report if _is_current(observed, status) else None
    joined = report.ranks_joined if report else 0
    if run.spec.command:
        # The user's own script makes no report: that its containers run is all we can know.
        return _is_running(observed, status, "PodsRunning", "progress unknown: no report")
    if joined == ranks or status.phase == "Running":
        status.world_size = ranks
        doing = report.phase.capitalize() if report else status.reason
        return _is_running(observed, status, doing, report.message if report else "")
    if report is None:
        message = "waiting for rank 0's report"
    else:
        message = report.message or f"{joined} of {ranks} ranks have joined"
    if _past_start_deadline(observed, status):
        limit = run.spec.start_deadline_seconds
        text = f"ranks didn't join within {limit} s: {message}"
        return _attempt_failed(observed, status, Failure("StartTimeout", text, True, 6))
    events = _phase(observed, status, "Starting", "Joining", message)
    return Plan(status, events, delete=_stale(observed, status), requeue_after=POLL_STARTING)


def _is_running(observed: Observed, status: TrainingRunStatus, reason: str, message: str) -> Plan:
    text = f"attempt {status.attempt} trains on {status.nodes * observed.run.nproc} ranks"
    set_condition(status, "Running", True, "Running", text, observed.now)
    events = _phase(observed, status, "Running", reason, message, text)
    return Plan(status, events, delete=_stale(observed, status), requeue_after=POLL_RUNNING)


def _begin(observed: Observed, status: TrainingRunStatus, nodes: int) -> Plan:
    """Start the next attempt with `nodes` workers."""
    run, now = observed.run, observed.now
    number = status.attempt + 1
    status.start_time = status.start_time or now
    status.next_attempt_time = None
    status.created = False
    status.nodes = nodes
    status.world_size = None
    stop_rates(status)
    add_attempt(
        status,
        Attempt(number=number, start_time=now, nodes=nodes, wanted_nodes=run.spec.num_nodes),
    )
    set_condition(status, "Running", False, "Starting", f"attempt {number} is starting", now)
    set_condition(status, "Suspended", False, "Resumed", "", now)
    plural = "" if nodes == 1 else "s"
    message = f"attempt {number}: creating {nodes} pod{plural}"
    status.phase, status.reason, status.message = "Pending", "Creating", message
    return Plan(
        status,
        events=(RunEvent("Normal", "AttemptStarted", message, f"{number}-started"),),
        delete=_stale(observed, status),
        create=tuple(WorkerKey(number, node) for node in range(nodes)),
        nodes=nodes,
        requeue_after=POLL_STARTING,
    )


def _attempt_failed(observed: Observed, status: TrainingRunStatus, failure: Failure) -> Plan:
    """End the attempt; try again if that can help and is still allowed."""
    if observed.report and observed.report.attempt == status.attempt:
        apply_report(status, observed.report)
    _end_attempt(status, observed.now, "Failed", failure.reason, failure.message, failure)
    limit = observed.run.spec.max_restarts
    if not failure.retryable:
        return _fail(observed, status, failure.reason, failure.message, "Failed")
    if status.restarts >= limit:
        message = f"{failure.message} (maxRestarts {limit} reached)"
        return _fail(observed, status, failure.reason, message, "Failed")
    status.restarts += 1
    return _wait_for_next(observed, status, status.restarts, failure.reason, failure.message)


def _wait_for_next(
    observed: Observed, status: TrainingRunStatus, tries: int, reason: str, message: str
) -> Plan:
    backoff = observed.run.spec.backoff
    # Beyond 2**20 the cap has long been reached; this only keeps the number small.
    wait = min(backoff.initial_seconds * 2 ** min(tries - 1, 20), backoff.max_seconds)
    status.next_attempt_time = observed.now + timedelta(seconds=wait)
    stop_rates(status)
    set_condition(status, "Running", False, reason, message, observed.now)
    text = f"{message}; attempt {status.attempt + 1} starts in {wait} s"
    status.phase, status.reason, status.message = "Restarting", reason, text
    event = RunEvent(
        "Warning", reason, f"attempt {status.attempt}: {text}", f"{status.attempt}-end"
    )
    return Plan(
        status,
        (event,),
        delete=_active(observed.workers),
        requeue_after=max(wait, 0.1),
    )


def _suspend(observed: Observed, status: TrainingRunStatus) -> Plan:
    if status.phase == "Suspended":
        return Plan(status, delete=_active(observed.workers))
    now = observed.now
    if status.attempt and current_attempt(status) and status.attempts[-1].outcome is None:
        _end_attempt(status, now, "Suspended", "Suspended", "spec.suspend is true")
    status.active_seconds = round(_active_seconds(status, now))
    status.active_since = None
    status.next_attempt_time = None
    stop_rates(status)
    message = "spec.suspend is true; set it to false to go on from the newest checkpoint"
    set_condition(status, "Suspended", True, "Suspended", message, now)
    set_condition(status, "Running", False, "Suspended", message, now)
    status.phase, status.reason, status.message = "Suspended", "Suspended", message
    event = RunEvent("Normal", "Suspended", message, f"{status.attempt}-suspended")
    return Plan(status, (event,), delete=_active(observed.workers))


def _succeed(observed: Observed, status: TrainingRunStatus, gang: list[Worker]) -> Plan:
    first = next(worker for worker in gang if worker.node == 0)
    report = _final_report(first.last_words) or observed.report
    if report and report.attempt == status.attempt:
        apply_report(status, report)
    stop_rates(status)
    now = observed.now
    _end_attempt(status, now, "Succeeded", "Succeeded", "")
    status.completion_time = now
    took = duration_text((now - (status.start_time or now)).total_seconds())
    restarts = f", {status.restarts} restarts" if status.restarts else ""
    message = f"finished in {took}{restarts}"
    set_condition(status, "Succeeded", True, "Succeeded", message, now)
    set_condition(status, "Running", False, "Succeeded", message, now)
    status.phase, status.reason, status.message = "Succeeded", "Succeeded", message
    event = RunEvent("Normal", "Succeeded", message, "succeeded")
    return Plan(status, (event,), requeue_after=_until_ttl(observed, status))


def _fail(
    observed: Observed, status: TrainingRunStatus, reason: str, message: str, outcome: Phase
) -> Plan:
    """The run has failed for good; its finished pods stay for their logs."""
    now = observed.now
    attempt = current_attempt(status)
    if attempt and attempt.outcome is None:
        _end_attempt(status, now, "Failed", reason, message)
    stop_rates(status)
    status.next_attempt_time = None
    status.completion_time = now
    set_condition(status, "Failed", True, reason, message, now)
    set_condition(status, "Running", False, reason, message, now)
    status.phase, status.reason, status.message = outcome, reason, message
    event = RunEvent("Warning", "Failed", f"{reason}: {message}", "failed")
    return Plan(
        status,
        (event,),
        delete=_active(observed.workers),
        requeue_after=_until_ttl(observed, status),
    )


def _finished(observed: Observed, status: TrainingRunStatus) -> Plan:
    """Nothing runs twice: only stragglers are removed, and in time the run itself."""
    left = _until_ttl(observed, status)
    return Plan(
        status,
        delete=_active(observed.workers),
        delete_run=left is not None and left <= 0,
        requeue_after=left if left is not None and left > 0 else None,
    )


def _end_attempt(
    status: TrainingRunStatus,
    now: datetime,
    outcome: str,
    reason: str,
    message: str,
    failure: Failure | None = None,
) -> None:
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
        }
    )


def _phase(
    observed: Observed,
    status: TrainingRunStatus,
    phase: Phase,
    reason: str,
    message: str,
    event: str = "",
) -> tuple[RunEvent, ...]:
    """Move to `phase`; an event only when phase or, while pending, the reason is new."""
    changed = status.phase != phase or (phase == "Pending" and status.reason != reason)
    status.phase, status.reason, status.message = phase, reason, message
    if not changed:
        return ()
    kind = "Warning" if phase == "Pending" and reason not in ("Creating",) else "Normal"
    name = reason if phase == "Pending" else phase
    key = f"{status.attempt}-{phase}-{reason if phase == 'Pending' else ''}".lower().strip("-")
    text = f"attempt {status.attempt}: {message}" if not event else event
    return (RunEvent(kind, name, text, key),)


def _next_size(observed: Observed, status: TrainingRunStatus) -> int:
    """Nodes of the next attempt: numNodes, or fewer if elastic and that many weren't to be had."""
    spec = observed.run.spec
    last = status.attempts[-1] if status.attempts else None
    if spec.elastic and last and last.outcome == "GivenBack" and last.nodes:
        return max(spec.elastic.min_nodes, min(last.nodes, spec.num_nodes))
    return spec.num_nodes


def _stale(observed: Observed, status: TrainingRunStatus) -> tuple[str, ...]:
    """Workers of other attempts that still hold places, and finished ones two attempts old.

    The previous attempt's finished pods stay: their logs say what went wrong.
    """
    others = [worker for worker in observed.workers if worker.attempt != status.attempt]
    old = [w.name for w in others if w.finished and w.attempt < status.attempt - 1]
    return (*_active(others), *old)


def _active(workers: tuple[Worker, ...] | list[Worker]) -> tuple[str, ...]:
    return tuple(w.name for w in workers if not w.finished and not w.deleting)


def _is_current(observed: Observed, status: TrainingRunStatus) -> bool:
    return observed.report is not None and observed.report.attempt == status.attempt


def _past_start_deadline(observed: Observed, status: TrainingRunStatus) -> bool:
    attempt = current_attempt(status)
    if attempt is None or status.phase == "Running":
        return False
    waited = (observed.now - attempt.start_time).total_seconds()
    return waited > observed.run.spec.start_deadline_seconds


def _active_seconds(status: TrainingRunStatus, now: datetime) -> float:
    since = (now - status.active_since).total_seconds() if status.active_since else 0.0
    return status.active_seconds + since


def _until_ttl(observed: Observed, status: TrainingRunStatus) -> float | None:
    ttl = observed.run.spec.ttl_seconds_after_finished
    if ttl is None or status.completion_time is None:
        return None
    return ttl - (observed.now - status.completion_time).total_seconds()


def _final_report(words: str) -> ProgressReport | None:
    try:
        return ProgressReport.model_validate_json(words)
    except ValidationError:
        return None
