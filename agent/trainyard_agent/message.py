"""How a worker in a pod ended, as its termination message: one JSON document."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

MAX_BYTES = 4096  # Kubernetes keeps no more, and what it cuts can't be parsed
MAX_RANKS = 32  # of those that failed, the first ones
MAX_ERROR = 1000
ERROR_FILE = "error.json"
RESULT_FILE = "result"


def termination_message(directory: Path, code: int, ranks: list[dict[str, Any]]) -> str:
    """The worker's end: its exit code, the ranks that failed, and what they have left to say.

    `error`: the exception that torchelastic recorded; `report`: the last ProgressReport.
    """
    failed = [rank for rank in ranks if rank["exitCode"] != 0]
    document: dict[str, Any] = {"exitCode": code, "ranks": failed[:MAX_RANKS]}
    result = _read(directory / RESULT_FILE)  # the trainer's report, or its own account of an error
    if code:
        error = recorded_error(_read(directory / ERROR_FILE)) or recorded_error(result)
        document["error"] = (error or "")[:MAX_ERROR]
    elif isinstance(report := _json(result), dict):
        document["report"] = report
    for shorter in ("sample", "message"):
        if len(_text(document)) > MAX_BYTES:
            document.get("report", {}).pop(shorter, None)
    if len(_text(document)) > MAX_BYTES:
        document.pop("report", None)
    return _text(document).decode()


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


def _text(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


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
