"""Releases of charts/serving, as a user installs and checks them."""

import json
from typing import Any

from tests.e2e.kube import REPO, TIMEOUT, Namespace, run

CHART = str(REPO / "charts" / "serving")
STAND_IN = REPO / "tests" / "support" / "serving" / "sglang_stand_in.py"
AS_SGLANG = """
if __name__ == "__main__":
    import argparse
    import uvicorn

    parser = argparse.ArgumentParser()
    for flag in ("model-path", "served-model-name", "host", "port"):
        parser.add_argument(f"--{flag}", required=True)
    flags = parser.parse_args()
    app = StandIn(flags.served_model_name, flags.model_path).app()
    app.add_api_route("/health", lambda: {})
    uvicorn.run(app, host=flags.host, port=int(flags.port))
"""


def install(space: Namespace, release: str, values: dict[str, Any], image: str) -> None:
    """`helm install`, until its pods are ready."""
    command = ("helm", "install", release, CHART, "--namespace", space.name)
    options = ("--values", "-", "--set", image, "--wait", TIMEOUT)
    run(*command, *options, stdin=json.dumps(values))


def passes_its_test(space: Namespace, release: str) -> str:
    """What `helm test` prints: the one line of files/predict.py is in it."""
    text = run("helm", "test", release, "--namespace", space.name, "--logs", TIMEOUT)
    assert "Succeeded" in text
    return text


def stand_in(image: str) -> dict[str, Any]:
    """The chart's `sglang`: the tests' stand-in takes its place, from our own image."""
    program = STAND_IN.read_text() + AS_SGLANG
    repository, _, tag = image.rpartition(":")
    return {
        "image": {"repository": repository, "tag": tag},
        "command": ["python", "-c", program],
        "resources": {
            "requests": {"cpu": "50m", "memory": "64Mi"},
            "limits": {"memory": "512Mi", "nvidia.com/gpu": None},
        },
    }
