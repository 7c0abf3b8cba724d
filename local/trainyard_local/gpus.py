"""Which of this machine's GPUs each worker of a run may see."""

import itertools
import os
from pathlib import Path

from trainyard_api.gpus import NVIDIA, whole_gpus
from trainyard_api.run import TrainingRun

VISIBLE_ENV = "CUDA_VISIBLE_DEVICES"


def gpu_count() -> int:
    """The number of NVIDIA GPUs of this machine, by their device files."""
    return sum(1 for path in Path("/dev").glob("nvidia[0-9]*"))


def usable(run: TrainingRun) -> list[str]:
    """What CUDA_VISIBLE_DEVICES may list for the workers of `run`: indices, UUIDs or MIG names.

    As the user has set it, in the manifest or else in the shell; all GPUs where it isn't set.
    """
    count = gpu_count()
    entries = run.trainer_template.get("env") or []
    in_manifest = (each.get("value") for each in entries if each["name"] == VISIBLE_ENV)
    setting = next(in_manifest, os.environ.get(VISIBLE_ENV))
    if setting is None or not count:
        return [str(index) for index in range(count)]
    names = (name.strip() for name in str(setting).split(","))
    # As in CUDA, whose list ends at -1, or at any other name that is no device.
    return list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))


def too_few(run: TrainingRun) -> str | None:
    """Why the nodes of `run`, which all run on this machine, can't have the GPUs they ask for."""
    requested, nodes, names = _per_node(run), run.spec.num_nodes, usable(run)
    if requested * nodes <= len(names):
        return None
    per_node = f"{requested} {NVIDIA} per node" + (f" for {nodes} nodes" * (nodes > 1))
    available = str(len(names) or "none")
    if len(names) < gpu_count():
        available = f"{gpu_count()}, of which {VISIBLE_ENV} allows {available}"
    return (
        f"the run requests {per_node}, but this machine has {available}: remove the limit to train"
        " on CPUs, or use a machine with GPUs"
    )


def unused(run: TrainingRun) -> str | None:
    """A line that says how to use this machine's GPUs, if `run` asks for none."""
    count = len(usable(run))
    if run.asks_for_gpus or not count:
        return None
    return (
        f"this machine has {count} GPU{'s' * (count > 1)} that the run doesn't ask for: it sees the"
        f" CPU only; to train on GPUs, set resourcesPerNode.limits to {{{NVIDIA}: 1}}, or to more"
    )


def of_node(run: TrainingRun, node: int) -> dict[str, str]:
    """The variable that gives a node GPUs which no other node has; none if the run asks for none.

    GPUs of other makes, which Kubernetes counts under other names, are left to the user.
    """
    count = _per_node(run)
    if run.asks_for_gpus and not count:
        return {}
    first = node * count
    return {VISIBLE_ENV: ",".join(usable(run)[first : first + count])}


def _per_node(run: TrainingRun) -> int:
    return whole_gpus(run.limits).get(NVIDIA, 0)
