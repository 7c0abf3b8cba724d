"""The base image: a public Python image, or one made of Debian packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from .tools import ImageError, run, succeeds

PUBLIC = "docker.io/library/python:3.11-slim-bookworm"
DEBIAN = "localhost/trainyard/debian-python:bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates"


def choose(tool: str, wanted: str) -> str:
    """The base image's name; it is there when this returns."""
    if wanted and wanted != "debian":
        return wanted
    if not wanted and _has(tool, PUBLIC):
        return PUBLIC
    if _has(tool, DEBIAN):
        return DEBIAN
    if not wanted and _pulls(tool):
        return PUBLIC
    _make_debian(tool)
    return DEBIAN


def _has(tool: str, image: str) -> bool:
    if tool == "docker":
        return succeeds(["docker", "image", "inspect", image])
    return succeeds([tool, "inspect", "--type", "image", image])


def _pulls(tool: str) -> bool:
    """Whether the public image can be had; a machine without a way out says so within seconds."""
    try:
        done = subprocess.run(
            [tool, "pull", "--quiet", PUBLIC], capture_output=True, timeout=1800, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _make_debian(tool: str) -> None:
    if not shutil.which("mmdebstrap") or os.geteuid() != 0:
        raise ImageError(
            f"{PUBLIC} can't be pulled: pass another Python 3.11 image with --base, or, on Debian "
            "as root, apt-get install mmdebstrap"
        )
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "base.tar"
        # The image knows no package mirror, and nothing of the machine that made it.
        names = ["apt/sources.list", "apt/sources.list.d", "resolv.conf", "hostname"]
        forget = "rm -rf " + " ".join(f'"$1"/etc/{name}' for name in names)
        options = f"--quiet --variant=minbase --include={_PACKAGES}".split()
        run(["mmdebstrap", *options, f"--customize-hook={forget}", "bookworm", str(tree)])
        if tool == "docker":
            run(["docker", "import", str(tree), DEBIAN])
            return
        recipe = Path(folder) / "Containerfile"
        recipe.write_text("FROM scratch\nADD base.tar /\n")
        words = ["bud"] if tool == "buildah" else ["build"]
        run([tool, *words, "--quiet", "--tag", DEBIAN, "--file", str(recipe), folder])
