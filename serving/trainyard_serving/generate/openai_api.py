"""The OpenAI completions protocol: what a request may say, and the form of every answer."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeGuard

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
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "suffix": (None, ""),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
}


def _texts(value: object, what: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not _are_texts(texts):
        raise ValueError(f"{what} must be a string or a list of strings")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{what} is not valid Unicode (a lone surrogate)") from None
    return texts


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


class CompletionRequest(BaseModel):
    """Body of POST /v1/completions. Unknown fields are ignored, as OpenAI's clients expect."""

    model_config = ConfigDict(strict=True)

    prompt: Annotated[list[str], BeforeValidator(_prompts, json_schema_input_type=Texts)]
    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    stop: Annotated[list[str], BeforeValidator(_stops, json_schema_input_type=Texts | None)] = []
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: object) -> object:
        if isinstance(data, dict):
            for name, harmless in UNSUPPORTED.items():
                if data.get(name) not in harmless:
                    raise ValueError(f"{name} is not supported: leave it out")
        return data

    def sampling(self) -> Sampling:
        """How to pick tokens; OpenAI's defaults where the request is silent."""
        default = Sampling()
        return Sampling(
            max_tokens=default.max_tokens if self.max_tokens is None else self.max_tokens,
            temperature=default.temperature if self.temperature is None else self.temperature,
            top_p=default.top_p if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=tuple(self.stop),
        )


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


class Answer:
    """Builds one request's answers: the whole completion, or the chunks of a stream."""

    def __init__(self, identifier: str, created: int, model: str, num_prompt_tokens: int) -> None:
        self._head = {
            "id": identifier,
            "object": "text_completion",
            "created": created,
            "model": model,
        }
        self._num_prompt_tokens = num_prompt_tokens
        self._num_completion_tokens = 0

    def count(self, chunk: Chunk) -> None:
        """Add a chunk to the usage."""
        self._num_completion_tokens += chunk.num_tokens

    def usage(self) -> JsonDict:
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_completion_tokens,
            "total_tokens": self._num_prompt_tokens + self._num_completion_tokens,
        }

    def piece(self, index: int, text: str, finish_reason: str | None = None) -> JsonDict:
        """One event of a stream."""
        return self._head | {"choices": [_choice(index, text, finish_reason)]}

    def usage_event(self) -> JsonDict:
        """The stream's last event before [DONE], for stream_options.include_usage."""
        return self._head | {"choices": [], "usage": self.usage()}

    def whole(self, texts: Sequence[str], reasons: Sequence[str | None]) -> JsonDict:
        """The answer to a request that does not stream."""
        pairs = zip(texts, reasons, strict=True)
        choices = [_choice(index, text, reason) for index, (text, reason) in enumerate(pairs)]
        return self._head | {"choices": choices, "usage": self.usage()}


def _choice(index: int, text: str, finish_reason: str | None) -> JsonDict:
    return {"text": text, "index": index, "logprobs": None, "finish_reason": finish_reason}
