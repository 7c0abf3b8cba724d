"""Faults of the corpus that only a cluster has: each is named; once fixed, the run succeeds."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.e2e.kube import LONG, Namespace, wait_until
from tests.e2e.runs import char_gpt, training_run
from tests.faults.corpus import find, says

# What the namespace's restricted standard asks of every container.
SECURE = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
WAITS = "import threading; threading.Event().wait()"
SLEEPS = ["python3", "-c", WAITS]
# Waits until the run is asked to end once; afterwards it ends by itself.
ONCE = f"import os\nif os.environ['TORCHELASTIC_RUN_ID'].endswith('-1'): {WAITS}"


def script(text: str, **spec: Any) -> dict[str, Any]:
    """The spec of a run of a user's script whose attempts follow each other at once."""
    backoff = {"initialSeconds": 0, "maxSeconds": 0}
    return {"command": ["python3", "-c", text], "backoff": backoff} | spec


def template(**spec: Any) -> dict[str, Any]:
    return {"podTemplate": {"spec": spec}}


def set_spec(space: Namespace, name: str, spec: dict[str, Any]) -> None:
    space.kubectl("patch", "trun", name, "--type=merge", "-p", json.dumps({"spec": spec}))


def is_named(status: dict[str, Any], fault: str) -> bool:
    """Whether the status, or a record of an attempt, names the fault's reason and root cause."""
    wanted = find(fault)
    return status.get("reason") == wanted.row.reason and says(
        status.get("message", ""), wanted.line
    )


def wait_named(space: Namespace, name: str, fault: str) -> dict[str, Any]:
    return wait_until(
        f"{name}: {fault}",
        lambda: status if is_named(status := space.status(name), fault) else None,
        LONG,
    )


# The kubelet measures every ten seconds.
FILLS = f"open('/tmp/x', 'wb').write(bytes(100_000_000))\n{ONCE}"
MEMORY = "x = b'x' * (3 << 29)"  # 1.5 GiB; torchrun itself needs a third of 1 GiB


@pytest.mark.parametrize(
    ("fault", "spec", "fixed"),
    [
        (
            "rank-out-of-memory-in-its-container",
            script(MEMORY, resourcesPerNode={"limits": {"memory": "1Gi"}}),
            {"resourcesPerNode": {"limits": {"memory": "4Gi"}}},
        ),
        (
            "over-all-its-disk-limits",
            script(FILLS) | {"resourcesPerNode": {"limits": {"ephemeral-storage": "20Mi"}}},
            {"resourcesPerNode": {"limits": {"ephemeral-storage": "1Gi"}}},
        ),
        (
            "init-container-fails",
            script("pass") | template(initContainers=[]),
            {"podTemplate": None},
        ),
        ("torchrun-missing-in-the-image", script("pass"), None),
    ],
)
def test_a_fault_in_a_pod_is_named_and_fixed(
    space: Namespace,
    image_names: dict[str, str],
    fault: str,
    spec: dict[str, Any],
    fixed: dict[str, Any] | None,
) -> None:
    if fault == "init-container-fails":
        fetch = {
            "name": "fetch",
            "image": image_names["trainer"],
            "command": ["sh", "-c", "echo no such bucket; exit 4"],
            "securityContext": SECURE,
        }
        spec = spec | template(initContainers=[fetch])
    if fixed is None:
        spec = spec | {"image": image_names["operator"]}
    space.apply(training_run("fix", spec | {"maxRestarts": 0}))
    status = wait_named(space, "fix", fault)
    assert status["phase"] == "Failed"
    if fixed is not None:
        set_spec(space, "fix", fixed)
        wait_until("attempt 2", lambda: space.status("fix").get("attempt") == 2, LONG)
        space.wait_phase("fix", "Succeeded")


def evict(space: Namespace, pod: str) -> None:
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": space.name},
    }
    path = f"/api/v1/namespaces/{space.name}/pods/{pod}/eviction"
    space.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))


def delete(space: Namespace, pod: str) -> None:
    # The operator may have deleted it already, once it saw the condition.
    space.kubectl("delete", "pod", pod, "--wait=false", "--ignore-not-found")


def set_condition(space: Namespace, pod: str, kind: str, reason: str) -> None:
    """As the scheduler or Kueue says that they take the pod's place; then they delete the pod."""
    # Without a time the disruption controller takes it for an old one, and takes it back at once.
    now = datetime.now(UTC).isoformat(timespec="seconds")
    condition = {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": now}
    patch = json.dumps({"status": {"conditions": [condition]}})
    space.kubectl("patch", "pod", pod, "--subresource=status", "-p", patch)
    delete(space, pod)


def preempt(space: Namespace, pod: str) -> None:
    set_condition(space, pod, "DisruptionTarget", "PreemptionByScheduler")


def take_back(space: Namespace, pod: str) -> None:
    set_condition(space, pod, "TerminationTarget", "Preempted")


@pytest.mark.parametrize(
    ("fault", "disturb"),
    [
        ("drained", evict),
        ("pod-being-deleted", delete),
        ("preempted-by-the-scheduler", preempt),
        ("preempted-by-the-queue", take_back),
    ],
)
def test_a_run_comes_back_from_a_disruption(space: Namespace, fault: str, disturb: Any) -> None:
    space.apply(training_run("back", script(ONCE, maxRestarts=0)))
    space.wait_phase("back", "Running")
    disturb(space, "back-1-0")
    status = space.wait_phase("back", "Succeeded")
    first, second = status["attempts"]
    assert first["reason"] == find(fault).row.reason, first
    assert first["counted"] is False
    assert second["outcome"] == "Succeeded"
    assert (status.get("restarts", 0), status["disruptions"]) == (0, 1)


def test_an_eviction_costs_no_step(space: Namespace) -> None:
    """The pod's peer saves the step with it, and the next attempt waits for both."""
    never = {"everySteps": 1_000_000}
    config = {"corpus": "stdlib", "max_steps": 100_000, "eval_steps": 0}
    space.apply(char_gpt("saved", None, config, checkpoint=never, maxRestarts=0))
    step = space.wait_status("saved", "steps", lambda s: s.get("step", 0) >= 5)["step"]
    evict(space, "saved-1-1")
    status = space.wait_status("saved", "it resumes", lambda s: "resumedFromStep" in s)
    assert status["resumedFromStep"] >= step
    assert (status["attempt"], status.get("restarts", 0), status["disruptions"]) == (2, 0, 1)


def test_a_gang_that_a_quota_accepts_in_part_holds_no_quota(space: Namespace) -> None:
    space.kubectl("create", "quota", "one", "--hard=pods=1")
    later = {"initialSeconds": 3600, "maxSeconds": 3600}
    space.apply(training_run("part", script("pass", numNodes=2) | {"backoff": later}))
    status = space.wait_status("part", "given back", lambda s: s.get("reason") == "GivenBack")
    assert "1 of 2 workers could be created" in status["message"]
    assert "exceeded quota: one" in status["message"]
    assert (status.get("restarts", 0), status.get("disruptions", 0)) == (0, 0)
    wait_until("no pod is kept", lambda: not space.pods("part"))
    space.kubectl("delete", "quota", "one")
    space.kubectl("annotate", "trun", "part", "trainyard.dev/retry=now")
    assert space.wait_phase("part", "Succeeded").get("restarts", 0) == 0


def test_a_secret_that_is_missing_is_waited_for(space: Namespace) -> None:
    source = {"secretKeyRef": {"name": "hf", "key": "token"}}
    trainer = {"name": "trainer", "env": [{"name": "HF_TOKEN", "valueFrom": source}]}
    space.apply(training_run("token", script("pass") | template(containers=[trainer])))
    assert wait_named(space, "token", "secret-missing")["phase"] == "Pending"
    space.kubectl("create", "secret", "generic", "hf", "--from-literal=token=x")
    status = space.wait_phase("token", "Succeeded")
    assert status["attempt"] == 1


def test_what_the_api_server_refuses_is_waited_for(space: Namespace) -> None:
    """A quota, then a webhook without a server."""
    space.kubectl("create", "quota", "none", "--hard=pods=0")
    space.apply(training_run("wait", script("pass")))
    words = "exceeded quota: none"
    wait_until("the quota is named", lambda: refused(space, "wait", words), LONG)
    webhook = webhook_of(space)
    space.apply(webhook)
    try:
        space.kubectl("delete", "quota", "none")
        words = "failed calling webhook"
        wait_until("the webhook is named", lambda: refused(space, "wait", words), LONG)
    finally:
        space.kubectl("delete", webhook["kind"], webhook["metadata"]["name"])
    status = space.wait_phase("wait", "Succeeded")
    assert (status["attempt"], status.get("restarts", 0)) == (1, 0)


def refused(space: Namespace, name: str, words: str) -> bool:
    """Whether the run waits, and says that its pods were refused, in these words."""
    status = space.status(name)
    waits = (status.get("phase"), status.get("reason")) == ("Pending", "Rejected")
    return waits and words in status["message"]


def webhook_of(space: Namespace) -> dict[str, Any]:
    """A webhook for the pods of this namespace, without a server."""
    service = {"name": "nobody", "namespace": space.name}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": space.name},
        "webhooks": [
            {
                "name": "pods.example.com",
                "clientConfig": {"service": service},
                "rules": [rule | {"operations": ["CREATE"]}],
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space.name}},
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }
        ],
    }


def test_a_name_that_is_taken_is_waited_for(space: Namespace, image_names: dict[str, str]) -> None:
    stranger = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "taken-1-0"},
        "spec": {
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "other",
                    "image": image_names["trainer"],
                    "command": SLEEPS,
                    "securityContext": SECURE,
                }
            ],
        },
    }
    space.apply(stranger)
    space.apply(training_run("taken", script("pass")))
    words = "a Pod named taken-1-0 already exists"
    wait_until("the stranger is named", lambda: refused(space, "taken", words), LONG)
    space.kubectl("delete", "pod", "taken-1-0", "--grace-period=1")
    assert space.wait_phase("taken", "Succeeded")["attempt"] == 1


@pytest.mark.parametrize("kind", ["native, crashing", "lingering"])
def test_sidecars_neither_fail_a_run_nor_outlive_it(
    space: Namespace, image_names: dict[str, str], kind: str
) -> None:
    share = {"volumeMounts": [{"name": "share", "mountPath": "/share"}]}
    mesh = {"name": "mesh", "image": image_names["trainer"], "securityContext": SECURE} | share
    containers: list[dict[str, Any]] = [{"name": "trainer"} | share]
    volumes = [{"name": "share", "emptyDir": {}}]
    if kind == "lingering":
        containers.append(mesh | {"command": SLEEPS})
        spec = script("pass") | template(containers=containers, volumes=volumes)
    else:
        # The trainer ends once the sidecar, which crashes, was started a second time.
        text = "import os, time\nwhile not os.path.exists('/share/2'): time.sleep(0.1)"
        crash = ["sh", "-c", "test -e /share/1 && touch /share/2; touch /share/1; exit 1"]
        native = mesh | {"restartPolicy": "Always", "command": crash}
        parts = {"containers": containers, "initContainers": [native], "volumes": volumes}
        spec = script(text) | template(**parts)
    space.apply(training_run("side", spec | {"maxRestarts": 0}))
    status = space.wait_phase("side", "Succeeded")
    assert (status["attempt"], status.get("restarts", 0)) == (1, 0)
    if kind == "lingering":
        wait_until("its pod is gone", lambda: not space.pods("side"))
