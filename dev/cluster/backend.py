"""Which cluster this machine gets: a given context's, kind's, or its own."""

from __future__ import annotations

import os
from typing import Protocol

from .existing import Existing
from .kind import Kind, docker_answers
from .native import Native
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


def choose(settings: Settings, context: str | None = None, wanted: str | None = None) -> Backend:
    """The backend asked for (by default in the environment), the one that is up, or the best."""
    context = os.environ.get("TRAINYARD_CONTEXT", "") if context is None else context
    wanted = os.environ.get("TRAINYARD_CLUSTER", "") if wanted is None else wanted
    if context:
        return Existing(settings, context)
    if wanted == "native" or (not wanted and settings.state.exists()):
        return Native(settings)
    if wanted == "kind" or docker_answers():
        return Kind(settings)
    return Native(settings)
