"""What a recipe tells the trainer: its settings, data, model, loss and exported form."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainyard_trainer.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainyard_trainer.data import Batch, Samples


class Recipe(ABC):
    """One model family. Built once per rank, before the model, from the run's settings.

    Attributes:
        train: the samples to train on.
        held_out: the samples to evaluate on.
        tokens_per_sample: what tokens per second are counted from; 0 if tokens make no sense.
    """

    Config: ClassVar[type[TrainConfig]]

    train: "Samples"
    held_out: "Samples"
    tokens_per_sample: int = 0

    @abstractmethod
    def __init__(self, config: Any, saved: dict[str, Any] | None) -> None:
        """Load the data; `saved` is what `state` returned when the checkpoint was made.

        Raises ConfigError when the data is missing, or is not what the checkpoint was trained on.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What later attempts must share (JSON): the vocabulary, the data's fingerprint."""

    @abstractmethod
    def describe(self) -> str:
        """The data in a few words, for the console."""

    @abstractmethod
    def build(self) -> "nn.Module":
        """A freshly initialised model."""

    def blocks(self, model: "nn.Module") -> Iterable["nn.Module"]:
        """The parts FSDP gathers one at a time."""
        return ()

    @abstractmethod
    def loss(self, model: "nn.Module", batch: "Batch") -> "Tensor":
        """Mean loss of a batch, a 0-d tensor."""

    def sample(self, model: "nn.Module", step: int) -> str | None:
        """Something a person can judge the model by; same on every rank, no global RNG used."""
        return None

    @abstractmethod
    def export(self, weights: dict[str, "Tensor"], directory: Path) -> None:
        """Write the model as Hugging Face users expect it."""
