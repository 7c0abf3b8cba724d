"""Tables of samples from files or the Hub, and their labels."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trainyard_trainer.data.hub import failed_load
from trainyard_trainer.data.remote import is_remote, remote_files
from trainyard_trainer.data.tables import (
    SUFFIXES,
    File,
    HubTable,
    LocalFile,
    Table,
    open_table,
)
from trainyard_trainer.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]


HUB = "hub:"
_MIB = 2**20
_OTHER_SPLIT = re.compile(r"(train|validation|test)(-.*)?\.(parquet|csv|jsonl)")


class Rows:
    """Rows of a split, in file order, read some at a time: never the whole table.

    Attributes:
        where: the start of error messages: `config.KEY: SOURCE`.
        about: what was found and left out, for the console.
        schema: of the columns; with the metadata that `datasets` wrote, see label_names.
        digest: a sha256 of the files' content, or of what identifies them where they are remote.
    """

    def __init__(self, key: str, source: str, split: str, columns: Sequence[str]) -> None:
        """Open the `columns` of a split.

        `source`: a parquet, csv or jsonl file (its only split); a directory with files named
        SPLIT.parquet, SPLIT-00000-of-00002.parquet and so on (or .csv, .jsonl); such a file or
        directory at s3://BUCKET/PATH or hf://datasets/OWNER/NAME[@REVISION]/PATH, see remote.py; or
        hub:OWNER/NAME or hub:OWNER/NAME:CONFIG, a data set of the Hub, which is downloaded. `key`
        is the setting that errors name.
        Images are not decoded: a struct of `bytes` and `path`.

        Raises ConfigError that says what to change, and HubUnreachableError.
        """
        self.where = f"config.{key}: {source}"
        self.source = source
        self.columns = list(columns)
        if source.startswith(HUB):
            self._tables, about = [_from_hub(self.where, source, split)], ""
        else:
            with _reading(self.where):
                find = _remote_files if is_remote(source) else _local_files
                files, about = find(self.where, source, split)
                self._tables = [open_table(file, columns) for file in files]
        schemas = [self._schema(table) for table in self._tables]
        if different := [each for each in schemas if not each.equals(schemas[0])]:
            raise ConfigError(
                f"{self.where}: the columns of its files differ:"
                f" {_described(schemas[0])}, and {_described(different[0])}"
            )
        self.schema = schemas[0]
        self.num_rows = sum(table.num_rows for table in self._tables)
        if self.num_rows == 0:
            raise ConfigError(f"{self.where} has no rows in {split}")
        self.about = _count(self.num_rows, "row") + about
        digests = [table.digest for table in self._tables]
        self.digest = hashlib.sha256(json.dumps([digests, self.columns]).encode()).hexdigest()
        self._at, self._blocks = 0, self._from(0)
        self._rest: pa.Table | None = None

    def _schema(self, table: Table) -> "pa.Schema":
        import pyarrow as pa

        names = table.schema.names
        if missing := [name for name in self.columns if name not in names]:
            raise ConfigError(f"{self.where} has no column {missing[0]}; it has {', '.join(names)}")
        fields = [table.schema.field(name) for name in self.columns]
        return pa.schema(fields, table.schema.metadata)

    def read(self, start: int, end: int) -> "pa.Table":
        """Rows start, start + 1, ..., end - 1; fastest where the last call ended.

        Raises ConfigError.
        """
        import pyarrow as pa

        if start != self._at:
            self._at, self._blocks, self._rest = start, self._from(start), None
        parts: list[pa.Table] = []
        while self._at < end:
            with _reading(self.where):
                block = next(self._blocks, None) if self._rest is None else self._rest
            if block is None:
                self._check_unchanged()
                raise ConfigError(f"{self.where} ends before row {self._at:,}")
            parts.append(block.slice(0, end - self._at).replace_schema_metadata(None))
            rest = block.slice(parts[-1].num_rows)
            self._rest = rest if rest.num_rows else None
            self._at += parts[-1].num_rows
        self._check_unchanged()
        return pa.concat_tables(parts)

    def _check_unchanged(self) -> None:
        for table in self._tables:
            table.check_unchanged()

    def column(self, name: str) -> "pa.ChunkedArray":
        """All values of a column. Raises ConfigError."""
        import pyarrow as pa

        chunks: list[pa.Array] = []
        with _reading(self.where):
            for table in self._tables:
                for block in table.blocks([name], 0):
                    chunks += block[name].chunks
        self._check_unchanged()
        return pa.chunked_array(chunks, self.schema.field(name).type)

    def _from(self, start: int) -> "Iterator[pa.Table]":
        for table in self._tables:
            if start < table.num_rows:
                yield from table.blocks(self.columns, start)
            start = max(0, start - table.num_rows)


def label_names(schema: "pa.Schema", column: str) -> list[str] | None:
    """The names of the classes 0, 1, ... of `column`; None if the data has none.

    They are in the schema's `huggingface` metadata, where `datasets` writes a column's ClassLabel.
    """
    metadata = (schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(metadata or b"{}")["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return [str(name) for name in names]


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """What goes wrong with the files is a ConfigError."""
    import pyarrow as pa

    try:
        yield
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}") from None
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{where} cannot be read: {' '.join(str(error).split())[:300]}") from None


def _described(schema: "pa.Schema") -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def is_one_file(source: str) -> bool:
    """Whether the source is one file, so that it has one split; see Rows."""
    return source.endswith(SUFFIXES) if is_remote(source) else Path(source).is_file()


def _local_files(where: str, source: str, split: str) -> tuple[list[File], str]:
    """The files of a split, and a few words about them."""
    path, left_out = Path(source), ""
    if path.is_dir():
        names = [shown_name(each) for each in visible(path)]
        chosen, left_out = _of_split(where, names, split)
        paths = [path / name for name in chosen]
    elif path.is_file():
        paths = [path]
    else:
        raise ConfigError(
            f"{where} does not exist here; give a parquet, csv or jsonl file, a directory with"
            f" {split}.parquet, or hub:OWNER/NAME"
        )
    return [LocalFile(each) for each in paths], f" of {num_files(paths)}{left_out}"


def _remote_files(where: str, source: str, split: str) -> tuple[list[File], str]:
    files, left_out = remote_files(where, source, is_one_file(source)), ""
    if not is_one_file(source):
        chosen, left_out = _of_split(where, [file.name for file in files], split)
        files = [file for file in files if file.name in chosen]
    if csv := [file.name for file in files if file.name.endswith(".csv")]:
        raise ConfigError(f"{where}: {csv[0]}: csv can't be streamed; make it parquet or jsonl")
    size = sum(file.size for file in files) / _MIB
    about = f" of {num_files(files)}, {size:,.1f} MiB, streamed{left_out}"
    return list(files), about


def _of_split(where: str, names: Sequence[str], split: str) -> tuple[list[str], str]:
    """Those of a split among the names in a folder, sorted, and a few words about the others."""
    chosen = sorted(
        name
        for name in names
        if name.endswith(SUFFIXES) and (Path(name).stem == split or name.startswith(f"{split}-"))
    )
    if not chosen:
        raise ConfigError(f"{where} has no {split}.parquet, {split}.csv or {split}.jsonl")
    others = [each for each in names if each not in chosen and not _OTHER_SPLIT.fullmatch(each)]
    if not others:
        return chosen, ""
    return chosen, f"; left out: {listed(others)} (not named {split} or {split}-*)"


def _from_hub(where: str, source: str, split: str) -> Table:
    name, _, config = source.removeprefix(HUB).partition(":")
    try:
        return HubTable(name, config or None, split)
    except Exception as error:
        raise failed_load(where, error) from None


def visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files: Kubernetes shows the files of a ConfigMap
    as links, and its versions as directories that begin with `..`."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def shown_name(path: Path) -> str:
    """`name`, or `name/` of a folder."""
    return f"{path.name}/" if path.is_dir() else path.name


def num_files(files: Sequence[object]) -> str:
    """`1 file`, `2 files`."""
    return _count(len(files), "file")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


Labels = npt.NDArray[np.int64]


def read_labels(where: str, column: "pa.ChunkedArray") -> Labels:
    """The class of every row. Raises ConfigError: `where` and the row."""
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        raise ConfigError(f"{where} holds {column.type}; classes must be the numbers 0, 1, 2, ...")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise ConfigError(f"{where}: row {row} has no label")
    labels: Labels = column.to_numpy().astype(np.int64)
    return labels


def check_labels(where: str, labels: Labels, names: Sequence[str] | None) -> None:
    """Raise ConfigError, `where` and the row, for a label below 0 or not below the number of
    `names`, if these are known."""
    wrong = labels < 0
    if names is not None:
        wrong |= labels >= len(names)
    if wrong.any():
        row = int(wrong.argmax())
        known = "" if names is None else f"; there are {len(names)} classes ({listed(names)})"
        raise ConfigError(f"{where}: row {row} has label {labels[row]}{known}")


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
