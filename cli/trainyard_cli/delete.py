"""`trainyard delete`: ends a run's processes and removes what it left on this machine."""

from pathlib import Path

from trainyard_local.store import RunDir


def delete(run_dir: RunDir) -> str:
    """Delete the run; returns what to tell the user."""
    from trainyard_local.driver import end_driver  # pydantic, only needed here
    from trainyard_local.workers import Workers

    if (pid := run_dir.holder()) is not None:
        end_driver(run_dir, pid, at_once=True)
    with run_dir.locked():
        Workers(run_dir).kill_all()
        freed, kept = run_dir.remove(run_dir.read())
    return f"deleted {run_dir.name}: {_size_text(freed)} freed{_kept_text(kept)}"


def _size_text(size: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size //= 1024
    return f"{size} GiB"


def _kept_text(kept: Path | None) -> str:
    return f"; its data stays in {kept}" if kept else ""
