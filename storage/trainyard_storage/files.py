"""Atomic writes: a reader, or a crash, finds either the old content or the new."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def open_atomic(path: Path, *, durable: bool = True, writer: str = "") -> Iterator[BinaryIO]:
    """A temporary file beside `path` that replaces it when the block ends without an error.

    durable: sync it to disk first. False where losing it in a power failure costs less than
        waiting for the disk.
    writer: names this process, where several may write `path` at the same time.
    """
    temporary = path.with_name(f".{path.name}.{writer}tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text_atomic(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace the content of `path`, as UTF-8."""
    with open_atomic(path, durable=durable) as file:
        file.write(text.encode())


def write_json(path: Path, value: object) -> None:
    """Write indented JSON; not atomic."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
