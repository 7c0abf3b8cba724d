"""Reads the corpus of faults: the YAML files of this folder, one for each table that
docs/operate/troubleshooting.md shows. README.md says what an entry holds.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

FOLDER = Path(__file__).parent
# In the order of the page.
FILES = ("settings", "code", "storage", "limits", "ranks", "disruptions", "waiting", "running")

Then = Literal["stop", "restart", "restart, not counted", "wait", "continue"]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Init(_Entry):
    """An init container that has failed."""

    exit: int
    message: str = ""


class Seen(_Entry):
    """What the cluster says of one worker's pod. Without anything: its container runs."""

    exit: int | None = None  # of the trainer container
    reason: str = ""  # why, for the kubelet: of the container if it has an exit code, else the pod
    error: str = ""  # what the rank left in its error file, which is the termination message
    message: str = ""  # another termination message, or the pod's
    log: str = ""  # a file in logs/, or the text itself
    waiting: tuple[str, str] | None = None  # why the container waits: reason, message
    unschedulable: str = ""
    gated: bool = False
    event: tuple[str, str] | None = None  # the newest warning: reason, message
    condition: tuple[str, str] | None = None  # a true condition of the pod: type, reason
    init: Init | None = None
    sidecar: Literal["", "native, crashed", "running"] = ""
    deleting: bool = False
    gone: bool = False  # there is no pod any more
    lost: bool = False  # its node has sent no heartbeat
    unknown: bool = False  # it has failed, and nothing says how


class Refusal(_Entry):
    """The API server refuses to create an object."""

    path: str
    status: int
    reason: str
    message: str


class Remedy(_Entry):
    """What the user does about it; nothing at all: the run continues by itself."""

    spec: dict[str, Any] | None = None  # apply it with these changes; null removes a setting
    retry: bool = False  # trainyard retry, or the annotation
    first: str = ""  # something beside Trainyard, in words: free the disk, put a file back


class Local(_Entry):
    """How it is injected into real processes: into a run of char-gpt, or of a user's script."""

    signal: str = ""  # the rank gets it in the middle of a step
    raises: str = ""  # the rank raises it there: CLASS: MESSAGE
    cut: bool = False  # the rank's connections break there
    loader: bool = False  # a loader worker of the rank is killed there
    script: str = ""  # a user's script, instead of char-gpt
    command: list[str] = Field(default_factory=list)  # instead of a script
    config: dict[str, Any] = Field(default_factory=dict)  # settings of char-gpt
    rank: int = 0


class Case(_Entry):
    """One way to come to a row of a table.

    Attributes:
        how: how it is injected, in words.
        line: the root cause where it is more definite than the row's.
        spec, report: of the run at the level of the policy; the report of rank 0 before the fault.
        seen: the pods by node; `after` seconds later they are still so.
        times: so many attempts in a row end like this.
        local: how it is injected into real processes.
        tests: tests with steps of their own that show it, with real processes or on a cluster.
    """

    how: str
    line: str = ""
    spec: dict[str, Any] = Field(default_factory=dict)
    report: dict[str, Any] | None = None
    seen: list[Seen] = Field(default_factory=list)
    after: float = 0
    times: int = 1
    refused: Refusal | None = None
    remedy: Remedy = Remedy()
    local: Local | None = None
    tests: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _says_what_is_seen(self) -> "Case":
        if bool(self.seen) == bool(self.refused):
            raise ValueError("a case needs `seen` or `refused`")
        return self


class Row(_Entry):
    """One row of a table: what the user sees, why, and what to do.

    `see` has `…` for what differs from case to case; `where` it is seen.
    """

    see: str
    reason: str = ""
    where: Literal["status", "condition", "log", "pods"] = "status"
    then: Then
    why: str
    do: str
    cases: dict[str, Case]


@dataclass(frozen=True)
class Fault:
    """A case with the row it belongs to."""

    name: str
    file: str
    row: Row = field(repr=False)
    case: Case = field(repr=False)

    @property
    def line(self) -> str:
        """The root cause, with `…` for what differs each time."""
        return self.case.line or self.row.see

    def __str__(self) -> str:
        return self.name


@cache
def rows(file: str) -> list[Row]:
    """The rows of one table."""
    entries = yaml.safe_load((FOLDER / f"{file}.yaml").read_text(encoding="utf-8"))
    return [Row.model_validate(entry) for entry in entries]


@cache
def faults() -> list[Fault]:
    """All of them."""
    return [
        Fault(name, file, row, case)
        for file in FILES
        for row in rows(file)
        for name, case in row.cases.items()
    ]


def find(name: str) -> Fault:
    """The fault of that name."""
    return next(fault for fault in faults() if fault.name == name)


def says(text: str, line: str) -> bool:
    """Whether `line`, with `…` for anything, is somewhere in `text`."""
    return re.search(".+?".join(map(re.escape, line.split("…"))), text, re.DOTALL) is not None
