"""Token ids to train on: a token file, or text that is tokenised once and kept.

Token files are memory-mapped: `.npy`, a 1-d array of integers; `.bin`, nothing but little-endian
ids, uint16 where the tokenizer has at most 65,536 tokens and uint32 where it has more.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainyard_trainer.data.bpe_tokenizer import BPETokenizer, pieces, token_dtype
from trainyard_trainer.data.corpus import load_text
from trainyard_trainer.data.rows import HUB, load_rows
from trainyard_trainer.data.token_cache import keep
from trainyard_trainer.data.windows import Tokens
from trainyard_trainer.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

_TABLES = (".parquet", ".csv", ".jsonl")
_LOOK_AT = 2**25  # tokens of a corpus that are read at the start; more are looked at in samples
_BLOCK = 2**15


def load_tokens(corpus: str, text_column: str, tokenizer: BPETokenizer) -> Tokens:
    """The ids that a recipe's `corpus` names, 1-d. Raises ConfigError with what to change.

    A `.npy` or `.bin` token file; the column `text_column` of a parquet, csv or jsonl file or of
    hub:OWNER/NAME[:CONFIG], each row a document that ends with the tokenizer's end-of-text token;
    or any text that `load_text` knows.
    """
    suffix = Path(corpus).suffix
    if suffix in (".npy", ".bin"):
        return _token_file(Path(corpus), tokenizer)
    if suffix in _TABLES or corpus.startswith(HUB):
        column = load_rows("corpus", corpus, "train", [text_column]).column(text_column)
        return _tokenised(_Documents(column, corpus, text_column), tokenizer, tokenizer.eos_id)
    return _tokenised(list(pieces(load_text(corpus))), tokenizer, None)


def inspect(tokens: Tokens, tokenizer: BPETokenizer, corpus: str) -> str:
    """A sha256 that names the tokens. Raises ConfigError if the tokenizer can't have made them.

    Both from every token of a corpus of up to 33 million, and from evenly spread ones of a larger.
    """
    digest = hashlib.sha256(f"{len(tokens)}".encode())
    starts = range(0, len(tokens), _BLOCK)
    if len(tokens) > _LOOK_AT:
        starts = range(0, len(tokens) - _BLOCK, len(tokens) // (_LOOK_AT // _BLOCK))
    for start in starts:
        block = np.ascontiguousarray(tokens[start : start + _BLOCK])
        if int(block.max()) >= tokenizer.vocab_size or int(block.min()) < 0:
            raise ConfigError(
                f"config.tokenizer: {tokenizer.source} has {tokenizer.vocab_size:,} tokens, but"
                f" {corpus} holds the ids {block.min()} to {block.max()}: use the tokenizer it was"
                " made with"
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
    except ValueError as error:  # empty, cut off, of pickled objects, not a whole number of ids
        raise ConfigError(f"{where} is no token file: {error}") from None
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui":
        shown = f"{tokens.dtype} of shape {tokens.shape}"
        raise ConfigError(f"{where} must hold one row of integers, but holds {shown}")
    return tokens


class _Documents:
    """The strings of a column, as often as asked for."""

    def __init__(self, column: "pa.ChunkedArray", corpus: str, name: str) -> None:
        import pyarrow.types as types  # type: ignore[import-untyped]

        if not (types.is_string(column.type) or types.is_large_string(column.type)):
            raise ConfigError(
                f"config.text_column: {name} of {corpus} holds {column.type}, not text"
            )
        self.column = column

    def __iter__(self) -> Iterator[str]:
        for chunk in self.column.chunks:
            yield from (text for text in chunk.to_pylist() if text)


def _tokenised(texts: Iterable[str], tokenizer: BPETokenizer, end: int | None) -> Tokens:
    digest = hashlib.sha256(f"{tokenizer.fingerprint} {end}".encode())
    for text in texts:
        encoded = text.encode(errors="replace")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return keep(f"tokens-{digest.hexdigest()}", lambda: tokenizer.encode_all(texts, end))
