"""The cluster without Docker: upstream Kubernetes as processes of this machine, two nodes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from . import (
    addons,
    binaries,
    certs,
    cgroups,
    checkout,
    control_plane,
    mounts,
    network,
    node,
    preflight,
    push,
    registry,
    traces,
)
from .errors import ClusterError
from .kubectl import Kubectl
from .lock import exclusive
from .processes import Processes
from .settings import NODES, Node, Settings
from .ui import Phases
from .wait import until

NAME = "native"


class Native:
    """Brings the machine's own cluster up, down, and everything between."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.processes = Processes(settings)

    @property
    def programs(self) -> Path:
        return binaries.folder(self.settings)

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(self.programs / "kubectl", self.settings.user_config("admin"))

    def up(self) -> None:
        """Start or repair the cluster; nothing happens to what runs already."""
        settings = self.settings
        preflight.native_cluster(need_go=not binaries.ready(settings))
        phases = Phases()
        with exclusive(settings.state):
            with phases.phase("Debian packages") as tell:
                preflight.install(preflight.missing(preflight.CLUSTER_PROGRAMS), tell)
            with phases.phase("Kubernetes programs") as tell:
                binaries.build(settings, tell)
            new = not (settings.state / "etcd").exists()
            with phases.phase("certificates and network"):
                settings.state.mkdir(parents=True, exist_ok=True)
                # Pods reach their volumes through it; what is secret in it has modes of its own.
                settings.state.chmod(0o711)
                traces.remember(settings)
                certs.create(settings)
                network.ensure(settings)
            parts = settings, self.processes, self.programs
            with phases.phase("image registry") as tell:
                registry.ensure(*parts, tell)
            with phases.phase("control plane") as tell:
                control_plane.ensure(*parts, tell)
            with phases.phase("nodes") as tell:
                self._each(lambda n: node.ensure(*parts, n, new, tell))
                addons.ensure(*parts, self.kubectl)
            with phases.phase("nodes Ready, DNS answers") as tell:
                until(self._all_ready, self._not_ready, tell)
                addons.wait(self.processes, tell)
            self.write_checkout()
        print(f"cluster is up in {phases.summary()}")
        print(checkout.hint(settings))

    def down(self) -> None:
        """Remove the cluster and every trace of it, except the cache."""
        settings = self.settings
        if not settings.state.exists() and not network.exists():
            checkout.remove(settings)
            print("no cluster is up on this machine")
            return
        _need_root()
        phases = Phases()
        with exclusive(settings.state):
            with phases.phase("pods and nodes"):
                self._each(lambda n: node.stop(settings, self.processes, self.programs, n))
            with phases.phase("control plane"):
                order = [*addons.NAMES, *control_plane.NAMES[:-1]]
                self.processes.stop(order)
                self.processes.stop(self.processes.names())
            with phases.phase("network, mounts, files"):
                network.remove(settings)
                mounts.undo(settings.state)
                cgroups.remove(settings.cgroup)
                traces.remove(settings)
                shutil.rmtree(settings.state, ignore_errors=True)
                checkout.remove(settings)
            if settings.state.exists():
                raise ClusterError(
                    f"{settings.state} could not be removed: something still uses it"
                )
        print(f"cluster is down in {phases.summary()}")

    def purge(self) -> None:
        """Take the cluster down and remove the cache as well."""
        self.down()
        mounts.undo(self.settings.cache)
        shutil.rmtree(self.settings.cache, ignore_errors=True)
        print(f"removed the cache {self.settings.cache}")

    def status(self) -> bool:
        """Print what runs; whether all of it does."""
        settings = self.settings
        if not settings.state.exists():
            print("no cluster is up on this machine: make cluster")
            return False
        well = True
        wanted = [registry.NAME, *control_plane.NAMES, *addons.NAMES]
        wanted += [name(n) for n in NODES for name in (node.runtime_name, node.kubelet_name)]
        for name in sorted(wanted):
            found = self.processes.identity(name)
            well = well and found is not None
            where = f"pid {found.pid}" if found else f"not running  ({self.processes.log(name)})"
            print(f"  {name:<20} {where}")
        try:
            states = self.kubectl.node_states()
        except ClusterError as error:
            print(f"  the API server does not answer: {error}")
            return False
        for name, ready in sorted(states.items()):
            print(f"  {name:<20} {'Ready' if ready else 'NotReady'}")
            well = well and ready
        print(f"  images               {settings.registry}/trainyard/NAME:TAG")
        return well and len(states) == len(NODES)

    def check_load(self, images: list[str]) -> None:
        """Raise ClusterError unless the cluster's registry runs."""
        if not self.processes.alive(registry.NAME):
            raise ClusterError("no cluster is up on this machine: make cluster")

    def load(self, images: list[str], tool: str = "") -> None:
        """Push images to the registry, and have every node pull them now."""
        self.check_load(images)
        phases = Phases()
        for image in images:
            target = push.target_name(image, self.settings.registry)
            with phases.phase(f"push {target}"):
                push.push(image, target, tool)
            with phases.phase(f"pull {target}"):
                self._each(partial(self._pull, target))
        print(f"loaded in {phases.summary()}")

    def node_lost(self, name: str) -> None:
        """Switch a node off, as a power cut would."""
        chosen = [n for n in NODES if n.name == name]
        if not chosen:
            raise ClusterError(f"no node {name}: there are {', '.join(n.name for n in NODES)}")
        _need_root()
        with exclusive(self.settings.state):
            node.lose(self.settings, self.processes, chosen[0])
        print(f"{name} is lost; bring it back with: python3 -m dev.cluster up")

    def write_checkout(self) -> None:
        """Give this checkout the cluster's kubeconfig and programs."""
        text = self.settings.user_config("admin").read_text()
        checkout.write(self.settings, text, self.programs, self.settings.registry)

    def _pull(self, image: str, chosen: Node) -> None:
        if self.processes.alive(node.runtime_name(chosen)):
            node.pull(self.settings, self.programs, chosen, image)

    def _all_ready(self) -> bool:
        self.processes.must_live(*(node.kubelet_name(n) for n in NODES))
        try:
            states = self.kubectl.node_states()
        except ClusterError:
            return False
        return len(states) == len(NODES) and all(states.values())

    def _not_ready(self) -> str:
        words = "; ".join(
            f"{n.name}: {self.processes.last_words(node.kubelet_name(n))}" for n in NODES
        )
        return f"the nodes are not Ready: {words}"

    @staticmethod
    def _each(work: Callable[[Node], None]) -> None:
        """Do the same for all nodes at once."""
        with ThreadPoolExecutor(len(NODES)) as pool:
            for done in [pool.submit(work, n) for n in NODES]:
                done.result()


def _need_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("the cluster on this machine belongs to root: use sudo")
