"""TrainingRun: the object that a spec and a status live in."""

import re
from typing import Any, ClassVar, Literal

from pydantic import Field

from trainyard_api.resource import Resource, name_rules
from trainyard_api.spec import CONTAINER, GPU, TrainingRunSpec, WhenDeleted
from trainyard_api.status import TrainingRunStatus

GROUP = "trainyard.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "TrainingRun"
PLURAL = "trainingruns"

_GPU_RESOURCE = re.compile(r"gpu|/mig-")
MAX_NAME = 50  # leaves room for -ATTEMPT-NODE within the 63 characters of a host name


class TrainingRun(Resource):
    """One distributed training run, from its first pod to the model it leaves."""

    rules: ClassVar = name_rules(MAX_NAME, "pods add attempt and node to it")

    kind: Literal["TrainingRun"]
    spec: TrainingRunSpec
    status: TrainingRunStatus = Field(default_factory=TrainingRunStatus)

    @property
    def nproc(self) -> int:
        """Processes per pod: as asked, else one per GPU of the limits, else 1."""
        if self.spec.num_proc_per_node:
            return self.spec.num_proc_per_node
        return max(1, self.gpus_per_node)

    @property
    def trainer_template(self) -> dict[str, Any]:
        """The trainer's container in spec.podTemplate; empty without one."""
        containers = (
            self.spec.pod_template.spec.get("containers", []) if self.spec.pod_template else []
        )
        return next((each for each in containers if each["name"] == CONTAINER), {})

    @property
    def gpus_per_node(self) -> int:
        """The trainer container's nvidia.com/gpu limit (resourcesPerNode or podTemplate)."""
        amount = str(self._limits.get(GPU, 0))
        return int(amount) if amount.isdecimal() else 0

    @property
    def asks_for_gpus(self) -> bool:
        """Whether the trainer's container gets GPUs of any make, whole or in part.

        By a limit such as nvidia.com/gpu, nvidia.com/mig-1g.10gb or amd.com/gpu, or by a resource
        claim (DRA), which says nothing about the device.
        """
        limits = (name for name, amount in self._limits.items() if str(amount) not in ("0", "None"))
        resources = self.trainer_template.get("resources") or {}
        return any(map(_GPU_RESOURCE.search, limits)) or bool(resources.get("claims"))

    @property
    def _limits(self) -> dict[str, Any]:
        resources = self.spec.resources_per_node
        limits = (self.trainer_template.get("resources") or {}).get("limits") or {}
        return (resources.limits if resources else {}) | limits

    @property
    def claim_name(self) -> str:
        """The PersistentVolumeClaim that holds checkpoints: the user's, else named as the run."""
        storage = self.spec.storage
        return (storage and storage.claim_name) or self.name

    @property
    def when_deleted(self) -> WhenDeleted | None:
        """What becomes of the claim when the run is deleted; None: the claim is the user's."""
        storage = self.spec.storage
        if storage and storage.claim_name:
            return None
        return (storage and storage.when_deleted) or "Delete"
