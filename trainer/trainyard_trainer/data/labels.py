"""Labels of a table's rows: whole numbers, each the class of its row."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trainyard_trainer.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

Labels = npt.NDArray[np.int64]


def read_labels(where: str, column: "pa.ChunkedArray", names: Sequence[str] | None) -> Labels:
    """The class of every row, from 0. Raises ConfigError, beginning with `where`, naming the row.

    `names`: of the classes, if known; then no label may lie beyond them.
    """
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        raise ConfigError(f"{where} holds {column.type}; classes must be the numbers 0, 1, 2, ...")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise ConfigError(f"{where}: row {row} has no label")
    labels: Labels = column.to_numpy().astype(np.int64)
    wrong = labels < 0
    if names is not None:
        wrong |= labels >= len(names)
    if wrong.any():
        row = int(wrong.argmax())
        known = "" if names is None else f"; there are {len(names)} classes ({listed(names)})"
        raise ConfigError(f"{where}: row {row} has label {labels[row]}{known}")
    return labels


def class_names(where: str, labels: Labels, names: Sequence[str] | None) -> list[str]:
    """`names`, or LABEL_0, LABEL_1, ... as Hugging Face calls the classes of these labels.

    Raises ConfigError, beginning with `where`, if there is nothing to tell apart, or if a class
    never occurs: a model can't learn it.
    """
    found = set(np.unique(labels).tolist())
    if names is None:
        names = [f"LABEL_{label}" for label in range(max(found) + 1)]
    if len(names) < 2:
        raise ConfigError(f"{where}: every row has label {max(found)}; two classes are the least")
    if missing := [label for label in range(len(names)) if label not in found]:
        label = missing[0]
        raise ConfigError(
            f"{where}: no row of {len(labels):,} has label {label} ({names[label]});"
            f" there are {len(names)} classes ({listed(names)})"
        )
    return list(names)


def listed(names: Sequence[str]) -> str:
    """The first few."""
    shown = ", ".join(names[:5])
    return f"{shown}, ..." if len(names) > 5 else shown
