"""The cluster without Docker: upstream Kubernetes as processes of this machine, two nodes."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from . import (
    access,
    addons,
    control_plane,
    host,
    network,
    node,
    preflight,
    programs,
    registry,
)
from .commands import Kubectl, UserError, until
from .processes import Processes
from .settings import NODES, Node, Settings
from .ui import Steps


class Native:
    """The cluster of this machine's own processes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.processes = Processes(settings)

    @property
    def programs(self) -> Path:
        return programs.folder(self.settings)

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(self.programs / "kubectl", self.settings.user_config("admin"))

    def up(self) -> None:
        """Start or repair the cluster; what runs already is left alone."""
        settings = self.settings
        preflight.native_cluster(need_go=not programs.ready(settings))
        print(f"A Kubernetes cluster of {len(NODES)} nodes on this machine: ", end="")
        print("for trying Trainyard and for its end-to-end tests.", flush=True)
        if text := programs.announcement(settings):
            print(text, flush=True)
        steps = Steps(7)
        with exclusive(settings.lock):
            with steps.step("Debian packages") as report:
                preflight.install(preflight.missing(preflight.CLUSTER_PROGRAMS), report)
            with steps.step("Kubernetes programs") as report:
                programs.build(settings, report)
            new = not (settings.state / "etcd").exists()
            with steps.step("certificates and network"):
                settings.state.mkdir(parents=True, exist_ok=True)
                # Pods reach their volumes through it; secret files in it have modes of their own.
                settings.state.chmod(0o711)
                host.remember_folders(settings)
                access.create_certificates(settings)
                network.ensure(settings)
            parts = settings, self.processes, self.programs
            with steps.step("image registry") as report:
                registry.ensure(*parts, report)
            with steps.step("control plane") as report:
                control_plane.ensure(*parts, report)
            with steps.step("nodes") as report:
                self._each(lambda n: node.ensure(*parts, n, new, report))
                addons.ensure(*parts, self.kubectl)
            with steps.step("nodes Ready, DNS answers") as report:
                until(self._all_ready, self._not_ready, report)
                addons.wait(self.processes, report)
            self.write_checkout()
        print(f"The cluster is up: {steps.summary()}.")
        print(access.hint(settings))

    def down(self) -> None:
        """Remove the cluster and every trace of it, except the cache."""
        settings = self.settings
        if not settings.state.exists() and not network.exists():
            access.remove_checkout(settings)
            print("no cluster is up on this machine")
            return
        _need_root()
        steps = Steps(3)
        with exclusive(settings.lock):
            with steps.step("pods and nodes"):
                self._each(lambda n: node.stop(settings, self.processes, self.programs, n))
            with steps.step("control plane"):
                order = [*addons.NAMES, *control_plane.NAMES[:-1]]
                self.processes.stop(order)
                self.processes.stop(self.processes.names())
            with steps.step("network, mounts, files"):
                network.remove(settings)
                host.unmount_below(settings.state)
                host.remove_cgroup(settings.cgroup)
                host.remove_folders(settings)
                shutil.rmtree(settings.state, ignore_errors=True)
                access.remove_checkout(settings)
            if settings.state.exists():
                raise UserError(f"{settings.state} could not be removed: a process still uses it")
        print(f"The cluster is down: {steps.summary()}.")

    def purge(self) -> None:
        """Take the cluster down and remove the cache as healthy."""
        self.down()
        host.unmount_below(self.settings.cache)
        shutil.rmtree(self.settings.cache, ignore_errors=True)
        print(f"removed the cache {self.settings.cache}")

    def status(self) -> bool:
        """Print which parts run; whether all of them do."""
        settings = self.settings
        if not settings.state.exists():
            print("no cluster is up on this machine: make cluster")
            return False
        healthy = True
        wanted = [registry.NAME, *control_plane.NAMES, *addons.NAMES]
        wanted += [name(n) for n in NODES for name in (node.runtime_name, node.kubelet_name)]
        for name in sorted(wanted):
            found = self.processes.identity(name)
            healthy = healthy and found is not None
            where = f"pid {found.pid}" if found else f"not running  ({self.processes.log(name)})"
            print(f"  {name:<20} {where}")
        try:
            states = self.kubectl.node_states()
        except UserError as error:
            print(f"  the API server does not answer: {error}")
            return False
        for name, ready in sorted(states.items()):
            print(f"  {name:<20} {'Ready' if ready else 'NotReady'}")
            healthy = healthy and ready
        print(f"  images               {settings.registry}/trainyard/NAME:TAG")
        return healthy and len(states) == len(NODES)

    def check_load(self, images: list[str]) -> None:
        """Raise UserError unless the cluster's registry runs."""
        if not self.processes.alive(registry.NAME):
            raise UserError("no cluster is up on this machine: make cluster")

    def load(self, images: list[str], tool: str = "") -> None:
        """Push images to the registry, and have every node pull them now."""
        self.check_load(images)
        steps = Steps(2 * len(images))
        for image in images:
            target = registry.target_name(image, self.settings.registry)
            with steps.step(f"push {target}"):
                registry.push(image, target, tool)
            with steps.step(f"pull {target}"):
                self._each(partial(self._pull, target))
        print(f"Loaded: {steps.summary()}.")

    def node_lost(self, name: str) -> None:
        """Switch a node off, as a power cut would."""
        chosen = [n for n in NODES if n.name == name]
        if not chosen:
            raise UserError(f"no node {name}: there are {', '.join(n.name for n in NODES)}")
        _need_root()
        with exclusive(self.settings.lock):
            node.lose(self.settings, self.processes, chosen[0])
        print(f"{name} is lost; bring it back with: python3 -m dev.cluster up")

    def write_checkout(self) -> None:
        """Give this checkout the cluster's kubeconfig and programs."""
        text = self.settings.user_config("admin").read_text()
        access.write_checkout(self.settings, text, self.programs, self.settings.registry)

    def _pull(self, image: str, chosen: Node) -> None:
        # Without root the runtime can't be asked; the node pulls when a pod first needs the image.
        if os.geteuid() == 0 and self.processes.alive(node.runtime_name(chosen)):
            node.pull(self.settings, self.programs, chosen, image)

    def _all_ready(self) -> bool:
        self.processes.must_live(*(node.kubelet_name(n) for n in NODES))
        try:
            states = self.kubectl.node_states()
        except UserError:
            return False
        return len(states) == len(NODES) and all(states.values())

    def _not_ready(self) -> str:
        words = "; ".join(
            f"{n.name}: {self.processes.log_tail(node.kubelet_name(n))}" for n in NODES
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
        raise UserError("the cluster on this machine belongs to root: use sudo")


@contextlib.contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Admit one command at a time on this machine; a second one waits, and prints so."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        print("waiting for another cluster command on this machine to finish", flush=True)
        held.acquire()
    try:
        yield
    finally:
        # Removed while it is held: a command that waits for it sees that, and makes a new one.
        lock.unlink(missing_ok=True)
        held.release()
