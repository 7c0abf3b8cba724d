"""OpenAI's API: validated requests, and the JSON of responses, stream events and errors."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, TypeGuard

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from trainyard_serving.errors import ApiError
from trainyard_serving.generate.engine import Chunk, JsonDict, SamplingOptions
from trainyard_serving.generate.messages import Message, Tool, valid_text
from trainyard_serving.generate.response_format import ResponseFormat

Texts = str | list[str]

DEFAULT_MAX_TOKENS = 16  # of completions, as in OpenAI's API
MAX_STOPS = 4
# Fields that change the answer and are not supported here, with the values that have no effect.
# Other values are refused: ignoring them would give another answer than the one requested.
Unsupported = Mapping[str, tuple[object, ...]]
UNSUPPORTED: Unsupported = {
    "n": (None, 1),
    "logprobs": (None, False),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
}


def _texts(value: object, field: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not _are_texts(texts):
        raise ValueError(f"{field} must be a string or a list of strings")
    return [valid_text(text, field) for text in texts]


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _prompts(value: object) -> list[str]:
    prompts = _texts(value, "prompt")
    if not prompts:
        raise ValueError("prompt must not be an empty list")
    return prompts


def _stops(value: object) -> list[str]:
    stops = [] if value is None else _texts(value, "stop")
    if len(stops) > MAX_STOPS or "" in stops:
        raise ValueError(f"stop takes at most {MAX_STOPS} strings, none of them empty")
    return stops


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """The fields common to both endpoints. Unknown fields are ignored, as OpenAI's clients
    expect."""

    model_config = ConfigDict(strict=True)
    unsupported: ClassVar[Unsupported] = UNSUPPORTED

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    stop: Annotated[list[str], BeforeValidator(_stops, json_schema_input_type=Texts | None)] = []
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        if isinstance(data, dict):
            for name, harmless in cls.unsupported.items():
                if data.get(name) not in harmless:
                    raise ValueError(f"{name} is not supported: leave it out")
        return data

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with an event that has the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling_options(self, max_tokens: int) -> SamplingOptions:
        """The request's options, with OpenAI's defaults."""
        return SamplingOptions(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=tuple(self.stop),
        )


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    unsupported: ClassVar[Unsupported] = {**UNSUPPORTED, "best_of": (None, 1), "suffix": (None, "")}

    prompt: Annotated[list[str], BeforeValidator(_prompts, json_schema_input_type=Texts)]
    echo: bool | None = None


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    unsupported: ClassVar[Unsupported] = {
        **UNSUPPORTED,
        "top_logprobs": (None,),
        "tool_choice": (None, "none", "auto"),
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "modalities": (None, ["text"]),
        "audio": (None,),
    }

    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = None
    tool_choice: str | None = None
    response_format: ResponseFormat | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatRequest":
        newer, older = self.max_completion_tokens, self.max_tokens
        if None not in (newer, older) and newer != older:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        return self

    def tools_for_template(self) -> list[JsonDict] | None:
        """The tools that the model may call, as chat templates expect them."""
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude_none=True) for tool in self.tools]

    @property
    def limit(self) -> int | None:
        """The largest number of tokens to generate."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def limit_field(self) -> str:
        """The field that `limit` comes from."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"


class ResponseJson(ABC):
    """Builds the JSON of a response, or of the events of a stream."""

    def __init__(
        self, identifier: str, model: str, num_prompt_tokens: int, num_choices: int
    ) -> None:
        self._head = {"id": identifier, "created": int(time.time()), "model": model}
        self._num_prompt_tokens = num_prompt_tokens
        self._num_completion_tokens = 0
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
    def response(self, texts: Sequence[str], reasons: Sequence[str | None]) -> JsonDict:
        """The response to a request that does not stream."""


class CompletionJson(ResponseJson):
    """Responses of /v1/completions; the texts begin with the prompts in `echoed`."""

    def __init__(
        self,
        identifier: str,
        model: str,
        num_prompt_tokens: int,
        num_choices: int,
        echoed: Sequence[str] = (),
    ) -> None:
        super().__init__(identifier, model, num_prompt_tokens, num_choices)
        self._head["object"] = "text_completion"
        self._echoed = echoed

    def first_events(self) -> list[JsonDict]:
        return [self._event(index, prompt, None) for index, prompt in enumerate(self._echoed)]

    def event(self, chunk: Chunk) -> JsonDict:
        return self._event(chunk.index, chunk.text, chunk.finish_reason)

    def usage_event(self) -> JsonDict:
        return self._head | {"choices": [], "usage": self._usage()}

    def response(self, texts: Sequence[str], reasons: Sequence[str | None]) -> JsonDict:
        prompts = self._echoed or [""] * len(texts)
        choices = [
            _text_choice(index, prompt + text, reason)
            for index, (prompt, text, reason) in enumerate(
                zip(prompts, texts, reasons, strict=True)
            )
        ]
        return self._head | {"choices": choices, "usage": self._usage()}

    def _event(self, index: int, text: str, finish_reason: str | None) -> JsonDict:
        return self._head | {"choices": [_text_choice(index, text, finish_reason)]}


def _text_choice(index: int, text: str, finish_reason: str | None) -> JsonDict:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish_reason}


class ChatJson(ResponseJson):
    """Responses of /v1/chat/completions; there is one choice."""

    def first_events(self) -> list[JsonDict]:
        return [self._event({"role": "assistant", "content": ""}, None)]

    def event(self, chunk: Chunk) -> JsonDict:
        return self._event({"content": chunk.text} if chunk.text else {}, chunk.finish_reason)

    def usage_event(self) -> JsonDict:
        return self._chunk_head() | {"choices": [], "usage": self._usage()}

    def response(self, texts: Sequence[str], reasons: Sequence[str | None]) -> JsonDict:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        head = self._head | {"object": "chat.completion"}
        return head | {"choices": choices, "usage": self._usage()}

    def _event(self, delta: JsonDict, finish_reason: str | None) -> JsonDict:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._chunk_head() | {"choices": [choice]}

    def _chunk_head(self) -> JsonDict:
        return self._head | {"object": "chat.completion.chunk"}


def openai_error_response(error: ApiError) -> JSONResponse:
    """An answer other than 200, in OpenAI's form."""
    kinds = {401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable"}
    default = "invalid_request_error" if error.status_code < 500 else "server_error"
    content = {
        "message": error.detail,
        "type": kinds.get(error.status_code, default),
        "param": error.param,
        "code": error.code,
    }
    return JSONResponse({"error": content}, error.status_code, headers=error.headers)


def invalid_request(invalid: RequestValidationError) -> ApiError:
    """The first error in a body, as a 400."""
    error = invalid.errors()[0]
    where = [str(part) for part in error["loc"] if part != "body"]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {error['ctx']['error']}")
    param = where[0] if where else None
    if param and not message.startswith(param):
        message = f"{'.'.join(where)}: {message}"
    return ApiError(400, message, "invalid_value", param)
