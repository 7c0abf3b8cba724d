"""The interface between the routes and an engine, and the values that pass through it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from trainyard_serving.errors import ApiError

if TYPE_CHECKING:
    from torch import Tensor

    from trainyard_serving.generate.openai_api import ChatRequest, CompletionRequest

JsonDict = dict[str, Any]
FinishReason = Literal["stop", "length"]


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
    """How to select tokens and when to stop."""

    max_tokens: int = 16
    temperature: float = 1.0  # 0 selects the most likely token
    top_p: float = 1.0  # the smallest set of tokens with this total probability
    seed: int | None = None
    stop: tuple[str, ...] = ()
    grammar: Grammar | None = None  # in its first state; each text has a copy


@dataclass(frozen=True)
class Chunk:
    """The next piece of the text generated for one prompt; the last one has a finish reason."""

    index: int  # of the prompt in its request
    text: str
    num_tokens: int  # generated since the last chunk
    finish_reason: FinishReason | None = None


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
