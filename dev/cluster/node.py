"""One node: its own container runtime and kubelet, separate from those of the other node."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import psutil

from . import host
from .commands import DIRECT, TRANSFER, UserError, run, until
from .processes import Identity, Processes, end
from .settings import DNS_SERVICE_IP, DOMAIN, NODES, Node, Settings
from .ui import Report

CNI_PLUGINS = Path("/usr/lib/cni")


def runtime_name(node: Node) -> str:
    """The name of the node's container runtime among the processes."""
    return f"{node.name}-containerd"


def kubelet_name(node: Node) -> str:
    """The name of the node's kubelet among the processes."""
    return f"{node.name}-kubelet"


def ensure(
    settings: Settings, processes: Processes, programs: Path, node: Node, new: bool, report: Report
) -> None:
    """Start the parts of the node that do not run; after a loss, as a machine that boots again.

    new: the cluster was just created, so pods known to the runtime belong to an earlier one.
    """
    config = _write_files(settings, node)
    if not processes.alive(runtime_name(node)) and not _remains(settings, node):
        _switch_off(settings, node)
    host.create_cgroup(settings.node_cgroup(node))
    _start_runtime(settings, processes, programs, node, config, report)
    if new:
        remove_pods(settings, programs, node)
    name = kubelet_name(node)
    processes.ensure(name, _kubelet(settings, programs, node), _kubelet_config(settings, node))

    def healthy() -> bool:
        processes.must_live(name)
        return _healthy(node)

    until(healthy, lambda: f"{name} is not healthy: {processes.log_tail(name)}", report)


def lose(settings: Settings, processes: Processes, node: Node) -> None:
    """Kill everything of the node at once, its network included, as a power cut would."""
    processes.kill([kubelet_name(node), runtime_name(node)])
    end(_shims(settings, node), grace=0)
    host.kill_cgroup(settings.node_cgroup(node))
    _switch_off(settings, node)


def stop(settings: Settings, processes: Processes, programs: Path, node: Node) -> None:
    """Stop the pods, then the node, then what is left of both."""
    processes.stop([kubelet_name(node)])
    if processes.alive(runtime_name(node)) and (programs / "cri").exists():
        try:
            remove_pods(settings, programs, node)
        except UserError as error:
            print(f"  {node.name}: the pods could not be stopped: {error}", flush=True)
    processes.stop([runtime_name(node)])
    end(_shims(settings, node), grace=0)
    host.kill_cgroup(settings.node_cgroup(node))
    host.unmount_below(settings.node_dir(node))
    host.unmount_below(settings.runtime_root(node))


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
    report: Report,
) -> None:
    name = runtime_name(node)
    processes.ensure(name, ["containerd", "--config", config], config.read_text())

    def answers() -> bool:
        processes.must_live(name)
        # With many images in store the CRI plugin is ready some seconds after containerd itself.
        probe = [*_cri(settings, programs, node), "--timeout=20s", "ready"]
        return run(probe, check=False).returncode == 0

    until(answers, lambda: f"{name} does not answer: {processes.log_tail(name)}", report)


def _remains(settings: Settings, node: Node) -> bool:
    """Whether containers of the node still run, which a new runtime takes over."""
    return bool(_shims(settings, node))


def _healthy(node: Node) -> bool:
    """Whether the node's kubelet reports that it is healthy."""
    try:
        with DIRECT.open(f"http://{node.ip}:10248/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _switch_off(settings: Settings, node: Node) -> None:
    """Remove what a machine loses without power: mounts, sockets, pod networks, leases."""
    host.kill_cgroup(settings.node_cgroup(node))
    host.unmount_below(settings.node_dir(node))
    host.unmount_below(settings.runtime_root(node))
    folder = settings.node_dir(node)
    for name in ("run", "leases"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for socket in folder.glob("containerd.sock*"):
        socket.unlink()


def _shims(settings: Settings, node: Node) -> list[Identity]:
    """The processes that hold this node's containers: they name its socket as their address."""
    address = str(settings.runtime_socket(node))
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0].endswith("containerd-shim-runc-v2") and address in words:
            identity = Identity.of(process.pid)
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
    others_mib = psutil.virtual_memory().total // 2**20 * (len(NODES) - 1) // len(NODES)
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
        # The nodes share one machine: each offers its part of the memory ...
        "systemReserved": {"memory": f"{others_mib}Mi"},
        # ... and must not delete images because other data fills the disk.
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


def _may_lower_oom_score() -> bool:
    """Whether we have CAP_SYS_RESOURCE, without which no process may be spared by the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & (1 << 24))
    return True
