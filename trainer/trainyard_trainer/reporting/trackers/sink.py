"""The interface of a tracker."""

from collections.abc import Sequence
from typing import Any, Protocol

NO_METRICS = {"step", "attempt", "time", "seed"}

Record = dict[str, Any]


class Unreachable(Exception):
    """The tracker can't be written to now; a retry may succeed."""


class Sink(Protocol):
    """A tracker. Every new Sink is sent all records of a run; it skips the ones it has."""

    name: str

    def send(self, records: Sequence[Record]) -> None:
        """Send the next records; raises Unreachable to be called again with the same ones."""

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
    settings = {name: record[name] for name in names if name in record}

    def add(prefix: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                add(f"{prefix}{name}.", value)
            else:
                plain = isinstance(value, str | int | float | bool)
                settings[prefix + name] = value if plain else str(value)

    add("", record.get("config", {}))
    return settings
