"""Token ids of a whole corpus, one after another, and windows of them.

Text is tokenised once, in parts that the ranks of a run share, into memory-mapped files: neither
the text nor its tokens are in the memory of a process. Token files are memory-mapped as they are:
`.npy`, a 1-d array of integers; `.bin`, little-endian ids without a header, uint16 where the
tokenizer has at most 65,536 tokens and uint32 where it has more.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trainyard_trainer.data.cache import Array, cached_parts, on_progress
from trainyard_trainer.data.corpus import Text
from trainyard_trainer.data.remote import is_remote
from trainyard_trainer.data.rows import HUB, Rows
from trainyard_trainer.data.sampling import Batch, Ids, Noise
from trainyard_trainer.data.sequences import PART_ROWS, cache_key
from trainyard_trainer.data.tables import SUFFIXES
from trainyard_trainer.data.tokenizers import BPETokenizer, split_text, token_dtype
from trainyard_trainer.errors import ConfigError

_PART_PIECES = 32  # pieces of text, see split_text, that are tokenised into one file
_CHECKED_TOKENS = 2**25  # a corpus with more is checked in evenly spaced blocks
_BLOCK = 2**15


class Tokens:
    """Token ids in several arrays, read as if they were one."""

    def __init__(self, parts: Sequence[npt.NDArray[np.integer]]) -> None:
        self._parts = [np.asarray(part) for part in parts]  # np.memmap is slow to index
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, end: int) -> npt.NDArray[np.integer]:
        """Tokens start, start + 1, ..., end - 1, which must exist."""
        number = int(np.searchsorted(self._ends, start, side="right"))
        found = []
        while start < end:
            part, part_end = self._parts[number], int(self._ends[number])
            offset = part_end - len(part)
            found.append(part[start - offset : end - offset])
            start, number = max(start, part_end), number + 1
        return found[0] if len(found) == 1 else np.concatenate(found)


class Windows:
    """Windows of block_size + 1 tokens; the i-th starts at token start + i * stride.

    With a stride of block_size every token but the first is a target exactly once.
    """

    def __init__(self, tokens: Tokens, block_size: int, stride: int, start: int, end: int) -> None:
        """All that are within tokens start, start + 1, ..., end - 1."""
        self.tokens = tokens
        self.stride = stride
        self._size = block_size + 1
        self._start = start
        self._end = end

    def __len__(self) -> int:
        return (self._end - self._start - self._size) // self.stride + 1

    def __getitem__(self, index: int) -> npt.NDArray[np.integer]:
        """The window, shape (block_size + 1,)."""
        start = self._start + index * self.stride
        return self.tokens.read(start, start + self._size)

    def fetch(self, ids: Ids, _noise: Noise) -> Batch:
        """Inputs and targets, each (len(ids), block_size) and contiguous."""
        windows = np.stack([self[index] for index in ids.tolist()])
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
    border = len(tokens) - num_held_out
    return (
        Windows(tokens, block_size, stride, 0, border),
        Windows(tokens, block_size, block_size, border, len(tokens)),
    )


def load_tokens(corpus: str, text_column: str, tokenizer: BPETokenizer) -> tuple[Tokens, str]:
    """The token ids of a recipe's `corpus` setting, and a few words for the console: what was read
    and left out. Raises ConfigError with what to change, and DiskFullError.

    A `.npy` or `.bin` token file; the column `text_column` of a parquet, csv or jsonl file, of
    hub:OWNER/NAME[:CONFIG], s3://... or hf://datasets/... (see Rows), each row a document that ends
    with the tokenizer's end-of-text token; or anything that corpus.load_text reads.
    """
    suffix = Path(corpus).suffix
    if suffix in (".npy", ".bin"):
        return Tokens([_token_file(Path(corpus), tokenizer)]), "1 file"
    if suffix in SUFFIXES or corpus.startswith(HUB) or is_remote(corpus):
        return _of_table(Rows("corpus", corpus, "train", [text_column]), tokenizer)
    return _of_text(Text(corpus), tokenizer)


def check_tokens(tokens: Tokens, tokenizer: BPETokenizer, corpus: str) -> str:
    """A sha256 of the tokens. Raises ConfigError for ids outside the tokenizer's vocabulary.

    Reads every token of a corpus of up to 33 million, and evenly spaced blocks of a larger one.
    """
    digest = hashlib.sha256(f"{len(tokens)}".encode())
    starts = range(0, len(tokens), _BLOCK)
    if len(tokens) > _CHECKED_TOKENS:
        starts = range(0, len(tokens) - _BLOCK, len(tokens) // (_CHECKED_TOKENS // _BLOCK))
    for start in starts:
        block = np.ascontiguousarray(tokens.read(start, min(start + _BLOCK, len(tokens))))
        if int(block.max()) >= tokenizer.vocab_size or int(block.min()) < 0:
            raise ConfigError(
                f"config.tokenizer: {tokenizer.source} has {tokenizer.vocab_size:,} tokens, but"
                f" {corpus} has ids from {block.min()} to {block.max()}: use the"
                " tokenizer that made it"
            )
        digest.update(block.astype("<u4").tobytes())
    return digest.hexdigest()


def _token_file(path: Path, tokenizer: BPETokenizer) -> Array:
    where = f"config.corpus: {path}"
    try:
        if path.suffix == ".npy":
            tokens: Array = np.load(path, mmap_mode="r")
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


def _of_table(rows: Rows, tokenizer: BPETokenizer) -> tuple[Tokens, str]:
    """Each part's file starts with how many of its rows have no text."""
    import pyarrow.types as types  # type: ignore[import-untyped]

    [column] = rows.columns
    kind = rows.schema.field(column).type
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise ConfigError(f"config.text_column: {column} of {rows.source} holds {kind}, not text")

    def make(i: int) -> Array:
        start = i * PART_ROWS
        texts = rows.read(start, min(start + PART_ROWS, rows.num_rows))[column].to_pylist()
        tokens = tokenizer.encode_all(filter(None, texts), tokenizer.eos_id)
        return np.concatenate([np.array([sum(not text for text in texts)], tokens.dtype), tokens])

    key = cache_key("tokens", rows.digest, tokenizer.fingerprint, tokenizer.eos_id)
    names = [f"{key}/{number:06}" for number in range(-(-rows.num_rows // PART_ROWS))]
    parts = cached_parts(names, make, f"tokenising {rows.source}")
    about = rows.about
    if num_empty := sum(int(part[0]) for part in parts):
        about += f"; left out: {num_empty:,} rows without a text"
    return Tokens([part[1:] for part in parts]), about


def _of_text(text: Text, tokenizer: BPETokenizer) -> tuple[Tokens, str]:
    names, num_characters = [], 0
    for part in _parts(text):
        names.append(_part_name(part, tokenizer))
        num_characters += sum(map(len, part))
        on_progress.get()(f"reading {text.corpus}: {num_characters:,} characters")
    about = text.about(num_characters)
    reader = _PartReader(text)

    def make(i: int) -> Array:
        part = reader.read(i)
        if _part_name(part, tokenizer) != names[i]:
            raise ConfigError(
                f"config.corpus: {text.corpus} has changed while it was read; start the run again"
            )
        return tokenizer.encode_all(part, None)

    return Tokens(cached_parts(names, make, f"tokenising {text.corpus}")), about


def _parts(text: Text) -> Iterator[list[str]]:
    pieces = split_text(text.chunks())
    while part := list(islice(pieces, _PART_PIECES)):
        yield part


def _part_name(part: list[str], tokenizer: BPETokenizer) -> str:
    """The cache's name for its tokens: by content, so that a text that grows keeps its parts."""
    digest = hashlib.sha256()
    for piece in part:
        encoded = piece.encode(errors="replace")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    key = cache_key("tokens", tokenizer.fingerprint, digest.hexdigest())
    return f"text/{key}"


class _PartReader:
    """Reads one part of a text after another; from its start again for an earlier one."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._at = 0
        self._parts = _parts(text)

    def read(self, number: int) -> list[str]:
        """Its pieces; none beyond the end."""
        if number < self._at:
            self._at, self._parts = 0, _parts(self._text)
        skipped = number - self._at
        self._at = number + 1
        return next(islice(self._parts, skipped, None), [])
