"""What the native cluster needs from the machine: all that is missing is named at once."""

from __future__ import annotations

import os
import platform
import re
import shutil
from pathlib import Path

from .errors import ClusterError
from .settings import GO_NEEDED
from .shell import direct_env, run
from .ui import Tell
from .wait import TRANSFER

# program (or file) -> the Debian package that brings it
_PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "mount": "mount",
    "openssl": "openssl",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
}


def missing_packages() -> list[str]:
    """The Debian packages that are not installed yet."""
    path = direct_env()["PATH"]
    return sorted(
        package
        for program, package in _PROGRAMS.items()
        if (not Path(program).exists() if "/" in program else not shutil.which(program, path=path))
    )


def check(need_go: bool) -> None:
    """Raise one ClusterError that lists everything that is missing and how to get it."""
    problems = []
    if platform.system() != "Linux":
        problems.append("Linux (elsewhere, install Docker and kind)")
    elif os.geteuid() != 0:
        problems.append("root (run it with sudo, or install Docker, whose kind cluster needs none)")
    packages = missing_packages()
    if packages and not shutil.which("apt-get"):
        problems.append(f"the programs of {', '.join(packages)} (no apt-get to install them)")
    if need_go and (problem := _go_problem()):
        problems.append(problem)
    if Path("/proc/filesystems").exists():
        known = Path("/proc/filesystems").read_text().split()
        if "overlay" not in known and not shutil.which("modprobe", path=direct_env()["PATH"]):
            problems.append("a kernel with overlayfs")
    if problems:
        raise ClusterError("a cluster without Docker needs " + "; ".join(problems))


def install(tell: Tell) -> None:
    """Install the missing Debian packages, without starting their services."""
    packages = missing_packages()
    if not packages:
        return
    env = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1", **os.environ}
    tell("updating the package lists")
    run(["apt-get", "update", "-q"], env=env, timeout=TRANSFER)
    tell("installing " + ", ".join(packages))
    run(
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages],
        env=env,
        timeout=TRANSFER,
    )


def go_program() -> str | None:
    """Where go is, also if it is not on PATH."""
    return shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")


def _go_problem() -> str | None:
    wanted = ".".join(map(str, GO_NEEDED))
    program = go_program()
    if program is None:
        return f"Go {wanted} or newer (go.dev/dl), to build Kubernetes once"
    said = run([program, "version"]).stdout
    found = re.search(r"go(\d+)\.(\d+)", said)
    if found and (int(found[1]), int(found[2])) >= (1, 21):
        return None  # from 1.21 on, go fetches the newer version that go.mod asks for
    return f"Go {wanted} or newer (found: {said.strip()})"
