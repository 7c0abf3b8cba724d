"""One node: container runtime and kubelet, as if they were alone on a machine of their own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from . import cgroups, mounts
from .errors import ClusterError
from .processes import Identity, Processes, end
from .settings import DNS_SERVICE_IP, DOMAIN, NODES, Node, Settings
from .shell import DIRECT, run
from .ui import Tell
from .wait import TRANSFER, until

CNI_PLUGINS = Path("/usr/lib/cni")


def runtime_name(node: Node) -> str:
    """The name of the node's container runtime among the processes."""
    return f"{node.name}-containerd"


def kubelet_name(node: Node) -> str:
    """The name of the node's kubelet among the processes."""
    return f"{node.name}-kubelet"


def ensure(
    settings: Settings, processes: Processes, programs: Path, node: Node, new: bool, tell: Tell
) -> None:
    """Start what does not run of the node; after a loss, as a machine that was switched on again.

    new: the cluster was just created, so pods known to the runtime are of an earlier one.
    """
    config = _write_files(settings, node)
    if not processes.alive(runtime_name(node)) and not _remains(settings, node):
        _switch_off(settings, node)
    cgroups.create(settings.node_cgroup(node))
    _start_runtime(settings, processes, programs, node, config, tell)
    if new:
        remove_pods(settings, programs, node)
    name = kubelet_name(node)
    processes.ensure(name, _kubelet(settings, programs, node), _kubelet_config(settings, node))

    def well() -> bool:
        processes.must_live(name)
        return _healthy(node)

    until(well, lambda: f"{name} is not well: {processes.last_words(name)}", tell)


def lose(settings: Settings, processes: Processes, node: Node) -> None:
    """End everything of the node at once, its network included: nobody says goodbye."""
    processes.kill([kubelet_name(node), runtime_name(node)])
    end(_shims(settings, node), grace=0)
    cgroups.kill(settings.node_cgroup(node))
    _switch_off(settings, node)


def stop(settings: Settings, processes: Processes, programs: Path, node: Node) -> None:
    """Stop the pods, then the node, then whatever is left of both."""
    processes.stop([kubelet_name(node)])
    if processes.alive(runtime_name(node)) and (programs / "cri").exists():
        try:
            remove_pods(settings, programs, node)
        except ClusterError as error:
            print(f"  {node.name}: pods did not stop by themselves: {error}", flush=True)
    processes.stop([runtime_name(node)])
    end(_shims(settings, node), grace=0)
    cgroups.kill(settings.node_cgroup(node))
    mounts.undo(settings.node_dir(node))
    mounts.undo(settings.runtime_root(node))


def remove_pods(settings: Settings, programs: Path, node: Node) -> None:
    """Stop and remove every pod of the node through its runtime."""
    run([*_cri(settings, programs, node), "remove-pods"])


def pull(settings: Settings, programs: Path, node: Node, image: str) -> None:
    """Have the node pull an image now."""
    command = [*_cri(settings, programs, node), f"--timeout={TRANSFER:.0f}s", "pull", image]
    run(command, timeout=TRANSFER)


def _cri(settings: Settings, programs: Path, node: Node) -> list[str | Path]:
    return [programs / "cri", "--endpoint", f"unix://{settings.runtime_socket(node)}"]


def _start_runtime(
    settings: Settings,
    processes: Processes,
    programs: Path,
    node: Node,
    config: Path,
    tell: Tell,
) -> None:
    name = runtime_name(node)
    processes.ensure(name, ["containerd", "--config", config], config.read_text())

    def answers() -> bool:
        processes.must_live(name)
        # With many images in store the CRI plugin is ready some seconds after containerd itself.
        probe = [*_cri(settings, programs, node), "--timeout=20s", "ready"]
        return run(probe, check=False).returncode == 0

    until(answers, lambda: f"{name} does not answer: {processes.last_words(name)}", tell)


def _remains(settings: Settings, node: Node) -> bool:
    """Whether containers of the node still run, which a new runtime takes over."""
    return bool(_shims(settings, node))


def _healthy(node: Node) -> bool:
    """Whether the node's kubelet says that it is well."""
    try:
        with DIRECT.open(f"http://{node.ip}:10248/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _switch_off(settings: Settings, node: Node) -> None:
    """What a machine forgets when it is switched off: mounts, sockets, pod networks, leases."""
    cgroups.kill(settings.node_cgroup(node))
    mounts.undo(settings.node_dir(node))
    mounts.undo(settings.runtime_root(node))
    folder = settings.node_dir(node)
    for name in ("run", "leases"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for socket in folder.glob("containerd.sock*"):
        socket.unlink()


def _shims(settings: Settings, node: Node) -> list[Identity]:
    """The processes that hold this node's containers: they name its socket as their address."""
    address = str(settings.runtime_socket(node)).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"containerd-shim-runc-v2") and address in words:
            identity = Identity.of(int(entry.name))
            if identity is not None:
                found.append(identity)
    return found


def _write_files(settings: Settings, node: Node) -> Path:
    """Write the node's configuration; the runtime's file is returned."""
    folder = settings.node_dir(node)
    for name in ("cni", "pods-logs", "plugins"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings.runtime_root(node).mkdir(parents=True, exist_ok=True)
    _write(folder / "cni" / "10-trainyard.conflist", _cni_config(settings, node))
    _write(folder / "kubelet.json", _kubelet_config(settings, node))
    _write(folder / "resolv.conf", _resolv_conf())
    config = folder / "containerd.toml"
    _write(config, _runtime_config(settings, node))
    return config


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _runtime_config(settings: Settings, node: Node) -> str:
    folder = settings.node_dir(node)
    restricted = "true" if not _may_lower_oom_score() else "false"
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = "{settings.runtime_root(node)}"
state = "{folder / "run"}"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{settings.runtime_socket(node)}"
[{cri}]
  sandbox_image = "{settings.pause_image}"
  restrict_oom_score_adj = {restricted}
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
[{cri}.cni]
  bin_dir = "{CNI_PLUGINS}"
  conf_dir = "{folder / "cni"}"
[{cri}.containerd]
  discard_unpacked_layers = true
[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[{cri}.containerd.runtimes.runc.options]
  SystemdCgroup = false
"""


def _cni_config(settings: Settings, node: Node) -> str:
    plugin = {
        "type": "ptp",
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": node.pod_cidr}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(settings.node_dir(node) / "leases"),
        },
    }
    network = {"cniVersion": "0.4.0", "name": "trainyard", "plugins": [plugin]}
    return json.dumps(network, indent=1) + "\n"


def _kubelet_config(settings: Settings, node: Node) -> str:
    pki, folder = settings.pki, settings.node_dir(node)
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.ip,
        "port": 10250,
        "healthzBindAddress": node.ip,
        "tlsCertFile": str(pki / f"{node.name}-serving.crt"),
        "tlsPrivateKeyFile": str(pki / f"{node.name}-serving.key"),
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "clusterDNS": [DNS_SERVICE_IP],
        "clusterDomain": DOMAIN,
        "resolvConf": str(folder / "resolv.conf"),
        "containerRuntimeEndpoint": f"unix://{settings.runtime_socket(node)}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": settings.node_cgroup(node),
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "makeIPTablesUtilChains": False,
        "podLogsDir": str(folder / "pods-logs"),
        "volumePluginDir": str(folder / "plugins"),
        "serializeImagePulls": False,
        # The nodes share one machine: neither may count on all of its memory ...
        "systemReserved": {"memory": f"{_memory_mib() * (len(NODES) - 1) // len(NODES)}Mi"},
        # ... nor take a disk that is full of other things for its own.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "200Mi",
            "nodefs.available": "1Gi",
            "imagefs.available": "1Gi",
        },
    }
    return json.dumps(config, indent=1) + "\n"


def _kubelet(settings: Settings, programs: Path, node: Node) -> list[str | Path]:
    folder = settings.node_dir(node)
    zone = f"topology.kubernetes.io/region=local,topology.kubernetes.io/zone=local-{node.number}"
    return [
        programs / "kubelet",
        f"--config={folder / 'kubelet.json'}",
        f"--kubeconfig={settings.user_config(node.name)}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.ip}",
        f"--root-dir={folder / 'kubelet'}",
        f"--cert-dir={folder / 'certs'}",
        f"--node-labels={zone}",
    ]


def _resolv_conf() -> str:
    """The machine's own name servers, as far as pods can reach them."""
    try:
        lines = Path("/etc/resolv.conf").read_text().splitlines()
    except OSError:
        lines = []
    kept = [
        line
        for line in lines
        if line.split()[:1] != ["nameserver"] or not line.split()[1].startswith(("127.", "::1"))
    ]
    return "\n".join(kept) + "\n"


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def _may_lower_oom_score() -> bool:
    """Whether we have CAP_SYS_RESOURCE, without which no process may be spared by the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & (1 << 24))
    return True
