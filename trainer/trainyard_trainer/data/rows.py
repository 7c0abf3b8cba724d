"""Tables of samples from files or the Hub, and their labels."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trainyard_trainer.data.hub import failed_load
from trainyard_trainer.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]


HUB = "hub:"
_SUFFIXES = (".parquet", ".csv", ".jsonl")


def load_rows(key: str, source: str, split: str, columns: Sequence[str]) -> "pa.Table":
    """The split's `columns`, in file order.

    Raises ConfigError that says what to change, and HubUnreachableError.

    `source`: a parquet, csv or jsonl file (its only split); a directory with files named
    SPLIT.parquet, SPLIT-00000-of-00002.parquet and so on (or .csv, .jsonl); or hub:OWNER/NAME or
    hub:OWNER/NAME:CONFIG, a data set of the Hub. `key` is the setting that errors name. Images are
    not decoded: a struct of `bytes` and `path`. The metadata that `datasets` wrote stays in the
    table's schema: see label_names.
    """
    where = f"config.{key}: {source}"
    table = (
        _from_hub(where, source, split)
        if source.startswith(HUB)
        else _from_files(where, Path(source), split)
    )
    if missing := [name for name in columns if name not in table.column_names]:
        raise ConfigError(
            f"{where} has no column {missing[0]}; it has {', '.join(table.column_names)}"
        )
    if table.num_rows == 0:
        raise ConfigError(f"{where} has no rows in {split}")
    return table.select(list(columns))


def label_names(table: "pa.Table", column: str) -> list[str] | None:
    """The names of the classes 0, 1, ... of `column`; None if the data has none.

    They are in the schema's `huggingface` metadata, where `datasets` writes a column's ClassLabel.
    """
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(metadata or b"{}")["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names]


def _from_files(where: str, path: Path, split: str) -> "pa.Table":
    import pyarrow as pa

    if path.is_dir():
        files = sorted(
            file
            for suffix in _SUFFIXES
            for file in (*path.glob(f"{split}{suffix}"), *path.glob(f"{split}-*{suffix}"))
        )
        if not files:
            raise ConfigError(f"{where} has no {split}.parquet, {split}.csv or {split}.jsonl")
    elif path.is_file():
        files = [path]
    else:
        raise ConfigError(
            f"{where} does not exist here; give a parquet, csv or jsonl file, a directory with"
            f" {split}.parquet, or hub:OWNER/NAME"
        )
    try:
        tables = [_read(file) for file in files]
        plain = [table.replace_schema_metadata(None) for table in tables]
        return pa.concat_tables(plain).replace_schema_metadata(tables[0].schema.metadata)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}") from None
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{where} cannot be read: {' '.join(str(error).split())[:300]}") from None


def _read(file: Path) -> "pa.Table":
    if file.suffix == ".csv":
        from pyarrow import csv

        # Texts may hold line breaks.
        return csv.read_csv(file, parse_options=csv.ParseOptions(newlines_in_values=True))
    if file.suffix == ".jsonl":
        from pyarrow import json

        return json.read_json(file)
    from pyarrow import parquet

    # read_table would import pandas, half a second.
    return parquet.ParquetFile(file).read()


def _from_hub(where: str, source: str, split: str) -> "pa.Table":
    import datasets  # type: ignore[import-untyped]

    name, _, config = source.removeprefix(HUB).partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=split)
        # Arrow format: images stay encoded.
        return rows.with_format("arrow")[:]
    except Exception as error:
        raise failed_load(where, error) from None


Labels = npt.NDArray[np.int64]


def read_labels(where: str, column: "pa.ChunkedArray", names: Sequence[str] | None) -> Labels:
    """The class of every row, from 0. Raises ConfigError: `where` and the row.

    `names`: of the classes, if known; then a label must be below their number.
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

    Raises ConfigError, which starts with `where`, if there is only one class, or if a class never
    occurs: a model can't learn it.
    """
    found = set(np.unique(labels).tolist())
    if names is None:
        names = [f"LABEL_{label}" for label in range(max(found) + 1)]
    if len(names) < 2:
        raise ConfigError(
            f"{where}: every row has label {max(found)}; at least two classes are required"
        )
    if missing := [label for label in range(len(names)) if label not in found]:
        label = missing[0]
        raise ConfigError(
            f"{where}: no row of {len(labels):,} has label {label} ({names[label]});"
            f" there are {len(names)} classes ({listed(names)})"
        )
    return list(names)


def listed(names: Sequence[str]) -> str:
    """The first five names, separated by commas."""
    shown = ", ".join(names[:5])
    return f"{shown}, ..." if len(names) > 5 else shown
