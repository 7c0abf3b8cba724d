"""TrainingRun: the object that a spec and a status live in."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from trainyard_api.gpus import NVIDIA, gpu_resources, gpu_taints, whole_gpus
from trainyard_api.resource import Resource, name_rules
from trainyard_api.spec import CONTAINER, TrainingRunSpec, WhenDeleted
from trainyard_api.status import TrainingRunStatus

GROUP = "trainyard.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "TrainingRun"
PLURAL = "trainingruns"

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
        """The number of whole GPUs that the trainer's container gets."""
        return sum(whole_gpus(self.limits).values())

    @property
    def asks_for_gpus(self) -> bool:
        """Whether the trainer's container gets GPUs of any make, whole or in part.

        By a limit such as nvidia.com/gpu, nvidia.com/mig-1g.10gb or amd.com/gpu, or by a resource
        claim (DRA), which says nothing about the device.
        """
        return bool(gpu_resources(self.limits)) or self._has_claims

    @property
    def gpu_taints(self) -> list[str]:
        """The keys of the taints that nodes with the GPUs asked for usually have."""
        claimed = [NVIDIA] if self._has_claims else []
        return gpu_taints([*gpu_resources(self.limits), *claimed])

    @property
    def _has_claims(self) -> bool:
        return bool((self.trainer_template.get("resources") or {}).get("claims"))

    @property
    def limits(self) -> dict[str, Any]:
        """The limits of the trainer's container (resourcesPerNode, podTemplate)."""
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
