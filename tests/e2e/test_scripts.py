"""Scripts of others in pods, unchanged: what the agent shows of them, and how they fail."""

from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Forwarder
from tests.e2e.frameworks import provide_frameworks_image
from tests.e2e.kube import LONG, Namespace, run, wait_until
from tests.e2e.releases import install, passes_its_test
from tests.e2e.runs import training_run
from tests.patience import SECONDS
from tests.support.frameworks import (
    REPORTING,
    SCRIPTS,
    SILENT,
    hanging,
    shows_what_it_reports,
)

CHECKPOINTED = SCRIPTS.parent / "sdk" / "train.py"
# Posts come every five seconds, so training must last for some.
STEPS, EVAL_STEPS = 2000, 200
# Nobody waits for the end of these.
FOREVER = 1_000_000
LOGS = ("logs", "mine-1-0", "-c", "trainer")
# Sends rank 1 the signal in its argument.
SIGNAL = """
import os, pathlib, signal, sys
for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    parent = (path.parent / "stat").read_text().rpartition(")")[2].split()[1]
    if b"\\0RANK=1\\0" in path.read_bytes() and parent != str(os.getppid()):
        launcher = pathlib.Path("/proc", parent, "environ").read_bytes()
        if b"\\0RANK=" not in launcher:
            os.kill(int(path.parent.name), signal.Signals[sys.argv[1]])
"""


@pytest.fixture(scope="module")
def frameworks_image(image_names: dict[str, str]) -> str:
    return provide_frameworks_image(image_names["trainer"])


def send(space: Namespace, training: str, name: str) -> None:
    """Send a signal to rank 1 of the run's first attempt."""
    words = ("-c", "trainer", "--", "python3", "-c", SIGNAL, name)
    space.kubectl("exec", f"{training}-1-0", *words)


def has_reported(status: dict[str, Any]) -> bool:
    return status.get("step", 0) > 0 and "tokensPerSecond" in status and "evalLoss" in status


def test_transformers_trainer_shows_its_progress_and_names_a_killed_rank(space: Namespace) -> None:
    script = (SCRIPTS / "transformers_trainer.py").read_text()
    command = ["python3", "-c", script, str(STEPS), str(EVAL_STEPS)]
    backoff = {"initialSeconds": 0, "maxSeconds": 0}
    space.apply(training_run("hf", {"command": command, "numProcPerNode": 2, "backoff": backoff}))
    status = wait_until(
        "the script's progress",
        lambda: status if has_reported(status := space.status("hf")) else None,
        LONG,
    )
    assert status["phase"] == "Running"
    assert status["totalSteps"] == STEPS
    assert 0 < status["loss"] < 10
    assert status["etaSeconds"] > 0

    send(space, "hf", "SIGKILL")
    status = space.wait_phase("hf", "Succeeded")
    first, second = status["attempts"]
    assert (first["reason"], first["message"]) == ("Signal", "hf-1-0: rank 1: killed by SIGKILL")
    assert second["outcome"] == "Succeeded"
    # The last report comes with the agent's own end, however late the operator looks.
    assert status["progress"] == f"{STEPS}/{STEPS}"


@pytest.mark.parametrize("script", [*REPORTING, *SILENT])
def test_an_unchanged_script_in_an_image_of_a_user_shows_a_stopped_and_a_killed_rank(
    space: Namespace, frameworks_image: str, script: str
) -> None:
    steps = [str(FOREVER), *([str(EVAL_STEPS)] if script in REPORTING else [])]
    spec = {
        "image": frameworks_image,
        "command": ["python3", "-c", (SCRIPTS / script).read_text(), *steps],
        "numProcPerNode": 2,
        "hang": {"afterSeconds": 6},
        "backoff": {"initialSeconds": 0, "maxSeconds": 0},
    }
    space.apply(training_run("mine", spec))
    space.wait_status("mine", "progress", lambda status: shows_what_it_reports(status, script))
    if script in SILENT:
        assert {"step", "loss", "etaSeconds"}.isdisjoint(space.status("mine"))
        wait_until("it trains", lambda: SILENT[script] in space.kubectl(*LOGS), LONG)

    attempts = space.status("mine")["attempts"]
    assert len(attempts) == 1, attempts[0]["message"]  # nothing has happened to it so far
    send(space, "mine", "SIGSTOP")
    status = space.wait_status("mine", "the hang", lambda status: hanging(status)[0] == "True")
    message = hanging(status)[1]
    assert message.startswith("no progress for "), message
    assert ": rank 1 (mine-1-0, pid " in message, message
    assert " is stopped (SIGSTOP)" in message, message
    send(space, "mine", "SIGCONT")
    space.wait_status("mine", "its end", lambda status: hanging(status)[0] == "False")

    send(space, "mine", "SIGKILL")
    status = space.wait_status("mine", "a retry", lambda status: len(status["attempts"]) == 2)
    first = status["attempts"][0]
    assert (first["outcome"], first["reason"]) == ("Failed", "Signal")
    assert first["message"] == "mine-1-0: rank 1: killed by SIGKILL"


def test_a_script_continues_another_run(space: Namespace) -> None:
    """The other run's claim is mounted in every attempt, read-only."""
    metadata = {"name": "script", "namespace": space.name}
    files = {"train.py": CHECKPOINTED.read_text()}
    space.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": files})
    mount = {"name": "script", "mountPath": "/script", "readOnly": True}
    pod = {
        "containers": [{"name": "trainer", "volumeMounts": [mount]}],
        "volumes": [{"name": "script", "configMap": {"name": "script"}}],
    }

    def script(name: str, steps: int, **spec: Any) -> dict[str, Any]:
        mine = {
            "command": ["/script/train.py", "--model=ddp", f"--steps={steps}"],
            "numProcPerNode": 2,
            "storage": {"size": "1Gi"},
            "podTemplate": {"spec": pod},
        }
        return training_run(name, mine | spec)

    space.apply(script("first", 7))
    saved = space.wait_phase("first", "Succeeded")["lastCheckpoint"]
    assert saved["step"] == 7
    space.apply(script("second", 12, startFrom={"run": "first"}))
    status = space.wait_phase("second", "Succeeded")
    assert (status["startedFrom"], status["resumedFromStep"]) == ("step 7 of run first", 7)
    assert status["progress"] == "12/12"
    (worker,) = space.pods("second", attempt=1)
    (start,) = [each for each in worker["spec"]["volumes"] if each["name"] == "start"]
    assert start["persistentVolumeClaim"] == {"claimName": "first", "readOnly": True}
    assert space.status("first")["lastCheckpoint"] == saved

    space.apply(script("third", 12, startFrom={"run": "first", "step": 9}))
    status = space.wait_phase("third", "Failed")
    assert (status["reason"], status.get("restarts", 0)) == ("ConfigError", 0)
    assert "there is no checkpoint of step 9; set startFrom.step to one of 7, " in status["message"]


def test_a_scripts_model_is_served(
    space: Namespace, forward: Forwarder, image_values: dict[str, str]
) -> None:
    text = (SCRIPTS / "published_lm.py").read_text()
    spec = {"command": ["python3", "-c", text], "storage": {"size": "1Gi"}}
    space.apply(training_run("mine", spec))
    model = space.wait_phase("mine", "Succeeded")["model"]
    install(space, "server", {"run": "mine"}, image_values["serving"])
    passes_its_test(space, "server")
    body = {"model": "mine", "prompt": "The sum of 2 and", "max_tokens": 4, "temperature": 0}
    url = forward.url("service/server-serving", 80)
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=SECONDS)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"].startswith(" 3 is")
    assert answer.headers["x-trainyard-digest"] == model["digest"]
    run("helm", "uninstall", "server", "--namespace", space.name)
