"""The tools that build images, and the error that names what is missing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


class ImageError(Exception):
    """What is wrong and what to do about it, in one line."""


def uv() -> str:
    """Where uv is: on PATH, or in the checkout's virtual environment."""
    found = shutil.which("uv") or shutil.which("uv", path=str(REPO / ".venv" / "bin"))
    if found is None:
        raise ImageError("uv is not installed: pip install uv")
    return found


def builder(wanted: str = "") -> str:
    """docker, podman or buildah: the one asked for, or the first that works."""
    for tool in (wanted,) if wanted else ("docker", "podman", "buildah"):
        if shutil.which(tool) and succeeds([tool, "info"]):
            return tool
    raise ImageError(
        f"{wanted} does not work here"
        if wanted
        else "none of docker, podman and buildah works here: install one (apt-get install buildah)"
    )


def succeeds(command: Sequence[str], env: Mapping[str, str] | None = None) -> bool:
    """Whether a command ends well; what it prints is of no interest."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, env=env, check=False
    )
    return done.returncode == 0


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Run a command quietly; when it fails, show the end of what it said and raise ImageError."""
    done = subprocess.run(
        command,
        cwd=REPO,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print("\n".join(done.stdout.splitlines()[-25:]))
        raise ImageError(f"{' '.join(command[:2])} failed (exit status {done.returncode})")
