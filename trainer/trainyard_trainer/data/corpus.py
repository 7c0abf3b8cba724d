"""Text to train on: the standard library's source, files, or a data set of the Hugging Face Hub."""

import glob
import os
import sysconfig
from pathlib import Path

from trainyard_trainer.errors import ConfigError

STDLIB_BYTES = 4_000_000  # enough for a small model, and read in a moment
_TEXT_SUFFIXES = (".txt", ".md", ".py", ".text")


def load_text(corpus: str) -> str:
    """The text a recipe's `corpus` names. Raises ConfigError with what to change.

    `stdlib`: the source of the running Python's standard library; a path to a text file, to a
    directory of them, or a glob (sorted and joined); `hub:OWNER/NAME[:COLUMN]`: the train split of
    a Hub data set.
    """
    if corpus == "stdlib":
        text = _stdlib()
    elif corpus.startswith("hub:"):
        text = _hub(corpus.removeprefix("hub:"))
    else:
        text = "".join(_read(path) for path in _files(corpus))
    if not text:
        raise ConfigError(f"config.corpus: {corpus} is empty")
    return text


def _files(corpus: str) -> list[Path]:
    path = Path(corpus)
    if path.is_file():
        return [path]
    if path.is_dir():
        # Every regular file, unless some are plainly text and some are not. Mounted ConfigMaps
        # show their files as links and their versions as directories that begin with `..`.
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        files = [p for p in files if p.suffix in _TEXT_SUFFIXES] or files
        if not files:
            raise ConfigError(f"config.corpus: the directory {corpus} holds no text files")
        return files
    files = sorted(Path(name) for name in glob.glob(corpus, recursive=True))
    files = [path for path in files if path.is_file()]
    if not files:
        raise ConfigError(
            f"config.corpus: {corpus} does not exist here; give a text file, a directory or glob"
            " of them, stdlib, or hub:OWNER/NAME"
        )
    return files


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config.corpus: {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"config.corpus: {path} is no UTF-8 text (byte {error.start})") from None


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
                continue  # a few modules hold other scripts' letters: not worth a vocabulary
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
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"config.corpus: hub:{dataset} could not be loaded: {reason}") from None
    column = column or "text"
    if column not in rows.column_names:
        raise ConfigError(
            f"config.corpus: hub:{dataset} has no column {column}; it has"
            f" {', '.join(rows.column_names)}: write hub:{dataset}:COLUMN"
        )
    return "\n".join(rows[column])
