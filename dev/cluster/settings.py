"""Every name, address, path and version of the cluster, in one place."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ClusterError

KUBERNETES = "v1.36.3"

REPO = Path(__file__).resolve().parents[2]
BUILD = Path(__file__).resolve().parent / "build"

BRIDGE = "trainyard0"
HOST_IP = "10.244.0.1"
NODE_NETWORK = "10.244.0.0/24"
POD_NETWORK = "10.244.0.0/16"
SERVICE_NETWORK = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"
DNS_SERVICE_IP = "10.96.0.10"
DOMAIN = "cluster.local"
API_URL = f"https://{HOST_IP}:6443"
DEFAULT_STATE = "/var/lib/trainyard-cluster"
PAUSE_VERSION = "1"


@dataclass(frozen=True)
class Node:
    """One node: its own container runtime, kubelet, pod network and folders."""

    number: int

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def ip(self) -> str:
        return f"10.244.0.{10 + self.number}"

    @property
    def pod_cidr(self) -> str:
        return f"10.244.{self.number}.0/24"


NODES = (Node(1), Node(2))


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "trainyard"


def _port() -> int:
    said = os.environ.get("TRAINYARD_REGISTRY_PORT", "5051")
    if not said.isdigit() or not 0 < int(said) < 65536:
        raise ClusterError(f"TRAINYARD_REGISTRY_PORT is {said!r}, which is no port number")
    return int(said)


@dataclass(frozen=True)
class Settings:
    """Where things are kept, as the environment says; the defaults suit one cluster per machine."""

    state: Path = field(
        default_factory=lambda: Path(os.environ.get("TRAINYARD_CLUSTER_DIR", DEFAULT_STATE))
    )
    cache: Path = field(default_factory=_cache)
    registry_port: int = field(default_factory=_port)
    checkout: Path = REPO / ".cluster"

    @property
    def registry(self) -> str:
        return f"localhost:{self.registry_port}"

    @property
    def pause_image(self) -> str:
        return f"{self.registry}/trainyard/pause:{PAUSE_VERSION}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig in this checkout."""
        return self.checkout / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    @property
    def cgroup(self) -> str:
        """The control group above all nodes; another state folder means another one."""
        if str(self.state) == DEFAULT_STATE:
            return "trainyard"
        return "trainyard-" + hashlib.sha256(str(self.state).encode()).hexdigest()[:8]

    def node_cgroup(self, node: Node) -> str:
        """The node's own control group, as a path from the root of each hierarchy."""
        return f"/{self.cgroup}/{node.name}"

    def user_config(self, name: str) -> Path:
        """The kubeconfig of one component, or of "admin"."""
        return self.state / "kubeconfig" / f"{name}.conf"

    def node_dir(self, node: Node) -> Path:
        return self.state / node.name

    def runtime_root(self, node: Node) -> Path:
        """What the container runtime keeps between clusters: images."""
        return self.cache / "nodes" / node.name

    def runtime_socket(self, node: Node) -> Path:
        return self.node_dir(node) / "containerd.sock"
