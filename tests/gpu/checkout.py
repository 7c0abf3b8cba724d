"""Makes this checkout usable as if it were installed, on a machine without a network.

A GPU machine often has torch and transformers and no package registry, so nothing can be installed
there: the packages are put on Python's path, and the recipes registered, for this process and those
that it starts.
"""

import importlib.util
import itertools
import os
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What is imported here beside torch, transformers and what these need: module -> distribution.
NEEDED = {
    "fastapi": "fastapi",
    "fastapi_offline": "fastapi-offline",
    "httpx": "httpx",
    "prometheus_client": "prometheus-client",
    "psutil": "psutil",
    "pydantic": "pydantic",
    "pydantic_settings": "pydantic-settings",
    "rich": "rich",
    "uvicorn": "uvicorn",
    "yaml": "pyyaml",
}


def add_to_path(*folders: Path) -> None:
    """Import from these folders, here and in every process that is started from now on."""
    names = [str(folder.resolve()) for folder in folders]
    sys.path[:0] = names
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*names, *([before] if before else [])])


def use_checkout(folder: Path) -> None:
    """Import the checkout's own packages; `folder` gets what an installation would register."""
    project = _pyproject()
    hatch = project["tool"]["hatch"]["build"]
    add_to_path(ROOT, *(ROOT / name for name in hatch["targets"]["wheel"]["dev-mode-dirs"]))
    try:
        metadata.distribution("trainyard")
    except metadata.PackageNotFoundError:
        from trainyard_api import __version__

        about = folder / f"trainyard-{__version__}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: trainyard\nVersion: {__version__}\n"
        )
        lines = []
        for group, entries in project["project"]["entry-points"].items():
            lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
        (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
        add_to_path(folder)


def missing() -> list[str]:
    """What can't be imported, as requirements for pip."""
    absent = {name for module, name in NEEDED.items() if not importlib.util.find_spec(module)}
    project = _pyproject()["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    lines = itertools.chain.from_iterable(reversed(groups))  # the same name: the first group's
    by_name = {re.split(r"[^\w.-]", line, maxsplit=1)[0]: line for line in lines}
    return sorted(by_name[name].partition(";")[0] for name in absent)


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
