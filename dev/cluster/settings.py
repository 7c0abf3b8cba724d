"""Every name, address, path and version of the cluster, in one place."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from .commands import UserError

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
DEFAULT_STATE = Path("/var/lib/trainyard-cluster")
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


class Settings(BaseSettings):
    """Where things are kept; the defaults suit one cluster per machine."""

    model_config = SettingsConfigDict(frozen=True, validate_by_name=True, env_ignore_empty=True)

    backend: Annotated[
        Literal["", "kind", "native"], Field(validation_alias="TRAINYARD_CLUSTER")
    ] = ""
    context: Annotated[str, Field(validation_alias="TRAINYARD_CONTEXT")] = ""
    state: Annotated[Path, Field(validation_alias="TRAINYARD_CLUSTER_DIR")] = DEFAULT_STATE
    cache_home: Annotated[
        Path,
        Field(validation_alias="XDG_CACHE_HOME", default_factory=lambda: Path.home() / ".cache"),
    ]
    registry_port: Annotated[
        int, Field(ge=1, le=65535, validation_alias="TRAINYARD_REGISTRY_PORT")
    ] = 5051
    kind_image: Annotated[str, Field(validation_alias="TRAINYARD_KIND_IMAGE")] = ""
    image_registry: Annotated[str, Field(validation_alias="TRAINYARD_REGISTRY")] = ""
    checkout: Path = REPO / ".cluster"

    @property
    def cache(self) -> Path:
        return self.cache_home / "trainyard"

    @property
    def registry(self) -> str:
        return f"localhost:{self.registry_port}"

    @property
    def image_prefix(self) -> str:
        """Registry and path before the name of each of our images."""
        return (self.image_registry or f"{self.registry}/trainyard").rstrip("/")

    @property
    def pause_image(self) -> str:
        return f"{self.registry}/trainyard/pause:{PAUSE_VERSION}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig in this checkout."""
        return self.checkout / "kubeconfig"

    @property
    def lock(self) -> Path:
        """The file whose lock admits one command at a time on this machine."""
        return self.state.with_name(f"{self.state.name}.lock")

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    @property
    def cgroup(self) -> str:
        """The control group above all nodes; each state folder has its own."""
        if self.state == DEFAULT_STATE:
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


def load(**given: Any) -> Settings:
    """The settings of the environment, overridden by what is given and not empty.

    Raises UserError that names the variable at fault.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name} is {first['input']!r}: {first['msg']}") from None
