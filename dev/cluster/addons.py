"""The parts beside the control plane: Service routing, DNS, volumes, and their API objects."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Any

from .commands import Kubectl, until
from .processes import Processes
from .settings import DNS_SERVICE_IP, DOMAIN, HOST_IP, NODES, POD_NETWORK, Settings
from .ui import Report

NAMES = ("proxy", "dns", "volumes")
STORAGE_CLASS = "standard"
_PROVISIONER = "trainyard.dev/shared-directory"


def ensure(settings: Settings, processes: Processes, programs: Path, kubectl: Kubectl) -> None:
    """Apply the objects and start the processes."""
    kubectl.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects()}))
    processes.ensure("proxy", _proxy(settings, programs))
    config = settings.state / "Corefile"
    config.write_text(_corefile(settings))
    processes.ensure("dns", [programs / "dns", "-conf", config], config.read_text())
    settings.volumes.mkdir(exist_ok=True)
    settings.volumes.chmod(0o755)
    processes.ensure(
        "volumes",
        [
            programs / "volumes",
            f"--kubeconfig={settings.user_config('volumes')}",
            f"--root={settings.volumes}",
        ],
    )


def wait(processes: Processes, report: Report) -> None:
    """Wait until the DNS Service resolves names as a pod would ask for them."""

    def answers() -> bool:
        processes.must_live(*NAMES)
        return _resolves(f"kubernetes.default.svc.{DOMAIN}")

    until(answers, lambda: f"cluster DNS does not answer: {processes.log_tail('dns')}", report)


def _proxy(settings: Settings, programs: Path) -> list[str | Path]:
    return [
        programs / "kube-proxy",
        f"--kubeconfig={settings.user_config('proxy')}",
        # One proxy serves all nodes: they share the machine's network.
        f"--hostname-override={NODES[0].name}",
        "--proxy-mode=nftables",
        f"--cluster-cidr={POD_NETWORK}",
        f"--bind-address={HOST_IP}",
        f"--healthz-bind-address={HOST_IP}:10256",
        f"--metrics-bind-address={HOST_IP}:10249",
        f"--nodeport-addresses={POD_NETWORK}",
        "--oom-score-adj=0",
        # The machine's connection tracking stays as it is.
        "--conntrack-max-per-core=0",
        "--conntrack-min=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
    ]


def _corefile(settings: Settings) -> str:
    upstream = settings.node_dir(NODES[0]) / "resolv.conf"
    forward = ""
    if "nameserver" in upstream.read_text():
        forward = f"\n    forward . {upstream}"
    return f""".:53 {{
    bind {HOST_IP}
    errors
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {settings.user_config("dns")}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 5
    }}
    cache 5{forward}
}}
"""


def objects() -> list[dict[str, Any]]:
    """The cluster's own API objects."""
    return [
        _cluster_role(
            "trainyard:dns",
            (["", "discovery.k8s.io"], ["services", "endpointslices", "pods", "namespaces"]),
            verbs=["list", "watch"],
        ),
        _binding("trainyard:dns", "trainyard:dns", "User", "trainyard:dns"),
        _binding(
            "trainyard:volumes",
            "system:persistent-volume-provisioner",
            "User",
            "trainyard:volumes",
        ),
        _binding(
            "trainyard:kubelet-clients",
            "system:kubelet-api-admin",
            "Group",
            "trainyard:kubelet-clients",
        ),
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": STORAGE_CLASS,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": _PROVISIONER,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": "Immediate",
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {
                "clusterIP": DNS_SERVICE_IP,
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
                ],
            },
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns",
                "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [HOST_IP], "conditions": {"ready": True}}],
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ],
        },
    ]


def _cluster_role(
    name: str, resources: tuple[list[str], list[str]], verbs: list[str]
) -> dict[str, Any]:
    groups, kinds = resources
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": [{"apiGroups": groups, "resources": kinds, "verbs": verbs}],
    }


def _binding(name: str, role: str, kind: str, subject: str) -> dict[str, Any]:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": group, "kind": kind, "name": subject}],
    }


def _resolves(name: str) -> bool:
    """Whether the DNS Service has an IPv4 address for the name."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(1)
        try:
            probe.sendto(query, (DNS_SERVICE_IP, 53))
            answer = probe.recv(512)
        except OSError:
            return False
    flags, answers = struct.unpack(">H", answer[2:4])[0], struct.unpack(">H", answer[6:8])[0]
    return bool(flags & 0xF == 0 and answers > 0)
