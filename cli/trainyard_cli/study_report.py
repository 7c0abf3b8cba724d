"""A study's report: printed, and as Markdown with all that it takes to repeat it."""

import re
from typing import Literal

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table as RichTable

from trainyard_api.study import ScalingStudy
from trainyard_local.study_store import StudyDir
from trainyard_study.table import Table, cell_table, scaling_table
from trainyard_study.words import failures, law_lines, machine_text, notes

HEADER_WIDTH = 9  # letters
WIDE = 200  # columns of the table where no terminal sets a limit


def print_study(study: ScalingStudy, directory: StudyDir) -> None:
    """The tables, why cells failed, and where everything is."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    console.print()
    console.print(terminal(study.name, cell_table(study)))
    for line in [*failures(study), *notes(study)]:
        print(f"  {line}")
    if found := scaling_table(study):
        console.print()
        console.print(terminal("scaling", found))
    for line in law_lines(study):
        print(f"  {line}")
    print(f"  table    {directory.table}")
    print(f"  figures  {directory.file}")
    if directory.picture.exists():
        print(f"  picture  {directory.picture}")
    else:
        print("  picture  not drawn: matplotlib is missing (pip install 'trainyard[trainer]')")


def terminal(title: str, table: Table) -> RenderableType:
    """A table for a terminal."""
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
    """study.md."""
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
    if found := scaling_table(study):
        laws = [f"- {line}" for line in law_lines(study)]
        lines += ["", "## Scaling", "", *laws, "", *_markdown(found)]
    return "\n".join(lines) + "\n"


def _command(study: ScalingStudy) -> list[str]:
    """What was typed, where that was on one machine."""
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
    """`activation_checkpointing`, `numProcPerNode` or `peak memory` as lines of a narrow header."""
    lines = [""]
    for word in re.findall(r"[A-Z]?[^A-Z_ ]+[_ ]?|.", title):
        if lines[-1] and len(lines[-1] + word) > HEADER_WIDTH:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.strip() for line in lines)


def _markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
