"""What a recipe tells the trainer: its settings, data, model, loss and exported form."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainyard_trainer.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainyard_trainer.data.sampling import Batch, Ids, Samples, Weights


class Recipe(ABC):
    """One model family. Built once per rank, before the model, from the run's settings.

    Attributes:
        train: the samples to train on.
        held_out: the samples to evaluate on.
        tokens_per_sample: what tokens per second are counted from (an average will do); 0 if
            tokens make no sense.
    """

    Config: ClassVar[type[TrainConfig]]

    train: "Samples"
    held_out: "Samples"
    tokens_per_sample: float = 0

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
        """A freshly initialised model, or a pretrained one; the same on every rank."""

    def blocks(self, model: "nn.Module") -> Iterable["nn.Module"]:
        """The parts that FSDP gathers, torch.compile compiles, and activation checkpointing
        computes again, one at a time."""
        return ()

    def weights(self, ids: "Ids") -> "Weights | None":
        """How much each of these training samples counts in the mean loss; None: all alike.

        Samples of different lengths count by their target tokens: the mean is then one over all
        tokens of the global batch, however it is split into ranks and micro-batches.
        """
        return None

    @abstractmethod
    def loss(self, model: "nn.Module", batch: "Batch") -> "Tensor":
        """Mean loss of a batch (by the samples' weights), a 0-d tensor."""

    def evaluate(self, model: "nn.Module", batch: "Batch") -> "Tensor":
        """Sums over a held-out batch, 1-d, which add up over batches and ranks."""
        import torch

        loss = self.loss(model, batch).float()
        count = loss.new_tensor(len(next(iter(batch.values()))))
        return torch.stack([loss * count, count])

    def summarise(self, sums: list[float]) -> dict[str, float]:
        """The metrics of an evaluation from its sums; `eval_loss` is the one that ranks models."""
        return {"eval_loss": sums[0] / sums[1]}

    def table(self, sums: list[float]) -> str | None:
        """More of an evaluation for people to read, such as a confusion matrix."""
        return None

    def details(self, sums: list[float]) -> dict[str, Any] | None:
        """The same for programs (JSON): evaluation.json in the run's directory has it."""
        return None

    def sample(self, model: "nn.Module", step: int) -> str | None:
        """Something a person can judge the model by; same on every rank, no global RNG used."""
        return None

    def epoch_file(self, epoch: int) -> str | None:
        """The name of a single .pt file to keep of each epoch, for tools that want one."""
        return None

    @abstractmethod
    def export(self, weights: dict[str, "Tensor"], directory: Path) -> None:
        """Write the model as Hugging Face users expect it."""

    def upload(self, directory: Path) -> str | None:
        """Send the exported model somewhere; what to say about it. May fail: the run goes on."""
        return None
