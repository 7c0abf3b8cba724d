"""The texts and bytes of a tokenizer's tokens, as log-probabilities show them."""

import re
from dataclasses import dataclass
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from trainyard_serving.generate.sequence import REPLACEMENT

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # of tokenizers with byte fallback, such as Llama's


_byte_level: Any = bytes_to_unicode  # how byte-level BPE, such as GPT-2's, writes bytes


@dataclass(frozen=True, slots=True)
class TokenText:
    """How a token is shown.

    Attributes:
        text: for a token with part of a character `bytes:` and its bytes, as OpenAI writes it.
        content: the bytes that it adds to a text.
        initial: the same at the beginning of a text, where some tokenizers drop a space.
    """

    text: str
    content: bytes
    initial: bytes


class Vocabulary:
    """The tokens of a tokenizer by their ids; each is decoded once."""

    def __init__(self, tokenizer: Any, num_tokens: int) -> None:
        """
        Args:
            num_tokens: that a prompt may have; higher ids only pad the model's vocabulary.
        """
        self._tokenizer = tokenizer
        self.num_tokens = num_tokens
        self._special = frozenset(tokenizer.all_special_ids)
        self._bytes = {char: byte for byte, char in _byte_level().items()}
        self._texts: dict[int, TokenText] = {}

    def is_special(self, token: int) -> bool:
        """Whether texts leave it out."""
        return token in self._special

    def __getitem__(self, token: int) -> TokenText:
        if (known := self._texts.get(token)) is None:
            known = self._texts[token] = self._text_of(token)
        return known

    def _text_of(self, token: int) -> TokenText:
        if token >= self.num_tokens:
            text = f"token_id:{token}"
            return TokenText(text, b"", b"")
        alone = self._tokenizer.decode([token])
        if REPLACEMENT in alone and (content := self._bytes_of(token)) is not None:
            return _of_bytes(content)
        # In the middle of a text, so that no space is dropped.
        text = self._tokenizer.decode([token, token])[len(alone) :]
        return TokenText(text, text.encode(), alone.encode())

    def _bytes_of(self, token: int) -> bytes | None:
        """The bytes of a token that is not text; None if the tokenizer does not tell."""
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        if byte := BYTE_TOKEN.fullmatch(name):
            return bytes.fromhex(byte[1])
        if all(char in self._bytes for char in name):
            return bytes(self._bytes[char] for char in name)
        return None


def _of_bytes(content: bytes) -> TokenText:
    try:
        return TokenText(content.decode(), content, content)
    except UnicodeDecodeError:
        shown = "".join(f"\\x{byte:02x}" for byte in content)
        return TokenText(f"bytes:{shown}", content, content)
