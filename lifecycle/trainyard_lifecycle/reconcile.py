"""The decision: what a run's status should read and what to do next. Pure: no clock, no network.

Every path returns a Plan made only from what was observed. Decisions that must happen once (begin
an attempt, count a restart) are written to the status before they are acted on, so a crash
anywhere is mended by deciding again.
"""

from dataclasses import replace
from typing import Literal

from trainyard_api.status import FINISHED, Phase, TrainingRunStatus
from trainyard_lifecycle.failures import Failure, explain, gone, root_cause
from trainyard_lifecycle.observed import Observed, Worker
from trainyard_lifecycle.pending import Waiting, waiting_for
from trainyard_lifecycle.plan import Plan, RunEvent, WorkerKey, worker_name
from trainyard_lifecycle.status import apply_report, counted, current_attempt, set_condition
from trainyard_lifecycle.transitions import (
    POLL_STARTING,
    active_seconds,
    attempt_failed,
    begin,
    end_attempt,
    fail,
    finished,
    next_size,
    stale,
    succeed,
    suspend,
    wait_for_next,
)

POLL_RUNNING = 5.0  # seconds between looks at rank 0's report
# A rank that lost its peer is heard at once, the peer's own story (a lost node above all) later:
# wait this long for it before calling the network, or a rank that hangs, the cause. Kubernetes
# gives a node up 50 to 55 s after its last heartbeat, and we list nodes every 5 s.
SETTLE_SECONDS = 65.0


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
        return finished(observed, status)
    if run.spec.suspend:
        return suspend(observed, status)
    if status.attempt == 0 or status.phase == "Suspended":
        status.active_since = now
        return begin(observed, status, run.spec.num_nodes)
    limit = run.spec.active_deadline_seconds
    if limit is not None and active_seconds(status, now) > limit:
        return fail(observed, status, "DeadlineExceeded", f"active for more than {limit} s")
    if status.next_attempt_time is None:
        return _drive(observed, status)
    wait = (status.next_attempt_time - now).total_seconds()
    if wait > 0:
        return Plan(status, delete=stale(observed, status), requeue_after=wait)
    return begin(observed, status, next_size(observed, status))


def _drive(observed: Observed, status: TrainingRunStatus) -> Plan:
    """The current attempt: see how it goes, create what is missing."""
    run = observed.run
    gang = [worker for worker in observed.workers if worker.attempt == status.attempt]
    there = {worker.node for worker in gang}
    missing = [node for node in range(status.nodes) if node not in there]

    failure, settle = _failure(observed, status, gang, missing)
    if failure and settle is None:
        return attempt_failed(observed, status, failure)
    if not missing and gang and all(worker.phase == "Succeeded" for worker in gang):
        return succeed(observed, status, gang)
    attempt = current_attempt(status)
    if attempt and attempt.wanted_nodes != run.spec.num_nodes:
        text = f"numNodes changed from {attempt.wanted_nodes} to {run.spec.num_nodes}"
        end_attempt(status, observed.now, "Resized", "Resized", text)
        return begin(observed, status, run.spec.num_nodes)

    if observed.report and observed.report.attempt == status.attempt:
        apply_report(status, observed.report)
    if missing:  # and not yet marked created, else it would be a failure
        return _create(observed, status, missing)
    status.created = True
    if failure and settle is not None:
        status.message = failure.message
        return Plan(status, delete=stale(observed, status), requeue_after=settle)
    if any(worker.phase == "Pending" for worker in gang):
        return _pending(observed, status, gang)
    return _running(observed, status)


def _create(observed: Observed, status: TrainingRunStatus, missing: list[int]) -> Plan:
    if _past_start_deadline(observed, status):
        limit = observed.run.spec.start_deadline_seconds
        message = f"not created within {limit} s: {status.message}"
        return fail(observed, status, status.reason or "Creating", message)
    return Plan(
        status,
        delete=stale(observed, status),
        create=tuple(WorkerKey(status.attempt, node) for node in missing),
        nodes=status.nodes,
        requeue_after=POLL_STARTING,
    )


def _failure(
    observed: Observed, status: TrainingRunStatus, gang: list[Worker], missing: list[int]
) -> tuple[Failure | None, float | None]:
    """The gang's root cause, and seconds to wait while it may yet turn out a consequence."""
    found = [
        failure
        for worker in gang
        if (failure := explain(worker, host_lost=worker.host in observed.lost_hosts))
    ]
    if status.created:
        names = (worker_name(observed.run.name, status.attempt, node) for node in missing)
        found += [gone(name) for name in names]
    cause = root_cause(found)
    if cause is None or cause.reason not in ("PeerLost", "Hang", "Unknown"):
        return cause, None
    ended = [worker.finished_at for worker in gang if worker.phase == "Failed"]
    known = [when for when in ended if when is not None]
    if all(worker.finished for worker in gang) or not known:
        return cause, None
    left = SETTLE_SECONDS - (observed.now - min(known)).total_seconds()
    return cause, min(left, POLL_STARTING) if left > 0 else None


def _pending(observed: Observed, status: TrainingRunStatus, gang: list[Worker]) -> Plan:
    waiting = waiting_for(gang, status.nodes)
    if waiting.hopeless:
        return fail(observed, status, waiting.reason, waiting.message)
    scheduled = not any(worker.unschedulable for worker in gang)
    set_condition(status, "Scheduled", scheduled, waiting.reason, waiting.message, observed.now)
    if _past_start_deadline(observed, status):
        return _start_deadline(observed, status, gang, waiting)
    events = _phase(observed, status, "Pending", waiting.reason, waiting.message)
    return Plan(status, events, delete=stale(observed, status), requeue_after=POLL_RUNNING)


def _start_deadline(
    observed: Observed, status: TrainingRunStatus, gang: list[Worker], waiting: Waiting
) -> Plan:
    limit = observed.run.spec.start_deadline_seconds
    message = f"not started within {limit} s: {waiting.message}"
    if not waiting.give_back:
        return fail(observed, status, waiting.reason, message)
    placed = sum(not worker.unschedulable for worker in gang)
    end_attempt(status, observed.now, "GivenBack", "Unschedulable", message)
    attempt = status.attempts[-1]
    attempt.nodes = placed  # an elastic run may go on with as many
    given_back = 0
    for record in reversed(status.attempts):
        if record.outcome != "GivenBack":
            break
        given_back += 1
    return wait_for_next(observed, status, given_back, "GivenBack", message)


def _running(observed: Observed, status: TrainingRunStatus) -> Plan:
    """Every container runs: Starting until every rank has joined, then Running."""
    run, now = observed.run, observed.now
    ranks = status.nodes * run.nproc
    set_condition(status, "Scheduled", True, "Scheduled", "every worker has its node", now)
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
        return attempt_failed(observed, status, Failure("StartTimeout", text, True, 6))
    events = _phase(observed, status, "Starting", "Joining", message)
    return Plan(status, events, delete=stale(observed, status), requeue_after=POLL_STARTING)


def _is_running(observed: Observed, status: TrainingRunStatus, reason: str, message: str) -> Plan:
    text = (
        f"attempt {status.attempt} trains on {counted(status.nodes * observed.run.nproc, 'rank')}"
    )
    set_condition(status, "Running", True, "Running", text, observed.now)
    events = _phase(observed, status, "Running", reason, message, text)
    return Plan(status, events, delete=stale(observed, status), requeue_after=POLL_RUNNING)


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
    kind: Literal["Normal", "Warning"] = (
        "Warning" if phase == "Pending" and reason not in ("Creating",) else "Normal"
    )
    name = reason if phase == "Pending" else phase
    key = f"{status.attempt}-{phase}-{reason if phase == 'Pending' else ''}".lower().strip("-")
    text = event or f"attempt {status.attempt}: {message}"
    return (RunEvent(kind, name, text, key),)


def _is_current(observed: Observed, status: TrainingRunStatus) -> bool:
    return observed.report is not None and observed.report.attempt == status.attempt


def _past_start_deadline(observed: Observed, status: TrainingRunStatus) -> bool:
    attempt = current_attempt(status)
    if attempt is None or status.phase == "Running":
        return False
    waited = (observed.now - attempt.start_time).total_seconds()
    return waited > observed.run.spec.start_deadline_seconds
