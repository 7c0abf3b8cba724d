"""Mistakes of users and faults of the cluster: the right phase and one clear line."""

from typing import Any

import pytest

from tests.e2e.kube import LONG, Namespace, wait_until
from tests.e2e.runs import char_gpt, set_spec, training_run

ONE = {"numNodes": 1, "maxRestarts": 2}


@pytest.mark.parametrize(
    ("case", "config", "words"),
    [
        ("missing-corpus", {"corpus": "/nowhere.txt"}, ["/nowhere.txt"]),
        ("wrong-value", {"n_head": 5}, ["n_head", "n_embd"]),
    ],
)
def test_a_wrong_config_fails_at_once_and_says_what_to_change(
    space: Namespace, case: str, config: dict[str, Any], words: list[str]
) -> None:
    space.apply(char_gpt(case, None, {"corpus": "stdlib"} | config, **ONE))
    status = wait_failed(space, case)
    assert (status["reason"], status["restarts"]) == ("ConfigError", 0)
    for word in words:
        assert word in status["message"]


def test_an_image_of_the_users_own_reports_unknown_keys_itself(
    space: Namespace, image_names: dict[str, str]
) -> None:
    """The line of `kubectl apply`, which can't know that image's recipes."""
    own = {"image": image_names["trainer"]}
    space.apply(char_gpt("unknown", None, {"corpus": "stdlib", "n_layrs": 6}, **ONE, **own))
    status = wait_failed(space, "unknown")
    assert (status["reason"], status["restarts"]) == ("ConfigError", 0)
    assert "config.n_layrs: unknown key; did you mean n_layer?" in status["message"]


def test_an_unknown_recipe_names_the_known_ones(space: Namespace) -> None:
    space.apply(training_run("typo", {"recipe": "chat-gpt"}))
    status = wait_failed(space, "typo")
    assert status["reason"] == "ConfigError"
    assert "char-gpt" in status["message"]


def test_a_users_exception_is_reported_with_its_last_line(space: Namespace) -> None:
    """`command` runs the user's own script, unchanged, and its failure is theirs to fix."""
    script = "raise KeyError('labels.json has no class 7')"
    space.apply(training_run("mine", {"command": ["python3", "-c", script], "maxRestarts": 5}))
    status = wait_failed(space, "mine")
    assert (status["reason"], status["restarts"]) == ("UserException", 0)
    assert "KeyError: 'labels.json has no class 7'" in status["message"]


def test_a_users_script_runs_unchanged_on_two_nodes(space: Namespace) -> None:
    script = (
        "import os, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "t = torch.ones(1)\n"
        "dist.all_reduce(t)\n"
        "print('sum of ranks:', int(t), flush=True)\n"
        "dist.destroy_process_group()\n"
        "os._exit(0)\n"  # PyTorch 2.15 may abort while Python takes its threads down
    )
    spec = {"command": ["python3", "-c", script], "numNodes": 2, "numProcPerNode": 2}
    space.apply(training_run("ddp", spec))
    status = space.wait_phase("ddp", "Succeeded")
    assert "step" not in status, "progress of a user's script is unknown, never invented"
    assert "sum of ranks: 4" in space.kubectl("logs", "ddp-1-0")


def test_a_missing_image_is_waited_for_without_holding_resources(
    space: Namespace,
) -> None:
    image = "localhost:5051/trainyard/no-such-image:1"
    later = {"initialSeconds": 3600, "maxSeconds": 3600}
    space.apply(training_run("img", {"recipe": "char-gpt", "image": image, "backoff": later}))
    status = space.wait_status("img", "Image", lambda s: s.get("reason") == "Image")
    assert status["phase"] == "Pending"
    assert "no-such-image" in status["message"]
    set_spec(space, "img", NOW)
    status = space.wait_status("img", "given back", lambda s: s.get("reason") == "GivenBack")
    assert "no-such-image" in status["message"]
    wait_until("its pod is gone", lambda: not space.pods("img"))
    space.kubectl("annotate", "trun", "img", "trainyard.dev/retry=now")
    space.wait_status("img", "attempt 2", lambda s: s.get("attempt") == 2)


def test_a_failed_run_resumes_once_its_spec_is_fixed(
    space: Namespace, corpus: dict[str, Any]
) -> None:
    space.apply(char_gpt("fix", corpus, {"n_head": 5}, **ONE))
    wait_failed(space, "fix")
    space.kubectl("annotate", "trun", "fix", "trainyard.dev/retry=1")
    wait_attempt(space, "fix", 2)
    status = wait_failed(space, "fix")
    assert "n_head" in status["message"]
    set_spec(space, "fix", {"config": {"n_head": 4}})
    wait_attempt(space, "fix", 3)
    status = space.wait_phase("fix", "Succeeded")
    assert (status["attempt"], status["restarts"]) == (3, 0)


# Set once what is waited for is seen: a machine may take its time to show it.
NOW = {"startDeadlineSeconds": 1}


def test_gpus_on_a_cluster_without_them_are_named(space: Namespace) -> None:
    limits = {"limits": {"nvidia.com/gpu": 1}}
    space.apply(training_run("gpu", {"recipe": "char-gpt", "resourcesPerNode": limits}))
    status = space.wait_status("gpu", "Scheduling", lambda s: s.get("reason") == "Scheduling")
    assert "nvidia.com/gpu" in status["message"]
    set_spec(space, "gpu", NOW)
    # Nothing is left half-scheduled: the gang is given back, and tried again without a restart.
    status = space.wait_status("gpu", "given back", lambda s: s.get("reason") == "GivenBack")
    assert status.get("restarts", 0) == 0


def test_a_missing_volume_is_named(space: Namespace) -> None:
    spec = {"recipe": "char-gpt", "storage": {"claimName": "nowhere"}}
    space.apply(training_run("vol", spec))
    status = space.wait_status("vol", "Volume", lambda s: s.get("reason") == "Volume")
    assert '"nowhere" not found' in status["message"]
    set_spec(space, "vol", NOW)
    status = space.wait_status("vol", "given back", lambda s: s.get("reason") == "GivenBack")
    assert '"nowhere" not found' in status["message"]


def test_a_pod_that_the_cluster_rejects_says_why(space: Namespace) -> None:
    """The namespace enforces the restricted standard; the user asks for a host path."""
    template = {
        "spec": {"volumes": [{"name": "host", "hostPath": {"path": "/etc"}}]},
    }
    space.apply(training_run("host", {"recipe": "char-gpt", "podTemplate": template}))
    status = space.wait_status("host", "Rejected", lambda s: s.get("reason") == "Rejected")
    assert "hostPath" in status["message"]


def test_a_suspended_run_resumes_from_its_checkpoint(
    space: Namespace, corpus: dict[str, Any]
) -> None:
    space.apply(char_gpt("nap", corpus, {"max_steps": 300}, numNodes=1))
    space.wait_status("nap", "a checkpoint", lambda s: "lastCheckpoint" in s)
    set_spec(space, "nap", {"suspend": True})
    space.wait_phase("nap", "Suspended")
    wait_until("its pods are gone", lambda: not space.pods("nap"))
    set_spec(space, "nap", {"suspend": False})
    status = space.wait_phase("nap", "Succeeded")
    assert status["resumedFromStep"] > 0
    assert status.get("restarts", 0) == 0


def test_deadline_and_ttl(space: Namespace) -> None:
    sleep = ["python3", "-c", "import threading; threading.Event().wait()"]
    spec = {"command": sleep, "storage": {"size": "1Gi", "whenDeleted": "Delete"}}
    space.apply(training_run("late", spec | {"activeDeadlineSeconds": int(LONG)}))
    space.wait_phase("late", "Running")
    set_spec(space, "late", {"activeDeadlineSeconds": 1})
    status = wait_failed(space, "late")
    assert status["reason"] == "DeadlineExceeded"
    set_spec(space, "late", {"ttlSecondsAfterFinished": 1})
    wait_until("the run is deleted", lambda: space.get("trainingrun", "late") is None)
    wait_until("its claim is gone", lambda: not space.items("persistentvolumeclaims"))


def test_pods_get_no_api_token(space: Namespace) -> None:
    script = "import os, sys; sys.exit(os.path.exists('/var/run/secrets/kubernetes.io'))"
    space.apply(training_run("plain", {"command": ["python3", "-c", script]}))
    space.wait_phase("plain", "Succeeded")


def wait_attempt(space: Namespace, name: str, number: int) -> None:
    """Until a run that has failed has been brought back."""
    wait_until(f"attempt {number}", lambda: space.status(name).get("attempt") == number, LONG)


def wait_failed(space: Namespace, name: str) -> dict[str, Any]:
    def failed() -> dict[str, Any] | None:
        status = space.status(name)
        return status if status.get("phase") == "Failed" else None

    try:
        return wait_until(f"{name} has failed", failed, LONG)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{space.describe(name)}") from None
