"""What stands behind an app's routes: something that answers, or says why it can't yet."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Served:
    """Which model answers."""

    run: str
    step: int | None  # None where the model is no run's: a plain Hugging Face directory
    digest: str


class Part(Protocol):
    """Something that lives as long as the server."""

    def start(self) -> None:
        """Begin to work; returns at once."""

    def stop(self) -> None:
        """End everything `start` began."""

    @property
    def alive(self) -> bool:
        """False once it can never work again: the process should be replaced."""


class Backend(Part, Protocol):
    """A model in this process (`Follower`), or a server behind this one."""

    @property
    def served(self) -> Served | None:
        """The model that answers now; None until there is one (see `reason`)."""

    @property
    def ready(self) -> bool:
        """Whether requests will be answered."""

    @property
    def details(self) -> dict[str, Any]:
        """What else /health and /ready tell of the model."""

    @property
    def reason(self) -> str:
        """One line that says why it is not ready."""

    @property
    def refused(self) -> list[str]:
        """Models that are newer than the one served and were refused; a line each."""
