"""Decides about a study: which runs to create, and its status. Pure: no clock, no network.

A run's name contains its cell and repeat, and its figures are written to the status before it is
deleted: a crash anywhere loses no measurement and counts none twice. A run that has succeeded but
has no figures of all its steps (it was interrupted, or its last report was lost) says nothing about
its cell: it is deleted, and run again. Repeats are interleaved (every
cell once, then every cell again), so that a machine that slows down affects all cells alike.
"""

from collections.abc import Iterator

from trainyard_api import __version__, labels
from trainyard_api.run import TrainingRun
from trainyard_api.status import FINISHED
from trainyard_api.study_status import CellPhase, CellResult, ScalingStudyStatus
from trainyard_lifecycle.plan import Event
from trainyard_lifecycle.status import format_count, format_duration, set_condition
from trainyard_study.cells import Cell, MatrixError, make_cells
from trainyard_study.curves import curves, headline
from trainyard_study.plan import StudyObserved, StudyPlan
from trainyard_study.results import (
    NO_REPORT,
    configurations,
    failure,
    measurement,
    progress,
    run_key,
    summarise,
    why_discarded,
)

POLL_SECONDS = 30.0  # changes of runs trigger a reconcile; this is for events that were missed
POLL_DELETING = 1.0

SPEC_CHANGED = (
    "template, matrix or exclude was changed after the study started, so its measurements are not"
    " comparable: undo the change, or create a new study"
)
SUSPENDED = "spec.suspend is true; set it to false to resume with the remaining runs"

RUN_AGAIN = "RunAgain"  # an Event's reason

RunKey = tuple[int, int]  # cell, repeat


def run_name(study: str, key: RunKey) -> str:
    """NAME-CELL-REPEAT."""
    return f"{study}-{key[0]}-{key[1]}"


def reconcile_study(observed: StudyObserved) -> StudyPlan:
    """Decide about one study."""
    study = observed.study
    status = study.status.model_copy(deep=True)
    if study.metadata.deletion_timestamp is not None:
        return StudyPlan(status)  # ownerReferences clean up
    edited = status.observed_generation != study.metadata.generation
    if status.reason == "InvalidSpec" and edited and not status.cells:
        status = ScalingStudyStatus()  # nothing was measured: validate again
    status.observed_generation = study.metadata.generation
    unchanged = status.fingerprint == study.spec.fingerprint()
    if edited and status.cells and unchanged:
        _update_figures(observed, status)  # cost or projectTo may have changed
    if status.phase in FINISHED:
        return StudyPlan(status, delete=_done_with(observed, status))
    if status.cells and not unchanged:
        return _suspend(observed, status, "SpecChanged", SPEC_CHANGED)
    cells: list[Cell] = []
    events: list[Event] = []
    try:
        cells = make_cells(study.spec, observed.threads)
    except MatrixError as error:
        if not status.cells:
            return _complete(observed, status, "InvalidSpec", str(error))
        # They were valid for another version. Its runs are left alone, and none is created.
        text = f"this operator (version {__version__}) can't create the remaining runs: {error}"
        set_condition(status, "Unsupported", True, "UnknownToThisVersion", text, observed.now)
    else:
        if any(condition.type == "Unsupported" for condition in status.conditions):
            set_condition(status, "Unsupported", False, "Supported", "", observed.now)
    if not status.cells:
        events.append(_start(observed, status, cells))
    events += _record(observed, status)
    if study.spec.suspend:
        return _suspend(observed, status, "Suspended", SUSPENDED, events)
    return _drive(observed, status, cells, events)


def _start(observed: StudyObserved, status: ScalingStudyStatus, cells: list[Cell]) -> Event:
    spec = observed.study.spec
    status.start_time = observed.now
    status.fingerprint = spec.fingerprint()
    status.threads_per_process = cells[0].threads
    status.cells = [
        CellResult(
            number=cell.number, values=cell.values, label=cell.label, processes=cell.processes
        )
        for cell in cells
    ]
    text = f"{format_count(len(cells), 'cell')}, {format_count(spec.repeats, 'run')} each"
    return Event("Normal", "Started", text, "started")


def _record(observed: StudyObserved, status: ScalingStudyStatus) -> list[Event]:
    """Record the outcome of each finished run, once."""
    events = []
    changed = not status.progress
    for run, (number, repeat) in _runs_of_cells(observed, status):
        cell = status.cells[number - 1]
        if run.status.phase not in FINISHED or _is_measured(cell, repeat):
            continue
        if why := why_discarded(cell, run):
            if cell.failure is None:
                events.append(_note_discarded(cell, run, repeat, why))
            continue
        measured = measurement(run, repeat) if run.status.phase == "Succeeded" else None
        if measured is not None:
            cell.measurements = sorted([*cell.measurements, measured], key=lambda m: m.repeat)
        elif cell.failure is not None:
            continue
        else:
            cell.failure = failure(run, repeat)
            why = f"{cell.label}; repeat {repeat}: {cell.failure.reason}: {cell.failure.message}"
            events.append(Event("Warning", "CellFailed", why, f"cell-{number}-failed"))
        changed = True
    if changed:
        _update_figures(observed, status)
    return events


def _note_discarded(cell: CellResult, run: TrainingRun, repeat: int, why: str) -> Event:
    uid = run.metadata.uid or ""
    if why == NO_REPORT and uid not in cell.unreported:
        cell.unreported.append(uid)
    text = f"{cell.label}; repeat {repeat} is run again: {why}"
    return Event("Normal", RUN_AGAIN, text, f"again-{uid}")


def _update_figures(observed: StudyObserved, status: ScalingStudyStatus) -> None:
    """Compute all that follows from the measurements; called only on a change, as fits are slow."""
    spec = observed.study.spec
    groups = configurations(status.cells)
    summarise(status.cells, groups, spec.cost)
    status.curves = curves(spec, status.cells, groups)
    status.headline = headline(status.curves)
    done, total = progress(status.cells, spec.repeats)
    status.progress = f"{done}/{total}" if total else ""


def _drive(
    observed: StudyObserved, status: ScalingStudyStatus, cells: list[Cell], events: list[Event]
) -> StudyPlan:
    """Keep `parallelism` runs active until every cell is measured or has failed.

    Without `cells` none is created.
    """
    study, spec = observed.study, observed.study.spec
    existing = {key: run for run, key in _runs_of_cells(observed, status)}
    active = {key: run for key, run in existing.items() if _is_active(run)}
    for cell in status.cells:
        running = any(number == cell.number for number, _ in active)
        cell.phase = _cell_phase(cell, spec.repeats, running)
    remaining = list(_remaining(status, spec.repeats))
    if not remaining and not active:
        return _finish(observed, status, events)
    # A run that is being deleted still occupies its nodes; one that is run again keeps its turn.
    busy = sum(
        run.status.phase not in FINISHED or key in remaining for key, run in existing.items()
    )
    room = max(0, spec.parallelism - busy) if cells else 0
    create = [key for key in remaining if key not in existing][:room]
    progressing = [run for run in active.values() if run.status.phase in ("Starting", "Running")]
    measured = any(cell.measurements or cell.failure for cell in status.cells)
    status.phase = "Running" if progressing or measured else "Pending"
    status.reason = "Measuring" if status.phase == "Running" else "Starting"
    unsupported = next((c for c in status.conditions if c.type == "Unsupported"), None)
    status.message = (
        _describe_runs(status, active)
        or _describe_runs(status, dict.fromkeys(create))
        or (unsupported.message if unsupported else "")
    )
    set_condition(status, "Running", bool(progressing), status.reason, status.message, observed.now)
    if any(condition.type == "Suspended" for condition in status.conditions):
        set_condition(status, "Suspended", False, "Resumed", "", observed.now)
    deleting = [key for key in remaining if key in existing and key not in active]
    return StudyPlan(
        status,
        tuple(events),
        delete=_done_with(observed, status),
        create=tuple(_run_of(study.name, study.metadata.namespace, cells, key) for key in create),
        requeue_after=POLL_DELETING if deleting else POLL_SECONDS,
    )


def _remaining(status: ScalingStudyStatus, repeats: int) -> Iterator[RunKey]:
    """The key of every run still to be measured, in order."""
    for repeat in range(1, repeats + 1):
        for cell in status.cells:
            if cell.failure is None and not _is_measured(cell, repeat):
                yield cell.number, repeat


def _finish(observed: StudyObserved, status: ScalingStudyStatus, events: list[Event]) -> StudyPlan:
    failed = [cell for cell in status.cells if cell.failure]
    took = format_duration((observed.now - (status.start_time or observed.now)).total_seconds())
    runs = sum(len(cell.measurements) for cell in status.cells)
    if not failed:
        return _complete(
            observed, status, "", f"{format_count(runs, 'run')} measured in {took}", events
        )
    first = failed[0].failure
    assert first is not None
    text = (
        f"{len(failed)} of {format_count(len(status.cells), 'cell')} failed:"
        f" {failed[0].label}: {first.reason}: {first.message}"
    )
    return _complete(observed, status, "CellFailed", text, events)


def _complete(
    observed: StudyObserved,
    status: ScalingStudyStatus,
    reason: str,
    message: str,
    events: list[Event] | None = None,
) -> StudyPlan:
    """Finish the study; with a `reason`, it has failed."""
    status.completion_time = observed.now
    status.phase = "Failed" if reason else "Succeeded"
    status.reason, status.message = reason or "Succeeded", message
    set_condition(status, status.phase, True, status.reason, message, observed.now)
    set_condition(status, "Running", False, status.reason, message, observed.now)
    event = Event("Warning" if reason else "Normal", status.phase, message, "finished")
    if reason == "InvalidSpec":
        event = Event("Warning", reason, message, f"invalid-{status.observed_generation}")
    return StudyPlan(status, (*(events or ()), event), delete=_done_with(observed, status))


def _suspend(
    observed: StudyObserved,
    status: ScalingStudyStatus,
    reason: str,
    message: str,
    events: list[Event] | None = None,
) -> StudyPlan:
    """Suspend the study. Active runs are deleted: an interrupted run measures nothing."""
    active = [run for run, _ in _runs_of_cells(observed, status) if _is_active(run)]
    new_events = list(events or ())
    if status.phase != "Suspended" or status.reason != reason:
        key = f"{reason}-{status.observed_generation}"
        new_events.append(Event("Normal", reason, message, key))
    for cell in status.cells:
        cell.phase = _cell_phase(cell, observed.study.spec.repeats, running=False)
    status.phase, status.reason, status.message = "Suspended", reason, message
    set_condition(status, "Suspended", True, reason, message, observed.now)
    set_condition(status, "Running", False, reason, message, observed.now)
    delete = {*_done_with(observed, status), *(run.name for run in active)}
    return StudyPlan(status, tuple(new_events), delete=tuple(sorted(delete)))


def _cell_phase(cell: CellResult, repeats: int, running: bool) -> CellPhase:
    if cell.failure:
        return "Failed"
    if len(cell.measurements) >= repeats:
        return "Succeeded"
    return "Running" if running else "Pending"


def _done_with(observed: StudyObserved, status: ScalingStudyStatus) -> tuple[str, ...]:
    """Names of runs whose figures are in the status, and of those that have none to give.

    Failed runs stay, for their logs.
    """
    return tuple(
        run.name
        for run, (number, repeat) in _runs_of_cells(observed, status)
        if run.metadata.deletion_timestamp is None
        and (
            _is_measured(status.cells[number - 1], repeat)
            or why_discarded(status.cells[number - 1], run)
        )
    )


def _runs_of_cells(
    observed: StudyObserved, status: ScalingStudyStatus
) -> Iterator[tuple[TrainingRun, RunKey]]:
    for run in sorted(observed.runs, key=lambda run: run_key(run) or (0, 0)):
        key = run_key(run)
        if key is not None and 1 <= key[0] <= len(status.cells):
            yield run, key


def _is_active(run: TrainingRun) -> bool:
    return run.status.phase not in FINISHED and run.metadata.deletion_timestamp is None


def _is_measured(cell: CellResult, repeat: int) -> bool:
    return any(found.repeat == repeat for found in cell.measurements)


def _describe_runs(
    status: ScalingStudyStatus, runs: dict[RunKey, TrainingRun] | dict[RunKey, None]
) -> str:
    """`numProcPerNode=2; repeat 1: Running (and 1 more)`."""
    for (number, repeat), run in runs.items():
        text = f"{status.cells[number - 1].label}; repeat {repeat}"
        if run is not None and run.status.phase:
            text += f": {run.status.phase}"
            if run.status.phase in ("Pending", "Suspended"):
                text += f": {run.status.message}"
        return text + (f" (and {len(runs) - 1} more)" if len(runs) > 1 else "")
    return ""


def _run_of(study: str, namespace: str | None, cells: list[Cell], key: RunKey) -> TrainingRun:
    """The run to create for a cell and repeat."""
    run = cells[key[0] - 1].run
    metadata = run.metadata.model_copy(
        update={
            "name": run_name(study, key),
            "namespace": namespace,
            "labels": {
                labels.STUDY: study,
                labels.CELL: str(key[0]),
                labels.REPEAT: str(key[1]),
                labels.MANAGED_BY: labels.MANAGER,
            },
        }
    )
    return run.model_copy(update={"metadata": metadata})
