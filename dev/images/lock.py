"""Write images/requirements/*.txt: every package of every image, at one version, with hashes.

Run it (python3 -m dev.images lock) after a change of the dependencies in pyproject.toml. The files
name no package index, so each machine uses its own.
"""

from __future__ import annotations

import subprocess
import tomllib

from dev.cluster.commands import UserError

from .builder import REPO, uv

FOLDER = REPO / "images" / "requirements"
_HEADER = "# Written by python3 -m dev.images lock from {source}: do not edit.\n"


def write() -> None:
    """Compile all files; torch first, because trainer and serving must agree with it."""
    _compile("uv", "uv", [])
    _compile("agent", required("py-spy"), [])
    _compile("torch", required("torch"), [])
    agree = ["--constraint", str(FOLDER / "torch.txt")]
    _compile("operator", None, [])
    _compile("trainer", None, agree)
    _compile("serving", None, agree)


def required(name: str) -> str:
    """What pyproject.toml requires of a package, without a marker."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    lines = (str(line) for lines in lists for line in lines)
    return next(line.split(";")[0] for line in lines if line.startswith(f"{name}>="))


def _compile(name: str, requirement: str | None, more: list[str]) -> None:
    """Compile one file from a requirement, or from the extra of that name."""
    command = [uv(), "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", *more]
    if requirement is None:
        command += ["--extra", name, "pyproject.toml"]
    else:
        command += ["-"]
    done = subprocess.run(
        command, cwd=REPO, input=requirement, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise UserError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    source = requirement or f"pyproject.toml, extra {name}"
    (FOLDER / f"{name}.txt").write_text(_HEADER.format(source=source) + done.stdout)
    print(f"  {name}.txt: {done.stdout.count('==')} packages")
