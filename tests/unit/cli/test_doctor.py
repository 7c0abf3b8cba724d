"""`trainyard doctor` finds real faults: a taken port, a full disk, an old CRD, a missing right."""

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.crd import RUN, STUDY, definition
from tests.ports import free_port
from trainyard_api import __version__
from trainyard_cli import machine_checks
from trainyard_cli import main as cli
from trainyard_cli.cluster_checks import check_cluster
from trainyard_cli.machine_checks import Finding
from trainyard_local.store import HOME_ENV

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
RUNS, STUDIES = f"{CRDS}/trainingruns.trainyard.dev", f"{CRDS}/scalingstudies.trainyard.dev"
DEPLOYMENTS = "/apis/apps/v1/deployments"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")


def by_check(findings: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def test_a_sound_machine_has_no_problem(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(here / "none"))
    assert cli.main(["doctor", "-o", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["version"] == __version__
    checks = {check["check"] for check in report["checks"]}
    assert {"python", "extras", "torch", "gpu", "torchrun", "ports", "home", "memory"} < checks
    assert {check["level"] for check in report["checks"]} <= {"ok", "warning", "not checked"}
    last = report["checks"][-1]
    assert (last["check"] in ("kubectl", "cluster"), last["level"]) == (True, "not checked")
    assert list(here.iterdir()) == [], "it has left something behind"


def test_text_has_a_line_per_finding_and_a_summary(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(here / "none"))
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok           python    Python 3.")
    assert lines[-1].startswith("0 problems, ")


def test_a_taken_port_names_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(machine_checks, "PORTS", {port: "a test", free_port(): "another"})
        runs, taken, free = machine_checks.check_ports()
    assert (runs.level, taken.level, free.level) == ("ok", "warning", "ok")
    assert f"port {port} (a test): Address already in use" in taken.message
    assert f"process {os.getpid()} " in taken.message
    assert "--port" in taken.action


def test_a_home_below_a_file_is_a_problem(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "file").touch()
    monkeypatch.setenv(HOME_ENV, str(here / "file" / "home"))
    (finding,) = machine_checks.check_home()
    assert (finding.level, HOME_ENV in finding.action) == ("problem", True)
    assert "can't be written: Not a directory" in finding.message


def test_a_full_disk_is_a_problem(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = here / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        monkeypatch.setenv(HOME_ENV, str(disk))
        (nearly,) = machine_checks.check_home()
        assert (nearly.level, "writable, 4 MiB free" in nearly.message) == ("problem", True)
        (disk / "ballast").write_bytes(bytes(4 << 20))
        (full,) = machine_checks.check_home()
        assert full.level == "problem"
        assert full.message == f"{disk} can't be written: No space left on device"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("cuda", "driver", "level", "message"),
    [
        ("13.2", "13.0", "ok", "driver for CUDA 13.0"),
        ("13.2", "12.4", "warning", "the driver supports CUDA 12.4, torch is built for CUDA 13.2"),
        (None, "13.0", "warning", "torch is a CPU build"),
        ("13.2", None, "warning", "nvidia-smi failed: NVIDIA-SMI has failed"),
    ],
)
def test_torch_and_the_driver_must_be_compatible(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    cuda: str | None,
    driver: str | None,
    level: str,
    message: str,
) -> None:
    """A stand-in prints what nvidia-smi prints: this machine may have no GPU."""
    lines = [f"| NVIDIA-SMI 580.1   Driver Version: 580.1   CUDA Version: {driver} |"]
    text = "\n".join(lines) if driver else "NVIDIA-SMI has failed"
    query = f'[ -n "$1" ] && echo "NVIDIA H100, 81559 MiB, 580.1" && exit 0\necho "{text}"\n'
    failure = f"echo '{text}'; exit 9\n"
    program = here / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + (query if driver else failure))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(machine_checks, "torch_cuda", lambda: cuda)
    torch, gpu = machine_checks.check_torch()
    assert torch.level == "ok"
    assert (gpu.level, message in gpu.message) == (level, True), gpu
    assert bool(gpu.action) == (level != "ok")


def test_torchs_build_is_read_without_importing_it() -> None:
    code = (
        "import sys; from trainyard_cli.machine_checks import torch_cuda; cuda = torch_cuda();"
        "assert 'torch' not in sys.modules; import torch; assert torch.version.cuda == cuda"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Cluster:
    """Answers GET with `objects` by path, and access reviews with the verbs that are allowed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.verbs = {"create", "list", "patch", "delete"}
        self.namespaces: set[str] = set()
        labels = {"app.kubernetes.io/version": __version__}
        metadata = {"name": "trainyard-operator", "namespace": "ops", "labels": labels}
        self.objects: dict[str, Any] = {
            "/version": {"gitVersion": "v1.32.0", "major": "1", "minor": "32"},
            RUNS: definition(RUN),
            STUDIES: definition(STUDY),
            DEPLOYMENTS: {"items": [{"metadata": metadata, "status": {"readyReplicas": 1}}]},
        }


@pytest.fixture
def cluster(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """An API server over HTTP with a sound installation, and the kubeconfig that names it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path in state.objects:
                self._answer(200, state.objects[path])
            else:
                status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}
                message = f"{path.rpartition('/')[2]} not found"
                self._answer(404, status | {"reason": "NotFound", "message": message})

        def do_POST(self) -> None:
            body = json.loads(self._chunked_body())
            attributes = body["spec"]["resourceAttributes"]
            state.namespaces.add(attributes["namespace"])
            allowed = self.path.startswith(REVIEWS) and attributes["verb"] in state.verbs
            self._answer(201, body | {"status": {"allowed": allowed}})

        def _chunked_body(self) -> bytes:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            return body

        def _answer(self, code: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Cluster(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    write_kubeconfig(here, monkeypatch, state.url)
    yield state
    server.shutdown()
    server.server_close()


def write_kubeconfig(directory: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [
            {"name": "test", "context": {"cluster": "c", "user": "u", "namespace": "team"}}
        ],
        "current-context": "test",
    }
    (directory / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(directory / "kubeconfig"))
    monkeypatch.setenv("HOME", str(directory))  # kubectl's cache


@needs_kubectl
def test_a_sound_cluster_is_ok(cluster: Cluster) -> None:
    client = json.loads(
        subprocess.check_output(["kubectl", "version", "--client", "--output=json"])
    )["clientVersion"]
    cluster.objects["/version"] = {"gitVersion": client["gitVersion"], "minor": client["minor"]}
    findings = check_cluster()
    assert {finding.level for finding in findings} == {"ok"}, findings
    names = ["kubectl", "cluster", "crd", "crd", "operator", "rbac"]
    assert [finding.check for finding in findings] == names
    assert cluster.namespaces == {"team"}


def remove_field(cluster: Cluster) -> None:
    crd = copy.deepcopy(cluster.objects[RUNS])
    version = crd["spec"]["versions"][0]
    del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["elastic"]
    cluster.objects[RUNS] = crd


def uninstall_crd(cluster: Cluster) -> None:
    del cluster.objects[STUDIES]


def uninstall_operator(cluster: Cluster) -> None:
    cluster.objects[DEPLOYMENTS] = {"items": []}


def stop_operator(cluster: Cluster) -> None:
    del cluster.objects[DEPLOYMENTS]["items"][0]["status"]["readyReplicas"]


def age_operator(cluster: Cluster) -> None:
    labels = cluster.objects[DEPLOYMENTS]["items"][0]["metadata"]["labels"]
    labels["app.kubernetes.io/version"] = "0.0.1"


def deny(cluster: Cluster) -> None:
    cluster.verbs -= {"create", "delete"}


def age_server(cluster: Cluster) -> None:
    cluster.objects["/version"] = {"gitVersion": "v1.20.0", "minor": "20+"}


@needs_kubectl
@pytest.mark.parametrize(
    ("fault", "check", "message", "action"),
    [
        (remove_field, "crd", "it lacks spec.elastic", "kubectl apply"),
        (uninstall_crd, "crd", "scalingstudies.trainyard.dev is not installed", "helm install"),
        (uninstall_operator, "operator", "no operator is installed", "helm install"),
        (stop_operator, "operator", "ops/trainyard-operator is not ready", "--namespace ops"),
        (age_operator, "operator", "is of version 0.0.1, this is", "same version"),
        (deny, "rbac", "you may not create, delete trainingruns in namespace team", "ClusterRole"),
        (age_server, "cluster", "Kubernetes v1.20.0, kubectl v", "minor version"),
    ],
)
def test_a_fault_of_the_cluster_is_a_warning(
    cluster: Cluster, fault: Callable[[Cluster], None], check: str, message: str, action: str
) -> None:
    fault(cluster)
    findings = by_check(check_cluster(), check)
    (warning,) = (finding for finding in findings if finding.level == "warning")
    assert message in warning.message
    assert action in warning.action


@pytest.mark.slow
@needs_kubectl
def test_an_unreachable_cluster_is_a_warning_in_bounded_time(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It accepts connections and never answers, as behind a broken VPN.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        write_kubeconfig(here, monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        before = time.monotonic()
        cluster = check_cluster()[-1]
    assert (cluster.check, cluster.level) == ("cluster", "warning")
    assert "context test: the API server can't be reached" in cluster.message
    assert time.monotonic() - before < 3 * machine_checks.CHECK_SECONDS + 1


def test_without_kubectl_no_cluster_is_checked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(here))
    (finding,) = check_cluster()
    assert (finding.check, finding.level) == ("kubectl", "not checked")
