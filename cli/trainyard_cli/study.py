"""`trainyard study`: measures a ScalingStudy on this machine, and reports its tables and chart."""

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table as RichTable

from trainyard_api.status import FINISHED
from trainyard_api.study import ScalingStudy
from trainyard_api.study_status import ScalingStudyStatus
from trainyard_cli.display import new_study_display
from trainyard_cli.run import EXIT_INTERRUPTED, stop_on_signals
from trainyard_lifecycle.status import format_count
from trainyard_local import preflight
from trainyard_local.display import StudyDisplay
from trainyard_local.machine import commit, this_machine
from trainyard_local.manifest import load_study
from trainyard_local.store import UserError
from trainyard_local.studies import (
    AGAIN,
    StudyDir,
    StudyRunner,
    refuse_if_none_can_start,
    threads_per_process,
)
from trainyard_storage.files import write_text_atomic
from trainyard_study.report import (
    Table,
    cell_table,
    conditions,
    failures,
    law_lines,
    machine_text,
    notes,
    scaling_table,
)
from trainyard_study.results import progress

HEADER_WIDTH = 9  # characters
WIDTH_WITHOUT_TERMINAL = 200  # characters


def study(
    file: Path, *, repeats: int | None, steps: int | None, out: Path | None, again: bool
) -> int:
    """Measure the study in the file, or resume it; returns the exit status.

    0: all runs succeeded; 1: a cell failed; 130: interrupted. Raises UserError, before anything
    runs, if the file is not valid.
    """
    options: dict[str, Any] = {"repeats": repeats, "steps": steps}
    given = {name: value for name, value in options.items() if value is not None}
    wanted, cells = load_study(file, given)
    preflight.require_extra("trainer", "trainyard study")
    refuse_if_none_can_start(cells)
    directory = StudyDir(wanted.name, out)
    with directory.locked():
        display = new_study_display()
        if again and any(path.name != "lock" for path in directory.path.iterdir()):
            display.say(f"previous results are now in {_move_aside(directory)}")
        old = directory.load()
        command = ["trainyard", "study", str(file)]
        command += [part for name, value in given.items() for part in (f"--{name}", str(value))]
        if old is None:
            wanted.metadata.creation_timestamp = datetime.now(UTC)
            wanted.metadata.generation = 1
            wanted.status = ScalingStudyStatus(
                machine=this_machine(), command=shlex.join(command), commit=commit()
            )
            threads = threads_per_process(cells)
        else:
            _refuse_if_not_comparable(old, wanted)
            wanted.metadata.creation_timestamp = old.metadata.creation_timestamp
            wanted.metadata.generation = (old.metadata.generation or 0) + 1
            wanted.status = old.status
            threads = old.status.threads_per_process or threads_per_process(cells)
        runner = StudyRunner(directory, wanted, threads)
        interrupted = _measure(runner, display, len(cells), threads)
        _save(runner.study, directory)
        print_study(runner.study, directory)
    if interrupted:
        return EXIT_INTERRUPTED
    return 1 if any(cell.failure for cell in runner.study.status.cells) else 0


def print_study(study: ScalingStudy, directory: StudyDir) -> None:
    """Print the tables, why cells failed, and where the files are."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_WITHOUT_TERMINAL)
    console.print()
    console.print(terminal(study.name, cell_table(study)))
    for line in [*failures(study), *notes(study)]:
        print(f"  {line}")
    if scaling := scaling_table(study):
        console.print()
        console.print(terminal("scaling", scaling))
    for line in law_lines(study):
        print(f"  {line}")
    print(f"  table    {directory.table}")
    print(f"  figures  {directory.file}")
    if directory.chart.exists():
        print(f"  chart    {directory.chart}")
    else:
        print("  chart    not drawn: matplotlib is missing (pip install 'trainyard[trainer]')")


def terminal(title: str, table: Table) -> RenderableType:
    """The table for a terminal."""
    shown = RichTable(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    for column in table.columns:
        justify: Literal["left", "right"] = "right" if column.figure else "left"
        shown.add_column(_stacked(column.title), justify=justify, vertical="bottom")
    for row in table.rows:
        style = "red" if "failed" in row else ("dim" if {"projected", "not run"} & {*row} else None)
        shown.add_row(*map(escape, row), style=style)
    return shown


def markdown(study: ScalingStudy) -> str:
    """The content of study.md."""
    status = study.status
    lines = [
        f"# {study.name}",
        "",
        *_command(study),
        *notes(study),
        *([f"Machine: {machine_text(status.machine)}."] if status.machine else []),
        "",
        *_markdown(cell_table(study)),
    ]
    if failed := failures(study):
        lines += ["", *(f"- {line}" for line in failed)]
    if scaling := scaling_table(study):
        laws = [f"- {line}" for line in law_lines(study)]
        lines += ["", "## Scaling", "", *laws, "", *_markdown(scaling)]
    return "\n".join(lines) + "\n"


def _measure(runner: StudyRunner, display: StudyDisplay, cells: int, threads: int) -> bool:
    """Measure what is missing; returns whether a signal interrupted it."""
    study = runner.study
    if study.status.phase in FINISHED:
        runner.reconcile()  # cost and projectTo may have changed
        display.say(f"{study.name} is already measured, here are its results; {AGAIN}")
        return False
    done, total = progress(study.status.cells, study.spec.repeats)
    text = f"{format_count(cells, 'cell')}; each {conditions(study.spec, threads)}"
    display.say(f"{text}; resuming after {done} of {total} runs" if done else text)
    with stop_on_signals() as stop, display:
        runner.measure(display, stop)
        return stop.requests > 0 and runner.study.status.phase not in FINISHED


def _refuse_if_not_comparable(old: ScalingStudy, wanted: ScalingStudy) -> None:
    """Raises UserError if new measurements are not comparable with those of `old`."""
    machine, here = old.status.machine, this_machine()
    if old.status.fingerprint and old.status.fingerprint != wanted.spec.fingerprint():
        raise UserError(
            f"{wanted.name} was started with another template, matrix, or number of steps or"
            f" repeats, so results are not comparable: change metadata.name, or {AGAIN}"
        )
    if machine and (machine.cpu, machine.cores, machine.gpus) != (here.cpu, here.cores, here.gpus):
        raise UserError(
            f"{wanted.name} was started on another machine ({machine.cores} x {machine.cpu}):"
            f" {AGAIN}"
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

        draw(study, directory.chart)
    except ImportError:
        pass  # matplotlib comes with the trainer extra; print_study says that it is missing


def _command(study: ScalingStudy) -> list[str]:
    """The command that measured the study, if it ran on one machine."""
    command, commit = study.status.command, study.status.commit
    if not command:
        return []
    return [f"`{command}`" + (f", commit {commit}" if commit else ""), ""]


def _markdown(table: Table) -> list[str]:
    return [
        _markdown_row([column.title for column in table.columns]),
        _markdown_row(["---:" if column.figure else "---" for column in table.columns]),
        *map(_markdown_row, table.rows),
    ]


def _stacked(title: str) -> str:
    """A title such as `activation_checkpointing`, wrapped to the lines of a narrow header."""
    lines = [""]
    for word in re.findall(r"[A-Z]?[^A-Z_ ]+[_ ]?|.", title):
        if lines[-1] and len(lines[-1] + word) > HEADER_WIDTH:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.strip() for line in lines)


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
