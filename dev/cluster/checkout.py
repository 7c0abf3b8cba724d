"""What a checkout gets of a running cluster: kubeconfig, programs, and a file to source."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .certs import write_private
from .settings import Settings


def write(settings: Settings, kubeconfig: str, programs: Path | None, registry: str = "") -> None:
    """Write .cluster/: kubeconfig, bin (a link to kubectl and helm) and env."""
    folder = settings.checkout
    folder.mkdir(exist_ok=True)
    if not settings.kubeconfig.exists() or settings.kubeconfig.read_text() != kubeconfig:
        write_private(settings.kubeconfig, kubeconfig)
    lines = [f"export KUBECONFIG={settings.kubeconfig}"]
    link = folder / "bin"
    link.unlink(missing_ok=True)
    if programs is not None:
        link.symlink_to(programs)
        lines.append(f'export PATH="{link}:$PATH"')
    if registry:
        lines.append(f"export TRAINYARD_REGISTRY={registry}/trainyard")
    (folder / "env").write_text("\n".join(lines) + "\n")
    owner = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if all(number.isdigit() for number in owner):  # made with sudo, used without
        for path in (folder, *folder.iterdir()):
            os.chown(path, int(owner[0]), int(owner[1]), follow_symlinks=False)


def remove(settings: Settings) -> None:
    """Remove .cluster/."""
    shutil.rmtree(settings.checkout, ignore_errors=True)


def hint(settings: Settings) -> str:
    """What to type next."""
    env = settings.checkout / "env"
    return f"export KUBECONFIG={settings.kubeconfig}   (with kubectl and helm: . {env})"
