"""TrainingRunSpec: what a user asks for. Field names are those of torchrun, Kubeflow and Job."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema

from trainyard_api.base import NAME_PATTERN, Rule, SpecModel, matches
from trainyard_api.gpus import NVIDIA
from trainyard_api.immutable import immutable
from trainyard_api.pod_template import PodTemplate
from trainyard_api.policy import Backoff, Deadlines, FailurePolicy, Hang
from trainyard_api.start_from import StartFrom

CONTAINER = "trainer"  # the container that trains; podTemplate overrides it by this name

Strategy = Literal["ddp", "fsdp"]
WhenDeleted = Literal["Delete", "Retain"]
Precision = Literal["fp32", "bf16", "fp16"]

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


class Elastic(SpecModel):
    """Bounds for the number of nodes when the cluster has no room for numNodes."""

    rules: ClassVar = (
        Rule(
            "self.minNodes <= self.maxNodes",
            "elastic.minNodes must not be greater than elastic.maxNodes",
            lambda s: s.min_nodes <= s.max_nodes,
        ),
    )

    min_nodes: int = Field(ge=1, le=1024, description="Smallest number of nodes to train with.")
    max_nodes: int = Field(ge=1, le=1024, description="Largest number of nodes to train with.")


class Resources(SpecModel):
    """Compute resources of the trainer container on each node, as in a pod."""

    rules: ClassVar = (
        Rule(
            f"!has(self.limits) || !('{NVIDIA}' in self.limits)"
            f" || type(self.limits['{NVIDIA}']) == int"
            f" || self.limits['{NVIDIA}'].matches('^[0-9]+$')",
            f"resourcesPerNode.limits['{NVIDIA}'] must be a whole number",
            lambda s: s.limits.get(NVIDIA, "0").isdecimal(),
        ),
    )

    limits: Amounts = Field(
        default_factory=dict,
        description="Most that the container may use, by resource: for example"
        " {cpu: 4, memory: 8Gi, nvidia.com/gpu: 2}.",
    )
    requests: Amounts = Field(
        default_factory=dict,
        description="What the scheduler reserves for the container, by resource. Default: the"
        " limits.",
    )


class Network(SpecModel):
    """Network settings of NCCL and gloo, through which the ranks communicate."""

    interface: (
        Annotated[str, matches(r"[^\s/]{1,64}", "must name an interface, for example eth0")] | None
    ) = Field(
        default=None,
        max_length=64,
        description="Network interface that NCCL and gloo use, for example eth0. Sets"
        " NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME.",
    )
    nccl: dict[str, Annotated[str, StringConstraints(max_length=1024)]] = Field(
        default_factory=dict,
        max_length=64,
        description="Additional NCCL_* environment variables, for example {NCCL_IB_DISABLE: '1'}.",
    )

    rules: ClassVar = (
        Rule(
            "!has(self.nccl) || self.nccl.all(k, k.startsWith('NCCL_'))",
            "network.nccl may only hold variables whose names begin with NCCL_",
            lambda s: all(key.startswith("NCCL_") for key in s.nccl),
        ),
    )


class Storage(SpecModel):
    """The volume for checkpoints and models. Without claimName the operator creates a claim."""

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
    ) = immutable(
        default=None,
        max_length=253,
        description="Name of an existing PersistentVolumeClaim to use. Default: the operator"
        " creates one with the run's name.",
    )
    size: Quantity | None = immutable(default=None, description="Size of the claim. Default: 10Gi.")
    storage_class_name: str | None = immutable(
        default=None,
        max_length=253,
        description="Storage class of the claim. Default: the cluster's default class.",
    )
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"] | None = immutable(
        default=None,
        description="Access mode of the claim. Default: ReadWriteMany for more than one node, else"
        " ReadWriteOnce.",
    )
    when_deleted: WhenDeleted | None = Field(
        default=None,
        description="Whether the claim is deleted with the run or retained. It may be changed while"
        " the run exists; status.whenDeleted then says when the claim has followed. Default:"
        " Delete.",
    )


class CheckpointPolicy(SpecModel):
    """How often checkpoints are saved and which of them are kept."""

    every_steps: int = Field(
        default=200,
        ge=1,
        le=10_000_000,
        description="Optimizer steps between two checkpoints.",
    )
    keep_last: int = Field(
        default=3, ge=1, le=1000, description="Number of newest checkpoints to keep."
    )
    keep_best: bool = Field(
        default=True, description="Also keep the checkpoint with the lowest evaluation loss."
    )


class Queue(SpecModel):
    """Queueing system that admits the pods of an attempt all together (gang scheduling)."""

    name: str = Field(min_length=1, max_length=63, description="Name of the queue.")
    system: Literal["kueue", "volcano", "coscheduling"] = Field(
        default="kueue", description="The queueing system that the cluster runs."
    )


_HAS_WHEN_DELETED = (
    "has(self.storage) && (has(self.storage.claimName) || has(self.storage.whenDeleted))"
)


class TrainingRunSpec(SpecModel):
    """What to train, on which nodes, and how hard to try."""

    rules: ClassVar = (
        Rule(
            "has(self.recipe) != has(self.command)",
            "set exactly one of recipe (an installed recipe) and command (your own script)",
            lambda s: (s.recipe is None) != (s.command is None),
        ),
        Rule(
            "has(self.recipe) || !has(self.config)",
            "config belongs to a recipe: with command, pass settings as arguments",
            lambda s: s.recipe is not None or s.config is None,
        ),
        Rule(
            "has(self.command) || !has(self.hang)",
            "hang belongs to command: with a recipe, set config.hang_timeout_seconds",
            lambda s: s.command is not None or s.hang is None,
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
        description="Name of a recipe that is installed in the image: a built-in one, for example"
        " char-gpt, or one of another package.",
    )
    config: dict[str, Any] | None = Field(
        default=None, description="Settings of the recipe. Unknown keys are errors."
    )
    command: list[Argument] | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Your own script and its arguments, run unchanged under torchrun. Set either"
        " recipe or command.",
    )
    image: Annotated[str, matches(r"\S+", "must be a container image without spaces")] | None = (
        Field(
            default=None,
            max_length=512,
            description="Container image. Default: the operator's trainer image.",
        )
    )
    num_nodes: int = Field(
        default=1, ge=1, le=1024, description="Number of nodes. Each gets one pod."
    )
    num_proc_per_node: int | None = immutable(
        default=None,
        ge=1,
        le=64,
        description="Training processes (ranks) per node. Default: one per GPU in the limits of"
        " resourcesPerNode (nvidia.com/gpu, amd.com/gpu; not slices of GPUs), else 1.",
    )
    elastic: Elastic | None = None
    strategy: Strategy = immutable(
        default="ddp",
        description="How training is parallelised: ddp keeps the whole model on every rank, fsdp"
        " shards parameters, gradients and optimizer state over the ranks.",
    )
    precision: Precision = immutable(
        default="fp32",
        description="Number format of the forward and backward pass. With fp32 a GPU rounds the"
        " factors of matrix products to TF32, unless config.deterministic is true.",
    )
    seed: int = immutable(
        default=0, ge=0, le=2**31 - 1, description="Seed of weights, data order and dropout."
    )
    max_restarts: int = Field(
        default=3,
        ge=0,
        le=10_000,
        description="Failures in a row that are followed by a restart. The count restarts when"
        " training has progressed: when there is a newer checkpoint than at the last failure."
        " Disruptions (preemption, eviction, a lost node) do not count.",
    )
    max_disruptions: int | None = Field(
        default=None,
        ge=0,
        description="Disruptions (preemption, eviction, a lost node, a deleted pod) that are"
        " followed by a restart. Default: no limit.",
    )
    failure_policy: FailurePolicy | None = None
    backoff: Backoff = Field(default_factory=Backoff)
    hang: Hang | None = None
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        description="The run fails once its attempts have been active for this many seconds in"
        " all, from when every pod is scheduled. Time in a queue, suspended or between two attempts"
        " does not count. Default: no limit.",
    )
    deadlines: Deadlines = Field(default_factory=Deadlines)
    start_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=86400,
        description="Deprecated: the value of those of deadlines.scheduleSeconds, startSeconds and"
        " joinSeconds that are not set.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        description="Delete the run this many seconds after it has finished. Default: never.",
    )
    suspend: bool = Field(
        default=False,
        description="Set to true to stop the pods (a recipe saves a checkpoint first), and to false"
        " to resume from the newest checkpoint.",
    )
    resources_per_node: Resources | None = None
    network: Network | None = None
    storage: Storage | None = None
    start_from: StartFrom | None = Field(
        default=None,
        description="Begin with a checkpoint of another run, for example with a lower learning"
        " rate or more data. A recipe reads it only until the run has a checkpoint of its own; a"
        " script finds it with trainyard.Checkpointer, run.start_from or TRAINYARD_START_DIR, in"
        " every attempt.",
    )
    checkpoint: CheckpointPolicy = Field(default_factory=CheckpointPolicy)
    queue: Queue | None = None
    pod_template: PodTemplate | None = None

    @property
    def schedule_seconds(self) -> int:
        """The deadline for scheduling, with its default."""
        return self.deadlines.schedule_seconds or self.start_deadline_seconds or 600

    @property
    def start_seconds(self) -> int:
        """The deadline for starting the containers, with its default."""
        return self.deadlines.start_seconds or self.start_deadline_seconds or 1800

    @property
    def join_seconds(self) -> int:
        """The deadline for joining, with its default."""
        return self.deadlines.join_seconds or self.start_deadline_seconds or 600
