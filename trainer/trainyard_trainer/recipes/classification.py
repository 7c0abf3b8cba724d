"""Base of the classification recipes: labelled rows, classes and scores."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from trainyard_trainer.data.cache import cached
from trainyard_trainer.data.rows import (
    Labels,
    Rows,
    check_labels,
    class_names,
    is_one_file,
    label_names,
    read_labels,
)
from trainyard_trainer.data.sequences import cache_key
from trainyard_trainer.recipes import BRANCH, Batch, Changeable, ConfigError, Recipe, TrainConfig


class ClassificationConfig(TrainConfig):
    """Settings of a classifier's labelled data."""

    eval_steps: int = Field(default=0, ge=0)
    eval_batches: int | None = Field(default=None, ge=1)

    dataset: Changeable[str] = Field(min_length=1)
    """Training data."""

    eval_dataset: Changeable[str | None] = Field(default=None, min_length=1)
    """Evaluation data. Default: the test split of `dataset`."""

    label_column: Changeable[str] = Field(default="label", min_length=1)
    """The column of class numbers, from 0."""

    labels: list[str] | None = Field(default=None, min_length=2)
    """Names of the classes 0, 1, ... Default: those of the data set."""


class Split:
    """The rows of one split, with their labels.

    Attributes:
        where: the start of error messages about them.
        rows: with the columns of inputs and of labels.
        labels: memory-mapped.
    """

    def __init__(self, key: str, source: str, name: str, column: str, label_column: str) -> None:
        self.rows = Rows(key, source, name, [column, label_column])
        self.where, self.name, self.label_column = self.rows.where, name, label_column
        # Read once: in a csv or jsonl file they are between all the others.
        cache_name = cache_key("labels", self.rows.digest, label_column)
        self.labels: Labels = np.asarray(cached(cache_name, self._read_labels))

    def _read_labels(self) -> Labels:
        return read_labels(self.about(self.label_column), self.rows.column(self.label_column))

    def check_labels(self, names: Sequence[str] | None) -> None:
        """Raise ConfigError for a label that isn't the number of a class."""
        check_labels(self.about(self.label_column), self.labels, names)

    def about(self, column: str) -> str:
        """The start of error messages about a column."""
        return f"{self.where}: {column} of {self.name}"


class Classification(Recipe):
    """Base of the classifiers; a subclass defines the inputs and the model.

    Attributes:
        classes: their names.
        about: what was read and left out, for the console.
        fingerprint: of all samples and labels (JSON).
        encoded_by: what else they depend on, for error messages.
    """

    encoded_by: ClassVar[str] = ""

    config: ClassificationConfig
    classes: list[str]
    about: str
    fingerprint: str | list[str]

    def load(self, column: str) -> tuple[Split, Split]:
        """The rows to train on, with the inputs in `column`, and the held-out ones.

        Sets `classes` and `about`.
        """
        config = self.config
        if config.eval_dataset is None and is_one_file(config.dataset):
            raise ConfigError(
                f"config.eval_dataset: set it; {config.dataset} is one file, without a test split"
            )
        columns = column, config.label_column
        train = Split("dataset", config.dataset, "train", *columns)
        key = "dataset" if config.eval_dataset is None else "eval_dataset"
        held_out = Split(key, config.eval_dataset or config.dataset, "test", *columns)
        names = config.labels or label_names(train.rows.schema, config.label_column)
        train.check_labels(names)
        self.classes = class_names(train.where, train.labels, names)
        held_out.check_labels(self.classes)
        self.about = f"read {train.rows.about}; read {held_out.rows.about}"
        return train, held_out

    @classmethod
    def read_classes(cls, config: ClassificationConfig, column: str) -> list[str]:
        """The classes of the training data, whose inputs are in `column`."""
        train = Split("dataset", config.dataset, "train", column, config.label_column)
        names = label_names(train.rows.schema, config.label_column)
        return class_names(train.where, train.labels, names)

    def check_data(self, saved: dict[str, Any]) -> None:
        if saved["samples_sha256"] != self.fingerprint:
            raise ConfigError(
                f"config.dataset: {self.config.dataset} does not have the samples that the"
                f" checkpoint was trained on{self.encoded_by}; undo the change, or {BRANCH}"
            )

    def state(self) -> dict[str, Any]:
        return {"labels": self.classes, "samples_sha256": self.fingerprint}

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Shape (batch, classes)."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.logits(model, batch)

    def evaluate(self, model: nn.Module, batch: Batch) -> Tensor:
        return class_sums(self.logits(model, batch), batch["labels"])

    def summarise(self, sums: list[float]) -> dict[str, float]:
        return Scores.of(sums, self.classes).metrics()

    def table(self, sums: list[float]) -> str:
        return Scores.of(sums, self.classes).table()

    def details(self, sums: list[float]) -> dict[str, Any]:
        return Scores.of(sums, self.classes).details()


_WIDEST = 20  # most classes whose confusion matrix is printed


def class_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """The summed cross-entropy and the confusion matrix of a batch, as one vector.

    A recipe's `evaluate`: it is added up over batches and ranks.

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
        matrix: samples by true class (row) and predicted class (column).
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
        """Fraction of each true class that was predicted; 0 for one that doesn't occur."""
        return self._share_of(self.matrix.sum(axis=1))

    @property
    def precision(self) -> npt.NDArray[np.float64]:
        """Fraction of each class's predictions that are right; 0 for one never predicted."""
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
        """A recipe's `table`: the confusion matrix; of many classes those with lowest recall."""
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
