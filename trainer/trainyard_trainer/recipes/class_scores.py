"""Scores of a classifier, from the summed loss to the confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

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
