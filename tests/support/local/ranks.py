"""The ranks of a local run as processes: found from outside, as an operator of a machine would."""

from contextlib import suppress
from pathlib import Path

from trainyard_agent import procfs


def ranks_of(run_dir: Path, attempt: int | None = None) -> dict[int, int]:
    """The process id of every living rank, by rank; None: of whichever attempt has workers."""
    found: dict[int, int] = {}
    for worker in (run_dir / "workers").glob(f"{'*' if attempt is None else attempt}-*"):
        for pid in procfs.worker_processes(worker):
            rank = _rank(pid)
            if rank is not None:
                found[rank] = pid
    return found


def _rank(pid: int) -> int | None:
    """The rank of a process that torchrun has started; None for all others.

    Loader workers and the like have a rank's environment, but the rank for a parent.
    """
    with suppress(OSError, ValueError):
        rank = _environment(pid).get("RANK")
        if rank is not None and "RANK" not in _environment(_parent(pid)):
            return int(rank)
    return None


def _environment(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
