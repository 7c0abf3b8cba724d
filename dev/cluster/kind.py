"""The cluster where a Docker engine answers: kind, with one control plane and two workers."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from . import access
from .commands import PATIENCE, TRANSFER, Kubectl, UserError, run, until
from .preflight import go_program
from .settings import Settings
from .ui import Steps

CLUSTER = "trainyard"
VERSION = "v0.33.0"
_VOLUMES = "/var/trainyard-volumes"
# From 1.35 on the kubelet refuses to start on a machine with control groups of version 1.
_KUBELET = """\
kind: KubeletConfiguration
apiVersion: kubelet.config.k8s.io/v1beta1
failCgroupV1: false
"""


class Kind:
    """kind, with the storage class and the node names that the native cluster has too."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._shared = settings.cache / "kind-volumes"

    def up(self) -> None:
        """Create the cluster unless it exists, and let volumes be shared between its nodes."""
        self._kubectl()  # before anything is created
        print("A Kubernetes cluster of kind: a control plane and two workers, as containers.")
        steps = Steps(3)
        with steps.step("kind"):
            program = self._program(build=True)
        with steps.step("containers"):
            if CLUSTER not in run([program, "get", "clusters"]).stdout.split():
                self._create(program)
            for worker in self._workers():
                run(["docker", "start", worker])
            config = run([program, "get", "kubeconfig", "--name", CLUSTER]).stdout
            # There is no registry: images are loaded under the names that make images gives them.
            access.write_checkout(self.settings, config, None, self.settings.registry)
        with steps.step("storage class and nodes") as report:
            kubectl = self._kubectl()
            until(lambda: kubectl.works("get", "nodes"), "the API server does not answer", report)
            self._share_volumes(kubectl)
            until(kubectl.all_ready, "the nodes are not Ready", report)
        print(f"The cluster is up: {steps.summary()}.")
        print(access.hint(self.settings))

    def down(self) -> None:
        """Delete the cluster and its volumes."""
        run([self._program(), "delete", "cluster", "--name", CLUSTER])
        # Pods wrote as other users: a container removes what this user may not.
        shutil.rmtree(self._shared, ignore_errors=True)
        access.remove_checkout(self.settings)
        print("The cluster is down.")

    def purge(self) -> None:
        """Delete the cluster and the cache."""
        self.down()
        shutil.rmtree(self.settings.cache, ignore_errors=True)

    def status(self) -> bool:
        """Print the nodes; whether all are Ready."""
        if not self.settings.kubeconfig.exists():
            print("no cluster is up on this machine: make cluster")
            return False
        return self._kubectl().print_nodes()

    def check_load(self, images: list[str]) -> None:
        """Raise UserError unless the cluster is up."""
        if not self._workers():
            raise UserError("no cluster is up on this machine: make cluster")

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
            raise UserError(f"no worker {name}: there are {', '.join(self._workers())}")
        run(["docker", "kill", name])
        print(f"{name} is lost; bring it back with: python3 -m dev.cluster up")

    def _program(self, build: bool = False) -> str:
        cached = self.settings.cache / "kind" / "kind"
        found = shutil.which("kind") or (str(cached) if cached.exists() else None)
        if found:
            return found
        go = go_program()
        if not build or go is None:
            raise UserError("kind is not installed: see kind.sigs.k8s.io, or install Go")
        cached.parent.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "GOBIN": str(cached.parent), "GOFLAGS": ""}
        run([go, "install", f"sigs.k8s.io/kind@{VERSION}"], env=env, timeout=TRANSFER)
        return str(cached)

    def _kubectl(self) -> Kubectl:
        program = shutil.which("kubectl")
        if program is None:
            raise UserError("kubectl is not installed: see kubernetes.io/docs/tasks/tools")
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
            "kubeadmConfigPatches": [_KUBELET],
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kind.json"
            path.write_text(json.dumps(config))
            command = [program, "create", "cluster", "--name", CLUSTER]
            command.append(f"--wait={PATIENCE:.0f}s")
            if self.settings.kind_image:
                command += ["--image", self.settings.kind_image]
            kubeconfig = ["--kubeconfig", str(Path(folder) / "kubeconfig")]
            done = run([*command, *kubeconfig, "--config", path], check=False, timeout=TRANSFER)
        if done.returncode != 0:
            log = self._shared.with_name("kind-create.log")
            log.write_text(done.stdout + done.stderr)
            # kind prints the error first, then a command's output and a stack.
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            reason = errors[0].removeprefix("ERROR: ") if errors else "no reason given"
            raise UserError(f"kind: {reason[:300]} (its output is in {log})")

    @staticmethod
    def _share_volumes(kubectl: Kubectl) -> None:
        """Point kind's provisioner at the folder that all nodes mount, so ReadWriteMany works."""
        place = ("-n", "local-path-storage")
        patch = {"data": {"config.json": json.dumps({"sharedFileSystemPath": _VOLUMES})}}
        kubectl("patch", "configmap", "local-path-config", *place, "-p", json.dumps(patch))
        kubectl("rollout", "restart", "deployment/local-path-provisioner", *place)
