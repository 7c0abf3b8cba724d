"""The cluster that `make e2e` brought up: an operator installed by helm, a namespace per test.

Several workers (pytest -n) share the cluster. Locks see to it that one test at a time deals with
the operator, and that no other one runs beside a test that takes a node away.
"""

import fcntl
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kube import CLUSTER, REPO, TIMEOUT, CommandError, Namespace, environment, run
from tests.manifests.refused import OWN_RECIPE
from tests.patience import SECONDS

SYSTEM = "trainyard-system"
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
OURS = "app.kubernetes.io/managed-by=trainyard-e2e"  # marks our namespaces
SHAKESPEARE = REPO.parent / "shared" / "data" / "tiny_shakespeare" / "input.txt"
IMAGES = os.environ.get("TRAINYARD_REGISTRY", "localhost:5051/trainyard")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--images", default=IMAGES, help="prefix of operator, trainer and serving")
    parser.addoption("--tag", default="dev", help="tag of the images")


def runs_the_tests(config: pytest.Config) -> bool:
    """Whether this is pytest's first process, and not one of its workers, nor a mere listing."""
    return not hasattr(config, "workerinput") and not config.getoption("collectonly")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Install the operator, from its chart, in its own namespace under the restricted standard."""
    if not runs_the_tests(session.config):
        return
    try:
        run("kubectl", "get", "nodes")
    except (CommandError, FileNotFoundError) as error:
        pytest.exit(f"no cluster to test on: run `make cluster` first ({error})", returncode=1)
    make_namespace(SYSTEM)
    # As docs/operate/operations.md says for an upgrade: helm never changes a CRD that is there.
    crds = str(REPO / "charts" / "operator" / "crds")
    apply = ("kubectl", "apply", "--server-side", "--force-conflicts", "--field-manager=helm")
    run(*apply, "-f", crds)
    image = values_of_images(session.config)
    run(
        *("helm", "upgrade", "--install", "trainyard", str(REPO / "charts" / "operator")),
        *("--namespace", SYSTEM, "--set", image["operator"], "--set", image["trainer"]),
        *("--set-json", f"admissionPolicy.recipes={json.dumps(OWN_RECIPE)}"),
        # On the local cluster it shares one machine with everything that trains.
        *("--set", "resources.requests.cpu=500m", "--wait", TIMEOUT),
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """When every worker is done, uninstall it, and see all namespaces go."""
    if runs_the_tests(session.config):
        run("helm", "uninstall", "trainyard", "--namespace", SYSTEM, "--wait", TIMEOUT)
        run("kubectl", "delete", "namespace", "--selector", OURS, TIMEOUT)


def values_of_images(config: pytest.Config) -> dict[str, str]:
    """Part -> helm's `--set` text for its image."""
    prefix, tag = config.getoption("--images"), config.getoption("--tag")
    return {
        "operator": f"image.repository={prefix}/operator,image.tag={tag}",
        "serving": f"image.repository={prefix}/serving,image.tag={tag}",
        "trainer": f"trainerImage.repository={prefix}/trainer,trainerImage.tag={tag}",
    }


@pytest.fixture(scope="session")
def image_values(request: pytest.FixtureRequest) -> dict[str, str]:
    """As values_of_images says."""
    return values_of_images(request.config)


@pytest.fixture(scope="session")
def image_names(request: pytest.FixtureRequest) -> dict[str, str]:
    """Part -> the full name of its image."""
    prefix, tag = request.config.getoption("--images"), request.config.getoption("--tag")
    return {part: f"{prefix}/{part}:{tag}" for part in ("operator", "serving", "trainer")}


@pytest.fixture(autouse=True)
def use_of_nodes(request: pytest.FixtureRequest) -> Iterator[None]:
    """All tests use the nodes at once; one that takes a node away (`alone`) uses them alone."""
    how = fcntl.LOCK_EX if "alone" in request.fixturenames else fcntl.LOCK_SH
    with (CLUSTER / "turn").open("w") as turn, (CLUSTER / "use").open("w") as use:
        fcntl.flock(turn, fcntl.LOCK_EX)  # while one waits to be alone, no other one begins
        fcntl.flock(use, how)
        fcntl.flock(turn, fcntl.LOCK_UN)
        yield


@pytest.fixture
def alone(use_of_nodes: None) -> None:
    """Asked for by a test beside which no other one may run."""


@pytest.fixture
def operator(use_of_nodes: None) -> Iterator[Namespace]:
    """The operator's namespace, for one test at a time: it may take the operator away."""
    with (CLUSTER / "operator").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Namespace(SYSTEM)


@pytest.fixture
def space(request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A fresh namespace, named after the test; it is deleted when the test is over."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:50]
    # Cases of one test may differ in the end of their names alone, and run at the same time.
    name = f"{words}-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:6]}"
    yield make_namespace(name)
    run("kubectl", "delete", "namespace", name, "--wait=false")


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
    run("kubectl", "label", "namespace", name, RESTRICTED, OURS)
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
