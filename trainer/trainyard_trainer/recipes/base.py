"""The interface of a recipe: its settings, data, model, loss and exported form."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from trainyard_trainer.config import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainyard_trainer.data.sampling import Batch, Ids, Samples, Weights

# Tokens of a text that `outputs` compares: more cost time and, with large vocabularies, memory.
COMPARED_TOKENS = 128
# The apps of trainyard_serving that answer from models of recipes.
ServingApp = Literal["generate", "classify", "embed"]
# The name, among `Recipe.parts`, of what makes the logits and the loss of them.
LOSS = "the loss"


class Recipe(ABC):
    """One model family. Built once per rank, before the model, from the run's settings.

    Attributes:
        Config: its settings.
        serving: the app that `trainyard serve` answers with from its models; None: no app can.
            `generate` needs a causal language model of transformers with its tokenizer, `classify`
            a DistilBertForSequenceClassification with its tokenizer, `embed` an encoder or a causal
            language model of transformers with its tokenizer.
        train: the samples to train on.
        held_out: the samples to evaluate on.
        tokens_per_sample: mean tokens of a sample, for tokens per second; 0 without tokens.
    """

    Config: ClassVar[type[TrainConfig]]
    serving: ClassVar[ServingApp | None] = None

    train: "Samples"
    held_out: "Samples"
    tokens_per_sample: float = 0

    @abstractmethod
    def __init__(self, config: Any, saved: dict[str, Any] | None) -> None:
        """Load the data; `saved` is what `state` returned when the checkpoint was made.

        Raises ConfigError when the data is missing, or can't be encoded as the checkpoint's was.
        """

    @classmethod
    def outline(cls, config: Any) -> Self:
        """The recipe for an estimate of its memory: with a sample as large as any, and random
        weights. It can build a model and compute a loss; it reads no data unless a shape is in it.
        """
        return cls(config, None)

    @abstractmethod
    def check_data(self, saved: dict[str, Any]) -> None:
        """Raise ConfigError if the data is not what a run was trained on that shall resume."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What later attempts must reuse (JSON): the vocabulary, the data's fingerprint."""

    @abstractmethod
    def describe(self) -> str:
        """One line about the data, for the console."""

    @abstractmethod
    def build(self) -> "nn.Module":
        """A freshly initialised model, or a pretrained one; the same on every rank."""

    def blocks(self, model: "nn.Module") -> Iterable["nn.Module"]:
        """The submodules that FSDP shards, torch.compile compiles and activation checkpointing
        recomputes, one at a time."""
        return ()

    def parts(self, model: "nn.Module") -> dict[str, tuple[object, str]]:
        """What else torch.compile compiles, called between the blocks: an object and its method,
        by a name for the console."""
        return {}

    def weights(self, ids: "Ids") -> "Weights | None":
        """The weight of each of these training samples in the mean loss; None: equal weights.

        Samples of different lengths are weighted by their target tokens: the loss is then the mean
        over all tokens of the global batch, for any number of ranks and micro-batches.
        """
        return None

    @abstractmethod
    def loss(self, model: "nn.Module", batch: "Batch") -> "Tensor":
        """Mean loss of a batch (by the samples' weights), a 0-d tensor."""

    def evaluate(self, model: "nn.Module", batch: "Batch") -> "Tensor":
        """Sums over a held-out batch, 1-d; they are added up over batches and ranks."""
        import torch

        loss = self.loss(model, batch).float()
        count = loss.new_tensor(len(next(iter(batch.values()))))
        return torch.stack([loss * count, count])

    def summarise(self, sums: list[float]) -> dict[str, float]:
        """The metrics of an evaluation from its sums; `eval_loss` is the one that ranks models."""
        return {"eval_loss": sums[0] / sums[1]}

    def table(self, sums: list[float]) -> str | None:
        """A table of the evaluation for the console, such as a confusion matrix."""
        return None

    def details(self, sums: list[float]) -> dict[str, Any] | None:
        """Further results (JSON), written to evaluation.json in the run's directory."""
        return None

    def sample(self, model: "nn.Module", step: int) -> str | None:
        """Model output to inspect, such as text; the same on every rank, without the global RNG."""
        return None

    def epoch_file(self, epoch: int) -> str | None:
        """The name of the .pt file to write after this epoch; None: no file."""
        return None

    @abstractmethod
    def export(self, weights: dict[str, "Tensor"], directory: Path) -> None:
        """Write the model to `directory` in Hugging Face format.

        On the CPU the weights may be those of the model in training: change none in place.
        """

    def load_exported(self, directory: Path) -> "nn.Module | None":
        """What `export` wrote, read back: a module for `outputs`, on the CPU, in evaluation mode.

        A model is published only if its outputs are those of the model in training. None: it is
        published without this check.
        """
        return None

    def outputs(self, model: "nn.Module", batch: "Batch") -> "Tensor":
        """What the exported model and the one in training are compared in, for a held-out batch:
        logits, or else the loss; its values are of the order of 1."""
        return self.loss(model, batch)

    def upload(self, directory: Path) -> str | None:
        """Upload the exported model; a line for the console. Its failure does not fail the run."""
        return None
