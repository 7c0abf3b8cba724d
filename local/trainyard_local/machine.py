"""Describes this machine: processor, memory, GPUs, versions, and the commit checked out."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from trainyard_api import __version__
from trainyard_api.study_status import Machine


def this_machine() -> Machine:
    """The machine's description, found without importing torch or running a program."""
    return Machine(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        gpus=gpu_models(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=installed_version("torch"),
        trainyard=__version__,
        load=round(os.getloadavg()[0], 2),
    )


def commit() -> str | None:
    """The git commit of the current directory, with `-dirty` if files differ; None without git."""
    if shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return " ".join(value.split())
    return platform.processor() or platform.machine()


def gpu_models() -> list[str]:
    """Model names of the NVIDIA GPUs, as the driver lists them."""
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):
            for line in file.read_text().splitlines():
                key, _, value = line.partition(":")
                if key == "Model":
                    names.append(value.strip())
    return names


def installed_version(package: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None
