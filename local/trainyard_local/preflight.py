"""Problems that can be detected before any process is started, in one line each."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from trainyard_api.run import TrainingRun


def search_path() -> str:
    """PATH of workers: the directory of this Python comes first, so that `python` is this one."""
    own = str(Path(sys.executable).parent)
    return os.pathsep.join([own, os.environ.get("PATH", os.defpath)])


def problem(run: TrainingRun, working_directory: str) -> str | None:
    """Why workers of `run` cannot start on this machine; None if they can."""
    if not os.path.isdir(working_directory):
        return f"the run was started in {working_directory}, which no longer exists"
    if shutil.which("torchrun", path=search_path()) is None:
        return "torchrun is not installed: pip install 'trainyard[trainer]'"
    requested, available = run.gpus_per_node, gpu_count()
    if requested > available:
        return (
            f"the run requests {requested} nvidia.com/gpu per node, but this machine has"
            f" {available or 'none'}: remove the limit to train on CPUs, or use a machine with GPUs"
        )
    return None


def gpu_count() -> int:
    """The number of NVIDIA GPUs of this machine, by their device files."""
    return sum(1 for path in Path("/dev").glob("nvidia[0-9]*"))


def ignored_settings(run: TrainingRun) -> list[str]:
    """Names of settings in the manifest that only have an effect in a cluster."""
    spec = run.spec
    fields = {"image": spec.image, "queue": spec.queue}
    names = [name for name, value in fields.items() if value is not None]
    template = spec.pod_template.spec if spec.pod_template else {}
    names += [f"podTemplate.spec.{key}" for key in template if key != "containers"]
    for container in template.get("containers") or []:
        if container.get("name") != "trainer":
            names.append(f"podTemplate container {container.get('name')}")
    names += [
        f"podTemplate env {entry['name']}"
        for entry in template_env(run)
        if "name" in entry and "value" not in entry
    ]
    return names


def template_env(run: TrainingRun) -> list[dict[str, Any]]:
    """The `env` of the podTemplate's trainer container."""
    template = run.spec.pod_template.spec if run.spec.pod_template else {}
    return [
        entry
        for container in template.get("containers") or []
        if container.get("name") == "trainer"
        for entry in container.get("env") or []
    ]
