"""What the classification recipes share: labelled rows, classes, and scores."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from torch import Tensor, nn

from trainyard_trainer.config import TrainConfig
from trainyard_trainer.data.rows import Labels, class_names, label_names, load_rows, read_labels
from trainyard_trainer.data.sampling import Batch
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.recipes.base import Recipe

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]
from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F


class ClassificationConfig(TrainConfig):
    """Settings of a classifier: its labelled data."""

    # The samples and their labels are compared themselves.
    changeable_on_resume = TrainConfig.changeable_on_resume | {
        "dataset",
        "eval_dataset",
        "label_column",
    }

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


_WIDEST = 20  # classes of which the console shows the whole matrix


def class_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """The summed cross-entropy and the confusion matrix of a batch, as one line of numbers.

    They add up over batches and ranks: a recipe's `evaluate`.

    Args:
        logits: (batch, classes)
        labels: (batch,)
    Returns: (1 + classes * classes,), float64; the matrix has a row per true class.
    """
    num_classes = logits.shape[1]
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    cells = labels * num_classes + logits.argmax(1)
    matrix = torch.bincount(cells, minlength=num_classes**2)
    return torch.cat([loss.double().view(1), matrix.double()])


@dataclass(frozen=True)
class Scores:
    """An evaluation of a classifier, from the sums of `class_sums`.

    Attributes:
        names: of the classes.
        loss: mean cross-entropy in nats.
        matrix: how many samples of the class of the row were taken for that of the column.
    """

    names: Sequence[str]
    loss: float
    matrix: npt.NDArray[np.int64]

    @classmethod
    def of(cls, sums: Sequence[float], names: Sequence[str]) -> Self:
        cells = np.array(sums[1:]).round().astype(np.int64)
        return cls(names, sums[0] / int(cells.sum()), cells.reshape(len(names), len(names)))

    @property
    def accuracy(self) -> float:
        return float(self.matrix.trace() / self.matrix.sum())

    @property
    def recall(self) -> npt.NDArray[np.float64]:
        """Share of each true class that was found; 0 for one that doesn't occur."""
        return self._share_of(self.matrix.sum(axis=1))

    @property
    def precision(self) -> npt.NDArray[np.float64]:
        """Share of what was taken for each class that is it; 0 for one never given."""
        return self._share_of(self.matrix.sum(axis=0))

    def metrics(self) -> dict[str, float]:
        """A recipe's `summarise`."""
        return {"eval_loss": self.loss, "accuracy": self.accuracy}

    def details(self) -> dict[str, Any]:
        """A recipe's `details`."""
        return {
            "labels": list(self.names),
            "confusion_matrix": self.matrix.tolist(),  # a row per true class
            "precision": self.precision.tolist(),
            "recall": self.recall.tolist(),
        }

    def table(self) -> str:
        """A recipe's `table`: the confusion matrix, or, of many classes, those worst recognised."""
        if len(self.names) > _WIDEST:
            worst = np.argsort(self.recall, kind="stable")[:5]
            listed = ", ".join(f"{self.names[i]} {self.recall[i]:.1%}" for i in worst)
            return f"  lowest recall: {listed}"
        corner = "true \\ predicted"
        width = max(7, *(len(name) for name in self.names), len(str(self.matrix.max())))
        left = max(len(corner), *(len(name) for name in self.names))
        lines = ["".join([f"  {corner:<{left}}", *(f"  {name:>{width}}" for name in self.names)])]
        lines[0] += "   recall"
        for name, row, recall in zip(self.names, self.matrix, self.recall, strict=True):
            cells = "".join(f"  {count:>{width},}" for count in row)
            lines.append(f"  {name:<{left}}{cells}  {recall:>7.1%}")
        cells = "".join(f"  {share:>{width}.1%}" for share in self.precision)
        lines.append(f"  {'precision':<{left}}{cells}")
        return "\n".join(lines)

    def _share_of(self, totals: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        share: npt.NDArray[np.float64] = self.matrix.diagonal() / np.maximum(totals, 1)
        return share
