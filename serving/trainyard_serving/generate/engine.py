"""The interface between the routes and an engine, and the values that pass through it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from trainyard_serving.errors import ApiError

if TYPE_CHECKING:
    from torch import Tensor

    from trainyard_serving.generate.openai_api import ChatRequest, CompletionRequest

JsonDict = dict[str, Any]
FinishReason = Literal["stop", "length"]


class GrammarError(Exception):
    """A text that began to follow its grammar cannot go on; the message is one line."""


class Grammar(Protocol):
    """What a text may be: restricts the next token, step by step."""

    def copy(self) -> "Grammar":
        """The same state, for another text."""

    def mask(self, logits: "Tensor") -> None:
        """Set `logits` [vocabulary] to -inf where a token cannot come next, in place."""

    def accept(self, token: int) -> bool:
        """Take the next token; returns whether the text is complete."""


@dataclass(frozen=True)
class SamplingOptions:
    """How to select tokens, when to stop, and what to report of them."""

    max_tokens: int = 16  # 0 only reads the prompt
    min_tokens: int = 0  # before these nothing but max_tokens ends the text
    temperature: float = 1.0  # 0 selects the most likely token
    top_p: float = 1.0  # the smallest set of tokens with this total probability
    top_k: int = 0  # the most likely tokens; 0 leaves all
    min_p: float = 0.0  # tokens with this share of the most likely one's probability
    frequency_penalty: float = 0.0  # subtracted for each time that a token was generated
    presence_penalty: float = 0.0  # subtracted once a token was generated
    repetition_penalty: float = 1.0  # divides the logits of tokens of the prompt and the text
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added, by token
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    include_stop: bool = False  # whether the text contains what ended it
    skip_special_tokens: bool = True
    logprobs: int | None = None  # how many of the most likely tokens to report; None reports none
    prompt_logprobs: bool = False  # whether to report the prompt's tokens, too
    grammar: Grammar | None = None  # in its first state; each text has a copy


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability under the model, before temperature, penalties and bias.

    Attributes:
        logprob: None for the first token of a prompt, which nothing precedes.
        top: the most likely tokens at its position with their log-probabilities, best first.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """The next piece of the text generated for one prompt; the last one has a finish reason."""

    index: int  # of the text in its request
    text: str
    num_tokens: int  # generated since the last chunk
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()  # of the prompt, then of the generated tokens


@dataclass(frozen=True)
class ModelCard:
    """The model that an engine serves.

    Attributes:
        name: by which clients address it.
        created: as a Unix time, in seconds.
        context_length: in tokens; None when it is unknown.
        step, digest: of the run's model; None when its files are unknown.
    """

    name: str
    created: int
    context_length: int | None
    has_chat_template: bool
    step: int | None
    digest: str | None


class PromptError(ApiError):
    """The model cannot read this prompt; the message says what to change."""

    def __init__(self, message: str, code: str, param: str = "prompt") -> None:
        super().__init__(400, message, code, param)


class ContextLengthError(PromptError):
    """The prompt does not fit the model's context.

    By the words "this model's maximum context length is" LiteLLM recognises it, and raises its
    ContextWindowExceededError.
    """

    def __init__(self, num_tokens: int | str, context_length: int, param: str = "prompt") -> None:
        super().__init__(
            f"the prompt has {num_tokens} tokens, but this model's maximum context length is"
            f" {context_length} tokens: shorten it (max_tokens is not limited by this)",
            "context_length_exceeded",
            param,
        )


class Answer(Protocol):
    """The answer to one request, in OpenAI's format. Either method may be called, once."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the response."""

    async def response(self) -> JsonDict:
        """The response to a request that does not stream. Raises ApiError."""

    def events(self) -> AsyncIterator[JsonDict]:
        """The events of a stream, without the final [DONE]. Raises ApiError."""


class Engine(Protocol):
    """Generates text. All methods raise ApiError, with status 503 while there is no model."""

    def model_card(self) -> ModelCard:
        """The model that answers now."""

    async def complete(self, request: "CompletionRequest", resources: AsyncExitStack) -> Answer:
        """Begin to answer. `resources` receives what must be released once the answer ends."""

    async def chat(self, request: "ChatRequest", resources: AsyncExitStack) -> Answer:
        """As `complete`, for a conversation."""
