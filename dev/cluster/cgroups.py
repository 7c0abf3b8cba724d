"""The nodes' control groups, so that each kubelet limits, counts and ends only its own pods."""

from __future__ import annotations

import os
from pathlib import Path

from .processes import Identity, end

ROOT = Path("/sys/fs/cgroup")


def version() -> int:
    """1 or 2: which kind of control groups this machine has."""
    return 2 if (ROOT / "cgroup.controllers").exists() else 1


def hierarchies() -> list[Path]:
    """The roots below which a node needs a folder."""
    if version() == 2:
        return [ROOT]
    return sorted({path.resolve() for path in ROOT.iterdir() if path.is_dir()})


def create(group: str) -> None:
    """Make a node's folder in every hierarchy."""
    for root in hierarchies():
        folder = root
        for part in group.strip("/").split("/"):
            parent, folder = folder, folder / part
            if version() == 2:
                _delegate(parent)
            folder.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                mine, above = folder / name, parent / name
                # In version 1 a new cpuset is empty, and nothing can be put in it.
                if version() == 1 and mine.exists() and not mine.read_text().strip():
                    mine.write_text(above.read_text())
            shares = folder / "cpu.shares"
            if shares.exists():  # version 1, where all pods would together weigh as one process
                shares.write_text(str(1024 * (os.cpu_count() or 1)))


def processes(group: str) -> list[Identity]:
    """Every process of a node's containers."""
    found: dict[int, Identity] = {}
    for root in hierarchies():
        folder = root / group.strip("/")
        for tasks in folder.rglob("cgroup.procs"):
            try:
                pids = [int(line) for line in tasks.read_text().split()]
            except OSError:
                continue
            for pid in pids:
                identity = Identity.of(pid)
                if identity is not None:
                    found[pid] = identity
    return list(found.values())


def kill(group: str) -> None:
    """End every process of a node's containers at once."""
    while remaining := processes(group):
        end(remaining, grace=0)


def remove(group: str) -> None:
    """Remove a folder and all below it from every hierarchy, deepest first."""
    for root in hierarchies():
        top = root / group.strip("/")
        if not top.is_dir():
            continue
        for folder, _, _ in os.walk(top, topdown=False):
            Path(folder).rmdir()


def _delegate(folder: Path) -> None:
    """Let the groups below use every controller (version 2)."""
    control = folder / "cgroup.subtree_control"
    have = set(control.read_text().split())
    for controller in (folder / "cgroup.controllers").read_text().split():
        if controller not in have:
            try:
                control.write_text(f"+{controller}")
            except OSError:
                continue  # one the kernel keeps to itself, such as a real-time cpu controller
