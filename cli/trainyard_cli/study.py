"""`trainyard study`: measure a ScalingStudy on this machine; its table and its picture."""

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainyard_api.status import FINISHED
from trainyard_api.study import ScalingStudy
from trainyard_api.study_status import ScalingStudyStatus
from trainyard_cli.run import EXIT_INTERRUPTED, stop_on_signals
from trainyard_cli.study_display import new_display
from trainyard_cli.study_report import markdown, print_study
from trainyard_lifecycle.status import format_count
from trainyard_local.store import UserError
from trainyard_local.study_file import load
from trainyard_local.study_runner import (
    Runner,
    StudyDisplay,
    refuse_if_none_can_start,
    threads_here,
)
from trainyard_local.study_store import AGAIN, StudyDir
from trainyard_storage.files import write_text_atomic
from trainyard_study.machine import commit, this_machine
from trainyard_study.results import progress
from trainyard_study.words import conditions


def study(
    file: Path, *, repeats: int | None, steps: int | None, out: Path | None, again: bool
) -> int:
    """Measure the file's study, or go on with it; returns the exit status.

    0: every run of every cell succeeded; 1: a cell failed; 130: it was stopped. Raises UserError,
    before anything runs, for what is wrong with the file.
    """
    options: dict[str, Any] = {"repeats": repeats, "steps": steps}
    given = {name: value for name, value in options.items() if value is not None}
    wanted, cells = load(file, given)
    refuse_if_none_can_start(cells)
    directory = StudyDir(wanted.name, out)
    with directory.locked():
        display = new_display()
        if again and any(path.name != "lock" for path in directory.path.iterdir()):
            display.say(f"the study that was here is now in {_move_aside(directory)}")
        old = directory.load()
        words = ["trainyard", "study", str(file)]
        words += [part for name, value in given.items() for part in (f"--{name}", str(value))]
        if old is None:
            wanted.metadata.creation_timestamp = datetime.now(UTC)
            wanted.metadata.generation = 1
            wanted.status = ScalingStudyStatus(
                machine=this_machine(), command=shlex.join(words), commit=commit()
            )
            threads = threads_here(cells)
        else:
            _refuse_another(old, wanted)
            wanted.metadata.creation_timestamp = old.metadata.creation_timestamp
            wanted.metadata.generation = (old.metadata.generation or 0) + 1
            wanted.status = old.status
            threads = old.status.threads_per_process or threads_here(cells)
        runner = Runner(directory, wanted, threads)
        stopped = _measure(runner, display, len(cells), threads)
        _save(runner.study, directory)
        print_study(runner.study, directory)
    if stopped:
        return EXIT_INTERRUPTED
    return 1 if any(cell.failure for cell in runner.study.status.cells) else 0


def _measure(runner: Runner, display: StudyDisplay, cells: int, threads: int) -> bool:
    """True if a signal stopped it."""
    study = runner.study
    if study.status.phase in FINISHED:
        runner.look()  # the price and the sizes to project to may have changed
        display.say(f"{study.name} is measured: these are its figures; {AGAIN}")
        return False
    done, total = progress(study.status.cells, study.spec.repeats)
    how = f"{format_count(cells, 'cell')}; each {conditions(study.spec, threads)}"
    display.say(f"{how}; going on after {done} of {total} runs" if done else how)
    with stop_on_signals() as stop, display:
        runner.measure(display, stop)
        return stop.requests > 0 and runner.study.status.phase not in FINISHED


def _refuse_another(old: ScalingStudy, wanted: ScalingStudy) -> None:
    """Raises UserError unless the measurements of `old` can stand beside those to come."""
    machine, here = old.status.machine, this_machine()
    if old.status.fingerprint and old.status.fingerprint != wanted.spec.fingerprint():
        raise UserError(
            f"{wanted.name} was begun with another template, matrix or number of steps or repeats,"
            f" and its figures would not compare: give it another name, or {AGAIN}"
        )
    if machine and (machine.cpu, machine.cores, machine.gpus) != (here.cpu, here.cores, here.gpus):
        raise UserError(
            f"{wanted.name} was begun on another machine ({machine.cores} x {machine.cpu}): {AGAIN}"
        )


def _move_aside(directory: StudyDir) -> Path:
    try:
        old = directory.load()
    except UserError:
        old = None
    return directory.move_aside(old.status.start_time if old else None)


def _save(study: ScalingStudy, directory: StudyDir) -> None:
    write_text_atomic(directory.table, markdown(study))
    try:
        from trainyard_study.chart import draw

        draw(study, directory.picture)
    except ImportError:
        pass  # matplotlib comes with the trainer; print_study tells
