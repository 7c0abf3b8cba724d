"""Manifests that must be refused, each with words that its message must hold.

`make test` holds them against the pydantic models, `make e2e` against the API server: the two
validations are generated from the same rules and must agree.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Refused:
    """A manifest and words of the API server's message; `spec` replaces keys of a good one."""

    case: str
    words: tuple[str, ...]
    spec: dict[str, Any] | None = None
    name: str = "good"
    remove: tuple[str, ...] = ()
    # Unknown keys are refused by kubectl's strict field validation, which the server carries out.


def manifest(case: Refused) -> dict[str, Any]:
    """The TrainingRun of a case."""
    spec: dict[str, Any] = {"recipe": "char-gpt", "config": {"corpus": "stdlib"}}
    spec |= case.spec or {}
    for key in case.remove:
        spec.pop(key)
    return {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": case.name},
        "spec": spec,
    }


REFUSED = (
    Refused("no nodes", ("numNodes", "1"), {"numNodes": 0}),
    Refused("negative nodes", ("numNodes", "1"), {"numNodes": -2}),
    Refused("too many nodes", ("numNodes", "1024"), {"numNodes": 5000}),
    Refused("nodes as text", ("numNodes", "integer"), {"numNodes": "two"}),
    Refused("no processes", ("numProcPerNode", "1"), {"numProcPerNode": 0}),
    Refused("too many processes", ("numProcPerNode", "64"), {"numProcPerNode": 65}),
    Refused(
        "elastic min above max",
        ("elastic.minNodes must not be greater than elastic.maxNodes",),
        {"numNodes": 2, "elastic": {"minNodes": 4, "maxNodes": 2}},
    ),
    Refused(
        "numNodes outside elastic",
        ("numNodes must lie between elastic.minNodes and elastic.maxNodes",),
        {"numNodes": 8, "elastic": {"minNodes": 1, "maxNodes": 4}},
    ),
    Refused("elastic without max", ("maxNodes",), {"elastic": {"minNodes": 1}}),
    Refused("elastic from zero", ("minNodes", "1"), {"elastic": {"minNodes": 0, "maxNodes": 1}}),
    Refused(
        "recipe and command",
        ("exactly one of recipe", "command"),
        {"command": ["train.py"]},
        remove=("config",),
    ),
    Refused("neither recipe nor command", ("exactly one of recipe",), remove=("recipe", "config")),
    Refused(
        "config with command",
        ("config belongs to a recipe",),
        {"command": ["train.py"]},
        remove=("recipe",),
    ),
    Refused("empty command", ("command", "1"), {"command": []}, remove=("recipe", "config")),
    Refused("command as text", ("command",), {"command": "train.py"}, remove=("recipe", "config")),
    Refused("recipe in capitals", ("recipe",), {"recipe": "Char_GPT"}),
    Refused("unknown precision", ("precision", "fp32", "bf16", "fp16"), {"precision": "fp8"}),
    Refused("unknown strategy", ("strategy", "ddp", "fsdp"), {"strategy": "deepspeed"}),
    Refused(
        "startFrom without a source",
        ("startFrom: set exactly one of run", "path"),
        {"startFrom": {"step": "best"}},
    ),
    Refused(
        "startFrom with two sources",
        ("startFrom: set exactly one of run", "path"),
        {"startFrom": {"run": "a", "path": "/data/a"}},
    ),
    Refused(
        "startFrom with a claim beside a path",
        ("startFrom.claimName is the claim of startFrom.run",),
        {"startFrom": {"path": "/data/a", "claimName": "c"}},
    ),
    Refused("startFrom a relative path", ("absolute path",), {"startFrom": {"path": "a"}}),
    Refused("startFrom a word", ("startFrom.step",), {"startFrom": {"run": "a", "step": "last"}}),
    Refused(
        "startFrom a negative step", ("startFrom.step",), {"startFrom": {"run": "a", "step": -1}}
    ),
    Refused("negative seed", ("seed", "0"), {"seed": -1}),
    Refused("negative restarts", ("maxRestarts", "0"), {"maxRestarts": -1}),
    Refused(
        "backoff starts above its cap",
        ("backoff.initialSeconds must not be greater than backoff.maxSeconds",),
        {"backoff": {"initialSeconds": 60, "maxSeconds": 10}},
    ),
    Refused("negative backoff", ("initialSeconds", "0"), {"backoff": {"initialSeconds": -5}}),
    Refused("no deadline left", ("activeDeadlineSeconds", "1"), {"activeDeadlineSeconds": 0}),
    Refused("no start deadline", ("startDeadlineSeconds", "1"), {"startDeadlineSeconds": 0}),
    Refused(
        "negative ttl",
        ("ttlSecondsAfterFinished", "0"),
        {"ttlSecondsAfterFinished": -1, "storage": {"whenDeleted": "Retain"}},
    ),
    Refused(
        "ttl that would delete the model",
        ("ttlSecondsAfterFinished deletes the run", "storage.whenDeleted"),
        {"ttlSecondsAfterFinished": 60},
    ),
    Refused("suspend as text", ("suspend", "boolean"), {"suspend": "no"}),
    Refused(
        "negative GPU limit",
        ("limits",),
        {"resourcesPerNode": {"limits": {"nvidia.com/gpu": "-1"}}},
    ),
    Refused(
        "negative GPU limit as a number",
        ("limits",),
        {"resourcesPerNode": {"limits": {"nvidia.com/gpu": -1}}},
    ),
    Refused("memory in words", ("limits",), {"resourcesPerNode": {"limits": {"memory": "lots"}}}),
    Refused(
        "nccl variable of another kind",
        ("network.nccl may only hold variables whose names begin with NCCL_",),
        {"network": {"nccl": {"OMP_NUM_THREADS": "1"}}},
    ),
    Refused("interface with a blank", ("interface",), {"network": {"interface": "eth0 eth1"}}),
    Refused(
        "own claim with a size",
        ("storage.claimName names a volume claim you own",),
        {"storage": {"claimName": "mine", "size": "10Gi"}},
    ),
    Refused("claim name in capitals", ("claimName",), {"storage": {"claimName": "Mine"}}),
    Refused(
        "unknown access mode",
        ("accessMode", "ReadWriteMany"),
        {"storage": {"accessMode": "ReadWriteAlways"}},
    ),
    Refused("checkpoint never", ("everySteps", "1"), {"checkpoint": {"everySteps": 0}}),
    Refused("keep no checkpoint", ("keepLast", "1"), {"checkpoint": {"keepLast": 0}}),
    Refused("unknown queue system", ("system", "kueue"), {"queue": {"name": "q", "system": "x"}}),
    Refused("queue without a name", ("name",), {"queue": {}}),
    Refused("image with a blank", ("image",), {"image": "my image:1"}),
    Refused("misspelt field", ("numNode",), {"numNode": 2}),
    Refused("misspelt nested field", ("everyStep",), {"checkpoint": {"everyStep": 10}}),
    Refused(
        "a name too long for pods",
        ("metadata.name must have at most 50 characters",),
        name="a" * 51,
    ),
    Refused(
        "a name that begins with a digit",
        ("metadata.name must begin with a lower-case letter",),
        name="7b",
    ),
    Refused("a name with a dot", ("metadata.name must begin with",), name="gpt.small"),
)

# What may not change once a run exists: (case, field, before, after). None: it is not there.
CHANGED: tuple[tuple[str, str, Any, Any], ...] = (
    ("recipe", "recipe", "char-gpt", "gpt"),
    ("seed", "seed", 0, 1),
    ("precision", "precision", "fp32", "bf16"),
    ("strategy", "strategy", "ddp", "fsdp"),
    ("processes", "numProcPerNode", 1, 2),
    ("size", "storage.size", "1Gi", "2Gi"),
    ("storage added", "storage.size", None, "2Gi"),
    ("storage removed", "storage.size", "1Gi", None),
    ("claim", "storage.claimName", "mine", "yours"),
    ("claim removed", "storage.claimName", "mine", None),
    ("storage class added", "storage.storageClassName", None, "fast"),
    ("access mode", "storage.accessMode", "ReadWriteOnce", "ReadWriteMany"),
)

OWN: dict[str, Any] = {"recipe": None, "config": None}

# What may: (case, the spec before, the spec after).
CHANGEABLE: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("claim retained", {}, {"storage": {"whenDeleted": "Retain"}}),
    ("default again", {"storage": {"whenDeleted": "Retain"}}, {}),
    ("image", {"image": "a:1"}, {"image": "a:2"}),
    ("image added", {}, {"image": "a:2"}),
    ("command", {**OWN, "command": ["a.py"]}, {**OWN, "command": ["b.py"]}),
    ("queue", {"queue": {"name": "a"}}, {"queue": {"name": "b"}}),
    (
        "beside a size",
        {"storage": {"size": "1Gi"}},
        {"storage": {"size": "1Gi", "whenDeleted": "Retain"}},
    ),
    ("TTL", {}, {"ttlSecondsAfterFinished": 60, "storage": {"whenDeleted": "Delete"}}),
)


def with_field(field: str, value: Any) -> dict[str, Any]:
    """A spec with a field of CHANGED."""
    spec: dict[str, Any] = {"recipe": "char-gpt"}
    outer, _, inner = field.partition(".")
    if value is not None:
        spec[outer] = {inner: value} if inner else value
    return spec


def study(template: dict[str, Any], matrix: dict[str, list[Any]]) -> dict[str, Any]:
    """A ScalingStudy of runs with this spec."""
    return {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "ScalingStudy",
        "metadata": {"name": "good"},
        "spec": {"template": {"spec": template}, "matrix": matrix, "suspend": True},
    }


def run(recipe: str, config: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A TrainingRun that starts nothing."""
    return manifest(Refused("", (), {"recipe": recipe, "config": config, "suspend": True} | spec))


OWN_CONTAINER = {"name": "trainer", "image": "mine:1"}

# Keys that a built-in recipe doesn't know, and each line that is said about them: the CLI and the
# admission policy say the same. (case, manifest, lines)
UNKNOWN_KEYS: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    (
        "a misspelt key",
        run("char-gpt", {"lerning_rate": 0.1}),
        ("config.lerning_rate: unknown key; did you mean learning_rate?",),
    ),
    (
        "Kubernetes' way to write it",
        run("char-gpt", {"maxSteps": 5}),
        ("config.maxSteps: unknown key; did you mean max_steps?",),
    ),
    (
        "two among good ones of every kind",
        run(
            "image-classification",
            {
                "dataset": "/data",
                "horizontal_flip": False,
                "depths": [2, 2, 2],
                "max_grad_norm": 0.5,
                "eval_batches": None,
                "batchsize": 8,
                "epochs": 3,
            },
        ),
        (
            "config.batchsize: unknown key; did you mean batch_size?",
            "config.epochs: unknown key; did you mean num_epochs?",
        ),
    ),
    (
        "below a setting",
        run("causal-lm-finetune", {"lora": {"r": 4, "alpa": 8}, "slice": {"start": 0, "ends": 9}}),
        (
            "config.lora.alpa: unknown key; did you mean alpha?",
            "config.slice.ends: unknown key; did you mean end?",
        ),
    ),
    (
        "nothing is like it",
        run("causal-lm-finetune", {"lora": {"x": 4}}),
        ("config.lora.x: unknown key (known: r, alpha, dropout, target_modules)",),
    ),
    (
        "a podTemplate without an image",
        run("gpt", {"n_layers": 2}, podTemplate={"spec": {"containers": [{"name": "trainer"}]}}),
        ("config.n_layers: unknown key; did you mean n_layer?",),
    ),
    (
        "an image of another container",
        run(
            "gpt",
            {"n_layers": 2},
            podTemplate={"spec": {"containers": [{"name": "proxy", "image": "proxy:1"}]}},
        ),
        ("config.n_layers: unknown key; did you mean n_layer?",),
    ),
    (
        "in a study's template",
        study({"recipe": "gpt", "config": {"warmup": 3}}, {"numProcPerNode": [1, 2]}),
        ("config.warmup: unknown key; did you mean warmup_steps?",),
    ),
    (
        "in a study's matrix",
        study({"recipe": "char-gpt"}, {"config.n_layers": [1, 2], "strategy": ["ddp", "fsdp"]}),
        ("config.n_layers: unknown key; did you mean n_layer?",),
    ),
    (
        "in a study's matrix, below a setting",
        study({"recipe": "text-classification"}, {"config.from_scratch.n_layer": [1, 2]}),
        ("config.from_scratch.n_layer: unknown key; did you mean n_layers?",),
    ),
)

# A recipe of another package, whose keys the end-to-end tests give to the operator's chart, and
# what the admission policy says then, also about runs with an image of their own.
OWN_RECIPE = {"sine-fit": {"": ["max_steps", "hidden_size", "package"], "package": ["depth"]}}
OWN_UNKNOWN_KEYS: tuple[tuple[dict[str, Any], str], ...] = (
    (
        run("sine-fit", {"hiden_size": 8}, image="mine:1"),
        "config.hiden_size: unknown key; did you mean hidden_size?",
    ),
    (
        run("sine-fit", {"max_steps": 8, "package": {"dept": 1}}),
        "config.package.dept: unknown key; did you mean depth?",
    ),
    (
        study({"recipe": "sine-fit", "image": "mine:1"}, {"config.package.dept": [1, 2]}),
        "config.package.dept: unknown key; did you mean depth?",
    ),
)

# What neither may refuse: (case, manifest).
UNCHECKED_KEYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("an image of its own", run("char-gpt", {"mine": 1}, image="mine:1")),
    (
        "an image in the podTemplate",
        run("char-gpt", {"mine": 1}, podTemplate={"spec": {"containers": [OWN_CONTAINER]}}),
    ),
    ("a recipe that isn't built in", run("my-recipe", {"mine": 1})),
    ("a study with an image", study({"recipe": "gpt", "image": "a:1"}, {"config.mine": [1, 2]})),
    (
        "a study of images",
        study({"recipe": "gpt", "config": {"mine": 1}}, {"image": ["mine:1", "mine:2"]}),
    ),
    (
        "a study of pod templates",
        study(
            {"recipe": "gpt", "config": {"mine": 1}},
            {"podTemplate.spec.containers": [[OWN_CONTAINER]]},
        ),
    ),
    (
        "a study of recipes of its own",
        study({"config": {"mine": 1}}, {"recipe": ["my-recipe", "another"]}),
    ),
)
