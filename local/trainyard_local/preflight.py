"""What can be known to fail before any process is started, in one line each."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from trainyard_api.run import TrainingRun


def search_path() -> str:
    """PATH of workers: the environment Trainyard lives in comes first, so `python` is its own."""
    own = str(Path(sys.executable).parent)
    return os.pathsep.join([own, os.environ.get("PATH", os.defpath)])


def problem(run: TrainingRun, working_directory: str) -> str | None:
    """Why no worker of `run` can start on this machine, or None."""
    if not os.path.isdir(working_directory):
        return f"the run was started in {working_directory}, which is not there any more"
    if shutil.which("torchrun", path=search_path()) is None:
        return "torchrun is not installed here: pip install 'trainyard[trainer]'"
    wanted, there = run.gpus_per_node, gpu_count()
    if wanted > there:
        have = f"this machine has {there}" if there else "this machine has none"
        return (
            f"the run asks for {wanted} nvidia.com/gpu per node, {have}:"
            " drop the limit to train on the CPU, or use a machine that has them"
        )
    return None


def gpu_count() -> int:
    """NVIDIA devices of this machine, as the driver lists them."""
    return sum(1 for path in Path("/dev").glob("nvidia[0-9]*"))


def ignored(run: TrainingRun) -> list[str]:
    """Settings that mean something in a cluster only, and that the user may count on."""
    spec = run.spec
    names = {"image": spec.image, "queue": spec.queue}
    found = [name for name, value in names.items() if value is not None]
    template = spec.pod_template.spec if spec.pod_template else {}
    found += [f"podTemplate.spec.{key}" for key in template if key != "containers"]
    for container in template.get("containers") or []:
        if container.get("name") != "trainer":
            found.append(f"podTemplate container {container.get('name')}")
    found += [
        f"podTemplate env {entry['name']}"
        for entry in template_env(run)
        if "name" in entry and "value" not in entry
    ]
    return found


def template_env(run: TrainingRun) -> list[dict[str, Any]]:
    """`env` of podTemplate's trainer container."""
    template = run.spec.pod_template.spec if run.spec.pod_template else {}
    return [
        entry
        for container in template.get("containers") or []
        if container.get("name") == "trainer"
        for entry in container.get("env") or []
    ]
