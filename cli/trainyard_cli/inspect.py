"""`trainyard get`, `describe` and `logs`: read plain JSON and text only, so that they are fast."""

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainyard_api.columns import COLUMNS
from trainyard_api.history import evaluation_metrics
from trainyard_api.profile import VIEWER
from trainyard_local.store import MANIFEST, RunBusyError, RunDir, UserError, list_runs

FINISHED = ("Succeeded", "Failed")  # also in trainyard_api.status, which imports pydantic
POLL_SECONDS = 0.2
# The end of metrics.jsonl in which the newest evaluation is looked for.
HISTORY_BYTES = 4 << 20


def print_runs(runs: Sequence[RunDir], output: str | None) -> None:
    """Print a table like `kubectl get` (output None or wide), or the objects (json, yaml)."""
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
        if note := _stale_note(run, item):
            print(note, file=sys.stderr)


def remove_expired_runs() -> None:
    """Delete finished runs whose ttlSecondsAfterFinished has passed, as `reconcile` decides."""
    for run_dir in list_runs():
        if run_dir.read()["spec"].get("ttlSecondsAfterFinished") is not None:
            with suppress(RunBusyError):
                _remove_if_expired(run_dir)


def describe(run_dir: RunDir) -> str:
    """All about one run, as text."""
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
                "Evaluation": _evaluation(run_dir.data(run) / "metrics.jsonl"),
                "Throughput": status.get("throughput", ""),
                "Usage": status.get("usage", ""),
                "Peak memory": _bytes(status.get("peakMemoryBytes")),
                "Restarts": f"{status.get('restarts', 0)} of {run['spec'].get('maxRestarts')}",
                "Branch of": status.get("startedFrom", ""),
                "Checkpoint": _reference(status.get("lastCheckpoint")),
                "Last model": _reference(status.get("model")),
                "Best model": _best_model(status),
                "Profile": _profile(run_dir, run),
                "Data": str(run_dir.data(run)),
                "Logs": str(run_dir.logs),
            }
        )
    ]
    if note := _stale_note(run_dir, run):
        lines.append(note)
    lines += ["Conditions:", *_indented(_conditions(status))]
    lines += ["Attempts:", *_indented(_attempts(status))]
    if changes := _changes(status):
        lines += ["Changed settings:", *_indented(changes)]
    if scores := _scores(run_dir.data(run)):
        lines += ["Scores:", *_indented(scores)]
    lines += ["Events:", *_indented(_events(run_dir))]
    return "\n".join(lines)


def print_log(run_dir: RunDir, *, attempt: int | None, node: int, follow: bool) -> None:
    """Print the log of one node; `follow` continues with later attempts until the run stops.

    attempt: None means the newest. Raises UserError if there is no such log.
    """
    if attempt is None:
        attempt = _newest_attempt(run_dir)
    path = run_dir.log_file(attempt, node)
    if not path.is_file() and not follow:
        available = ", ".join(sorted(file.stem for file in run_dir.logs.glob("*.log"))) or "none"
        raise UserError(
            f"{run_dir.name} has no log of attempt {attempt}, node {node}"
            f" (available, as ATTEMPT-NODE: {available})"
        )
    position = 0
    while True:
        complete = _is_complete(run_dir, attempt)  # checked before reading: nothing is missed
        position = _copy(path, position)
        if not follow or complete:
            return
        if not run_dir.log_file(attempt + 1, node).is_file():
            time.sleep(POLL_SECONDS)
            continue
        _copy(path, position)
        attempt, position = attempt + 1, 0
        path = run_dir.log_file(attempt, node)
        print(f"--- attempt {attempt}", file=sys.stderr, flush=True)


def _lookup(item: dict[str, Any], path: str) -> Any:
    """The value at a JSON path such as .status.lastCheckpoint.step, or None."""
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


def _stale_note(run_dir: RunDir, run: dict[str, Any]) -> str:
    """A note if the status may be out of date, because no process drives the run; else empty."""
    phase = run.get("status", {}).get("phase")
    if phase in (*FINISHED, "Suspended") or run_dir.holder() is not None:
        return ""
    file = run["metadata"].get("annotations", {}).get(MANIFEST, "FILE")
    return (
        f"note: {run_dir.name} was last seen {phase or 'Pending'}, but no process drives it now:"
        f" resume it with `trainyard run {file}`"
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


def _changes(status: dict[str, Any]) -> list[list[str]]:
    """Settings that changed between attempts; empty if none did."""
    rows = [
        [str(item["number"]), change]
        for item in status.get("attempts", [])
        for change in item.get("changed", [])
    ]
    return [["ATTEMPT", "CHANGE"], *rows] if rows else []


def _scores(data: Path) -> list[list[str]]:
    """What `trainyard evaluate` has kept, of the newest model first; empty if it never ran."""
    rows = []
    for path in sorted((data / "scores").glob("step-*.json"), reverse=True):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            kept = json.loads(path.read_bytes())
            for task, found in kept["tasks"].items():
                samples = str(found["samples"]) + ("" if found["complete"] else " (a part)")
                for metric, value in found["metrics"].items():
                    rows.append([str(kept["step"]), f"{task}/{metric}", f"{value:.4f}", samples])
    return [["STEP", "METRIC", "SCORE", "SAMPLES"], *rows] if rows else []


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


def _evaluation(history: Path) -> str:
    """Every metric of the newest evaluation of a recipe's log; empty if there is none."""
    try:
        with history.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - HISTORY_BYTES))
            lines = file.read(HISTORY_BYTES).splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        with suppress(ValueError, AttributeError, RecursionError):  # cut short, or not a record
            record = json.loads(line)
            if found := evaluation_metrics(record):
                metrics = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
                return f"step {record.get('step', '?')}: {metrics}"
    return ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _bytes(size: int | None) -> str:
    """As `format_bytes` of trainyard_lifecycle.status, which imports pydantic."""
    if size is None:
        return ""
    return f"{size / 2**20:,.0f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"


def _reference(value: dict[str, Any] | None) -> str:
    if not value:
        return ""
    loss = f", evaluation {value['evalLoss']:.4f}" if "evalLoss" in value else ""
    return f"step {value['step']}{loss}, {value['digest'] or 'of the framework: no sha256'}"


def _profile(run_dir: RunDir, run: dict[str, Any]) -> str:
    trace = run.get("status", {}).get("profile")
    return f"{run_dir.data(run) / trace} (open it at {VIEWER})" if trace else ""


def _best_model(status: dict[str, Any]) -> str:
    last, best = status.get("model"), status.get("bestModel")
    return "the last" if best and best == last else _reference(best)


def _age(start: str | None, end: str | None = None) -> str:
    """Time from `start` to `end` (default: now), in kubectl's format."""
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


def _copy(path: Path, position: int) -> int:
    """Print what was added since `position`; returns the new end."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            while chunk := file.read(1 << 16):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            return file.tell()
    except FileNotFoundError:
        return position


def _newest_attempt(run_dir: RunDir) -> int:
    numbers = [int(path.stem.split("-")[0]) for path in run_dir.logs.glob("*-*.log")]
    return max(numbers, default=1)


def _is_complete(run_dir: RunDir, attempt: int) -> bool:
    """Whether the attempt's log will not grow, and no later attempt will start."""
    if not run_dir.exists():
        return True
    status = run_dir.read().get("status", {})
    stopped = status.get("phase") in (*FINISHED, "Suspended")
    return (stopped and status.get("attempt", 0) <= attempt) or run_dir.holder() is None


def _remove_if_expired(run_dir: RunDir) -> None:
    from trainyard_lifecycle.reconcile import reconcile  # imports pydantic: only where needed
    from trainyard_local.backend import LocalBackend

    with run_dir.locked():
        if run_dir.exists():
            backend = LocalBackend(run_dir)
            run = backend.load()
            plan = reconcile(backend.observe(run))
            if plan.delete_run:
                backend.apply(run, plan)
