"""Text and token ids for training: the standard library's source, files, or the Hugging Face Hub.

Token files are memory-mapped: `.npy`, a 1-d array of integers; `.bin`, little-endian ids without a
header, uint16 where the tokenizer has at most 65,536 tokens and uint32 where it has more.
"""

import glob
import hashlib
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trainyard_trainer.data.cache import cached, on_progress
from trainyard_trainer.data.hub import failed_load
from trainyard_trainer.data.remote import is_remote
from trainyard_trainer.data.rows import HUB, Rows, listed, num_files, shown_name, visible
from trainyard_trainer.data.sampling import Batch, Ids, Noise
from trainyard_trainer.data.sequences import PART_ROWS, cache_key
from trainyard_trainer.data.tables import SUFFIXES
from trainyard_trainer.data.tokenizers import BPETokenizer, split_text, token_dtype
from trainyard_trainer.errors import ConfigError

STDLIB_BYTES = 4_000_000  # enough for a small model, and read quickly
_TEXT_SUFFIXES = (".txt", ".md", ".py", ".text")


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
    about = ""
    if corpus == "stdlib":
        text = _stdlib()
    elif corpus.startswith("hub:"):
        text = _hub(corpus.removeprefix("hub:"))
    else:
        files = _files(corpus)
        text, about = "".join(_read(path) for path in files), f" of {num_files(files)}"
        if left_out := _left_out(Path(corpus), files):
            about += f"; left out: {left_out}"
    if not text:
        raise ConfigError(f"config.corpus: {corpus} is empty")
    return text, f"{len(text):,} characters{about}"


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


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # without the byte-order mark of Windows
    except OSError as error:
        raise ConfigError(f"config.corpus: {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"config.corpus: {path} is not UTF-8 text (byte {error.start})") from None


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


Tokens = npt.NDArray[np.integer]


class Windows:
    """Windows of block_size + 1 tokens; the i-th starts at token i * stride.

    With a stride of block_size every token but the first is a target exactly once.
    """

    def __init__(self, tokens: Tokens, block_size: int, stride: int) -> None:
        self.tokens = tokens
        self.stride = stride
        self._offsets = np.arange(block_size + 1)

    def __len__(self) -> int:
        return (len(self.tokens) - len(self._offsets)) // self.stride + 1

    def fetch(self, ids: Ids, _noise: Noise) -> Batch:
        """Inputs and targets, each (len(ids), block_size) and contiguous."""
        windows = self.tokens[ids[:, None] * self.stride + self._offsets]
        inputs, targets = windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)
        return {"ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}


def split(
    tokens: Tokens, block_size: int, eval_fraction: float, stride: int, where: str, unit: str
) -> tuple[Windows, Windows]:
    """Training windows, and held-out windows from the end of the sequence.

    Raises ConfigError if there are too few tokens for one of each. `where` starts the message;
    `unit` is what it calls the tokens.
    """
    num_held_out = int(len(tokens) * eval_fraction)
    if min(num_held_out, len(tokens) - num_held_out) <= block_size:
        needed = int((block_size + 1) / min(eval_fraction, 1 - eval_fraction)) + 1
        raise ConfigError(
            f"{where} has {len(tokens):,} {unit}, too few for block_size {block_size}: give at"
            f" least {needed:,}, or lower block_size"
        )
    return (
        Windows(tokens[:-num_held_out], block_size, stride),
        Windows(tokens[-num_held_out:], block_size, block_size),
    )


_CHECKED_TOKENS = 2**25  # a corpus with more is checked in evenly spaced blocks
_BLOCK = 2**15


def load_tokens(corpus: str, text_column: str, tokenizer: BPETokenizer) -> tuple[Tokens, str]:
    """The token ids of a recipe's `corpus` setting, 1-d, and a few words for the console: what was
    read and left out. Raises ConfigError with what to change.

    A `.npy` or `.bin` token file; the column `text_column` of a parquet, csv or jsonl file, of
    hub:OWNER/NAME[:CONFIG], s3://... or hf://datasets/... (see Rows), each row a document that ends
    with the tokenizer's end-of-text token; or anything that `load_text` reads.
    """
    suffix = Path(corpus).suffix
    if suffix in (".npy", ".bin"):
        return _token_file(Path(corpus), tokenizer), "1 file"
    if suffix in SUFFIXES or corpus.startswith(HUB) or is_remote(corpus):
        documents = _Documents(Rows("corpus", corpus, "train", [text_column]), text_column)
        about = documents.rows.about
        key = cache_key("tokens", documents.rows.digest, tokenizer.fingerprint, tokenizer.eos_id)
        tokens = cached(key, lambda: tokenizer.encode_all(documents, tokenizer.eos_id))
        if num_empty := int(cached(f"{key}-empty", documents.count_empty)[0]):
            about += f"; left out: {num_empty:,} rows without a text"
        return tokens, about
    text, about = read_text(corpus)
    return _tokenize(list(split_text(text)), tokenizer, None), about


def check_tokens(tokens: Tokens, tokenizer: BPETokenizer, corpus: str) -> str:
    """A sha256 of the tokens. Raises ConfigError for ids outside the tokenizer's vocabulary.

    Reads every token of a corpus of up to 33 million, and evenly spaced blocks of a larger one.
    """
    digest = hashlib.sha256(f"{len(tokens)}".encode())
    starts = range(0, len(tokens), _BLOCK)
    if len(tokens) > _CHECKED_TOKENS:
        starts = range(0, len(tokens) - _BLOCK, len(tokens) // (_CHECKED_TOKENS // _BLOCK))
    for start in starts:
        block = np.ascontiguousarray(tokens[start : start + _BLOCK])
        if int(block.max()) >= tokenizer.vocab_size or int(block.min()) < 0:
            raise ConfigError(
                f"config.tokenizer: {tokenizer.source} has {tokenizer.vocab_size:,} tokens, but"
                f" {corpus} has ids from {block.min()} to {block.max()}: use the"
                " tokenizer that made it"
            )
        digest.update(block.astype("<u4").tobytes())
    return digest.hexdigest()


def _token_file(path: Path, tokenizer: BPETokenizer) -> Tokens:
    where = f"config.corpus: {path}"
    try:
        if path.suffix == ".npy":
            tokens: Tokens = np.load(path, mmap_mode="r")
        else:
            dtype = np.dtype(token_dtype(tokenizer.vocab_size)).newbyteorder("<")
            tokens = np.memmap(path, dtype, mode="r")
    except FileNotFoundError:
        raise ConfigError(f"{where} does not exist here; give a .npy or .bin token file") from None
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror or error}") from None
    except ValueError as error:  # empty, truncated, pickled, or not a multiple of the id size
        raise ConfigError(f"{where} is not a token file: {error}") from None
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui":
        found = f"{tokens.dtype} of shape {tokens.shape}"
        raise ConfigError(f"{where} must be a 1-d array of integers, but is {found}")
    return tokens


class _Documents:
    """The non-empty strings of a column; can be iterated more than once."""

    def __init__(self, rows: Rows, column: str) -> None:
        import pyarrow.types as types  # type: ignore[import-untyped]

        kind = rows.schema.field(column).type
        if not (types.is_string(kind) or types.is_large_string(kind)):
            raise ConfigError(
                f"config.text_column: {column} of {rows.source} holds {kind}, not text"
            )
        self.rows = rows
        self.column = column

    def _blocks(self) -> Iterator[list[str]]:
        num_rows = self.rows.num_rows
        for start in range(0, num_rows, PART_ROWS):
            end = min(start + PART_ROWS, num_rows)
            yield self.rows.read(start, end)[self.column].to_pylist()
            on_progress.get()(f"reading {self.rows.source}: {end / num_rows:.0%}")

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks():
            yield from (text for text in block if text)

    def count_empty(self) -> Tokens:
        """How many rows have no text, shape (1,)."""
        return np.array([sum(not text for block in self._blocks() for text in block)])


def _tokenize(texts: Iterable[str], tokenizer: BPETokenizer, end: int | None) -> Tokens:
    digest = hashlib.sha256(f"{tokenizer.fingerprint} {end}".encode())
    for text in texts:
        encoded = text.encode(errors="replace")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return cached(f"tokens-{digest.hexdigest()}", lambda: tokenizer.encode_all(texts, end))
