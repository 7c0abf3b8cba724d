"""The serving chart's apps on a real cluster: installed by helm, asked through their Services."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Forwarder
from tests.e2e.kube import REPO, Namespace, run, wait_until
from tests.e2e.news import LABELS, news_run
from tests.e2e.releases import install, passes_its_test, stand_in
from tests.patience import SECONDS

KEY = "correct-horse-battery"
PICTURE = REPO.parent / "shared" / "data" / "images" / "chelsea.png"

# Run in a pod that may write to the run's volume: the newest model once more, as a later step's.
PUBLISH = """
import shutil
from datetime import UTC, datetime
from pathlib import Path
from trainyard_api.checkpoint import MANIFEST, step_name
from trainyard_storage.checkpoints import manifest_bytes, read_manifest, steps
models = Path("/trainyard/news/models")
newest = next(iter(steps(models)))
manifest = read_manifest(newest)
step = manifest.step + 1
copy = models / ".copy"
shutil.copytree(newest, copy)
later = manifest.model_copy(update={"step": step, "created": datetime.now(UTC)})
(copy / MANIFEST).write_bytes(manifest_bytes(later))
if DAMAGED:
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
copy.rename(models / step_name(step))
"""


def test_classify_follows_its_run(
    space: Namespace,
    forward: Forwarder,
    image_values: dict[str, str],
    image_names: dict[str, str],
    tmp_path: Path,
) -> None:
    space.apply(news_run("news", space, tmp_path))
    status = space.wait_phase("news", "Succeeded")
    values = {
        "app": "classify",
        "engine": "onnx",
        "run": "news",
        "apiKey": {"value": KEY},
        "settings": {"pollSeconds": 0.5, "drainSeconds": 5},
        "test": {"text": "shares rose after the company reported record profits"},
    }
    install(space, "sorter", values, image_values["serving"])
    assert "'Business'" in passes_its_test(space, "sorter")
    client = httpx.Client(
        base_url=forward.url("service/sorter-serving", 80),
        headers={"authorization": f"Bearer {KEY}"},
        timeout=SECONDS,
    )
    answers_only_with_the_key(client)
    digest = predicts(client, "the team won the match")
    assert digest == status["model"]["digest"]
    takes_a_newer_model(space, client, digest, image_names["serving"])
    refuses_a_damaged_model(space, client, image_names["serving"])
    run("helm", "uninstall", "sorter", "--namespace", space.name)


def predicts(client: httpx.Client, text: str) -> str:
    """The digest of the model that answers."""
    answer = client.post("/predict", json={"text": text})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["label"] == "Sports"
    assert body["probs"].keys() == set(LABELS)
    assert body["confidence"] > 0.8
    return str(answer.headers["x-trainyard-digest"])


def answers_only_with_the_key(client: httpx.Client) -> None:
    body = {"text": "the team won"}
    for headers in ({}, {"authorization": "Bearer wrong"}):
        answer = httpx.post(
            client.base_url.join("/predict"), json=body, headers=headers, timeout=SECONDS
        )
        assert answer.status_code == 401
    health = httpx.get(client.base_url.join("/health"), timeout=SECONDS)
    assert health.status_code == 200


def takes_a_newer_model(space: Namespace, client: httpx.Client, old: str, image: str) -> None:
    """While requests keep coming, and without failing one of them."""
    publish(space, "newer", image, damaged=False)
    with asking(client) as seen:
        wait_until("the newer model answers", lambda: set(seen) - {old})
    first = next(index for index, digest in enumerate(seen) if digest != old)
    assert set(seen[:first]) <= {old}
    assert len(set(seen[first:])) == 1, "it went back to the old one"


@contextmanager
def asking(client: httpx.Client) -> Iterator[list[str]]:
    """Requests one after another, by a thread; the digests that answered. Fails if one did."""
    seen: list[str] = []
    failures: list[BaseException] = []
    over = threading.Event()

    def ask() -> None:
        try:
            while not over.is_set():
                seen.append(predicts(client, "a big match in the new season"))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()
    assert not failures, failures


def refuses_a_damaged_model(space: Namespace, client: httpx.Client, image: str) -> None:
    """The old one keeps answering; the log and /ready say what is wrong with the new one."""
    digest = predicts(client, "the coach said")
    publish(space, "damaged", image, damaged=True)
    (refused,) = wait_until("it is refused", lambda: client.get("/ready").json()["refused"])
    assert "model.safetensors: sha256 differs" in refused
    assert predicts(client, "the coach said") == digest
    log = space.kubectl("logs", "deployment/sorter-serving", "-c", "serving")
    assert "refused" in log
    assert "model.safetensors: sha256 differs" in log


def publish(space: Namespace, name: str, image: str, damaged: bool) -> None:
    """Run PUBLISH in a pod that ends before this returns."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "publish",
        "image": image,
        "command": ["python", "-c", f"DAMAGED = {damaged}\n{PUBLISH}"],
        "securityContext": security,
        "resources": {"requests": {"cpu": "250m"}},
        "volumeMounts": [{"name": "storage", "mountPath": "/trainyard"}],
    }
    user = {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001}
    spec = {
        "restartPolicy": "Never",
        "securityContext": user | {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "storage", "persistentVolumeClaim": {"claimName": "news"}}],
    }
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
    space.apply(pod)

    def over() -> str:
        phase: str = (space.get("pod", name) or {})["status"]["phase"]
        return phase if phase in ("Succeeded", "Failed") else ""

    phase = wait_until(f"{name} is published", over)
    assert phase == "Succeeded", space.kubectl("logs", name)


@pytest.mark.skipif(not PICTURE.exists(), reason="../shared/data is not there")
def test_vision_asks_its_sidecar_about_a_picture(
    space: Namespace, forward: Forwarder, image_values: dict[str, str], image_names: dict[str, str]
) -> None:
    """The chart's pod with two containers; SGLang's place is taken by the tests' stand-in.

    /health and /ready ask for the key here: the kubelet's probes must send it.
    """
    sglang = stand_in(image_names["serving"])
    values = {"app": "vision", "model": "Qwen/Qwen2-VL-7B-Instruct", "sglang": sglang}
    values |= {"apiKey": {"value": KEY}}
    values |= {"settings": {"drainSeconds": 5, "pollSeconds": 0.5, "protectHealth": True}}
    install(space, "eyes", values, image_values["serving"])
    passes_its_test(space, "eyes")
    url = forward.url("service/eyes-serving", 80)
    assert httpx.get(f"{url}/ready", timeout=SECONDS).status_code == 401
    with httpx.Client(base_url=url, headers={"x-api-key": KEY}, timeout=SECONDS) as client:
        answers_about_a_picture(client)
    sglang_is_on_loopback_only(space)
    run("helm", "uninstall", "eyes", "--namespace", space.name)


def answers_about_a_picture(client: httpx.Client) -> None:
    question = {"question": "What animal is this?"}
    answer = client.post("/answer", files={"image": PICTURE.read_bytes()}, data=question)
    assert answer.status_code == 200, answer.text
    assert answer.json()["answer"].startswith("one two three")
    assert answer.json()["image"] == {"width": 451, "height": 300}
    refused = client.post("/answer", json=question | {"image_url": "http://kubernetes.default.svc"})
    assert 400 <= refused.status_code < 500, refused.text


def sglang_is_on_loopback_only(space: Namespace) -> None:
    (pod,) = space.items("pods", "app.kubernetes.io/name=trainyard-serving")
    address = pod["status"]["podIP"]
    code = (
        "import socket\n"
        "socket.create_connection(('127.0.0.1', 30000), 60)\n"
        f"print(socket.socket().connect_ex(('{address}', 30000)))"
    )
    name = pod["metadata"]["name"]
    said = space.kubectl("exec", name, "-c", "serving", "--", "python", "-c", code)
    assert int(said) != 0, "SGLang answers on the pod's address"
