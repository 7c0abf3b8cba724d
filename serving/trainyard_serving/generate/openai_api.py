"""OpenAI's API: validated requests, and the JSON of errors.

A field that is unknown here is refused by name: ignoring it could give another answer than the one
that was requested. openai_request.py lists the exceptions.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Self, TypeGuard

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from trainyard_serving.errors import ApiError
from trainyard_serving.generate.engine import JsonDict, SamplingOptions
from trainyard_serving.generate.messages import Message, Tool, valid_text
from trainyard_serving.generate.openai_request import (
    HARMLESS_VALUES,
    HarmlessValues,
    OpenAIChatRequest,
    OpenAIRequest,
)
from trainyard_serving.generate.response_format import ResponseFormat

Texts = str | list[str]
Tokens = list[int]
Prompts = Texts | Tokens | list[Tokens]

DEFAULT_MAX_TOKENS = 16  # of completions, as in OpenAI's API
MAX_STOPS = 16  # lm-evaluation-harness sends more than the 4 of OpenAI's API
MAX_TOP = 20  # of the most likely tokens at a position, as in OpenAI's API and vLLM's default
MAX_CHOICES = 128  # of a prompt, as in OpenAI's API
MAX_TOKEN_IDS = 1024  # in a list of tokens that is not a prompt


def refusal(param: str, message: str) -> PydanticCustomError:
    """An error of a validator of the whole request, which names the field that is wrong."""
    return PydanticCustomError("refused", "{message}", {"message": message, "param": param})


def _texts(value: object, field: str, others: str = "") -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not _are_texts(texts):
        raise ValueError(f"{field} must be a string or a list of strings{others}")
    return [valid_text(text, field) for text in texts]


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def texts_or_tokens(value: object, field: str = "prompt") -> list[str] | list[Tokens]:
    """One or several texts, or one or several lists of token ids, as a list. Raises ValueError."""
    if _are_tokens(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        if all(_are_tokens(item) for item in value):
            return value
        raise ValueError(f"{field}: a list of lists must hold token ids, and each at least one")
    texts = _texts(value, field, " or of token ids")
    if not texts:
        raise ValueError(f"{field} must not be an empty list")
    return texts


def _are_tokens(value: object) -> TypeGuard[Tokens]:
    """Whether these are token ids, at least one."""
    if not isinstance(value, list) or not value:
        return False
    return all(type(item) is int and item >= 0 for item in value)


def _stops(value: object) -> list[str]:
    stops = [] if value is None else _texts(value, "stop")
    if len(stops) > MAX_STOPS or "" in stops:
        raise ValueError(f"stop takes at most {MAX_STOPS} strings, none of them empty")
    return stops


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIdKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]  # of a JSON object
Stops = Annotated[list[str], BeforeValidator(_stops, json_schema_input_type=Texts | None)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class GenerationRequest(OpenAIRequest):
    """The fields common to both endpoints; null is the default of each."""

    min_tokens: int | None = Field(default=None, ge=0)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=2**31 - 1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    logit_bias: dict[TokenIdKey, Bias] | None = Field(default=None, max_length=MAX_TOKEN_IDS)
    stop: Annotated[list[str], BeforeValidator(_stops, json_schema_input_type=Texts | None)] = (
        Field(default_factory=list)
    )
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=MAX_TOKEN_IDS)
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _min_within_limit(self) -> Self:
        if self.limit is not None and (self.min_tokens or 0) > self.limit:
            raise refusal("min_tokens", f"min_tokens: at most {self.limit}, the limit of the text")
        return self

    @property
    def limit(self) -> int | None:
        """The largest number of tokens to generate."""
        return self.max_tokens

    @property
    def num_top(self) -> int | None:
        """How many of the most likely tokens to report; None reports no log-probabilities."""
        return None

    @property
    def field_of_logprobs(self) -> tuple[str, str]:
        """The field because of which log-probabilities are computed, and how to have fewer."""
        raise NotImplementedError

    @property
    def token_ids(self) -> Mapping[str, Sequence[int]]:
        """Tokens outside the prompt that the vocabulary must have, by their field."""
        return {
            "logit_bias": [int(token) for token in self.logit_bias or {}],
            "stop_token_ids": self.stop_token_ids or [],
        }

    def sampling_options(self, max_tokens: int) -> SamplingOptions:
        """The request's options, with OpenAI's defaults."""
        return SamplingOptions(
            max_tokens=max_tokens,
            min_tokens=min(self.min_tokens or 0, max_tokens),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            seed=self.seed,
            stop=tuple(self.stop),
            stop_token_ids=frozenset(self.stop_token_ids or []),
            ignore_eos=bool(self.ignore_eos),
            include_stop=bool(self.include_stop_str_in_output),
            skip_special_tokens=self.skip_special_tokens is not False,
            logprobs=self.num_top,
        )


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    harmless: ClassVar[HarmlessValues] = {**HARMLESS_VALUES, "suffix": ("",)}

    prompt: Annotated[
        list[str] | list[Tokens], BeforeValidator(texts_or_tokens, json_schema_input_type=Prompts)
    ]
    max_tokens: int | None = Field(default=None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)
    best_of: int | None = Field(default=None, ge=1, le=MAX_CHOICES)

    @model_validator(mode="after")
    def _consistent(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise refusal("max_tokens", "max_tokens: 0 generates nothing: it needs echo: true")
        if self.candidates < (self.n or 1):
            raise refusal("best_of", "best_of must not be below n")
        if self.stream and self.candidates > (self.n or 1):
            message = "best_of above n cannot be streamed: the best is known at the end"
            raise refusal("best_of", message)
        return self

    @property
    def limit(self) -> int:
        """The largest number of tokens to generate."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def candidates(self) -> int:
        """Texts to generate for each prompt, of which the n best are returned."""
        return self.best_of or self.n or 1

    @property
    def num_top(self) -> int | None:
        return self.logprobs

    @property
    def field_of_logprobs(self) -> tuple[str, str]:
        if self.logprobs is None:  # they decide which texts are the best
            return "best_of", "send fewer prompts, or a smaller max_tokens or best_of"
        return "logprobs", "send fewer prompts, or a smaller max_tokens, n, best_of or logprobs"


class ChatRequest(OpenAIChatRequest, GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = None
    tool_choice: str | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _model_chooses(cls, value: object) -> object:
        if value not in (None, "auto", "none"):
            raise refusal("tool_choice", "tool_choice is not supported: use auto or none")
        return value

    @model_validator(mode="after")
    def _top_of_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise refusal("top_logprobs", "top_logprobs needs logprobs: true")
        return self

    @property
    def num_top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def field_of_logprobs(self) -> tuple[str, str]:
        field = "top_logprobs" if self.top_logprobs else "logprobs"
        return field, "send a smaller max_completion_tokens, n or top_logprobs"

    def tools_for_template(self) -> list[JsonDict] | None:
        """The tools that the model may call, as chat templates expect them."""
        if not self.tools or self.tool_choice == "none":
            return None
        return [tool.model_dump(exclude_none=True) for tool in self.tools]


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
    if error["type"] == "extra_forbidden":
        name = ".".join(where)
        return ApiError(
            400, f"{name} is not supported: leave it out", "unsupported_parameter", where[0]
        )
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {error['ctx']['error']}")
    param = where[0] if where else error.get("ctx", {}).get("param")
    if param and not message.startswith(param):
        message = f"{'.'.join(where)}: {message}"
    return ApiError(400, message, "invalid_value", param)
