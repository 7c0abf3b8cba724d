"""OpenAI's protocol: what its endpoints share, and the requests and answers of /v1/completions."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeGuard

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from trainyard_serving.errors import ApiError
from trainyard_serving.generate.completion import Chunk, Sampling

JsonDict = dict[str, Any]
Texts = str | list[str]

MAX_STOPS = 4
# Fields of the protocol that change the answer and are not offered here, with the values that
# ask for nothing. Ignoring them would answer another question than the one asked.
Unsupported = Mapping[str, tuple[object, ...]]
UNSUPPORTED: Unsupported = {
    "n": (None, 1),
    "logprobs": (None, False),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
}


def valid_text(text: str, what: str) -> str:
    """`text`, if it can be encoded. Raises ValueError."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not valid Unicode (a lone surrogate)") from None
    return text


def _texts(value: object, what: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not _are_texts(texts):
        raise ValueError(f"{what} must be a string or a list of strings")
    return [valid_text(text, what) for text in texts]


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
    """Settings of a streamed answer."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False


class GenerationRequest(BaseModel):
    """What the bodies of all endpoints may say. Unknown fields are ignored, as OpenAI's clients
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
    def wants_usage(self) -> bool:
        """Whether a stream shall end with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_tokens: int) -> Sampling:
        """How to pick tokens; OpenAI's defaults where the request is silent."""
        return Sampling(
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


def openai_form(error: ApiError) -> JSONResponse:
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
    """The first thing wrong with a body, as a 400."""
    error = invalid.errors()[0]
    where = [str(part) for part in error["loc"] if part != "body"]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {error['ctx']['error']}")
    param = where[0] if where else None
    if param and not message.startswith(param):
        message = f"{'.'.join(where)}: {message}"
    return ApiError(400, message, "invalid_value", param)


class Answer(ABC):
    """Builds one request's answers: the whole one, or the events of a stream."""

    def __init__(
        self, identifier: str, created: int, model: str, num_prompt_tokens: int, num_choices: int
    ) -> None:
        self._head = {"id": identifier, "created": created, "model": model}
        self._num_prompt_tokens = num_prompt_tokens
        self._num_completion_tokens = 0
        self.num_choices = num_choices

    def count(self, chunk: Chunk) -> None:
        """Add a chunk to the usage."""
        self._num_completion_tokens += chunk.num_tokens

    def usage(self) -> JsonDict:
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_completion_tokens,
            "total_tokens": self._num_prompt_tokens + self._num_completion_tokens,
        }

    @abstractmethod
    def opening(self) -> Iterable[JsonDict]:
        """The events of a stream that come before any generated text."""

    @abstractmethod
    def piece(self, chunk: Chunk) -> JsonDict:
        """One event of a stream."""

    @abstractmethod
    def usage_event(self) -> JsonDict:
        """The stream's last event before [DONE], for stream_options.include_usage."""

    @abstractmethod
    def whole(self, texts: Sequence[str], reasons: Sequence[str | None]) -> JsonDict:
        """The answer to a request that does not stream."""


class CompletionAnswer(Answer):
    """The answers of /v1/completions; `echoed` holds the prompts that the texts begin with."""

    def __init__(
        self,
        identifier: str,
        created: int,
        model: str,
        num_prompt_tokens: int,
        num_choices: int,
        echoed: Sequence[str] = (),
    ) -> None:
        super().__init__(identifier, created, model, num_prompt_tokens, num_choices)
        self._head["object"] = "text_completion"
        self._echoed = echoed

    def opening(self) -> Iterable[JsonDict]:
        return [self._event(index, prompt, None) for index, prompt in enumerate(self._echoed)]

    def piece(self, chunk: Chunk) -> JsonDict:
        return self._event(chunk.index, chunk.text, chunk.finish_reason)

    def usage_event(self) -> JsonDict:
        return self._head | {"choices": [], "usage": self.usage()}

    def whole(self, texts: Sequence[str], reasons: Sequence[str | None]) -> JsonDict:
        prompts = self._echoed or [""] * len(texts)
        triples = zip(prompts, texts, reasons, strict=True)
        choices = [_choice(i, prompt + text, why) for i, (prompt, text, why) in enumerate(triples)]
        return self._head | {"choices": choices, "usage": self.usage()}

    def _event(self, index: int, text: str, finish_reason: str | None) -> JsonDict:
        return self._head | {"choices": [_choice(index, text, finish_reason)]}


def _choice(index: int, text: str, finish_reason: str | None) -> JsonDict:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish_reason}
