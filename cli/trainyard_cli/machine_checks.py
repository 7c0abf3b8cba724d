"""Checks of this machine for `trainyard doctor`: Python, extras, torch, GPUs, ports, disk, memory.

Nothing is changed, and nothing that may be broken is imported, such as torch. A problem is what
would stop `trainyard run`; anything else is a warning at most.
"""

import os
import platform
import re
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil

from trainyard_api import __version__
from trainyard_cli.serve import CLASSIFY, DASHBOARD_PORT, GENERATE
from trainyard_cli.server_process import HOST
from trainyard_local import gpus, preflight
from trainyard_local.machine import installed_version
from trainyard_local.store import HOME_ENV, home

CHECK_SECONDS = 5.0
MIN_PYTHON = (3, 11)
GIBIBYTE = 1 << 30
# The quickstart writes 40 MB; a useful run keeps several checkpoints.
DISK_REQUIRED, DISK_RECOMMENDED = 200 << 20, 5 * GIBIBYTE
# Two processes of the quickstart need 1 GiB together.
MEMORY_RECOMMENDED = 2 * GIBIBYTE
PORTS = {
    GENERATE.port: "trainyard serve of text and embedding models",
    CLASSIFY.port: "trainyard serve of classifiers",
    DASHBOARD_PORT: "trainyard dashboard",
}

Level = Literal["ok", "warning", "problem", "not checked"]


@dataclass(frozen=True)
class Finding:
    """The result of one check: what was found, and what to do about it (empty if nothing)."""

    check: str
    level: Level
    message: str
    action: str = ""


def check_python() -> list[Finding]:
    """The interpreter and trainyard itself."""
    text = f"Python {platform.python_version()} at {sys.executable}, trainyard {__version__}"
    if sys.version_info[:2] < MIN_PYTHON:
        required = ".".join(map(str, MIN_PYTHON))
        return [Finding("python", "problem", text, f"install Python {required} or newer")]
    return [Finding("python", "ok", text)]


def check_extras() -> list[Finding]:
    """Which of the package's extras are installed. Training needs one, serving another."""
    levels: dict[str, Level] = {"trainer": "problem", "serving": "warning"}
    findings = []
    for extra, level in levels.items():
        if missing := preflight.missing_distributions(extra):
            text = f"the {extra} extra is incomplete: {', '.join(missing)} missing"
            action = f"pip install 'trainyard[{extra}]'"
            findings.append(Finding("extras", level, text, action))
        else:
            findings.append(Finding("extras", "ok", f"the {extra} extra is installed"))
    return findings


def check_torch() -> list[Finding]:
    """torch's build, and whether it fits the GPUs; without them, runs train on CPUs."""
    version, cuda = installed_version("torch"), torch_cuda()
    listed, driver_cuda, trouble = _nvidia_smi()
    devices = gpus.gpu_count()
    if version is None:
        torch = Finding("torch", "problem", "not installed", "pip install 'trainyard[trainer]'")
    else:
        build = f"built for CUDA {cuda}" if cuda else "CPU build"
        torch = Finding("torch", "ok", f"torch {version}, {build}")
    if not (listed or devices or trouble):
        return [torch, Finding("gpu", "ok", "no NVIDIA GPU: runs train on CPUs")]
    found = "; ".join(listed) or f"{devices} device files of NVIDIA GPUs"
    if trouble:
        action = "check the NVIDIA driver: nvidia-smi must list the GPUs"
        return [torch, Finding("gpu", "warning", f"{found}: {trouble}", action)]
    if version is None:
        return [torch, Finding("gpu", "ok", found)]
    if cuda is None:
        action = "install a CUDA build of torch: pip install --force-reinstall torch"
        return [torch, Finding("gpu", "warning", f"{found}, but torch is a CPU build", action)]
    if driver_cuda and int(cuda.split(".")[0]) > int(driver_cuda.split(".")[0]):
        text = f"{found}: the driver supports CUDA {driver_cuda}, torch is built for CUDA {cuda}"
        action = "update the NVIDIA driver, or install a torch build for the driver's CUDA version"
        return [torch, Finding("gpu", "warning", text, action)]
    return [torch, Finding("gpu", "ok", f"{found}, driver for CUDA {driver_cuda or 'unknown'}")]


def torch_cuda() -> str | None:
    """The CUDA version that torch was built for, read without an import; None: a CPU build."""
    spec = find_spec("torch")
    for location in (spec and spec.submodule_search_locations) or ():
        file = Path(location) / "version.py"
        if file.is_file():
            cuda: str | None = runpy.run_path(str(file)).get("cuda")
            return cuda
    return None


def check_torchrun() -> list[Finding]:
    """The program that starts the ranks."""
    if path := shutil.which("torchrun", path=preflight.search_path()):
        return [Finding("torchrun", "ok", path)]
    action = "pip install 'trainyard[trainer]'"
    return [Finding("torchrun", "problem", "not found on the PATH of workers", action)]


def check_ports() -> list[Finding]:
    """Ports: any two free ones for a run's rendezvous and report, and the servers' defaults."""
    findings = []
    try:
        with socket.create_server((HOST, 0)), socket.create_server((HOST, 0)):
            findings.append(Finding("ports", "ok", f"runs can listen on {HOST}"))
    except OSError as error:
        text = f"no port can be opened on {HOST}: {error.strerror}"
        action = "allow this user to listen on the loopback interface"
        findings.append(Finding("ports", "problem", text, action))
    for port, purpose in PORTS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
            try:
                probe.bind((HOST, port))
                findings.append(Finding("ports", "ok", f"port {port} is free ({purpose})"))
            except OSError as error:
                text = f"port {port} ({purpose}): {error.strerror}{_listener(port)}"
                action = "stop that program, or choose another port with --port"
                findings.append(Finding("ports", "warning", text, action))
    return findings


def check_home() -> list[Finding]:
    """Whether TRAINYARD_HOME can be written, and the free space there."""
    directory = next(path for path in (home(), *home().parents) if path.exists())
    action = f"make it writable, or set {HOME_ENV} to another directory"
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".trainyard-doctor-") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        text = f"{directory} can't be written: {error.strerror}"
        return [Finding("home", "problem", text, action)]
    free = psutil.disk_usage(str(directory)).free
    text = f"{home()}: writable, {_size(free)} free"
    action = f"free some space, or set {HOME_ENV} to a directory on another disk"
    if free < DISK_REQUIRED:
        return [Finding("home", "problem", text, action)]
    if free < DISK_RECOMMENDED:
        return [Finding("home", "warning", text, action)]
    return [Finding("home", "ok", text)]


def check_memory() -> list[Finding]:
    """Memory that processes can still allocate."""
    memory = psutil.virtual_memory()
    text = f"{_size(memory.available)} of {_size(memory.total)} available"
    if memory.available < MEMORY_RECOMMENDED:
        action = "stop other programs, or train a smaller model"
        return [Finding("memory", "warning", text, action)]
    return [Finding("memory", "ok", text)]


def run_program(command: list[str], stdin: str = "", timeout: float = CHECK_SECONDS) -> str:
    """What a program prints. Raises OSError or subprocess.SubprocessError."""
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
    )
    return done.stdout.strip()


def error_text(error: OSError | subprocess.SubprocessError) -> str:
    """Why a program failed, in one line."""
    if isinstance(error, subprocess.CalledProcessError):
        text = " ".join(str(error.stderr or error.stdout).split())
        return text or f"exit status {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer within {error.timeout:g} s"
    return str(error)


def _nvidia_smi() -> tuple[list[str], str, str]:
    """(GPUs, CUDA version the driver supports, error); all empty without nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], "", ""
    half = CHECK_SECONDS / 2
    query = "--query-gpu=name,memory.total,driver_version"
    try:
        listed = run_program([program, query, "--format=csv,noheader"], timeout=half)
        header = run_program([program], timeout=half)
    except (OSError, subprocess.SubprocessError) as error:
        return [], "", f"nvidia-smi failed: {error_text(error)}"
    version = re.search(r"CUDA Version:\s*([\d.]+)", header)
    return listed.splitlines(), version.group(1) if version else "", ""


def _listener(port: int) -> str:
    """`, used by process 123 (python)` if this user may see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port:
                name = psutil.Process(connection.pid).name() if connection.pid else ""
                return f", used by process {connection.pid} ({name})" if name else ""
    except psutil.Error:
        pass
    return ""


def _size(size: int) -> str:
    if size < GIBIBYTE:
        return f"{size / (1 << 20):.0f} MiB"
    return f"{size / GIBIBYTE:.1f} GiB"
