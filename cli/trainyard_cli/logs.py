"""`trainyard logs`: a worker's log, or the whole run's as it grows."""

import sys
import time
from pathlib import Path

from trainyard_local.store import RunDir, UserError

POLL_SECONDS = 0.2


def show(run_dir: RunDir, *, attempt: int | None, node: int, follow: bool) -> None:
    """Print the log of one node; following goes on with later attempts until the run ends.

    Args:
        attempt: None means the newest.
    """
    if attempt is None:
        attempt = _newest(run_dir)
    path = run_dir.log_file(attempt, node)
    if not path.is_file() and not follow:
        kept = ", ".join(sorted(file.stem for file in run_dir.logs.glob("*.log"))) or "none yet"
        raise UserError(
            f"{run_dir.name} has no log of attempt {attempt}, node {node}"
            f" (ATTEMPT-NODE there are: {kept})"
        )
    position = 0
    while True:
        over = _over(run_dir, attempt)  # looked at before reading, so that nothing is missed
        position = _copy(path, position)
        if not follow or over:
            return
        if not run_dir.log_file(attempt + 1, node).is_file():
            time.sleep(POLL_SECONDS)
            continue
        _copy(path, position)
        attempt, position = attempt + 1, 0
        path = run_dir.log_file(attempt, node)
        print(f"--- attempt {attempt}", file=sys.stderr, flush=True)


def _copy(path: Path, position: int) -> int:
    """Write what has been added since `position`; returns the new end."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            while chunk := file.read(1 << 16):
                sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            return file.tell()
    except FileNotFoundError:
        return position


def _newest(run_dir: RunDir) -> int:
    numbers = [int(path.stem.split("-")[0]) for path in run_dir.logs.glob("*-*.log")]
    return max(numbers, default=1)


def _over(run_dir: RunDir, attempt: int) -> bool:
    """Whether nothing will be added to the attempt's log, nor a later attempt begin."""
    if not run_dir.exists():
        return True
    status = run_dir.read().get("status", {})
    finished = status.get("phase") in ("Succeeded", "Failed", "Suspended")
    return (finished and status.get("attempt", 0) <= attempt) or run_dir.holder() is None
