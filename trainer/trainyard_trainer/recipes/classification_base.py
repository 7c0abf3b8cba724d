"""What the recipes share that tell classes apart: labelled rows, their classes, the scores."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from torch import Tensor, nn

from trainyard_trainer.config import TrainConfig
from trainyard_trainer.data.labels import Labels, class_names, read_labels
from trainyard_trainer.data.rows import label_names, load_rows
from trainyard_trainer.data.sampling import Batch
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.recipes.base import Recipe
from trainyard_trainer.recipes.class_scores import Scores, class_sums

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]


class ClassificationConfig(TrainConfig):
    """Settings of a classifier: its labelled data."""

    # The samples and their labels are compared themselves.
    free = TrainConfig.free | {"dataset", "eval_dataset", "label_column"}

    eval_steps: int = Field(default=0, ge=0)
    eval_batches: int | None = Field(default=None, ge=1)

    dataset: str = Field(min_length=1)
    """What to train on."""

    eval_dataset: str | None = Field(default=None, min_length=1)
    """What to evaluate on. Default: the test split of `dataset`."""

    label_column: str = Field(default="label", min_length=1)
    """Name of the column with the classes, numbers from 0."""

    labels: list[str] | None = Field(default=None, min_length=2)
    """Names of the classes 0, 1, ... Default: those the data set has."""


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        where: how errors begin that are about them.
    """

    where: str
    name: str
    table: "pa.Table"

    @classmethod
    def load(cls, key: str, source: str, name: str, columns: list[str]) -> "Split":
        return cls(f"config.{key}: {source}", name, load_rows(key, source, name, columns))

    def column(self, name: str) -> tuple[str, "pa.ChunkedArray"]:
        """A column, after how errors begin that are about it."""
        return f"{self.where}: {name} of {self.name}", self.table[name]


class Classification(Recipe):
    """A classifier; what it looks at, and with what model, is up to the subclass.

    Attributes:
        classes: their names.
        fingerprint: of all samples and labels (JSON).
    """

    config: ClassificationConfig
    classes: list[str]
    fingerprint: str | list[str]

    def load(self, column: str) -> tuple[tuple[Split, Labels], tuple[Split, Labels]]:
        """The rows to train on and the held-out ones, each with their labels; sets `classes`.

        Of the table there are `column` and the labels.
        """
        config = self.config
        if config.eval_dataset is None and Path(config.dataset).is_file():
            raise ConfigError(
                f"config.eval_dataset: set it; {config.dataset} is one file, with nothing held out"
            )
        columns = [column, config.label_column]
        train = Split.load("dataset", config.dataset, "train", columns)
        key = "dataset" if config.eval_dataset is None else "eval_dataset"
        held_out = Split.load(key, config.eval_dataset or config.dataset, "test", columns)
        names = config.labels or label_names(train.table, config.label_column)
        labels = read_labels(*train.column(config.label_column), names)
        self.classes = class_names(train.where, labels, names)
        held_out_labels = read_labels(*held_out.column(config.label_column), self.classes)
        return (train, labels), (held_out, held_out_labels)

    def check_same(self, saved: dict[str, Any] | None, samples: str) -> None:
        """Raises ConfigError if a checkpoint was not trained on these samples."""
        if saved and saved["samples_sha256"] != self.fingerprint:
            raise ConfigError(
                f"{samples} is not what the checkpoint was trained on; undo the change, or start"
                " a run under another name"
            )

    def state(self) -> dict[str, Any]:
        return {"labels": self.classes, "samples_sha256": self.fingerprint}

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Shape (batch, classes)."""

    def evaluate(self, model: nn.Module, batch: Batch) -> Tensor:
        return class_sums(self.logits(model, batch), batch["labels"])

    def summarise(self, sums: list[float]) -> dict[str, float]:
        return Scores.of(sums, self.classes).metrics()

    def table(self, sums: list[float]) -> str:
        return Scores.of(sums, self.classes).table()

    def details(self, sums: list[float]) -> dict[str, Any]:
        return Scores.of(sums, self.classes).details()
