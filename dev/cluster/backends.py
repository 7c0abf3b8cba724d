"""Which cluster is used: the one of a given context, kind's, or this machine's own."""

from __future__ import annotations

import shutil
from typing import Protocol

from . import access
from .commands import Kubectl, UserError, run
from .kind import Kind
from .native import Native
from .preflight import builder_problem
from .settings import Settings


class Backend(Protocol):
    """What every kind of cluster can do."""

    def up(self) -> None: ...
    def down(self) -> None: ...
    def purge(self) -> None: ...
    def status(self) -> bool: ...
    def check_load(self, images: list[str]) -> None: ...
    def load(self, images: list[str], tool: str = "") -> None: ...
    def node_lost(self, name: str) -> None: ...


def choose(settings: Settings) -> Backend:
    """The backend asked for, otherwise the one that is up, otherwise the best one possible here."""
    if settings.context:
        return Existing(settings, settings.context)
    if settings.backend == "native" or (not settings.backend and settings.state.exists()):
        return Native(settings)
    if settings.backend == "kind" or not builder_problem("docker"):
        return Kind(settings)
    return Native(settings)


class Existing:
    """A cluster that the user already has: checked, and otherwise left alone."""

    def __init__(self, settings: Settings, context: str) -> None:
        self.settings = settings
        self.context = context
        program = shutil.which("kubectl")
        if program is None:
            raise UserError("kubectl is not installed: see kubernetes.io/docs/tasks/tools")
        self._program = program
        self._kubectl = Kubectl(program, context=context)

    def up(self) -> None:
        """Check that it answers, and write its kubeconfig for the other targets."""
        try:
            states = self._kubectl.node_states()
        except UserError as error:
            raise UserError(f"context {self.context} does not answer: {error}") from None
        flat = [self._program, "config", "view", "--minify", "--flatten", "--raw"]
        access.write_checkout(self.settings, run([*flat, "--context", self.context]).stdout, None)
        ready = sum(states.values())
        print(f"context {self.context} answers: {ready} of {len(states)} nodes Ready")
        print(access.hint(self.settings))

    def down(self) -> None:
        """Remove .cluster/ from the checkout; the cluster stays."""
        access.remove_checkout(self.settings)
        print(f"context {self.context} is not changed")

    def purge(self) -> None:
        """The same as down."""
        self.down()

    def status(self) -> bool:
        """Print the nodes; whether all are Ready."""
        return self._kubectl.print_nodes()

    def check_load(self, images: list[str]) -> None:
        """Refused: this cluster pulls from a registry."""
        raise UserError(
            f"context {self.context} pulls images from a registry: make images PUSH=1 "
            "TRAINYARD_REGISTRY=REGISTRY/PATH, without LOAD=1"
        )

    def load(self, images: list[str], tool: str = "") -> None:
        """Refused, as by check_load."""
        self.check_load(images)

    def node_lost(self, name: str) -> None:
        """Refused: the node belongs to the cluster's owner."""
        raise UserError(f"nodes of context {self.context} can't be switched off from here")
