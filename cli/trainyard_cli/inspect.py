"""`trainyard get` and `describe`: what is known of runs, read as plain JSON to be quick."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from trainyard_api.columns import COLUMNS
from trainyard_local.store import MANIFEST, RunDir

FINISHED = ("Succeeded", "Failed")  # trainyard_api.status has them, but would import pydantic


def print_runs(runs: Sequence[RunDir], output: str | None) -> None:
    """A table as `kubectl get` prints it (output None or wide), or the objects (json, yaml)."""
    objects = [run.read() for run in runs]
    if output in ("json", "yaml"):
        print(_dump(objects, output, single=len(runs) == 1))
        return
    columns = [column for column in COLUMNS if output == "wide" or column[3] == 0]
    rows = [["NAME", *(name.upper() for name, *_ in columns)]]
    for item in objects:
        cells = [_cell(kind, _lookup(item, path)) for _, kind, path, _ in columns]
        rows.append([item["metadata"]["name"], *cells])
    print(_table(rows))
    for run, item in zip(runs, objects, strict=True):
        if note := _abandoned(run, item):
            print(note, file=sys.stderr)


def describe(run_dir: RunDir) -> str:
    """Everything known of a run, for people."""
    run = run_dir.read()
    status = run.get("status", {})
    lines = [
        *_fields(
            {
                "Name": run["metadata"]["name"],
                "Created": run["metadata"].get("creationTimestamp", ""),
                "Manifest": run["metadata"].get("annotations", {}).get(MANIFEST, ""),
                "Phase": f"{status.get('phase', 'Pending')} ({status.get('reason', '')})",
                "Message": status.get("message", ""),
                "Progress": status.get("progress", ""),
                "Loss": _number(status.get("loss")),
                "Eval loss": _number(status.get("evalLoss")),
                "Throughput": status.get("throughput", ""),
                "Restarts": f"{status.get('restarts', 0)} of {run['spec'].get('maxRestarts')}",
                "Checkpoint": _reference(status.get("lastCheckpoint")),
                "Model": _reference(status.get("model")),
                "Data": str(run_dir.data(run)),
                "Logs": str(run_dir.logs),
            }
        )
    ]
    if note := _abandoned(run_dir, run):
        lines.append(note)
    lines += ["Conditions:", *_indented(_conditions(status))]
    lines += ["Attempts:", *_indented(_attempts(status))]
    lines += ["Events:", *_indented(_events(run_dir))]
    return "\n".join(lines)


def _lookup(item: dict[str, Any], path: str) -> Any:
    """The value at a JSON path like .status.lastCheckpoint.step, or None."""
    value: Any = item
    for key in path.split(".")[1:]:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _cell(kind: str, value: Any) -> str:
    if value is None:
        return ""
    if kind == "date":
        return _age(value)
    return _number(value) if kind == "number" else str(value)


def _abandoned(run_dir: RunDir, run: dict[str, Any]) -> str:
    """A note when the status can't be current: nobody drives the run."""
    phase = run.get("status", {}).get("phase")
    if phase in (*FINISHED, "Suspended") or run_dir.holder() is not None:
        return ""
    file = run["metadata"].get("annotations", {}).get(MANIFEST, "FILE")
    return (
        f"note: {run_dir.name} was last seen {phase or 'Pending'}; nothing watches it now:"
        f" go on with `trainyard run {file}`"
    )


def _conditions(status: dict[str, Any]) -> list[list[str]]:
    rows = [["TYPE", "STATUS", "REASON", "AGE", "MESSAGE"]]
    for item in status.get("conditions", []):
        age = _age(item.get("lastTransitionTime"))
        rows.append([item["type"], item["status"], item["reason"], age, item["message"]])
    return rows


def _attempts(status: dict[str, Any]) -> list[list[str]]:
    rows = [["ATTEMPT", "OUTCOME", "NODES", "FROM STEP", "TOOK", "REASON", "MESSAGE"]]
    for item in status.get("attempts", []):
        took = _age(item["startTime"], item.get("endTime"))
        resumed = str(item.get("resumedFromStep", ""))
        outcome = item.get("outcome", "")
        number, nodes = str(item["number"]), str(item.get("nodes", 1))
        rows.append([number, outcome, nodes, resumed, took, item["reason"], item["message"]])
    return rows


def _events(run_dir: RunDir) -> list[list[str]]:
    rows = [["AGE", "TYPE", "REASON", "MESSAGE"]]
    for item in run_dir.events():
        rows.append([_age(item["time"]), item["type"], item["reason"], item["message"]])
    return rows


def _fields(values: dict[str, str]) -> list[str]:
    return [f"{name + ':':<12} {value}" for name, value in values.items() if value]


def _indented(rows: list[list[str]]) -> list[str]:
    if len(rows) == 1:
        return ["  none"]
    return [f"  {line}" for line in _table(rows).splitlines()]


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _reference(value: dict[str, Any] | None) -> str:
    return f"step {value['step']}, {value['digest']}" if value else ""


def _age(start: str | None, end: str | None = None) -> str:
    """Time from `start` to `end` (now), as kubectl writes ages."""
    if not start:
        return ""
    until = datetime.fromisoformat(end) if end else datetime.now(UTC)
    seconds = max(0, int((until - datetime.fromisoformat(start)).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _dump(objects: list[dict[str, Any]], output: str, *, single: bool) -> str:
    data: Any = objects[0] if single else {"apiVersion": "v1", "kind": "List", "items": objects}
    if output == "json":
        return json.dumps(data, indent=2)
    import yaml

    return str(yaml.safe_dump(data, sort_keys=False)).rstrip()
