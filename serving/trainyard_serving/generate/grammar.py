"""Answers in JSON: at each step, the tokens that can continue JSON of the requested schema.

llguidance (MIT, 3 MB, no dependencies; vLLM, SGLang and llama.cpp use it, too) computes them while
the text is generated, so most schemas compile in milliseconds. Its limits, with those of
schema_cost.py, bound the work that a hostile one can cause. outlines-core compiles an automaton
over the whole vocabulary first; xgrammar does so for parts of a schema, and needs the runtime of a
compiler (apache-tvm-ffi).
"""

import json
import string
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from trainyard_serving.errors import one_line
from trainyard_serving.generate.engine import GrammarError, JsonDict, PromptError
from trainyard_serving.generate.schema_cost import too_costly

MAX_SCHEMA_BYTES = 32 * 1024  # of this size, the slowest that we found compile in a few seconds
# As json.dumps writes it. White space at will would allow an answer of nothing else.
FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# It stands for the end of the JSON; the model has no such token.
END = "<|end of json|>"
JSON_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " "


class JsonGrammars:
    """Compiles schemas for the tokenizer of one model."""

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._tokens: LLTokenizer | None = None  # takes a second for a large vocabulary
        self._loading = threading.Lock()

    def compile(self, schema: JsonDict) -> "JsonGrammar":
        """Raises PromptError for a schema that is too large, invalid or not supported."""
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA_BYTES:
            raise _refused(f"the schema has {len(text)} bytes: at most {MAX_SCHEMA_BYTES} here")
        if (reason := too_costly(schema)) is not None:
            raise _refused(reason)
        tokens = self._load()
        self._check_characters(tokens, json.dumps(schema, ensure_ascii=False))
        # An override, because a schema may have settings of its own in "x-guidance".
        overrides: Any = FORM | {"lenient": False}
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=overrides)
        except (ValueError, RecursionError) as error:
            raise _refused(one_line(error)) from None
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(tokens, grammar, log_level=0, limits=limits)
        compiled = JsonGrammar(matcher, self._eos_ids)
        try:
            compiled.copy().mask(torch.zeros(len(self._tokenizer)))
        except GrammarError as error:
            raise _refused(one_line(error)) from None
        return compiled

    def _load(self) -> LLTokenizer:
        with self._loading:
            if self._tokens is None:
                self._tokens = _load_tokens(self._tokenizer)
            return self._tokens

    def _check_characters(self, tokens: LLTokenizer, schema: str) -> None:
        """Raise PromptError if the model cannot write JSON: one of ordinary text often cannot."""
        others = (char for char in schema if char not in JSON_CHARACTERS and not char.isspace())
        for char in dict.fromkeys([*JSON_CHARACTERS, *others]):
            if tokens.decode_bytes(tokens.greedy_tokenize(char)) != char.encode():
                raise _refused(f"this model cannot write {char!r} (U+{ord(char):04X})")


class JsonGrammar:
    """How far one text has followed the schema."""

    def __init__(self, matcher: LLMatcher, eos_ids: frozenset[int]) -> None:
        self._matcher = matcher
        self._eos_ids = eos_ids

    def copy(self) -> "JsonGrammar":
        """The same state, for another text."""
        return JsonGrammar(self._matcher.deep_copy(), self._eos_ids)

    def mask(self, logits: Tensor) -> None:
        """Set `logits` [vocabulary] to -inf where a token cannot come next, in place.

        Raises GrammarError when none can, or when finding out takes too much work.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(bits, count=logits.shape[-1], bitorder="little").astype(bool)
        if self._matcher.is_accepting():
            allowed[[number for number in self._eos_ids if number < len(allowed)]] = True
        if not allowed.any():
            raise GrammarError("no token of this model can continue JSON of this schema")
        logits[torch.from_numpy(~allowed).to(logits.device)] = -torch.inf

    def accept(self, token: int) -> bool:
        """Take the next token; returns whether the JSON is complete. Raises GrammarError."""
        if token in self._eos_ids:
            return True
        self._matcher.consume_token(token)
        self._check()
        # A model without a token for the end of a text could never end a number.
        return self._matcher.is_stopped() or (not self._eos_ids and self._matcher.is_accepting())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(one_line(self._matcher.get_error()))


def _refused(reason: str) -> PromptError:
    return PromptError(f"response_format: {reason}", "invalid_schema", "response_format")


def _load_tokens(tokenizer: Any) -> LLTokenizer:
    """Raises PromptError for a kind of tokenizer that is not supported."""
    text = tokenizer.backend_tokenizer.to_str()
    backend = Tokenizer.from_str(text)
    backend.no_truncation()
    backend.no_padding()
    backend.add_special_tokens([AddedToken(END)])
    try:
        # llguidance doesn't know tokens that are plain text, such as those of characters.
        if (json.loads(text)["decoder"] or {"type": "Fuse"})["type"] == "Fuse":
            return LLTokenizer(TokenizerWrapper(_PlainTokens(backend)))
        return LLTokenizer(backend.to_str(), eos_token=backend.token_to_id(END))
    except ValueError as error:
        raise _refused(f"not with this model's tokenizer: {one_line(error)}") from None


class _PlainTokens:
    """A tokenizer whose tokens are pieces of the text, in the form that llguidance expects."""

    bos_token_id = None

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        vocabulary = backend.get_vocab()
        self.eos_token_id = backend.token_to_id(END)
        self.tokens: Sequence[bytes] = [
            (backend.id_to_token(number) or "").encode()
            for number in range(max(vocabulary.values()) + 1)
        ]
        added = backend.get_added_tokens_decoder().items()
        self.special_token_ids = [number for number, token in added if token.special]

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids
