"""TrainingRun: the object that a spec and a status live in."""

import re
from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
)
from pydantic.alias_generators import to_camel

from trainyard_api.base import Model, Rule
from trainyard_api.spec import CONTAINER, GPU, NAME_PATTERN, TrainingRunSpec
from trainyard_api.status import TrainingRunStatus

GROUP = "trainyard.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "TrainingRun"
PLURAL = "trainingruns"

MAX_NAME = 50  # leaves room for -ATTEMPT-NODE within the 63 characters of a host name


class ObjectMeta(BaseModel):
    """The parts of Kubernetes object metadata we read; the rest is kept as it is."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="allow")

    name: str
    namespace: str | None = None
    uid: str | None = None
    generation: int | None = None
    resource_version: str | None = None
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class TrainingRun(Model):
    """A training run: a spec, and what has become of it."""

    rules: ClassVar = (
        Rule(
            f"self.metadata.name.size() <= {MAX_NAME}",
            f"metadata.name must have at most {MAX_NAME} characters"
            " (pods add attempt and node to it)",
            lambda s: len(s.metadata.name) <= MAX_NAME,
        ),
        Rule(
            f"self.metadata.name.matches('^{NAME_PATTERN}$')",
            "metadata.name must begin with a lower-case letter and hold only lower-case letters,"
            " digits and dashes (it names a Service)",
            lambda s: re.fullmatch(NAME_PATTERN, s.metadata.name) is not None,
        ),
    )

    api_version: Literal["trainyard.dev/v1alpha1"]
    kind: Literal["TrainingRun"]
    metadata: ObjectMeta
    spec: TrainingRunSpec
    status: TrainingRunStatus = Field(default_factory=TrainingRunStatus)

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace or "default"

    @property
    def nproc(self) -> int:
        """Processes per pod: as asked, else one per GPU of the limits, else 1."""
        if self.spec.num_proc_per_node:
            return self.spec.num_proc_per_node
        return max(1, self.gpus_per_node)

    @property
    def gpus_per_node(self) -> int:
        """The trainer container's nvidia.com/gpu limit (resourcesPerNode or podTemplate)."""
        limits: dict[str, Any] = {}
        if self.spec.resources_per_node:
            limits |= self.spec.resources_per_node.limits
        if self.spec.pod_template:
            for container in self.spec.pod_template.spec.get("containers", []):
                if container["name"] == CONTAINER:
                    limits |= (container.get("resources") or {}).get("limits") or {}
        amount = str(limits.get(GPU, 0))
        return int(amount) if amount.isdecimal() else 0

    @property
    def claim_name(self) -> str:
        """The PersistentVolumeClaim that holds checkpoints: the user's, else named as the run."""
        storage = self.spec.storage
        return (storage and storage.claim_name) or self.name
