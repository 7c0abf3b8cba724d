"""Which cluster this machine gets: a given context's, kind's, or its own."""

from __future__ import annotations

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
    def load(self, images: list[str]) -> None: ...
    def node_lost(self, name: str) -> None: ...


def choose(settings: Settings, context: str, wanted: str) -> Backend:
    """The backend asked for; otherwise the one that is up; otherwise the best this machine can."""
    if context:
        return Existing(settings, context)
    if wanted == "native" or (not wanted and settings.state.exists()):
        return Native(settings)
    if wanted == "kind" or docker_answers():
        return Kind(settings)
    return Native(settings)
