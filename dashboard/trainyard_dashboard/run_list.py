"""The list of runs as clients follow it: each is sent what has changed since its version."""

import secrets
from collections.abc import Sequence
from threading import Lock

from pydantic import BaseModel, Field

from trainyard_dashboard.catalog import RunSummary

MAX_REMOVED = 1000  # runs whose removal is remembered; with more, clients get a complete list


class RunChanges(BaseModel):
    """Runs in no particular order; fields that have their default value are left out."""

    version: str = Field(description="Ask for what changes after it with `since`.")
    complete: bool = Field(
        default=False, description="Whether these are all runs, not only those that have changed."
    )
    runs: list[RunSummary] = Field(description="Those that are new or have changed.")
    removed: list[str] = Field(default=[], description="Ids of runs that no longer exist.")
    problems: list[str] = Field(default=[], description="A message for everything unreadable.")


class RunList:
    """Numbers the states of a list of runs. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._restart()

    def changes(
        self, runs: Sequence[RunSummary], problems: Sequence[str], since: str = ""
    ) -> RunChanges:
        """What a client that knows the version `since` lacks; everything if that is unknown.

        Args:
            runs: all runs as they are now.
            problems: messages to pass on; they are always complete.
            since: a version that this object has given.
        """
        with self._lock:
            self._take(runs)
            known = self._number(since)
            if known is None:
                return RunChanges(
                    version=self._name, complete=True, runs=list(runs), problems=list(problems)
                )
            return RunChanges(
                version=self._name,
                runs=[run for number, run in self._runs.values() if number > known],
                removed=[run_id for run_id, number in self._removed.items() if number > known],
                problems=list(problems),
            )

    def _restart(self) -> None:
        self._epoch = secrets.token_hex(4)  # versions of another process, or time, are unknown
        self._version = 0
        # With the version in which a run last changed, or was removed.
        self._runs: dict[str, tuple[int, RunSummary]] = {}
        self._removed: dict[str, int] = {}

    @property
    def _name(self) -> str:
        return f"{self._epoch}-{self._version}"

    def _number(self, version: str) -> int | None:
        epoch, _, number = version.partition("-")
        known = epoch == self._epoch and number.isascii() and number.isdecimal()
        return int(number) if known and len(number) < 16 else None

    def _take(self, runs: Sequence[RunSummary]) -> None:
        """Note what differs from the last state."""
        present = {run.id for run in runs}
        gone = [run_id for run_id in self._runs if run_id not in present]
        changed = [run for run in runs if run.id not in self._runs or self._runs[run.id][1] != run]
        if not gone and not changed:
            return
        if len(self._removed) + len(gone) > MAX_REMOVED:
            self._restart()
            changed, gone = list(runs), []
        self._version += 1
        for run_id in gone:
            del self._runs[run_id]
            self._removed[run_id] = self._version
        for run in changed:
            self._runs[run.id] = (self._version, run)
            self._removed.pop(run.id, None)
