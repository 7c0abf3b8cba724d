"""The same number of threads for every process of every cell. Pure.

Else torchrun gives a lone process all cores and each of several just one, and one process could
not be compared with two.
"""

from collections.abc import Sequence
from typing import Any

from trainyard_api.pod_template import PodTemplate
from trainyard_api.run import TrainingRun
from trainyard_api.spec import CONTAINER
from trainyard_lifecycle.launch import requested_cpus

THREADS_ENV = "OMP_NUM_THREADS"


def with_same_threads(
    runs: Sequence[TrainingRun], threads: int | None = None
) -> list[tuple[TrainingRun, int]]:
    """Each run with OMP_NUM_THREADS in its podTemplate, and the number.

    A podTemplate that sets it keeps its own. threads: None shares out the CPUs that a node of the
    fullest run has; 1 where the runs ask for none, as nothing is promised then.
    """
    share = threads or max(1, min(map(_cpus_per_process, runs), default=1))
    return [_with_threads(run, share) for run in runs]


def _with_threads(run: TrainingRun, threads: int) -> tuple[TrainingRun, int]:
    pod = run.spec.pod_template or PodTemplate()
    containers: list[dict[str, Any]] = pod.spec.get("containers", [])
    none: dict[str, Any] = {"name": CONTAINER}
    trainer = next((item for item in containers if item["name"] == CONTAINER), none)
    env = trainer.get("env") or []
    for entry in env:
        if entry.get("name") == THREADS_ENV and str(entry.get("value", "")).isdecimal():
            return run, int(entry["value"])
    trainer = {**trainer, "env": [*env, {"name": THREADS_ENV, "value": str(threads)}]}
    others = [item for item in containers if item["name"] != CONTAINER]
    pod = pod.model_copy(update={"spec": {**pod.spec, "containers": [trainer, *others]}})
    spec = run.spec.model_copy(update={"pod_template": pod})
    return run.model_copy(update={"spec": spec}), threads


def _cpus_per_process(run: TrainingRun) -> int:
    return int((requested_cpus(run) or 1) / run.nproc)
