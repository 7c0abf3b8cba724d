"""docker, podman and buildah: which one builds the images, and what differs between them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dev.cluster import preflight
from dev.cluster.commands import UserError
from dev.cluster.ui import Report

REPO = Path(__file__).resolve().parent.parent.parent
PUBLIC_BASE = "docker.io/library/python:3.11-slim-bookworm"
DEBIAN_BASE = "localhost/trainyard/debian-python:bookworm-2"  # a new tag for other packages
PUBLIC_BUSYBOX = "docker.io/library/busybox:1.37.0-musl"
DEBIAN_BUSYBOX = "localhost/trainyard/debian-busybox:bookworm"
# The compiler and the headers are for torch.compile; images cannot install packages later.
_DEBIAN_PACKAGES = "python3,python3-venv,ca-certificates,g++,python3-dev"
_PULL_TIMEOUT = 1800


@dataclass(frozen=True)
class Builder:
    """One of the three tools, behind the same few operations."""

    tool: str

    def has(self, image: str) -> bool:
        """Whether the tool's store has the image."""
        words = ["image", "inspect"] if self.tool == "docker" else ["inspect", "--type", "image"]
        return succeeds([self.tool, *words, image])

    def pulls(self, image: str) -> bool:
        """Pull the image; False where its registry can't be reached."""
        return succeeds([self.tool, "pull", "--quiet", image], timeout=_PULL_TIMEOUT)

    def build(self, recipe: Path, context: Path, image: str, options: Sequence[str] = ()) -> None:
        """Build one Containerfile; never pulls."""
        env = dict(os.environ)
        if self.tool == "docker":
            command = ["docker", "build", "--quiet"]
            env["DOCKER_BUILDKIT"] = "1"
        else:
            command = [self.tool, "bud" if self.tool == "buildah" else "build"]
            command += ["--quiet", "--layers", "--format", "oci"]
            command += ["--pull-never" if self.tool == "buildah" else "--pull=never"]
            # Where a container can't be made (a build inside a container), chroot works.
            env.setdefault("BUILDAH_ISOLATION", "chroot" if os.geteuid() == 0 else "rootless")
        run([*command, *options, "--tag", image, "--file", str(recipe), str(context)], env)

    def push(self, image: str) -> None:
        """Push the image to the registry in its name; one on this machine may speak plain HTTP."""
        command = [self.tool, "push", "--quiet"]
        if self.tool != "docker" and image.startswith(("localhost:", "127.0.0.1:")):
            command.append("--tls-verify=false")
        run([*command, image])

    def add_tree(self, tar: Path, image: str) -> None:
        """Make an image of one layer from the tar of a root file system."""
        if self.tool == "docker":
            run(["docker", "import", str(tar), image])
            return
        recipe = tar.with_name("Containerfile")
        recipe.write_text(f"FROM scratch\nADD {tar.name} /\n")
        self.build(recipe, tar.parent, image)

    def base(self, report: Report, wanted: str = "") -> str:
        """The name of a base image that is in the store when this returns.

        wanted: an image; "debian" for one made here from Debian packages; empty for the public
        Python image where it can be pulled, otherwise debian.
        """
        if wanted and wanted != "debian":
            return wanted
        if not wanted and self.has(PUBLIC_BASE):
            return PUBLIC_BASE
        if self.has(DEBIAN_BASE):
            return DEBIAN_BASE
        if not wanted:
            report(f"pulling {PUBLIC_BASE}")
            if self.pulls(PUBLIC_BASE):
                return PUBLIC_BASE
        self._make_debian_base(report)
        return DEBIAN_BASE

    def busybox(self, report: Report) -> str:
        """The name of an image with a static /bin/busybox, in the store when this returns."""
        for image in (PUBLIC_BUSYBOX, DEBIAN_BUSYBOX):
            if self.has(image):
                return image
        report(f"pulling {PUBLIC_BUSYBOX}")
        if self.pulls(PUBLIC_BUSYBOX):
            return PUBLIC_BUSYBOX
        _need_mmdebstrap(PUBLIC_BUSYBOX, "an image with a shell", report)
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder) / "busybox.tar"
            options = ["--quiet", "--variant=extract", "--include=busybox-static"]
            # Only the program; an image needs no package's documents.
            keep = 'cd "$1" && find . -mindepth 1 ! -path ./bin ! -path "./bin/busybox" -delete'
            run(["mmdebstrap", *options, f"--customize-hook={keep}", "bookworm", str(tree)])
            self.add_tree(tree, DEBIAN_BUSYBOX)
        return DEBIAN_BUSYBOX

    def _make_debian_base(self, report: Report) -> None:
        _need_mmdebstrap(PUBLIC_BASE, "a base image", report)
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder) / "base.tar"
            # The image has no package mirror and nothing of the machine that made it.
            names = ["apt/sources.list", "apt/sources.list.d", "resolv.conf", "hostname"]
            forget = "rm -rf " + " ".join(f'"$1"/etc/{name}' for name in names)
            options = f"--quiet --variant=minbase --include={_DEBIAN_PACKAGES}".split()
            run(["mmdebstrap", *options, f"--customize-hook={forget}", "bookworm", str(tree)])
            self.add_tree(tree, DEBIAN_BASE)


def _need_mmdebstrap(image: str, what: str, report: Report) -> None:
    """Install mmdebstrap where that is possible; raises UserError where it isn't."""
    packages = preflight.missing({"mmdebstrap": "mmdebstrap"})
    if packages and not preflight.may_install():
        raise UserError(
            f"{image} can't be pulled, and there is no mmdebstrap to make {what}: on Debian, "
            "sudo apt-get install mmdebstrap; elsewhere pull it first, or pass --base with another "
            "Python 3.11 image"
        )
    preflight.install(packages, report)
    report("making an image of Debian packages")


def choose(wanted: str = "") -> Builder:
    """The tool wanted, or the first that works; as root on Debian, what is missing is installed."""
    tool = preflight.image_builder(wanted)
    if tool is None:
        tool = wanted or "buildah"
        preflight.install(preflight.missing({tool: tool, "mmdebstrap": "mmdebstrap"}), _print)
        if problem := preflight.builder_problem(tool):
            raise UserError(problem)
    return Builder(tool)


def uv() -> str:
    """Where uv is: on PATH, or in the checkout's virtual environment."""
    found = shutil.which("uv") or shutil.which("uv", path=str(REPO / ".venv" / "bin"))
    if found is None:
        raise UserError("uv is not installed: pip install uv")
    return found


def succeeds(command: Sequence[str], timeout: float | None = None) -> bool:
    """Whether a command succeeds; its output is dropped."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Run a command quietly; when it fails, print the end of its output and raise UserError."""
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
        raise UserError(f"{' '.join(command[:2])} failed (exit status {done.returncode})")


def _print(what: str) -> None:
    print(f"  {what}", flush=True)
