"""The cluster where a Docker engine answers: kind, one control plane and two workers.

Not run on machines without Docker, those of this project's developers included.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from . import checkout
from .errors import ClusterError
from .kubectl import Kubectl
from .preflight import go_program
from .settings import Settings
from .shell import run
from .ui import Phases
from .wait import PATIENCE, TRANSFER, until

NAME = "kind"
CLUSTER = "trainyard"
VERSION = "v0.33.0"
_VOLUMES = "/var/trainyard-volumes"


def docker_answers() -> bool:
    """Whether a Docker engine really answers, not only its client."""
    if not shutil.which("docker"):
        return False
    try:
        return run(["docker", "info"], check=False, timeout=60).returncode == 0
    except ClusterError:
        return False


class Kind:
    """kind, with the storage class and the node names that the native cluster has too."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._shared = settings.cache / "kind-volumes"

    def up(self) -> None:
        """Create the cluster unless it is there, and let volumes be shared between its nodes."""
        phases = Phases()
        with phases.phase("kind"):
            program = self._program(build=True)
        with phases.phase("cluster"):
            if CLUSTER not in run([program, "get", "clusters"]).stdout.split():
                self._create(program)
            for worker in self._workers():
                run(["docker", "start", worker])
            config = run([program, "get", "kubeconfig", "--name", CLUSTER]).stdout
            checkout.write(self.settings, config, None)
        with phases.phase("storage class and nodes") as tell:
            kubectl = self._kubectl()
            until(lambda: kubectl.works("get", "nodes"), "the API server does not answer", tell)
            self._share_volumes(kubectl)
            until(lambda: _ready(kubectl), "the nodes are not Ready", tell)
        print(f"cluster is up in {phases.summary()}")
        print(checkout.hint(self.settings))

    def down(self) -> None:
        """Delete the cluster and its volumes."""
        run([self._program(), "delete", "cluster", "--name", CLUSTER])
        # Pods wrote as other users: a container removes what this user may not.
        shutil.rmtree(self._shared, ignore_errors=True)
        checkout.remove(self.settings)
        print("cluster is down")

    def purge(self) -> None:
        """Delete the cluster and the cache."""
        self.down()
        shutil.rmtree(self.settings.cache, ignore_errors=True)

    def status(self) -> bool:
        """Print the nodes; whether all are Ready."""
        if not self.settings.kubeconfig.exists():
            print("no cluster is up on this machine: make cluster")
            return False
        states = self._kubectl().node_states()
        for name, ready in sorted(states.items()):
            print(f"  {name:<28} {'Ready' if ready else 'NotReady'}")
        return bool(states) and all(states.values())

    def check_load(self, images: list[str]) -> None:
        """Raise ClusterError unless the cluster is up."""
        if not self._workers():
            raise ClusterError("no cluster is up on this machine: make cluster")

    def load(self, images: list[str], tool: str = "") -> None:
        """Copy images from the tool's store (by default Docker's) into every node."""
        self.check_load(images)
        if tool in ("", "docker"):
            command = [self._program(), "load", "docker-image", "--name", CLUSTER, *images]
            run(command, timeout=TRANSFER)
            return
        for image in images:
            with tempfile.TemporaryDirectory() as folder:
                archive = Path(folder) / "image.tar"
                run(
                    [tool, "push", "--quiet", image, f"docker-archive:{archive}:{image}"],
                    timeout=TRANSFER,
                )
                command = [self._program(), "load", "image-archive", "--name", CLUSTER]
                run([*command, archive], timeout=TRANSFER)

    def node_lost(self, name: str) -> None:
        """Kill a worker's container: what a power cut is to kind."""
        if name not in self._workers():
            raise ClusterError(f"no worker {name}: there are {', '.join(self._workers())}")
        run(["docker", "kill", name])
        print(f"{name} is lost; bring it back with: python3 -m dev.cluster up")

    def _program(self, build: bool = False) -> str:
        cached = self.settings.cache / "kind" / "kind"
        found = shutil.which("kind") or (str(cached) if cached.exists() else None)
        if found:
            return found
        go = go_program()
        if not build or go is None:
            raise ClusterError("kind is not installed: see kind.sigs.k8s.io, or install Go")
        cached.parent.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "GOBIN": str(cached.parent), "GOFLAGS": ""}
        run([go, "install", f"sigs.k8s.io/kind@{VERSION}"], env=env, timeout=TRANSFER)
        return str(cached)

    def _kubectl(self) -> Kubectl:
        program = shutil.which("kubectl")
        if program is None:
            raise ClusterError("kubectl is not installed: see kubernetes.io/docs/tasks/tools")
        return Kubectl(program, self.settings.kubeconfig)

    def _workers(self) -> list[str]:
        names = run([self._program(), "get", "nodes", "--name", CLUSTER]).stdout.split()
        return [name for name in names if "worker" in name]

    def _create(self, program: str) -> None:
        self._shared.mkdir(parents=True, exist_ok=True)
        mount = {"hostPath": str(self._shared), "containerPath": _VOLUMES}
        config = {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "nodes": [
                {"role": role, "extraMounts": [mount]}
                for role in ("control-plane", "worker", "worker")
            ],
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kind.json"
            path.write_text(json.dumps(config))
            command = [program, "create", "cluster", "--name", CLUSTER]
            command.append(f"--wait={PATIENCE:.0f}s")
            kubeconfig = ["--kubeconfig", str(Path(folder) / "kubeconfig")]
            run([*command, *kubeconfig, "--config", path], timeout=TRANSFER)

    @staticmethod
    def _share_volumes(kubectl: Kubectl) -> None:
        """Point kind's own provisioner at the folder that all nodes mount: ReadWriteMany holds."""
        place = ("-n", "local-path-storage")
        patch = {"data": {"config.json": json.dumps({"sharedFileSystemPath": _VOLUMES})}}
        kubectl("patch", "configmap", "local-path-config", *place, "-p", json.dumps(patch))
        kubectl("rollout", "restart", "deployment/local-path-provisioner", *place)


def _ready(kubectl: Kubectl) -> bool:
    try:
        states = kubectl.node_states()
    except ClusterError:
        return False
    return bool(states) and all(states.values())
