"""One token per character: the vocabulary, encoding, and the tokenizer files Hugging Face reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

UNKNOWN = "<unk>"  # id 0


class CharTokenizer:
    """Maps characters to ids 1..N in code-point order; a character it has never seen to id 0."""

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
