"""Records how a worker ended in exit.json, atomically."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

EXIT_FILE = "exit.json"


def write_exit(directory: Path, code: int, ranks: list[dict[str, Any]] | None = None) -> None:
    """Publish the exit status (128 + number for a signal), atomically and durably.

    `ranks`: how its ranks ended, in that order.
    """
    finished = datetime.now(timezone.utc).isoformat()
    entry = {"exitCode": code, "finishedAt": finished, "ranks": ranks or []}
    temporary = directory / f".{EXIT_FILE}.tmp"
    with temporary.open("w") as file:
        json.dump(entry, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / EXIT_FILE)
