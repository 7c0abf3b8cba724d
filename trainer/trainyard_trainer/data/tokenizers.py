"""Tokenizers: one token per character, and byte-level BPE from Hugging Face files.

BPE such as GPT-2's (Radford et al., 2019) and Qwen2's uses the `tokenizers` library alone, because
importing transformers takes seconds.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from trainyard_storage.files import write_json
from trainyard_trainer.data.hub import failed_load
from trainyard_trainer.errors import ConfigError

UNKNOWN = "<unk>"  # id 0


class CharTokenizer:
    """Maps characters to ids 1..N in code-point order; an unknown character to id 0."""

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._table = np.zeros(0x110000, dtype=np.int32)
        self._table[_code_points(characters)] = np.arange(1, len(characters) + 1)

    @classmethod
    def of(cls, text: str) -> "CharTokenizer":
        """The tokenizer of every character that occurs in `text`."""
        counts = np.bincount(_code_points(text))
        return cls("".join(map(chr, np.flatnonzero(counts))))

    @property
    def vocab_size(self) -> int:
        """Characters and <unk>."""
        return len(self.characters) + 1

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Ids, one per character."""
        return self._table[_code_points(text)]

    def decode(self, ids: list[int]) -> str:
        """Text of the ids."""
        return "".join(self.characters[i - 1] if i else UNKNOWN for i in ids)

    def save(self, directory: Path, max_length: int) -> None:
        """Write tokenizer.json and tokenizer_config.json for transformers' AutoTokenizer."""
        unknown = {
            "id": 0,
            "content": UNKNOWN,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        vocabulary = {UNKNOWN: 0} | {c: i for i, c in enumerate(self.characters, start=1)}
        tokenizer: dict[str, Any] = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [unknown],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": r"[\s\S]"},
                "behavior": "Isolated",
                "invert": False,
            },
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN},
        }
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": UNKNOWN,
            "model_max_length": max_length,
            "clean_up_tokenization_spaces": False,
        }
        for name, value in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
            text = json.dumps(value, indent=2, ensure_ascii=False)
            (directory / name).write_text(text + "\n", encoding="utf-8")


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="replace"), dtype=np.uint32)


TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_OTHERS = ("special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json")
_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")
_BATCH = 64  # texts encoded in parallel


class BPETokenizer:
    """Text to token ids and back.

    Attributes:
        vocab_size: all ids are below it.
        eos_id: the token that ends a text; None if there is none.
        fingerprint: sha256 of what defines the ids.
    """

    def __init__(self, source: str) -> None:
        """`source`: a directory with tokenizer.json, or a Hub id. Raises ConfigError."""
        self.source = source
        self.directory = Path(source) if Path(source).is_dir() else _download(source)
        text = _definition(self.directory, source)
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError(
                f"config.tokenizer: {self.directory / TOKENIZER} is not a tokenizer: {error}"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.fingerprint = _fingerprint(json.loads(text))
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1
        eos = self._config().get("eos_token")
        if isinstance(eos, dict):
            eos = eos.get("content")
        self.eos_id: int | None = self._tokenizer.token_to_id(eos) if eos else None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of ids; an incomplete character at the end becomes U+FFFD."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def encode_all(self, texts: Iterable[str], end: int | None) -> npt.NDArray[np.integer]:
        """Ids of all texts one after another, `end` after each; of type `token_dtype`."""
        # Set, or the library warns when loader workers are forked later.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        dtype = token_dtype(self.vocab_size)
        parts = [np.empty(0, dtype)]
        after = [] if end is None else [end]
        remaining = iter(texts)
        while batch := list(islice(remaining, _BATCH)):
            encodings = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            parts += [np.array([*e.ids, *after], dtype) for e in encodings]
        return np.concatenate(parts)

    def save(self, directory: Path, max_length: int) -> None:
        """Write the files that transformers' AutoTokenizer reads."""
        self._tokenizer.save(str(directory / TOKENIZER), pretty=False)
        for name in _OTHERS:
            if (self.directory / name).is_file():
                shutil.copyfile(self.directory / name, directory / name)
        defaults = {"tokenizer_class": "PreTrainedTokenizerFast"}
        write_json(
            directory / _CONFIG, defaults | self._config() | {"model_max_length": max_length}
        )

    def _config(self) -> dict[str, Any]:
        try:
            config: dict[str, Any] = json.loads((self.directory / _CONFIG).read_bytes())
        except FileNotFoundError:
            return {}
        return config


def token_dtype(vocab_size: int) -> type[np.integer]:
    """The smallest type for ids below `vocab_size`: uint16 up to 65,536 of them, else uint32."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def split_text(chunks: Iterable[str], size: int = 1 << 16) -> Iterator[str]:
    """A text in pieces of about `size` characters, tokenised like the whole text.

    Pieces end after a line break with no other white space beside it: byte-level BPE never merges
    across one.
    """
    text, start = "", size  # of the search for the piece's end
    for chunk in chunks:
        text += chunk
        done = 0
        while match := _LINE_END.search(text, start):
            yield text[done : match.end()]
            done = match.end()
            start = done + size
        text = text[done:]
        start = max(size, len(text) - 1)  # the next character may make its last one a line's end
    if text:
        yield text


def _definition(directory: Path, source: str) -> str:
    """The text of tokenizer.json; made from vocab.json and merges.txt where it is missing."""
    try:
        return (directory / TOKENIZER).read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    if not (directory / "vocab.json").is_file():
        raise ConfigError(
            f"config.tokenizer: {source} has no {TOKENIZER}; give a directory that has one, or the"
            " Hub id of a model with a fast tokenizer, such as openai-community/gpt2"
        )
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(directory).backend_tokenizer.to_str())


def _download(source: str) -> Path:
    """The tokenizer's files from the Hub, or from its cache on this machine."""
    setting = f"config.tokenizer: {source}"
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ConfigError(
            f"{setting} is not a directory; give one with a {TOKENIZER}, or a Hub id such as"
            " openai-community/gpt2"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=[TOKENIZER, _CONFIG, *_OTHERS]))
    except Exception as error:
        raise failed_load(setting, error, " from the Hub (and is not a local directory)") from None


def _fingerprint(definition: dict[str, Any]) -> str:
    """A sha256 that is the same for every JSON form of the same tokenizer."""
    merges = definition.get("model", {}).get("merges", [])
    if merges and not isinstance(merges[0], str):  # newer versions write pairs
        definition["model"]["merges"] = [" ".join(pair) for pair in merges]
    text = json.dumps(definition, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
