"""Mounts below a folder: found in the kernel's own list, and undone deepest first."""

from __future__ import annotations

from pathlib import Path

from .shell import run


def below(folder: Path) -> list[Path]:
    """Every mount point in or below the folder, deepest first."""
    prefix = str(folder.resolve())
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4].encode().decode("unicode_escape")
        if point == prefix or point.startswith(prefix + "/"):
            found.append(point)
    return [Path(point) for point in sorted(found, key=len, reverse=True)]


def undo(folder: Path) -> None:
    """Unmount everything in or below the folder."""
    for point in below(folder):
        run(["umount", "--lazy", point], check=False)
