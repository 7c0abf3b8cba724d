"""Tables in parquet, csv and jsonl files and of the Hub, read a block of rows at a time."""

import bisect
import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

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


class File(Protocol):
    """What a table is in: a LocalFile or a RemoteFile."""

    name: str
    size: int
    digest: str

    def open(self) -> Any:
        """A path; or a seekable binary file, which can't be csv."""
        ...

    def explained(self) -> contextlib.AbstractContextManager[None]:
        """For all that is done with what `open` returns: errors that only this file can explain."""
        ...

    def check_unchanged(self) -> None:
        """See Table."""
        ...


class LocalFile:
    """A file of a file system; its digest is of the content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._version = self._stat()
        self.size = self._version[0]
        with path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()

    def _stat(self) -> tuple[int, int]:
        about = self.path.stat()
        return about.st_size, about.st_mtime_ns

    def open(self) -> Path:
        return self.path

    def explained(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # OSError has it all

    def check_unchanged(self) -> None:
        if self._stat() != self._version:
            raise ConfigError(
                f"{self.path} was changed while it was read; start the run again when it is"
                " complete"
            )


def open_table(file: File, columns: Sequence[str]) -> Table:
    """The table in a file. Raises OSError, ArrowInvalid, and what `explained` does."""
    is_parquet = file.name.endswith(".parquet")
    return _ParquetTable(file) if is_parquet else _TextTable(file, columns)


class _FileTable:
    def __init__(self, file: File) -> None:
        self._file = file
        self.digest = file.digest

    def check_unchanged(self) -> None:
        self._file.check_unchanged()


class _ParquetTable(_FileTable):
    def __init__(self, file: File) -> None:
        super().__init__(file)
        with self._open() as opened:
            self.schema = opened.schema_arrow
            groups = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]
        self._starts = [0, *accumulate(groups)]
        self.num_rows = self._starts[-1]

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        from pyarrow import parquet

        # Without these a whole row group would be read at once, which may be all of the file.
        options = {"pre_buffer": False, "buffer_size": _BLOCK_BYTES}
        with self._file.explained(), parquet.ParquetFile(self._file.open(), **options) as opened:
            yield opened

    def blocks(self, columns: Sequence[str], start: int) -> "Iterator[pa.Table]":
        import pyarrow as pa

        group = bisect.bisect_right(self._starts, start) - 1
        at, groups = self._starts[group], range(group, len(self._starts) - 1)
        with self._open() as file:
            for batch in file.iter_batches(_BLOCK_ROWS, row_groups=groups, columns=list(columns)):
                skipped, at = max(0, start - at), at + batch.num_rows
                if skipped < batch.num_rows:
                    yield pa.Table.from_batches([batch.slice(skipped)])


class _TextTable(_FileTable):
    """A csv or jsonl file: it is read once to count its rows, and their number is cached.

    The types of the columns are those of the first block. If they fit no later block, a row is
    larger than a block, or a column occurs in none of its rows, the whole file is one block.
    """

    def __init__(self, file: File, columns: Sequence[str]) -> None:
        super().__init__(file)
        self._is_csv = file.name.endswith(".csv")
        suffix = ".csv" if self._is_csv else ".jsonl"
        key = hashlib.sha256(repr((self.digest, suffix, sorted(columns))).encode())
        counted = cached(f"rows-{key.hexdigest()}", lambda: self._count(columns))
        self.num_rows, self._block_bytes = counted.tolist()
        with self._open(self._block_bytes) as reader:
            self.schema = reader.schema

    def _count(self, columns: Sequence[str]) -> "np.ndarray[Any, np.dtype[np.int64]]":
        import pyarrow as pa

        size = min(max(self._file.size + 1, _BLOCK_BYTES), _MAX_BLOCK_BYTES)
        try:
            with self._open(_BLOCK_BYTES) as reader:
                if set(columns) <= set(reader.schema.names):
                    return np.array([sum(block.num_rows for block in reader), _BLOCK_BYTES])
        except pa.ArrowInvalid:
            if size == _BLOCK_BYTES:
                raise
        with self._open(size) as reader:
            return np.array([sum(block.num_rows for block in reader), size])

    @contextlib.contextmanager
    def _open(self, block_bytes: int) -> Iterator[Any]:
        from pyarrow import csv, json

        with self._file.explained():
            source = self._file.open()
            if not isinstance(source, Path):
                yield _JsonLines(source, block_bytes)
                return
            if self._is_csv:
                parsing = csv.ParseOptions(newlines_in_values=True)  # texts may hold some
                reader = csv.open_csv(source, csv.ReadOptions(block_size=block_bytes), parsing)
            else:
                reader = json.open_json(source, json.ReadOptions(block_size=block_bytes))
            with reader:
                yield reader

    def blocks(self, columns: Sequence[str], start: int) -> "Iterator[pa.Table]":
        import pyarrow as pa

        at = 0
        with self._open(self._block_bytes) as reader:
            for batch in reader:
                skipped, at = max(0, start - at), at + batch.num_rows
                if skipped < batch.num_rows:
                    yield pa.Table.from_batches([batch.slice(skipped)]).select(list(columns))


class _JsonLines:
    """Does what open_json does, for a file that Python has opened: pyarrow would use it in threads
    of its own, which abort a process that ends before them. A row may be larger than a block."""

    def __init__(self, file: BinaryIO, block_bytes: int) -> None:
        """Raises ArrowInvalid."""
        import pyarrow as pa

        self._blocks = self._whole_lines(file, block_bytes)
        self.schema: pa.Schema | None = None
        self._first = self._parse(next(self._blocks, b""))
        self.schema = self._first.schema

    @staticmethod
    def _whole_lines(file: BinaryIO, block_bytes: int) -> Iterator[bytes]:
        rest = b""
        while data := file.read(block_bytes):
            text = rest + data
            end = text.rfind(b"\n") + 1 if len(data) == block_bytes else len(text)
            lines, rest = text[:end], text[end:]
            if lines.strip():
                yield lines
        if rest.strip():
            yield rest

    def _parse(self, lines: bytes) -> "pa.Table":
        import pyarrow as pa
        from pyarrow import json

        copy = pa.BufferOutputStream()  # of pyarrow's own memory, for its threads
        copy.write(lines)
        reading = json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
        parsing = json.ParseOptions(self.schema) if self.schema else json.ParseOptions()
        parsing.unexpected_field_behavior = "ignore" if self.schema else "infer"
        return json.read_json(pa.BufferReader(copy.getvalue()), reading, parsing)

    def __iter__(self) -> "Iterator[pa.RecordBatch]":
        yield from self._first.to_batches()
        for lines in self._blocks:
            yield from self._parse(lines).to_batches()


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
