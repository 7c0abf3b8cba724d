"""How a worker ended, as a file: it is there once, whole, as soon as the worker has ended."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

EXIT_FILE = "exit.json"


def write_exit(directory: Path, code: int, ranks: list[dict[str, Any]] | None = None) -> None:
    """Publish the exit status (128 + number for a signal), atomically and durably.

    `ranks`: the ends of its ranks, in their order.
    """
    finished = datetime.now(timezone.utc).isoformat()
    entry = {"exitCode": code, "finishedAt": finished, "ranks": ranks or []}
    temporary = directory / f".{EXIT_FILE}.tmp"
    with temporary.open("w") as file:
        json.dump(entry, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / EXIT_FILE)
