"""Where and of what a study is measured: processor, GPUs, versions, commit."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from trainyard_api import __version__
from trainyard_api.study_status import Machine


def this_machine() -> Machine:
    """What can be learnt without importing torch or running anything."""
    return Machine(
        cpu=_cpu(),
        cores=os.cpu_count() or 1,
        memory_bytes=_memory(),
        gpus=_gpus(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=_version("torch"),
        trainyard=__version__,
        load=round(os.getloadavg()[0], 2),
    )


def commit() -> str | None:
    """The git commit checked out here, `-dirty` if tracked files differ; None outside of git."""
    if shutil.which("git") is None:
        return None
    described = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    found = subprocess.run(described, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return " ".join(value.split())
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _gpus() -> list[str]:
    """Names of the NVIDIA GPUs, as the driver lists them."""
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            for line in file.read_text().splitlines():
                key, _, value = line.partition(":")
                if key == "Model":
                    names.append(value.strip())
    return names


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None
