"""Tables in parquet, csv and jsonl files and of the Hub, read a block of rows at a time."""

import bisect
import hashlib
import os
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trainyard_trainer.data.cache import cached
from trainyard_trainer.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

SUFFIXES = (".parquet", ".csv", ".jsonl")
_BLOCK_ROWS = 1000
_BLOCK_BYTES = 2**20
_MAX_BLOCK_BYTES = 2**31 - 1


class Table(Protocol):
    """Numbered rows.

    Attributes:
        schema: of all columns; with the metadata that `datasets` wrote.
        digest: a sha256 of what defines the rows.
    """

    schema: "pa.Schema"
    num_rows: int
    digest: str

    def blocks(self, columns: Sequence[str], start: int) -> "Iterator[pa.Table]":
        """The rows from `start` to the last, some at a time."""
        ...

    def check_unchanged(self) -> None:
        """Raise ConfigError if the rows are not those of the digest any more."""
        ...


def open_table(path: Path, columns: Sequence[str]) -> Table:
    """The table in a file. Raises OSError and ArrowInvalid."""
    return _ParquetFile(path) if path.suffix == ".parquet" else _TextFile(path, columns)


class _File:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._version = self._stat()
        with path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()

    def _stat(self) -> tuple[int, int]:
        about = self.path.stat()
        return about.st_size, about.st_mtime_ns

    def check_unchanged(self) -> None:
        if self._stat() != self._version:
            raise ConfigError(
                f"{self.path} was changed while it was read; start the run again when it is"
                " complete"
            )


class _ParquetFile(_File):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._open() as file:
            self.schema = file.schema_arrow
            groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self._starts = [0, *accumulate(groups)]
        self.num_rows = self._starts[-1]

    def _open(self) -> Any:
        from pyarrow import parquet

        # Without these a whole row group would be read at once, which may be all of the file.
        return parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=_BLOCK_BYTES)

    def blocks(self, columns: Sequence[str], start: int) -> "Iterator[pa.Table]":
        import pyarrow as pa

        group = bisect.bisect_right(self._starts, start) - 1
        at, groups = self._starts[group], range(group, len(self._starts) - 1)
        with self._open() as file:
            for batch in file.iter_batches(_BLOCK_ROWS, row_groups=groups, columns=list(columns)):
                skipped, at = max(0, start - at), at + batch.num_rows
                if skipped < batch.num_rows:
                    yield pa.Table.from_batches([batch.slice(skipped)])


class _TextFile(_File):
    """A csv or jsonl file: it is read once to count its rows, and their number is cached.

    The types of the columns are those of the first block. If they fit no later block, a row is
    larger than a block, or a column occurs in none of its rows, the whole file is one block.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        super().__init__(path)
        key = hashlib.sha256(repr((self.digest, path.suffix, sorted(columns))).encode())
        counted = cached(f"rows-{key.hexdigest()}", lambda: self._count(columns))
        self.num_rows, self._block_bytes = counted.tolist()
        with self._open(self._block_bytes) as reader:
            self.schema = reader.schema

    def _count(self, columns: Sequence[str]) -> "np.ndarray[Any, np.dtype[np.int64]]":
        import pyarrow as pa

        size = min(max(os.path.getsize(self.path) + 1, _BLOCK_BYTES), _MAX_BLOCK_BYTES)
        try:
            with self._open(_BLOCK_BYTES) as reader:
                if set(columns) <= set(reader.schema.names):
                    return np.array([sum(block.num_rows for block in reader), _BLOCK_BYTES])
        except pa.ArrowInvalid:
            if size == _BLOCK_BYTES:
                raise
        with self._open(size) as reader:
            return np.array([sum(block.num_rows for block in reader), size])

    def _open(self, block_bytes: int) -> Any:
        if self.path.suffix == ".csv":
            from pyarrow import csv

            return csv.open_csv(
                self.path,
                parse_options=csv.ParseOptions(newlines_in_values=True),  # texts may hold some
                read_options=csv.ReadOptions(block_size=block_bytes),
            )
        from pyarrow import json

        return json.open_json(self.path, read_options=json.ReadOptions(block_size=block_bytes))

    def blocks(self, columns: Sequence[str], start: int) -> "Iterator[pa.Table]":
        import pyarrow as pa

        at = 0
        with self._open(self._block_bytes) as reader:
            for batch in reader:
                skipped, at = max(0, start - at), at + batch.num_rows
                if skipped < batch.num_rows:
                    yield pa.Table.from_batches([batch.slice(skipped)]).select(list(columns))


class HubTable:
    """A split of a data set of the Hub, memory-mapped from the cache of `datasets`."""

    def __init__(self, name: str, config: str | None, split: str) -> None:
        """Raises whatever the library does."""
        import datasets  # type: ignore[import-untyped]

        loaded = datasets.load_dataset(name, config, split=split)
        self.digest = str(loaded._fingerprint)
        self.num_rows = int(loaded.num_rows)
        self._rows = loaded.with_format("arrow")  # images stay encoded
        self.schema = self._rows[:1].schema

    def blocks(self, columns: Sequence[str], start: int) -> "Iterator[pa.Table]":
        rows = self._rows.select_columns(list(columns))
        for at in range(start, self.num_rows, _BLOCK_ROWS):
            yield rows[at : at + _BLOCK_ROWS]

    def check_unchanged(self) -> None:
        """The cache's files are never changed."""
