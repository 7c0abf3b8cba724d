"""TrainingRuns of the end-to-end tests: small models that two cores train in a minute."""

import json
from typing import Any

from tests.e2e.kube import Namespace
from tests.patience import SECONDS

# About 0.1 M parameters: enough to learn letters and words, small enough for a shared core.
SMALL = {
    "corpus": "/data",
    "block_size": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 64,
    "dropout": 0.0,
    "batch_size": 16,
    "learning_rate": 0.003,
    "log_steps": 10,
    "eval_steps": 200,
    # A rank that the machine leaves no time isn't one that hangs; nothing hangs in these tests.
    "hang_timeout_seconds": SECONDS,
}


def char_gpt(
    name: str, volume: dict[str, Any] | None, config: dict[str, Any], **spec: Any
) -> dict[str, Any]:
    """A char-gpt run on two nodes; `volume` is the corpus, mounted at /data."""
    template: dict[str, Any] = {"spec": {"containers": [{"name": "trainer"}]}}
    if volume:
        template["spec"]["volumes"] = [volume]
        template["spec"]["containers"][0]["volumeMounts"] = [
            {"name": volume["name"], "mountPath": "/data", "readOnly": True}
        ]
    return training_run(
        name,
        {
            "recipe": "char-gpt",
            "numNodes": 2,
            "config": SMALL | config,
            "checkpoint": {"everySteps": 50},
            "backoff": {"initialSeconds": 1, "maxSeconds": 5},
            "storage": {"size": "1Gi"},
            # Both nodes of the local cluster are this machine: one thread per rank, no more.
            "resourcesPerNode": {"requests": {"cpu": "500m"}},
            "podTemplate": template,
        }
        | spec,
    )


def training_run(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A TrainingRun manifest.

    Its pods ask for a share of a core: those that ask for nothing get nothing beside those that do.
    """
    share = {"resourcesPerNode": {"requests": {"cpu": "250m"}}}
    return {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingRun",
        "metadata": {"name": name},
        "spec": share | spec,
    }


def set_spec(space: Namespace, name: str, spec: dict[str, Any]) -> None:
    """`kubectl patch` of a run's spec."""
    space.kubectl("patch", "trun", name, "--type=merge", "-p", json.dumps({"spec": spec}))
