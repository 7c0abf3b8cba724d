"""What can't work on a machine is reported early, in one line that says what to do instead."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.cluster.settings import REPO

NOBODY = 65534
# preflight.py runs before there is a virtual environment: the system's own Python, as any user.
PYTHON = "/usr/bin/python3" if os.geteuid() == 0 else sys.executable

pytestmark = pytest.mark.skipif(
    not Path(PYTHON).exists() or sys.platform != "linux", reason=f"no {PYTHON} on Linux"
)


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A copy of the files that preflight needs, readable by every user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "bin").mkdir()
        for path in ("__init__", "cluster/__init__", "cluster/commands", "cluster/preflight"):
            target = folder / "dev" / f"{path}.py"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPO / "dev" / f"{path}.py", target)
            target.chmod(0o644)
        yield folder


def preflight(checkout: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it without root, and with only the programs in the checkout's own bin."""
    return subprocess.run(
        [PYTHON, "-m", "dev.cluster.preflight", *words],
        cwd=checkout,
        env={"PATH": str(checkout / "bin"), **env},
        user=NOBODY if os.geteuid() == 0 else None,
        capture_output=True,
        text=True,
        check=False,
    )


def program(checkout: Path, name: str, script: str) -> None:
    path = checkout / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_cluster_without_root_and_docker_is_refused_with_alternatives(checkout: Path) -> None:
    done = preflight(checkout, "cluster")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("cluster: without Docker, a cluster on this machine needs root")
    for alternative in ("sudo make cluster", "install Docker", "CONTEXT=NAME", "`make demo`"):
        assert alternative in line


def test_images_without_a_tool_name_the_packages_and_an_alternative(checkout: Path) -> None:
    done = preflight(checkout, "images")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "sudo apt-get install buildah mmdebstrap uidmap" in line
    assert "`make demo`" in line


def test_a_tool_that_works_is_enough_for_images(checkout: Path) -> None:
    program(checkout, "podman", "exit 0")
    assert preflight(checkout, "images").returncode == 0
    assert preflight(checkout, "images", "--tool", "buildah").returncode == 1


def test_a_docker_client_without_an_engine_is_named_with_its_reason(checkout: Path) -> None:
    reason = "Cannot connect to the Docker daemon"
    old = f"echo 'Server:'; echo 'ERROR: {reason}'; echo 'errors pretty printing info' >&2; exit 1"
    for script in (old, f"echo '{reason}' >&2; exit 1"):
        program(checkout, "docker", script)
        done = preflight(checkout, "images", "--tool", "docker")
        assert done.stderr == f"images: docker is installed but does not work: {reason}\n"


def test_docker_without_buildx_is_refused_and_the_next_tool_is_used(checkout: Path) -> None:
    program(
        checkout,
        "docker",
        '[ "$1" = info ] && exit 0; [ "$1" = version ] && echo 28.2.2 && exit 0; exit 1',
    )
    done = preflight(checkout, "images", "--tool", "docker")
    assert done.returncode == 1
    assert "buildx" in done.stderr
    program(checkout, "podman", "exit 0")
    assert preflight(checkout, "images").returncode == 0


def test_a_context_needs_kubectl_and_no_root(checkout: Path) -> None:
    done = preflight(checkout, "cluster", TRAINYARD_CONTEXT="mine")
    assert done.returncode == 1
    assert "kubectl is not installed" in done.stderr
    program(checkout, "kubectl", "exit 0")
    assert preflight(checkout, "cluster", TRAINYARD_CONTEXT="mine").returncode == 0
