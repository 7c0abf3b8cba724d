"""What requests of OpenAI's API have in common, whichever server they are for."""

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Fields without influence on the answer: whatever their value, they are accepted.
HARMLESS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
# Further fields, with the values that have no effect besides null; others are refused.
HarmlessValues = Mapping[str, tuple[object, ...]]
HARMLESS_VALUES: HarmlessValues = {
    "add_special_tokens": (True,),
    "detokenize": (True,),
    "early_stopping": (False,),
    "length_penalty": (1,),
    "priority": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "use_beam_search": (False,),
}


class StreamOptions(BaseModel):
    """Options of a streamed response."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class StrictRequest(BaseModel):
    """A request whose unknown fields are refused by name; null is the default of each known one.

    Attributes:
        ignored: further fields without influence on the answer: whatever their value.
        harmless: further fields, with the values that have no effect besides null.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    ignored: ClassVar[frozenset[str]] = frozenset()
    harmless: ClassVar[HarmlessValues] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_harmless(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {
            name: value
            for name, value in data.items()
            if name in cls.model_fields
            or not (value is None or name in cls.ignored or value in cls.harmless.get(name, ()))
        }


class OpenAIRequest(StrictRequest):
    """The fields common to the requests for texts."""

    ignored: ClassVar[frozenset[str]] = HARMLESS
    harmless: ClassVar[HarmlessValues] = HARMLESS_VALUES

    model: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with an event that has the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class OpenAIChatRequest(OpenAIRequest):
    """The fields common to chats."""

    harmless: ClassVar[HarmlessValues] = {
        **HARMLESS_VALUES,
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "add_generation_prompt": (True,),
        "add_special_tokens": (False,),
        "continue_final_message": (False,),
        "chat_template_kwargs": ({},),
        "echo": (False,),
    }

    max_completion_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        newer, older = self.max_completion_tokens, self.max_tokens
        if None not in (newer, older) and newer != older:
            raise ValueError("max_tokens and max_completion_tokens differ: give one of them")
        return self

    @property
    def limit(self) -> int | None:
        """The largest number of tokens to generate."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def limit_field(self) -> str:
        """The field that `limit` comes from."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
