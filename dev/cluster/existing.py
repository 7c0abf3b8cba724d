"""A cluster that the user already has: the one of a given kubectl context."""

from __future__ import annotations

import shutil

from . import checkout
from .errors import ClusterError
from .kubectl import Kubectl
from .settings import Settings
from .shell import run

NAME = "context"


class Existing:
    """Checks that the cluster answers, and otherwise leaves it alone."""

    def __init__(self, settings: Settings, context: str) -> None:
        self.settings = settings
        self.context = context
        program = shutil.which("kubectl")
        if program is None:
            raise ClusterError("kubectl is not installed: see kubernetes.io/docs/tasks/tools")
        self._program = program
        self._kubectl = Kubectl(program, context=context)

    def up(self) -> None:
        """Check that it answers, and write its kubeconfig for the other targets."""
        try:
            states = self._kubectl.node_states()
        except ClusterError as error:
            raise ClusterError(f"context {self.context} does not answer: {error}") from None
        flat = [self._program, "config", "view", "--minify", "--flatten", "--raw"]
        checkout.write(self.settings, run([*flat, "--context", self.context]).stdout, None)
        ready = sum(states.values())
        print(f"context {self.context} answers: {ready} of {len(states)} nodes Ready")
        print(checkout.hint(self.settings))

    def down(self) -> None:
        """Forget the cluster; it is not ours to remove."""
        checkout.remove(self.settings)
        print(f"context {self.context} is left as it is")

    def purge(self) -> None:
        """The same as down."""
        self.down()

    def status(self) -> bool:
        """Print the nodes; whether all are Ready."""
        states = self._kubectl.node_states()
        for name, ready in sorted(states.items()):
            print(f"  {name:<28} {'Ready' if ready else 'NotReady'}")
        return bool(states) and all(states.values())

    def check_load(self, images: list[str]) -> None:
        """Refused: this cluster pulls from a registry."""
        raise ClusterError(
            f"context {self.context} pulls images from a registry: make images PUSH=1 "
            "TRAINYARD_REGISTRY=REGISTRY/PATH, without LOAD=1"
        )

    def load(self, images: list[str], tool: str = "") -> None:
        """Refused, as by check_load."""
        self.check_load(images)

    def node_lost(self, name: str) -> None:
        """Refused."""
        raise ClusterError(f"{name} of context {self.context} is not ours to switch off")
