"""The main job, as a user does it: train through a fault, then serve what came out."""

import json
from typing import Any

import httpx

from tests.e2e.conftest import Forwarder
from tests.e2e.kube import TIMEOUT, Namespace, kill_rank, run, wait_until
from tests.e2e.releases import install, passes_its_test, stand_in
from tests.e2e.runs import char_gpt
from tests.patience import SECONDS

RUN = "shakespeare"
STEPS = 400


def test_train_kill_resume_serve(
    space: Namespace,
    corpus: dict[str, Any],
    forward: Forwarder,
    image_values: dict[str, str],
    image_names: dict[str, str],
) -> None:
    space.apply(char_gpt(RUN, corpus, {"max_steps": STEPS}))
    trains_on_two_nodes(space)
    saved = survives_a_killed_worker(space)
    finishes(space, saved)
    shows_itself(space)
    begins_another(space, corpus)
    serves(space, forward, image_values["serving"])
    serves_by_sglang(space, forward, image_values["serving"], image_names["serving"])
    leaves_nothing_behind(space)


def trains_on_two_nodes(space: Namespace) -> None:
    status = space.wait_phase(RUN, "Running")
    assert status["worldSize"] == 2
    nodes = {pod["spec"]["nodeName"] for pod in space.pods(RUN, attempt=1)}
    assert len(nodes) >= 1
    status = space.wait_status(
        RUN,
        "progress in status",
        lambda s: bool(s.get("step")) and "lastCheckpoint" in s and bool(s.get("throughput")),
    )
    assert status["totalSteps"] == STEPS
    assert status["loss"] > 0
    assert status["tokensPerSecond"] > 0


def survives_a_killed_worker(space: Namespace) -> int:
    """kill -9 one rank; the step that the next attempt resumed from."""
    saved = int(space.status(RUN)["lastCheckpoint"]["step"])
    kill_rank(space, f"{RUN}-1-1")
    status = space.wait_status(
        RUN,
        "attempt 2 resumed",
        lambda s: s.get("attempt") == 2 and s.get("resumedFromStep") is not None,
    )
    first, second = status["attempts"]
    assert (first["outcome"], first["reason"]) == ("Failed", "Signal")
    assert "killed by SIGKILL" in first["message"]
    assert second["resumedFromStep"] >= saved > 0
    assert status["restarts"] == 1
    return int(second["resumedFromStep"])


def finishes(space: Namespace, resumed_from: int) -> None:
    status = space.wait_phase(RUN, "Succeeded")
    assert status["progress"] == f"{STEPS}/{STEPS}"
    assert status["lastCheckpoint"]["step"] == STEPS
    assert status["model"]["digest"].startswith("sha256:")
    assert status["loss"] < 2.6, "it has learnt next to nothing"
    assert status["resumedFromStep"] == resumed_from
    conditions = {c["type"]: c["status"] for c in status["conditions"]}
    assert (conditions["Succeeded"], conditions["Running"]) == ("True", "False")
    reasons = space.event_reasons(RUN)
    for reason in ("AttemptStarted", "Starting", "Running", "Signal", "Succeeded"):
        assert reason in reasons
    assert reasons.count("AttemptStarted") == 2


def shows_itself(space: Namespace) -> None:
    """What `kubectl get` prints, by any of the names."""
    for kind in ("trainingruns", "trun", "trainyard"):
        text = space.kubectl("get", kind)
        assert RUN in text
        assert "Succeeded" in text
        assert f"{STEPS}/{STEPS}" in text
    header = space.kubectl("get", "trun").splitlines()[0].split()
    assert {"PHASE", "PROGRESS", "LOSS", "THROUGHPUT", "ETA", "RESTARTS", "AGE"} <= set(header)


def begins_another(space: Namespace, corpus: dict[str, Any]) -> None:
    """A branch of the run: its claim is mounted read-only, until the branch has its own."""
    name, step = f"{RUN}-2", STEPS - 50
    config = {"max_steps": STEPS, "learning_rate": 0.001}
    start = {"startFrom": {"run": RUN, "step": step}, "numNodes": 1}
    space.apply(char_gpt(name, corpus, config, **start))
    status = space.wait_phase(name, "Succeeded")
    (pod,) = space.pods(name, attempt=1)
    (claim,) = [v["persistentVolumeClaim"] for v in pod["spec"]["volumes"] if v["name"] == "start"]
    assert claim == {"claimName": RUN, "readOnly": True}
    assert status["startedFrom"] == f"step {step} of run {RUN}"
    assert status["resumedFromStep"] == step
    assert "config.learning_rate: 0.003 -> 0.001" in status["attempts"][0]["changed"]
    assert space.status(RUN)["lastCheckpoint"]["step"] == STEPS
    space.kubectl("delete", "trainingrun", name, TIMEOUT)


def serves(space: Namespace, forward: Forwarder, image: str) -> None:
    install(space, "bard", {"run": RUN}, image)
    passes_its_test(space, "bard")
    body = {"model": RUN, "prompt": "ROMEO:", "max_tokens": 80, "seed": 1}
    url = forward.url("service/bard-serving", 80)
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=SECONDS)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 80
    assert len(set(answer.json()["choices"][0]["text"])) > 5
    assert answer.headers["x-trainyard-digest"] == space.status(RUN)["model"]["digest"]
    run("helm", "uninstall", "bard", "--namespace", space.name)


def serves_by_sglang(space: Namespace, forward: Forwarder, image: str, name: str) -> None:
    """SGLang, whose place the tests' stand-in takes, is given the model that was verified."""
    small = {"requests": {"cpu": "50m", "memory": "64Mi"}}
    values = {"run": RUN, "engine": "sglang", "sglang": stand_in(name), "resources": small}
    install(space, "fast", values, image)
    assert "'one two three" in passes_its_test(space, "fast")
    url = forward.url("service/fast-serving", 80)
    ready = httpx.get(f"{url}/ready", timeout=SECONDS).json()
    assert ready["digest"] == space.status(RUN)["model"]["digest"]
    run("helm", "uninstall", "fast", "--namespace", space.name, "--wait", TIMEOUT)


def leaves_nothing_behind(space: Namespace) -> None:
    space.kubectl("delete", "trainingrun", RUN, TIMEOUT)

    def gone() -> bool:
        kinds = "pods,services,persistentvolumeclaims,endpointslices"
        return not json.loads(space.kubectl("get", kinds, "-o", "json"))["items"]

    wait_until("pods, service and volume claim are gone", gone)


def test_a_compiled_run_in_our_image(space: Namespace, corpus: dict[str, Any]) -> None:
    """The image has what torch.compile needs; a later attempt finds the kernels of the first."""
    config = {
        "max_steps": STEPS,
        "eval_steps": 0,
        "compile": True,
        "activation_checkpointing": True,
    }
    space.apply(char_gpt("compiled", corpus, config, numNodes=1))
    space.wait_status("compiled", "a checkpoint", lambda status: "lastCheckpoint" in status)
    kernels = "find /trainyard/compiled/.kernels -name '*.so' | sort"
    words = ("-c", "trainer", "--", "sh", "-c", kernels)
    first = space.kubectl("exec", "compiled-1-0", *words)
    assert first
    kill_rank(space, "compiled-1-0")
    space.wait_status(
        "compiled",
        "steps of attempt 2",
        lambda status: status["step"] > status.get("resumedFromStep", STEPS),
    )
    assert space.kubectl("exec", "compiled-2-0", *words) == first
    space.wait_phase("compiled", "Succeeded")
    log = space.kubectl("logs", "compiled-2-0", "-c", "trainer")
    assert "compiled: 2 blocks, the embedding, the final norm and the loss\n" in log
