"""Where a run's records go: what the trackers have in common."""

from collections.abc import Sequence
from typing import Any, Protocol

NO_METRICS = {"step", "attempt", "time", "seed"}

Record = dict[str, Any]


class Unreachable(Exception):
    """The tracker can't be written to now; later it may."""


class Sink(Protocol):
    """Where records go. All of a run's are sent anew to a new Sink: it knows what it has."""

    name: str

    def send(self, records: Sequence[Record]) -> None:
        """Take the next records; Unreachable if not all could be taken: they come again."""

    def finish(self, status: str) -> None:
        """The attempt has ended: FINISHED, FAILED or KILLED."""


def metrics_of(record: Record) -> dict[str, float]:
    """The numbers in a record."""
    return {
        name: float(value)
        for name, value in record.items()
        if isinstance(value, int | float) and name not in NO_METRICS
    }


def settings_of(record: Record) -> dict[str, str | int | float | bool]:
    """The hyperparameters in an attempt's first record, nested ones by dotted names."""
    names = ("recipe", "strategy", "precision", "seed", "world_size", "device")
    found = {name: record[name] for name in names if name in record}

    def add(prefix: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                add(f"{prefix}{name}.", value)
            else:
                plain = isinstance(value, str | int | float | bool)
                found[prefix + name] = value if plain else str(value)

    add("", record.get("config", {}))
    return found
