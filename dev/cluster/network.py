"""The machine's side of the cluster network: one bridge for addresses, routes, and masquerading.

Pods use routed veth pairs (the ptp plugin), so every packet between pods passes the machine's
routing and Services work without bridge netfilter. The bridge has no ports: it only carries the
control plane's and the nodes' addresses, so no other interface has them.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

from .commands import UserError, run
from .settings import BRIDGE, HOST_IP, NODES, POD_NETWORK, SERVICE_NETWORK, Settings

# Kernel settings that we, the kubelet and kube-proxy change; remove() restores them.
_SYSCTLS = (
    "net/ipv4/ip_forward",
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/ipv4/conf/all/route_localnet",
)

_MASQUERADE = f"""
table ip trainyard
delete table ip trainyard
table ip trainyard {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {POD_NETWORK} ip daddr != {{ {POD_NETWORK}, {SERVICE_NETWORK} }} masquerade
  }}
}}
"""


def ensure(settings: Settings) -> None:
    """Create the bridge, its addresses, the routes and the masquerading where they are missing."""
    _remember_sysctls(settings)
    if not exists():
        _refuse_clash()
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
    run(["ip", "link", "set", BRIDGE, "up"])
    for address in (HOST_IP, *(node.ip for node in NODES)):
        run(["ip", "address", "replace", f"{address}/24", "dev", BRIDGE])
    for node in NODES:
        # Packets to an address without a pod are dropped, and never leave the machine.
        run(["ip", "route", "replace", "blackhole", node.pod_cidr])
    # A Service address needs a route before it is rewritten, also without a default route.
    run(["ip", "route", "replace", SERVICE_NETWORK, "dev", BRIDGE])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    run(["nft", "-f", "-"], text_in=_MASQUERADE)


def exists() -> bool:
    """Whether the bridge is there."""
    return run(["ip", "link", "show", BRIDGE], check=False).returncode == 0


def remove(settings: Settings) -> None:
    """Remove all of it, kube-proxy's rules included, and restore the kernel settings."""
    for family, table in (("ip", "trainyard"), ("ip", "kube-proxy"), ("ip6", "kube-proxy")):
        run(["nft", "delete", "table", family, table], check=False)
    for node in NODES:
        run(["ip", "route", "del", "blackhole", node.pod_cidr], check=False)
    if exists():
        run(["ip", "link", "del", BRIDGE])
    saved = settings.state / "sysctls.json"
    if saved.exists():
        for name, value in json.loads(saved.read_text()).items():
            path = Path("/proc/sys") / name
            if path.exists() and path.read_text() != value:
                path.write_text(value)


def _remember_sysctls(settings: Settings) -> None:
    saved = settings.state / "sysctls.json"
    if saved.exists():
        return
    paths = {name: Path("/proc/sys") / name for name in _SYSCTLS}
    saved.write_text(
        json.dumps({name: path.read_text() for name, path in paths.items() if path.exists()})
    )


def _refuse_clash() -> None:
    """Raise UserError when another network of this machine uses our addresses."""
    ours = [ipaddress.ip_network(POD_NETWORK), ipaddress.ip_network(SERVICE_NETWORK)]
    for route in json.loads(run(["ip", "-json", "-4", "route"]).stdout or "[]"):
        destination = str(route.get("dst", "default"))
        if destination == "default" or route.get("type") == "blackhole":
            continue
        network = ipaddress.ip_network(destination, strict=False)
        for mine in ours:
            if network.prefixlen > 0 and network.overlaps(mine):
                raise UserError(
                    f"this machine already routes {network} through {route.get('dev')}, "
                    f"which the cluster needs ({mine}); remove that network first"
                )
