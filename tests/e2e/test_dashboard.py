"""The dashboard in a cluster, as charts/operator renders it: runs, API key, read-only rights."""

import httpx

from tests.e2e.conftest import Forwarder
from tests.e2e.kube import REPO, TIMEOUT, CommandError, Namespace, run, wait_until
from tests.e2e.test_study import study
from tests.patience import SECONDS

KEY = {"authorization": "Bearer a-key-of-the-test"}


def test_it_shows_runs_and_studies_requires_its_key_and_is_read_only(
    space: Namespace, forward: Forwarder, image_names: dict[str, str]
) -> None:
    repository, _, tag = image_names["serving"].rpartition(":")
    values = {
        "watchNamespace": space.name,
        "dashboard.enabled": "true",
        "dashboard.apiKey.value": "a-key-of-the-test",
        "dashboard.image.repository": repository,
        "dashboard.image.tag": tag,
    }
    manifests = run(
        *("helm", "template", "board", str(REPO / "charts" / "operator")),
        *("--namespace", space.name, "--show-only", "templates/dashboard.yaml"),
        *("--set", ",".join(f"{name}={value}" for name, value in values.items())),
    )
    space.kubectl("apply", "-f", "-", stdin=manifests)
    waiting = study("waiting", suspend=True)
    template = waiting["spec"]["template"]["spec"]
    paused = waiting | {
        "kind": "TrainingRun",
        "metadata": {"name": "paused"},
        "spec": template | {"suspend": True},
    }
    space.apply(waiting)
    space.apply(paused)
    (deployment,) = (
        one["metadata"]["name"]
        for one in space.items("deployments")
        if "dashboard" in one["metadata"]["name"]
    )
    space.kubectl("rollout", "status", f"deployment/{deployment}", TIMEOUT)

    url = forward.url(f"deployment/{deployment}", 8050)
    assert "Trainyard" in httpx.get(url, timeout=SECONDS).text
    assert httpx.get(f"{url}/api/runs", timeout=SECONDS).status_code == 401

    def phases() -> dict[str, str]:
        answer = httpx.get(f"{url}/api/runs", headers=KEY, timeout=SECONDS).json()
        return {row["name"]: row["phase"] for row in answer["runs"]}

    wait_until("the run is shown", lambda: phases() == {"paused": "Suspended"})
    studies = httpx.get(f"{url}/api/studies", headers=KEY, timeout=SECONDS).text
    assert "waiting" in studies

    account = f"system:serviceaccount:{space.name}:{deployment}"
    for verb, allowed in (("list", True), ("delete", False), ("create", False)):
        try:
            answer = space.kubectl("auth", "can-i", verb, "trainingruns", f"--as={account}")
        except CommandError as error:
            answer = str(error)
        assert ("yes" in answer.split()) == allowed, (verb, answer)
