"""Folders that the programs insist on making outside our own: removed again if we brought them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from . import mounts
from .settings import Settings

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


def remember(settings: Settings) -> None:
    """Note which of them are not there before the first start."""
    record = settings.state / "absent-before.json"
    if not record.exists():
        absent = [path for path in _OUTSIDE if not Path(path).exists()]
        record.write_text(json.dumps(absent) + "\n")


def remove(settings: Settings) -> None:
    """Remove those that were not there before."""
    record = settings.state / "absent-before.json"
    if not record.exists():
        return
    for path in json.loads(record.read_text()):
        mounts.undo(Path(path))
        shutil.rmtree(path, ignore_errors=True)
