"""What the cluster changes on this machine outside its own folder: control groups, mounts, folders.

Each change has its counterpart here that takes it back.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import psutil

from .commands import run
from .processes import Identity, end
from .settings import Settings

CGROUPS = Path("/sys/fs/cgroup")

# Folders that the programs create outside our own; removed again if they did not exist before.
_OUTSIDE = (
    "/run/containerd",
    "/run/netns",
    "/run/kubernetes",
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/log/containers",
    "/var/log/pods",
    "/var/run/kubernetes",
)


def cgroup_version() -> int:
    """1 or 2: which kind of control groups this machine has."""
    return 2 if (CGROUPS / "cgroup.controllers").exists() else 1


def cgroup_roots() -> list[Path]:
    """The roots below which a node needs a folder."""
    if cgroup_version() == 2:
        return [CGROUPS]
    return sorted({path.resolve() for path in CGROUPS.iterdir() if path.is_dir()})


def create_cgroup(group: str) -> None:
    """Make a node's folder in every hierarchy."""
    for root in cgroup_roots():
        folder = root
        for part in group.strip("/").split("/"):
            parent, folder = folder, folder / part
            if cgroup_version() == 2:
                _delegate_controllers(parent)
            folder.mkdir(exist_ok=True)
            for name in ("cpuset.cpus", "cpuset.mems"):
                mine, above = folder / name, parent / name
                # In version 1 a new cpuset is empty, and nothing can be put in it.
                if cgroup_version() == 1 and mine.exists() and not mine.read_text().strip():
                    mine.write_text(above.read_text())
            shares = folder / "cpu.shares"
            if shares.exists():  # version 1, where all pods would together weigh as one process
                shares.write_text(str(1024 * (os.cpu_count() or 1)))


def cgroup_processes(group: str) -> list[Identity]:
    """Every process of a node's containers."""
    found: dict[int, Identity] = {}
    for root in cgroup_roots():
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


def kill_cgroup(group: str) -> None:
    """End every process of a node's containers at once."""
    while remaining := cgroup_processes(group):
        end(remaining, grace=0)


def remove_cgroup(group: str) -> None:
    """Remove a folder and all below it from every hierarchy, deepest first."""
    for root in cgroup_roots():
        top = root / group.strip("/")
        if not top.is_dir():
            continue
        for folder, _, _ in os.walk(top, topdown=False):
            Path(folder).rmdir()


def _delegate_controllers(folder: Path) -> None:
    """Let the groups below use every controller (version 2)."""
    control = folder / "cgroup.subtree_control"
    have = set(control.read_text().split())
    for controller in (folder / "cgroup.controllers").read_text().split():
        if controller not in have:
            try:
                control.write_text(f"+{controller}")
            except OSError:
                continue  # one the kernel keeps to itself, such as a real-time cpu controller


def mounts_below(folder: Path) -> list[Path]:
    """Every mount point in or below the folder, deepest first."""
    prefix = str(folder.resolve())
    found = [
        mount.mountpoint
        for mount in psutil.disk_partitions(all=True)
        if mount.mountpoint == prefix or mount.mountpoint.startswith(prefix.rstrip("/") + "/")
    ]
    return [Path(point) for point in sorted(found, key=len, reverse=True)]


def unmount_below(folder: Path) -> None:
    """Unmount everything in or below the folder."""
    for point in mounts_below(folder):
        run(["umount", "--lazy", point], check=False)


def remember_folders(settings: Settings) -> None:
    """Record which of the outside folders do not exist before the first start."""
    record = settings.state / "absent-before.json"
    if not record.exists():
        absent = [path for path in _OUTSIDE if not Path(path).exists()]
        record.write_text(json.dumps(absent) + "\n")


def remove_folders(settings: Settings) -> None:
    """Remove the outside folders that did not exist before the first start."""
    record = settings.state / "absent-before.json"
    if not record.exists():
        return
    for path in json.loads(record.read_text()):
        unmount_below(Path(path))
        shutil.rmtree(path, ignore_errors=True)
