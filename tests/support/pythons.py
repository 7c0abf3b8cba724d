"""The Pythons of this machine, for what runs in images of others."""

import shutil
import subprocess
import sys
from pathlib import Path

VERSIONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13")


def interpreters() -> list[str]:
    """Every Python on this machine that runs: of the PATH, and pyenv's."""
    found = {sys.executable}
    for version in VERSIONS:
        pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        path = shutil.which(f"python{version}")
        # pyenv's shims are on the PATH also where it has no such version.
        runs = path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0
        found |= {str(pyenv[0])} if pyenv else {path} if path and runs else set()
    return sorted(found)
