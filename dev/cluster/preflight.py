"""What a cluster and the images need from this machine: checked early, installed as root on Debian.

Standard library only: make runs it before the virtual environment exists, so that what can't work
is reported within a second.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .commands import TRANSFER, UserError, direct_env, run

GO_NEEDED = (1, 26)
BUILDERS = ("docker", "podman", "buildah")

# program (or file) -> the Debian package that has it
CLUSTER_PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "nft": "nftables",
    "ip": "iproute2",
    "mount": "mount",
    "openssl": "openssl",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
}
IMAGE_PROGRAMS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}

_ALTERNATIVES = "or use a cluster you have: make cluster CONTEXT=NAME; `make demo` needs no cluster"
_WITHOUT_IMAGES = "`make demo` trains and serves on this machine without images"


def missing(programs: Mapping[str, str]) -> list[str]:
    """The Debian packages of the programs that are not installed."""
    path = direct_env()["PATH"]
    return sorted(
        package
        for program, package in programs.items()
        if (not Path(program).exists() if "/" in program else not shutil.which(program, path=path))
    )


def may_install() -> bool:
    """Whether this user can install Debian packages."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(packages: Sequence[str], report: Callable[[str], None]) -> None:
    """Install Debian packages, if any, without starting their services."""
    if not packages:
        return
    env = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1", **os.environ}
    report("updating the package lists")
    run(["apt-get", "update", "-q"], env=env, timeout=TRANSFER)
    report("installing " + ", ".join(packages))
    command = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
    run(command, env=env, timeout=TRANSFER)


def native_cluster(need_go: bool) -> None:
    """Raise one UserError that lists everything missing for a cluster without Docker."""
    problems = []
    if platform.system() != "Linux":
        problems.append("Linux (elsewhere, install Docker)")
    elif os.geteuid() != 0:
        problems.append("root (sudo make cluster, or install Docker)")
    packages = missing(CLUSTER_PROGRAMS)
    if packages and not shutil.which("apt-get"):
        problems.append(f"the programs of the Debian packages {', '.join(packages)}")
    if need_go and (problem := _go_problem()):
        problems.append(problem)
    if Path("/proc/filesystems").exists():
        known = Path("/proc/filesystems").read_text().split()
        if "overlay" not in known and not shutil.which("modprobe", path=direct_env()["PATH"]):
            problems.append("a kernel with overlayfs")
    if problems:
        needs = " and ".join(problems)
        raise UserError(f"without Docker, a cluster on this machine needs {needs}; {_ALTERNATIVES}")


def image_builder(wanted: str = "") -> str | None:
    """docker, podman or buildah: the one wanted, or the first that works.

    None when none works and this user can install buildah; otherwise UserError.
    """
    problems = []
    for tool in (wanted,) if wanted else BUILDERS:
        problem = builder_problem(tool) or (_buildkit_problem() if tool == "docker" else "")
        if not problem:
            return tool
        if shutil.which(tool):
            problems.append(problem)
    if may_install() and wanted != "docker":
        return None
    if wanted:
        raise UserError(problem)
    why = f" ({'; '.join(problems)})" if problems else ""
    packages = " ".join([*missing(IMAGE_PROGRAMS), "uidmap"])
    raise UserError(
        f"building images needs docker, podman or buildah{why}; on Debian: "
        f"sudo apt-get install {packages}; {_WITHOUT_IMAGES}"
    )


def builder_problem(tool: str) -> str:
    """Why the tool can't be used, in a few words; empty when it works."""
    if not shutil.which(tool):
        return f"{tool} is not installed"
    try:
        done = run([tool, "info"], check=False, timeout=60)
    except UserError as error:
        return str(error)
    if done.returncode == 0:
        return ""
    # Old docker clients print the reason on standard output, and a useless last line.
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    output = [line for line in lines if line.strip() and "pretty printing" not in line]
    reason = output[-1].removeprefix("ERROR: ") if output else "it prints no reason"
    return f"{tool} is installed but does not work: {reason}"


def _buildkit_problem() -> str:
    """Why docker can't build with BuildKit, which build secrets need; empty when it can."""
    version = run(["docker", "version", "--format", "{{.Client.Version}}"], check=False).stdout
    major = version.partition(".")[0]
    # Clients before 23 have BuildKit built in; later ones need the plugin.
    if major.isdigit() and int(major) < 23:
        return ""
    if run(["docker", "buildx", "version"], check=False).returncode == 0:
        return ""
    return "docker can't build without its buildx plugin: see docs.docker.com/go/buildx"


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


def main() -> int:
    """Check early what `make cluster` or `make images` needs; one line says what is missing."""
    parser = argparse.ArgumentParser(prog="preflight", description="Check this machine.")
    parser.add_argument("purpose", choices=("cluster", "images"))
    parser.add_argument("--tool", default="", help="for images: docker, podman or buildah")
    options = parser.parse_args()
    try:
        if options.purpose == "images":
            image_builder(options.tool)
        elif os.environ.get("TRAINYARD_CONTEXT"):
            if not shutil.which("kubectl"):
                raise UserError("kubectl is not installed: see kubernetes.io/docs/tasks/tools")
        elif os.environ.get("TRAINYARD_CLUSTER") == "native" or builder_problem("docker"):
            native_cluster(need_go=False)
    except UserError as error:
        print(f"{options.purpose}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
