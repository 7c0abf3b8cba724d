"""The cluster that `make e2e` brought up: an operator installed by helm, a namespace per test."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kube import REPO, TIMEOUT, CommandError, Namespace, environment, run, wait_until
from tests.patience import SECONDS

SYSTEM = "trainyard-system"
SHAKESPEARE = REPO.parent / "shared" / "data" / "tiny_shakespeare" / "input.txt"
IMAGES = os.environ.get("TRAINYARD_REGISTRY", "localhost:5051/trainyard")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--images", default=IMAGES, help="prefix of operator, trainer and serving")
    parser.addoption("--tag", default="dev", help="tag of the images")


@pytest.fixture(scope="session")
def image_values(request: pytest.FixtureRequest) -> dict[str, str]:
    """Part -> helm's `--set` text for its image."""
    prefix, tag = request.config.getoption("--images"), request.config.getoption("--tag")
    return {
        "operator": f"image.repository={prefix}/operator,image.tag={tag}",
        "serving": f"image.repository={prefix}/serving,image.tag={tag}",
        "trainer": f"trainerImage.repository={prefix}/trainer,trainerImage.tag={tag}",
    }


@pytest.fixture(scope="session")
def image_names(request: pytest.FixtureRequest) -> dict[str, str]:
    """Part -> the full name of its image."""
    prefix, tag = request.config.getoption("--images"), request.config.getoption("--tag")
    return {part: f"{prefix}/{part}:{tag}" for part in ("operator", "serving", "trainer")}


@pytest.fixture(scope="session", autouse=True)
def operator(image_values: dict[str, str]) -> Iterator[Namespace]:
    """The operator, from its chart, in its own namespace under the restricted standard."""
    try:
        run("kubectl", "get", "nodes")
    except (CommandError, FileNotFoundError) as error:
        pytest.exit(f"no cluster to test on: run `make cluster` first ({error})", returncode=1)
    space = make_namespace(SYSTEM)
    # As docs/operations.md says for an upgrade: helm never changes a CRD that is there.
    crds = str(REPO / "charts" / "operator" / "crds")
    apply = ("kubectl", "apply", "--server-side", "--force-conflicts", "--field-manager=helm")
    run(*apply, "-f", crds)
    run(
        "helm",
        "upgrade",
        "--install",
        "trainyard",
        str(REPO / "charts" / "operator"),
        "--namespace",
        SYSTEM,
        "--set",
        image_values["operator"],
        "--set",
        image_values["trainer"],
        "--wait",
        TIMEOUT,
    )
    yield space
    run("helm", "uninstall", "trainyard", "--namespace", SYSTEM, "--wait", TIMEOUT)
    delete_namespace(SYSTEM)


@pytest.fixture
def space(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A fresh namespace, named after the test; it is gone again when the test has passed."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:50].strip("-")
    yield make_namespace(name)
    delete_namespace(name)


@pytest.fixture
def corpus(space: Namespace, tmp_path: Path) -> dict[str, object]:
    """Tiny Shakespeare as two ConfigMaps (it is larger than one may be): a pod volume.

    Without ../shared/data the quickstart's corpus, Python's standard library, takes its place.
    """
    if SHAKESPEARE.exists():
        text = SHAKESPEARE.read_bytes()
    else:
        files = sorted(Path(subprocess.__file__).parent.glob("*.py"))
        text = b"".join(file.read_bytes() for file in files)[:1_000_000]
    middle = text.index(b"\n", len(text) // 2) + 1
    for index, part in enumerate((text[:middle], text[middle:])):
        file = tmp_path / f"part-{index}.txt"
        file.write_bytes(part)
        space.kubectl("create", "configmap", f"corpus-{index}", f"--from-file={file}")
    sources = [{"configMap": {"name": f"corpus-{index}"}} for index in range(2)]
    return {"name": "corpus", "projected": {"sources": sources}}


def make_namespace(name: str) -> Namespace:
    delete_namespace(name)
    run("kubectl", "create", "namespace", name)
    label = "pod-security.kubernetes.io/enforce=restricted"
    run("kubectl", "label", "namespace", name, label)
    return Namespace(name)


def delete_namespace(name: str) -> None:
    """Delete the namespace and see it go."""
    run("kubectl", "delete", "namespace", name, "--ignore-not-found", TIMEOUT)


@pytest.fixture
def forward(space: Namespace) -> Iterator["Forwarder"]:
    """`kubectl port-forward`, ended with the test."""
    forwarder = Forwarder(space)
    yield forwarder
    forwarder.close()


class Forwarder:
    """kubectl port-forward to services of one namespace, on free ports of this machine."""

    def __init__(self, space: Namespace) -> None:
        self.space = space
        self.processes: list[subprocess.Popen[str]] = []

    def url(self, target: str, port: int) -> str:
        """The base URL of `target` (service/NAME or pod/NAME)."""
        process = subprocess.Popen(
            ["kubectl", "--namespace", self.space.name, "port-forward", target, f":{port}"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self.processes.append(process)
        assert process.stdout
        line = process.stdout.readline()
        match = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert match, f"port-forward to {target} said {line!r}"
        return f"http://127.0.0.1:{match[1]}"

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
            process.wait(SECONDS)


def seconds_since(start: float) -> float:
    return round(time.monotonic() - start, 1)


__all__ = ["Forwarder", "seconds_since", "wait_until"]
