"""OpenAI's API: the JSON of responses and of stream events."""

import codecs
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainyard_serving.generate.engine import Chunk, FinishReason, JsonDict, TokenLogprob

if TYPE_CHECKING:  # importing transformers takes seconds, and the server must answer before that
    from trainyard_serving.generate.vocabulary import Vocabulary

# Entries of a list that are encoded at a time.
PIECE = 64


def encode_in_pieces(value: Any, depth: int = 4) -> bytes:
    """The JSON of a response with many log-probabilities, for a thread beside the event loop.

    json.dumps does not let another thread run before it returns, which can take seconds.

    Args:
        depth: of the lists to encode in pieces: response, choices, choice, log-probabilities.
    """
    if isinstance(value, dict) and depth:
        items = (_json(key) + b":" + encode_in_pieces(value[key], depth - 1) for key in value)
        return b"{" + b",".join(items) + b"}"
    if isinstance(value, list) and depth:
        return b"[" + b",".join(encode_in_pieces(one, depth - 1) for one in value) + b"]"
    if isinstance(value, list):
        pieces = (value[first : first + PIECE] for first in range(0, len(value), PIECE))
        return b"[" + b",".join(_json(piece)[1:-1] for piece in pieces) + b"]"
    return _json(value)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


@dataclass
class GeneratedText:
    """The chunks of a text so far."""

    text: str = ""
    finish_reason: FinishReason | None = None
    num_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of the prompt, then of the text

    def add(self, chunk: Chunk) -> None:
        self.text += chunk.text
        self.finish_reason = chunk.finish_reason
        self.num_tokens += chunk.num_tokens
        self.logprobs += chunk.logprobs

    @property
    def mean_logprob(self) -> float:
        """Of the generated tokens, whose log-probabilities must be known."""
        generated = self.logprobs[len(self.logprobs) - self.num_tokens :]
        return sum(one.logprob or 0.0 for one in generated) / max(1, self.num_tokens)


def best_texts(
    texts: Sequence[GeneratedText], num_candidates: int, num_best: int
) -> list[GeneratedText]:
    """The `num_best` of each prompt's candidates with the highest log-probability per token."""
    if num_candidates == num_best:
        return list(texts)
    best = []
    for first in range(0, len(texts), num_candidates):
        candidates = texts[first : first + num_candidates]
        best += sorted(candidates, key=lambda text: -text.mean_logprob)[:num_best]
    return best


class ResponseJson(ABC):
    """Builds the JSON of a response, or of the events of a stream."""

    def __init__(
        self,
        identifier: str,
        model: str,
        num_prompt_tokens: int,
        num_choices: int,
        vocabulary: "Vocabulary | None" = None,
    ) -> None:
        """
        Args:
            num_choices: texts in the response.
            vocabulary: of the tokens whose log-probabilities are reported; None reports none.
        """
        self._head = {"id": identifier, "created": int(time.time()), "model": model}
        self._num_prompt_tokens = num_prompt_tokens
        self._num_completion_tokens = 0
        self._vocabulary = vocabulary
        self.num_choices = num_choices

    def count(self, chunk: Chunk) -> None:
        """Add a chunk to the usage."""
        self._num_completion_tokens += chunk.num_tokens

    def _usage(self) -> JsonDict:
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_completion_tokens,
            "total_tokens": self._num_prompt_tokens + self._num_completion_tokens,
        }

    @abstractmethod
    def first_events(self) -> list[JsonDict]:
        """The events of a stream before the first generated text."""

    @abstractmethod
    def event(self, chunk: Chunk) -> JsonDict:
        """The event of a chunk."""

    @abstractmethod
    def usage_event(self) -> JsonDict:
        """The last event if the request has stream_options.include_usage."""

    @abstractmethod
    def response(self, texts: Sequence[GeneratedText]) -> JsonDict:
        """The response to a request that does not stream."""


class CompletionJson(ResponseJson):
    """Responses of /v1/completions; the texts begin with the prompts in `echoed`."""

    def __init__(
        self,
        identifier: str,
        model: str,
        num_prompt_tokens: int,
        num_choices: int,
        vocabulary: "Vocabulary | None" = None,
        echoed: Sequence[str] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        """
        Args:
            echoed: the prompts, one for each choice; or none of them.
            skip_special_tokens: whether the texts leave special tokens out.
        """
        super().__init__(identifier, model, num_prompt_tokens, num_choices, vocabulary)
        self._head["object"] = "text_completion"
        self._unsent = dict(enumerate(echoed))  # prompts that no choice has begun with
        self._logprobs = [
            _TextLogprobs(vocabulary, bool(echoed), skip_special_tokens)
            for _ in range(num_choices)
            if vocabulary
        ]

    def first_events(self) -> list[JsonDict]:
        return []

    def event(self, chunk: Chunk) -> JsonDict:
        choice = self._choice(chunk.index, chunk.text, chunk.finish_reason, chunk.logprobs)
        return self._head | {"choices": [choice]}

    def usage_event(self) -> JsonDict:
        return self._head | {"choices": [], "usage": self._usage()}

    def response(self, texts: Sequence[GeneratedText]) -> JsonDict:
        choices = [
            self._choice(index, one.text, one.finish_reason, one.logprobs)
            for index, one in enumerate(texts)
        ]
        return self._head | {"choices": choices, "usage": self._usage()}

    def _choice(
        self,
        index: int,
        text: str,
        finish_reason: FinishReason | None,
        logprobs: Sequence[TokenLogprob],
    ) -> JsonDict:
        return {
            "text": self._unsent.pop(index, "") + text,
            "index": index,
            "logprobs": self._logprobs[index].json(logprobs) if self._logprobs else None,
            "finish_reason": finish_reason,
        }


class _TextLogprobs:
    """The log-probabilities of one choice of /v1/completions, piece by piece."""

    def __init__(self, vocabulary: "Vocabulary", echo: bool, skip_special_tokens: bool) -> None:
        self._vocabulary = vocabulary
        self._skip_special_tokens = skip_special_tokens
        self._at_start = echo  # whether the next token begins the text
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def json(self, tokens: Sequence[TokenLogprob]) -> JsonDict:
        return {
            "tokens": [self._vocabulary[one.token].text for one in tokens],
            "token_logprobs": [one.logprob for one in tokens],
            "top_logprobs": [self._top(one) for one in tokens],
            "text_offset": [self._next_offset(one.token) for one in tokens],
        }

    def _top(self, one: TokenLogprob) -> dict[str, float] | None:
        """The most likely tokens and this one. Of tokens with the same text the best is shown."""
        if one.logprob is None:
            return None
        shown: dict[str, float] = {}
        for token, logprob in (*one.top, (one.token, one.logprob)):
            shown.setdefault(self._vocabulary[token].text, logprob)
        return shown

    def _next_offset(self, token: int) -> int:
        """Where `token` begins in the choice's text, in characters."""
        offset = self._offset
        if not (self._skip_special_tokens and self._vocabulary.is_special(token)):
            shown = self._vocabulary[token]
            content = shown.initial if self._at_start else shown.content
            self._offset += len(self._decoder.decode(content))
            self._at_start = False
        return offset


class ChatJson(ResponseJson):
    """Responses of /v1/chat/completions."""

    def first_events(self) -> list[JsonDict]:
        delta = {"role": "assistant", "content": ""}
        return [self._event(index, delta, None, None) for index in range(self.num_choices)]

    def event(self, chunk: Chunk) -> JsonDict:
        delta = {"content": chunk.text} if chunk.text else {}
        return self._event(
            chunk.index, delta, self._logprobs_json(chunk.logprobs), chunk.finish_reason
        )

    def usage_event(self) -> JsonDict:
        return self._chunk_head() | {"choices": [], "usage": self._usage()}

    def response(self, texts: Sequence[GeneratedText]) -> JsonDict:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": one.text},
                "logprobs": self._logprobs_json(one.logprobs),
                "finish_reason": one.finish_reason,
            }
            for index, one in enumerate(texts)
        ]
        head = self._head | {"object": "chat.completion"}
        return head | {"choices": choices, "usage": self._usage()}

    def _event(
        self,
        index: int,
        delta: JsonDict,
        logprobs: JsonDict | None,
        finish_reason: FinishReason | None,
    ) -> JsonDict:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return self._chunk_head() | {"choices": [choice]}

    def _logprobs_json(self, tokens: Sequence[TokenLogprob]) -> JsonDict | None:
        vocabulary = self._vocabulary
        if vocabulary is None:
            return None
        content = [
            _chat_token(vocabulary, one.token, one.logprob)
            | {"top_logprobs": [_chat_token(vocabulary, *best) for best in one.top]}
            for one in tokens
        ]
        return {"content": content, "refusal": None}

    def _chunk_head(self) -> JsonDict:
        return self._head | {"object": "chat.completion.chunk"}


def _chat_token(vocabulary: "Vocabulary", token: int, logprob: float | None) -> JsonDict:
    shown = vocabulary[token]
    return {"token": shown.text, "logprob": logprob, "bytes": list(shown.content)}
