"""TrainingRunSpec: what a user asks for. Field names are those of torchrun, Kubeflow and Job."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)

from trainyard_api.base import Model, Rule, SpecModel, matches

GPU = "nvidia.com/gpu"
CONTAINER = "trainer"  # the container that trains; podTemplate overrides it by this name

Strategy = Literal["ddp", "fsdp"]
Precision = Literal["fp32", "bf16", "fp16"]

NAME_PATTERN = "[a-z]([-a-z0-9]*[a-z0-9])?"
_AMOUNT = r"([0-9]+(\.[0-9]*)?|\.[0-9]+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?"


def _number_as_text(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        raise ValueError(f"put quotes around {value}: an amount is a whole number or text")
    return value


# An amount as Kubernetes writes it: 4, 500m, 8Gi. The pattern lets a minus through, so that the
# rule, not a regular expression, tells the user about it.
Quantity = Annotated[
    str,
    StringConstraints(pattern=f"^-?{_AMOUNT}$", max_length=32),
    BeforeValidator(_number_as_text),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": f"^-?{_AMOUNT}$",
            "maxLength": 32,
        }
    ),
    Rule(
        "type(self) == int ? self >= 0 : !self.startsWith('-')",
        "must not be negative",
        lambda value: not value.startswith("-"),
    ),
]
Amounts = Annotated[dict[str, Quantity], Field(max_length=32)]
Argument = Annotated[str, StringConstraints(max_length=4096)]


def immutable(**kwargs: Any) -> Any:
    """A field that can't change once the run exists (a CEL transition rule in the CRD)."""
    return Field(json_schema_extra={"immutable": True}, **kwargs)


class Elastic(SpecModel):
    """How far the number of nodes may move when the cluster can't place `numNodes`."""

    rules: ClassVar = (
        Rule(
            "self.minNodes <= self.maxNodes",
            "elastic.minNodes must not be greater than elastic.maxNodes",
            lambda s: s.min_nodes <= s.max_nodes,
        ),
    )

    min_nodes: int = Field(ge=1, le=1024, description="Fewest nodes to train with.")
    max_nodes: int = Field(ge=1, le=1024, description="Most nodes to train with.")


class Backoff(SpecModel):
    """Wait before the next attempt: initialSeconds, doubled each time, at most maxSeconds."""

    rules: ClassVar = (
        Rule(
            "self.initialSeconds <= self.maxSeconds",
            "backoff.initialSeconds must not be greater than backoff.maxSeconds",
            lambda s: s.initial_seconds <= s.max_seconds,
        ),
    )

    initial_seconds: int = Field(default=5, ge=0, le=86400)
    max_seconds: int = Field(default=300, ge=0, le=86400)


class Resources(SpecModel):
    """Compute of one node's container, as in a pod: `limits` and `requests`."""

    rules: ClassVar = (
        Rule(
            f"!has(self.limits) || !('{GPU}' in self.limits)"
            f" || type(self.limits['{GPU}']) == int || self.limits['{GPU}'].matches('^[0-9]+$')",
            f"resourcesPerNode.limits['{GPU}'] must be a whole number",
            lambda s: s.limits.get(GPU, "0").isdecimal(),
        ),
    )

    limits: Amounts = Field(
        default_factory=dict, description="For example {cpu: 4, memory: 8Gi, nvidia.com/gpu: 2}."
    )
    requests: Amounts = Field(default_factory=dict)


class Network(SpecModel):
    """How the ranks reach each other."""

    interface: (
        Annotated[str, matches(r"[^\s/]{1,64}", "must name an interface, for example eth0")] | None
    ) = Field(
        default=None,
        max_length=64,
        description="Network interface for NCCL and gloo (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME).",
    )
    nccl: dict[str, Annotated[str, StringConstraints(max_length=1024)]] = Field(
        default_factory=dict,
        max_length=64,
        description="Further NCCL_* environment variables, for example {NCCL_IB_DISABLE: '1'}.",
    )

    rules: ClassVar = (
        Rule(
            "!has(self.nccl) || self.nccl.all(k, k.startsWith('NCCL_'))",
            "network.nccl may only hold variables whose names begin with NCCL_",
            lambda s: all(key.startswith("NCCL_") for key in s.nccl),
        ),
    )


class Storage(SpecModel):
    """The volume that keeps checkpoints and models; without `claimName` one is made."""

    rules: ClassVar = (
        Rule(
            "!(has(self.claimName) && (has(self.size) || has(self.storageClassName)"
            " || has(self.accessMode) || has(self.whenDeleted)))",
            "storage.claimName names a volume claim you own: size, storageClassName, accessMode"
            " and whenDeleted only go with a claim the operator makes",
            lambda s: (
                not (
                    s.claim_name
                    and (s.size or s.storage_class_name or s.access_mode or s.when_deleted)
                )
            ),
        ),
    )

    claim_name: (
        Annotated[
            str,
            matches(
                "[a-z0-9]([-a-z0-9.]*[a-z0-9])?",
                "must be the name of a PersistentVolumeClaim: lower-case letters, digits, dashes",
            ),
        ]
        | None
    ) = Field(
        default=None,
        max_length=253,
        description="An existing PersistentVolumeClaim. Default: the operator makes one.",
    )
    size: Quantity | None = Field(default=None, description="Size of the claim made (10Gi).")
    storage_class_name: str | None = Field(default=None, max_length=253)
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"] | None = Field(
        default=None, description="Default: ReadWriteMany for more than one node."
    )
    when_deleted: Literal["Delete", "Retain"] | None = Field(
        default=None,
        description="What becomes of the claim when the run is deleted (Delete).",
    )


class CheckpointPolicy(SpecModel):
    """When to save and what to keep."""

    every_steps: int = Field(default=200, ge=1, le=10_000_000, description="Optimizer steps.")
    keep_last: int = Field(default=3, ge=1, le=1000, description="Newest checkpoints kept.")
    keep_best: bool = Field(default=True, description="Also keep the lowest evaluation loss.")


class Queue(SpecModel):
    """Gang scheduling by a queueing system; its pod-group labels go on the pods."""

    name: str = Field(min_length=1, max_length=63, description="Queue to submit to.")
    system: Literal["kueue", "volcano", "coscheduling"] = "kueue"


_NAMED = ("containers", "initContainers", "volumes")
_POD_SPEC: Any = {
    key: {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string"}},
            "x-kubernetes-preserve-unknown-fields": True,
        },
    }
    for key in _NAMED
}


def _check_pod_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """What merging by name needs; the rest is the API server's to judge when pods are made."""
    for key in _NAMED:
        items = spec.get(key, [])
        if not isinstance(items, list) or not all(
            isinstance(item, dict) and isinstance(item.get("name"), str) for item in items
        ):
            raise ValueError(f"{key} must be a list of objects that each have a name")
    return spec


class PodMetadata(Model):
    """Added to every pod's metadata."""

    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    annotations: dict[str, str] = Field(default_factory=dict, max_length=64)


class PodTemplate(BaseModel):
    """Merged strategically into every pod: containers and env by name, volumes by name."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"description": "Overrides for every pod, merged strategically."},
    )

    metadata: PodMetadata = Field(default_factory=PodMetadata)
    spec: Annotated[dict[str, Any], AfterValidator(_check_pod_spec)] = Field(
        default_factory=dict, json_schema_extra={"properties": _POD_SPEC}
    )


_HAS_WHEN_DELETED = (
    "has(self.storage) && (has(self.storage.claimName) || has(self.storage.whenDeleted))"
)


class TrainingRunSpec(SpecModel):
    """The whole request. Field names are those of torchrun, Kubeflow and batch/v1 Job."""

    rules: ClassVar = (
        Rule(
            "has(self.recipe) != has(self.command)",
            "set exactly one of recipe (a built-in recipe) and command (your own script)",
            lambda s: (s.recipe is None) != (s.command is None),
        ),
        Rule(
            "has(self.recipe) || !has(self.config)",
            "config belongs to a recipe: with command, pass settings as arguments",
            lambda s: s.recipe is not None or s.config is None,
        ),
        Rule(
            "!has(self.elastic) || (self.elastic.minNodes <= self.numNodes"
            " && self.numNodes <= self.elastic.maxNodes)",
            "numNodes must lie between elastic.minNodes and elastic.maxNodes",
            lambda s: (
                s.elastic is None or s.elastic.min_nodes <= s.num_nodes <= s.elastic.max_nodes
            ),
        ),
        Rule(
            f"!has(self.ttlSecondsAfterFinished) || ({_HAS_WHEN_DELETED})",
            "ttlSecondsAfterFinished deletes the run: set storage.whenDeleted to Retain (keep the"
            " trained model) or Delete, or use your own storage.claimName",
            lambda s: (
                s.ttl_seconds_after_finished is None
                or bool(s.storage and (s.storage.claim_name or s.storage.when_deleted))
            ),
        ),
    )

    recipe: (
        Annotated[
            str,
            matches(
                NAME_PATTERN,
                "must be the name of a recipe: lower-case letters, digits and dashes, for example"
                " char-gpt",
            ),
        ]
        | None
    ) = immutable(
        default=None,
        max_length=63,
        description="A recipe built into the trainer image, for example char-gpt.",
    )
    config: dict[str, Any] | None = Field(
        default=None, description="Settings of the recipe; unknown keys are errors."
    )
    command: list[Argument] | None = immutable(
        default=None,
        min_length=1,
        max_length=256,
        description="Your own script and its arguments, run unchanged under torchrun.",
    )
    image: Annotated[str, matches(r"\S+", "must be a container image without spaces")] | None = (
        immutable(
            default=None,
            max_length=512,
            description="Container image. Default: the operator's trainer image.",
        )
    )
    num_nodes: int = Field(default=1, ge=1, le=1024, description="Pods, one per node.")
    num_proc_per_node: int | None = immutable(
        default=None,
        ge=1,
        le=64,
        description="Processes per pod. Default: the nvidia.com/gpu limit, else 1.",
    )
    elastic: Elastic | None = None
    strategy: Strategy = immutable(default="ddp", description="How the model is parallelised.")
    precision: Precision = immutable(default="fp32", description="Number format of the compute.")
    seed: int = immutable(default=0, ge=0, le=2**31 - 1)
    max_restarts: int = Field(
        default=3, ge=0, le=10_000, description="Failed attempts that are tried again."
    )
    backoff: Backoff = Field(default_factory=Backoff)
    active_deadline_seconds: int | None = Field(
        default=None, ge=1, description="Fail a run that has been active for longer."
    )
    start_deadline_seconds: int = Field(
        default=600,
        ge=1,
        le=86400,
        description="A gang that hasn't started as a whole by then is given back.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None, ge=0, description="Delete the finished run after this long."
    )
    suspend: bool = Field(default=False, description="Stop the pods; resume from the checkpoint.")
    resources_per_node: Resources | None = None
    network: Network | None = None
    storage: Storage | None = immutable(default=None)
    checkpoint: CheckpointPolicy = Field(default_factory=CheckpointPolicy)
    queue: Queue | None = immutable(default=None)
    pod_template: PodTemplate | None = None


def immutable_changes(old: TrainingRunSpec, new: TrainingRunSpec) -> list[str]:
    """Wire names of immutable fields that differ (what the CRD's transition rules refuse)."""
    return [
        str(field.alias or name)
        for name, field in TrainingRunSpec.model_fields.items()
        if isinstance(field.json_schema_extra, dict)
        and field.json_schema_extra.get("immutable")
        and getattr(old, name) != getattr(new, name)
    ]
