"""Records how a worker ended: exit.json on one machine, in a pod its termination message."""

from __future__ import annotations

import contextlib
import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Sequence

MAX_BYTES = 4096  # Kubernetes cuts longer ones, and JSON that was cut can't be parsed
MAX_RANKS = 32  # of those that failed, the first ones
MAX_ERROR = 1000
ERROR_FILE = "error.json"
RESULT_FILE = "result"
EXIT_FILE = "exit.json"


def write_exit(
    directory: Path,
    code: int,
    ranks: list[dict[str, Any]] | None = None,
    groups: list[dict[str, Any]] | None = None,
) -> None:
    """Publish the exit status (128 + number for a signal), atomically and durably.

    `ranks`: how its ranks ended, in that order; `groups`: where they were, as flight.py says.
    """
    finished = datetime.now(timezone.utc).isoformat()
    entry = {
        "exitCode": code,
        "finishedAt": finished,
        "ranks": ranks or [],
        "collectives": groups or [],
    }
    temporary = directory / f".{EXIT_FILE}.tmp"
    with temporary.open("w") as file:
        json.dump(entry, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / EXIT_FILE)


def termination_message(
    directory: Path,
    code: int,
    ranks: list[dict[str, Any]],
    groups: Sequence[dict[str, Any]] = (),
) -> str:
    """One JSON document: the exit code, the ranks that failed, and the error or report they left.

    `error`: the exception that torchelastic recorded; `report`: the last ProgressReport;
    `collectives`: where the ranks were, as flight.py says, as far as there is room.
    """
    failed = [rank for rank in ranks if rank["exitCode"] != 0]
    document: dict[str, Any] = {"exitCode": code, "ranks": failed[:MAX_RANKS]}
    result = _read(directory / RESULT_FILE)  # the trainer's report, or its own account of an error
    if code:
        error = recorded_error(_read(directory / ERROR_FILE)) or recorded_error(result)
        document["error"] = (error or "")[:MAX_ERROR]
    elif isinstance(report := _json(result), dict):
        document["report"] = report
    for field in ("sample", "message"):
        if _size(document) > MAX_BYTES:
            document.get("report", {}).pop(field, None)
    if _size(document) > MAX_BYTES:
        document.pop("report", None)
    for group in groups:
        listed = document.get("collectives", [])
        if _size({**document, "collectives": [*listed, group]}) <= MAX_BYTES:
            document["collectives"] = [*listed, group]
    while _size(document) > MAX_BYTES:
        document["error"] = document["error"][: len(document["error"]) // 2]
    return _text(document)


def record_error(directory: Path, line: str) -> None:
    """Leave an error where torchelastic leaves its own."""
    (directory / ERROR_FILE).write_text(json.dumps({"message": line}))


def recorded_error(text: str) -> str | None:
    """The exception's line of {"message": {"message": "Traceback ..."}}, torchelastic's file."""
    recorded = _json(text)
    message = recorded.get("message") if isinstance(recorded, dict) else None
    if isinstance(message, dict):
        message = message.get("message")
    if not isinstance(message, str):
        return None
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if not lines:
        return None
    # A traceback ends with the exception; a plain message begins with it.
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def _size(document: dict[str, Any]) -> int:
    return len(_text(document).encode(errors="replace"))


def _json(text: str) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _read(path: Path) -> str:
    try:
        with path.open(errors="replace") as file:
            return file.read(256 * 1024)
    except OSError:
        return ""
