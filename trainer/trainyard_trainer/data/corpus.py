"""Text for training: the standard library's source, files, or the Hugging Face Hub."""

import glob
import io
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from trainyard_trainer.data.hub import failed_load
from trainyard_trainer.data.rows import listed, num_files, shown_name, visible
from trainyard_trainer.errors import ConfigError

STDLIB_BYTES = 4_000_000  # enough for a small model, and read quickly
_TEXT_SUFFIXES = (".txt", ".md", ".py", ".text")
_CHUNK = 2**20  # characters


def load_text(corpus: str) -> str:
    """The text of a recipe's `corpus` setting.

    Raises ConfigError that says what to change, and HubUnreachableError.

    `stdlib`: the source of the running Python's standard library; a path to a text file, to a
    directory of them, or a glob (sorted and joined); `hub:OWNER/NAME[:COLUMN]`: the train split of
    a Hub data set.
    """
    return read_text(corpus)[0]


def read_text(corpus: str) -> tuple[str, str]:
    """The text of `load_text`, and a few words for the console: what was read and left out."""
    source = Text(corpus)
    text = "".join(source.chunks())
    return text, source.about(len(text))


class Text:
    """The text of a `corpus` setting, as `load_text` describes it, read some at a time."""

    def __init__(self, corpus: str) -> None:
        """Raises ConfigError that says what to change."""
        self.corpus = corpus
        own = corpus == "stdlib" or corpus.startswith("hub:")
        self._files = [] if own else _files(corpus)

    def chunks(self) -> Iterator[str]:
        """All of it, in pieces that end anywhere. Raises ConfigError and HubUnreachableError."""
        if self.corpus == "stdlib":
            yield _stdlib()
        elif self.corpus.startswith("hub:"):
            yield _hub(self.corpus.removeprefix("hub:"))
        for path in self._files:
            yield from _chunks(path)

    def about(self, num_characters: int) -> str:
        """A few words for the console: what was read and left out.

        Raises ConfigError if that is nothing.
        """
        if not num_characters:
            raise ConfigError(f"config.corpus: {self.corpus} is empty")
        text = f"{num_characters:,} characters"
        if self._files:
            text += f" of {num_files(self._files)}"
            if left_out := _left_out(Path(self.corpus), self._files):
                text += f"; left out: {left_out}"
        return text


def _left_out(folder: Path, files: list[Path]) -> str:
    """What of a directory is not read, and why; "" if everything is, or it is none."""
    others = [path for path in visible(folder) if path not in files] if folder.is_dir() else []
    parts = []
    if names := [path.name for path in others if not path.is_dir()]:
        parts.append(f"{listed(names)} (not named {', '.join(_TEXT_SUFFIXES)})")
    if names := [shown_name(path) for path in others if path.is_dir()]:
        parts.append(f"{listed(names)} (a glob such as {folder}/**/*.txt reads folders, too)")
    return ", ".join(parts)


def _files(corpus: str) -> list[Path]:
    path = Path(corpus)
    if path.is_file():
        return [path]
    if path.is_dir():
        # Text files by suffix; every regular file if there are none.
        files = [each for each in visible(path) if each.is_file()]
        files = [each for each in files if each.suffix in _TEXT_SUFFIXES] or files
        if not files:
            raise ConfigError(f"config.corpus: the directory {corpus} has no text files")
        return files
    files = sorted(Path(name) for name in glob.glob(corpus, recursive=True))
    files = [path for path in files if path.is_file()]
    if not files:
        raise ConfigError(
            f"config.corpus: {corpus} does not exist here; give a text file, a directory or glob"
            " of them, stdlib, or hub:OWNER/NAME"
        )
    return files


def _chunks(path: Path) -> Iterator[str]:
    try:
        # The encoding leaves out the byte-order mark of Windows.
        with path.open("rb") as data, io.TextIOWrapper(data, encoding="utf-8-sig") as file:
            try:
                while chunk := file.read(_CHUNK):
                    yield chunk
            except UnicodeDecodeError as error:
                at = data.tell() - len(error.object) + error.start
                raise ConfigError(f"config.corpus: {path} is not UTF-8 text (byte {at})") from None
    except OSError as error:
        raise ConfigError(f"config.corpus: {path}: {error.strerror}") from None


def _stdlib() -> str:
    """Pure-ASCII modules of the standard library in a fixed order, up to STDLIB_BYTES."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "encodings"}
    skipped |= {"__pycache__", "pydoc_data", "turtledemo", "config", "ensurepip"}
    parts: list[str] = []
    size = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in skipped)
        for name in sorted(names):
            if not name.endswith(".py"):
                continue
            try:
                source = Path(folder, name).read_text(encoding="ascii")
            except (OSError, UnicodeDecodeError):
                continue  # a few modules have non-ASCII letters: not worth a larger vocabulary
            parts.append(source)
            size += len(source)
            if size >= STDLIB_BYTES:
                return "".join(parts)[:STDLIB_BYTES]
    if not parts:
        raise ConfigError(
            f"config.corpus: this Python has no standard library source in {root}; give a text file"
        )
    return "".join(parts)


def _hub(name: str) -> str:
    dataset, _, column = name.partition(":")
    import datasets  # type: ignore[import-untyped]

    try:
        rows = datasets.load_dataset(dataset, split="train")
    except Exception as error:
        raise failed_load(f"config.corpus: hub:{dataset}", error) from None
    column = column or "text"
    if column not in rows.column_names:
        raise ConfigError(
            f"config.corpus: hub:{dataset} has no column {column}; it has"
            f" {', '.join(rows.column_names)}: write hub:{dataset}:COLUMN"
        )
    return "\n".join(rows[column])
